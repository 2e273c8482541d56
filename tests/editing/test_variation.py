"""Image to image, against the exact law of x_0 given a noisy image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from launching import quick

from betasigma.editing import Request, Variation, vary
from betasigma.errors import UserError
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import NoiseSchedule, geometric


@pytest.mark.parametrize("t", quick([0.3, 0.7], 0.3))
def test_results_are_draws_of_x0_given_the_noisy_image(
    t: float, schedule: NoiseSchedule, gaussian: Callable, moments: Callable
) -> None:
    """x_0' given x_t given x_0, all Gaussian: mean μ + G·α(x_0 − μ), covariance σ²·GGᵀ + C, with
    G = αΣ(α²Σ + σ²)⁻¹ and C = Σ − αGΣ.
    """
    oracle, n = gaussian(schedule, (1, 2, 2)), 3000
    mu, covariance = (m.numpy() for m in moments(oracle))
    image = np.array([1.2, 0.1, -0.3, 0.6])
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(4))
    mean = mu + gain @ (alpha * (image - mu))
    spread = sigma**2 * gain @ gain.T + covariance - alpha * gain @ covariance
    x0 = torch.tensor(image, dtype=torch.float32).reshape(1, 1, 2, 2).expand(n, 1, 2, 2)
    # β̃ leaves too little variance in few steps
    sampler = Ancestral("posterior", steps=600, clip=False)
    found = vary(oracle, sampler, x0, t, batch_size=n).x.flatten(1).double().numpy()
    stds = np.sqrt(spread.diagonal())
    assert np.abs((found.mean(0) - mean) / stds).max() < 4.5 / n**0.5 + 0.02
    np.testing.assert_allclose(
        np.cov(found.T) / np.outer(stds, stds), spread / np.outer(stds, stds), atol=0.1
    )


def test_at_time_1_nothing_of_the_image_is_left(gaussian: Callable) -> None:
    oracle = gaussian(geometric(40, 200.0, 0.05), (1, 2, 2))
    far, near = torch.full((2, 1, 1, 2, 2), 1.0)
    found = [vary(oracle, Ancestral(clip=False), x0, 1.0).x for x0 in (far, -near)]
    torch.testing.assert_close(*found, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "a_time"),
    [
        (Ancestral(clip=False), 1),
        (DDIM(steps=10, clip=False), 1),
        (Heun(steps=6, grid="levels"), 2),
        (DPMSolver(steps=10), 1),
        (AnnealedLangevin(inner_steps=3), 3),
        (PredictorCorrector(steps=10), 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_sampler_takes_what_of_its_grid_is_below(
    sampler: Sampler, a_time: int, gaussian: Callable
) -> None:
    schedule = geometric(30, 2.0, 0.04)
    x0 = torch.zeros(1, 1, 2, 2)
    times = sampler.times(schedule)
    later = sampler.begun_at(0.5).times(schedule)
    found = vary(gaussian(schedule, (1, 2, 2)), sampler, x0, 0.5)
    assert found.nfe == a_time * len(later) - (sampler.name == "heun")
    assert later == [0.5, *(t for t in times if t < 0.5)]
    assert sampler.times(schedule) == times, "the sampler itself is as it was"


def test_the_adaptive_solver_begins_there_too(gaussian: Callable) -> None:
    schedule = geometric(30, 2.0, 0.04)
    oracle, x0 = gaussian(schedule, (1, 2, 2)), torch.rand(2, 1, 2, 2)
    exact = vary(oracle, AdaptiveODE(), x0, 0.5).x
    # a fine grid below 0.5 from the same noise
    fine = vary(oracle, Heun(steps=400, grid="uniform_t"), x0, 0.5).x
    torch.testing.assert_close(exact, fine, atol=2e-4, rtol=0)


def test_results_do_not_depend_on_the_batch(schedule: NoiseSchedule, gaussian: Callable) -> None:
    oracle, images = gaussian(schedule, (1, 2, 2)), torch.rand(3, 1, 2, 2)
    requests = [
        Request(oracle, Ancestral(steps=5), images, variants=2, seed=4, batch_size=size)
        for size in (64, 2)
    ]
    whole, parts = (Variation(t=0.4).apply(request) for request in requests)
    torch.testing.assert_close(parts.x, whole.x)
    assert whole.columns == ["image", "result 0", "result 1"]
    torch.testing.assert_close(whole.x[:, 0], images)


def test_what_cannot_be_done(gaussian: Callable) -> None:
    oracle, x0 = gaussian(geometric(10), (2,)), torch.zeros(1, 2)
    with pytest.raises(UserError, match=r"edit.t=0.05 is not a time .* \[1/10, 1\]"):
        vary(oracle, Ancestral(), x0, 0.05)

    class Stubborn(Ancestral):
        name = "stubborn"

        def times(self, schedule: NoiseSchedule) -> list[float]:
            return [1.0, 0.5]

    with pytest.raises(UserError, match=r"sampler=stubborn makes its own times"):
        vary(oracle, Stubborn(), x0, 0.5)
