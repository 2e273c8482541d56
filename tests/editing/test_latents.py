"""The flow's map between images and latents, against its closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.spatial import geometric_slerp
from scipy.stats import norm

from betasigma.editing import Interpolation, Inversion, Request, decode, encode, interpolate, slerp
from betasigma.errors import UserError
from betasigma.oracles import GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import Ancestral
from betasigma.schedules import NoiseSchedule, geometric

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.15, 0.3])


def test_latents_of_a_mixture_on_the_line_are_its_quantiles(schedule: NoiseSchedule) -> None:
    """In one dimension the flow keeps the order of points, so it maps quantiles to quantiles."""
    oracle = GaussianMixture(WEIGHTS, MEANS[:, None], STDS[:, None, None] ** 2, schedule)

    def cdf(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        stds = np.sqrt(alpha**2 * STDS**2 + sigma**2)
        return (WEIGHTS * norm.cdf(np.asarray(x)[..., None], alpha * MEANS, stds)).sum(-1)

    x = np.linspace(-0.9, 1.2, 12)
    shares = cdf(schedule.alpha(schedule.t_min).item() * x, schedule.t_min)
    expected = [brentq(lambda z, p=p: cdf(z, 1.0) - p, -30, 30, xtol=1e-12) for p in shares]
    latent = encode(oracle, torch.tensor(x)[:, None], tolerance=1e-8)
    np.testing.assert_allclose(latent.x[:, 0].numpy(), expected, rtol=0, atol=1e-5)
    back = decode(oracle, latent.x, tolerance=1e-8)
    np.testing.assert_allclose(back.x[:, 0].numpy(), x, rtol=0, atol=1e-6)
    assert latent.nfe > 10


def test_latents_of_a_gaussian_are_scaled_along_its_axes(
    schedule: NoiseSchedule, gaussian: Callable, moments: Callable
) -> None:
    oracle = gaussian(schedule, (1, 2, 3))
    mean, covariance = moments(oracle)
    x = oracle.draw(Stream("images", 0, indices=range(5)))
    alpha, sigma = schedule.alpha, schedule.sigma
    low = schedule.t_min
    variances, axes = np.linalg.eigh(covariance.numpy())
    ends = [alpha(t).item() ** 2 * variances + sigma(t).item() ** 2 for t in (1.0, low)]
    scale = axes @ np.diag(np.sqrt(ends[0] / ends[1])) @ axes.T
    away = alpha(low).item() * (x.flatten(1) - mean).numpy()
    expected = alpha(1.0).item() * mean.numpy() + away @ scale.T
    latent = encode(oracle, x, tolerance=1e-8).x
    np.testing.assert_allclose(latent.flatten(1).numpy(), expected, rtol=0, atol=1e-6)


def test_slerp_is_scipy_s() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 6))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    shares = [0.0, 0.2, 0.5, 1.0]
    expected = geometric_slerp(a, b, shares)
    found = [slerp(torch.tensor(a)[None], torch.tensor(b)[None], u)[0].numpy() for u in shares]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_between_parallel_latents_the_way_is_straight() -> None:
    a = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)


@pytest.mark.slow
def test_interpolated_images_are_distributed_as_the_data(
    schedule: NoiseSchedule, gaussian: Callable, moments: Callable
) -> None:
    """Half-way between independent latents of many dimensions is another such latent, also where
    the mean of the data is far from 0.
    """
    oracle = gaussian(schedule, (1, 8, 8))
    mean, covariance = moments(oracle)
    alpha, sigma, n = schedule.alpha(1.0).item(), schedule.sigma(1.0).item(), 1500
    a, b = (oracle.draw(Stream("a", k, indices=range(n)), alpha, sigma) for k in (0, 1))
    found = interpolate(oracle, a, b, [0.5], tolerance=1e-4).x[:, 0].flatten(1)
    spread = covariance.diagonal().sqrt()
    assert ((found.mean(0) - mean) / spread).abs().max() < 4.5 / n**0.5
    # of a projection, since the sum over all would hide what is too narrow
    along = (found - mean) @ oracle.axes[0]
    ratio = along.var(0) / (oracle.variances[0] + (sigma_min(schedule)) ** 2)
    assert (ratio - 1).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.02


def sigma_min(schedule: NoiseSchedule) -> float:
    """The noise that is left on images of the flow, which ends there."""
    return schedule.ratio(schedule.t_min).item()


def test_an_inversion_comes_back_and_says_how_near(
    schedule: NoiseSchedule, gaussian: Callable
) -> None:
    oracle = gaussian(schedule, (1, 2, 2))
    images = oracle.draw(Stream("images", 0, indices=range(3))).float()
    errors = []
    for tolerance in (1e-2, 1e-6):
        found = Inversion(tolerance).apply(Request(oracle, Ancestral(), images, batch_size=2))
        assert found.x.shape == (3, 2, 1, 2, 2)
        torch.testing.assert_close(found.x[:, 0], images)
        (error,) = found.errors.values()
        # by hand, in units of the range [-1, 1]
        assert error == pytest.approx(
            (found.x[:, 1] - images).square().mean().sqrt().item() / 2, rel=1e-4
        )
        errors.append(error)
    assert errors[1] < 1e-5 < errors[0]
    assert found.latents is not None
    torch.testing.assert_close(
        found.latents, encode(oracle, images, tolerance=1e-6).x, atol=1e-5, rtol=0
    )


def test_a_path_begins_and_ends_at_its_images(schedule: NoiseSchedule, gaussian: Callable) -> None:
    oracle = gaussian(schedule, (1, 2, 2))
    images = oracle.draw(Stream("images", 0, indices=range(3))).float()
    found = Interpolation(frames=5).apply(Request(oracle, Ancestral(), images))
    assert found.x.shape == (2, 5, 1, 2, 2)
    torch.testing.assert_close(found.x[:, 0], images[:2], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.x[:, -1], images[1:], atol=1e-3, rtol=0)
    assert found.columns == ["0%", "25%", "50%", "75%", "100%"]
    assert 0 < found.errors["images and the ends of their paths"] < 1e-3


def test_a_path_has_one_label(schedule: NoiseSchedule) -> None:
    """It comes back to both its images, though they may be of two classes."""
    means = np.array([[[[-0.5, 0.5]]], [[[0.4, 0.1]]]])
    covariances = np.array([0.05 * np.eye(2), 0.3 * np.eye(2)])
    oracle = GaussianMixture(np.ones(2), means, covariances, schedule, labelled=True)
    images = torch.tensor(means).float()
    for labels in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        request = Request(oracle, Ancestral(), images, y=labels)
        found = Interpolation(frames=2).apply(request)
        torch.testing.assert_close(found.x[0], images, atol=1e-3, rtol=0)
        assert found.latents is not None
        latents = encode(oracle, images, labels[:1].repeat(2)).x
        torch.testing.assert_close(found.latents[0], latents, atol=1e-3, rtol=0)


def test_a_path_between_seeds_is_between_their_samples(gaussian: Callable) -> None:
    from betasigma.samplers import AdaptiveODE

    oracle = gaussian(geometric(30, 2.0, 0.04), (1, 2, 2))
    found = Interpolation(frames=3).apply(Request(oracle, Ancestral(), seeds=(4, 9)))
    for seed, end in ((4, 0), (9, -1)):
        sample = AdaptiveODE(start="moments").sample(oracle, 1, seed=seed).x
        # the sampler ends at the mean of x_0, the flow at the state
        torch.testing.assert_close(found.x[:, end], sample, atol=0.05, rtol=0)
    assert found.errors == {}


def test_a_model_of_one_level_has_no_path(gaussian: Callable) -> None:
    with pytest.raises(UserError, match="at least 2 noise levels"):
        encode(gaussian(geometric(1), (1, 2, 2)), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="at least 2 seeds or images, not 1"):
        Interpolation().apply(Request(gaussian(geometric(2), (2,)), Ancestral(), seeds=(1,)))
