"""Oracles against scipy, autograd, quadrature, Monte Carlo and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp, softmax
from torch import Tensor

from betasigma.data import toy
from betasigma.denoiser import Guided
from betasigma.errors import UserError
from betasigma.oracles import EmpiricalDenoiser, GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import DDIM, Ancestral
from betasigma.schedules import cosine, geometric, linear

LEVELS = [(1.0, 0.0), (1.0, 0.5), (0.8, 0.6), (0.05, 0.9987), (1.0, 30.0), (1.0, 0.01)]
VP, VE = linear(), geometric(10, 3.0, 0.02)


def parameters(d: int, k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(d)
    weights = rng.uniform(0.2, 1, k)
    roots = rng.normal(size=(k, d, d)) / 2
    covariances = roots @ roots.transpose(0, 2, 1) + 0.02 * np.eye(d)
    return weights / weights.sum(), rng.normal(size=(k, d)), covariances


def mixture(d: int, schedule=VP, **options) -> GaussianMixture:
    return GaussianMixture(*parameters(d), schedule, **options)


def points(n: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return 1.5 * torch.randn(n, *shape, generator=generator, dtype=torch.float64)


def reference_log_density(x: np.ndarray, d: int, alpha: float, sigma: float) -> np.ndarray:
    weights, means, covariances = parameters(d)
    parts = [
        np.log(w)
        + stats.multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(d)).logpdf(x)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return logsumexp(np.stack(parts), axis=0)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_density_is_scipy_s(d: int, alpha: float, sigma: float) -> None:
    x = points(20, d)
    expected = reference_log_density(x.numpy(), d, alpha, sigma)
    found = mixture(d).log_density(x, alpha, sigma)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_score_is_the_gradient_and_tweedie_gives_the_mean(
    d: int, alpha: float, sigma: float
) -> None:
    oracle, x = mixture(d), points(20, d).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(x, alpha, sigma).sum(), x)
    x = x.detach()
    torch.testing.assert_close(oracle.score(x, alpha, sigma), gradient, rtol=1e-9, atol=1e-9)
    tweedie = (x + sigma**2 * gradient) / alpha
    mean = oracle.posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(mean, tweedie, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS[1:])
def test_posterior_mean_by_quadrature(alpha: float, sigma: float) -> None:
    """∫ x_0·q(x_0)·N(x_t; α·x_0, σ²) dx_0 / q_t(x_t), integrated by scipy."""
    oracle = mixture(1)
    for x_t in (-1.2, 0.3, 2.0):
        grid = np.linspace(-8, 8, 400_001)
        log_joint = reference_log_density(grid[:, None], 1, 1.0, 0.0)
        log_joint = log_joint + stats.norm(alpha * grid, sigma).logpdf(x_t)
        joint = np.exp(log_joint - log_joint.max())
        expected = integrate.simpson(grid * joint, x=grid) / integrate.simpson(joint, x=grid)
        found = oracle.posterior_mean(torch.tensor([[x_t]]).double(), alpha, sigma)
        assert found.item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_posterior_mean_by_monte_carlo() -> None:
    """Clean data drawn by numpy alone, weighed by the kernel."""
    weights, means, covariances = parameters(2)
    rng = np.random.default_rng(0)
    chosen = rng.choice(3, size=400_000, p=weights)
    x0 = means[chosen] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(covariances)[chosen], rng.normal(size=(400_000, 2))
    )
    for alpha, sigma in ((0.8, 0.6), (1.0, 0.5)):
        x_t = np.array([0.4, -0.3])
        likelihood = np.exp(-((x_t - alpha * x0) ** 2).sum(1) / (2 * sigma**2))
        expected = (likelihood[:, None] * x0).sum(0) / likelihood.sum()
        found = mixture(2).posterior_mean(torch.from_numpy(x_t)[None], alpha, sigma)
        np.testing.assert_allclose(found[0].numpy(), expected, atol=5e-3)


@pytest.mark.parametrize("schedule", [VP, VE, cosine()])
def test_it_answers_as_a_denoiser(schedule) -> None:
    oracle, x_t = mixture(5, schedule), points(6, 5)
    t = schedule.times()[torch.linspace(0, schedule.levels - 1, 6).long()]
    together = oracle(x_t, t)
    for i in range(6):
        alpha, sigma = schedule.alpha(t[i]).item(), schedule.sigma(t[i]).item()
        alone = oracle(x_t[i : i + 1], t[i].item())
        torch.testing.assert_close(together.x0[i], alone.x0[0])
        score = oracle.score(x_t[i : i + 1], alpha, sigma)
        torch.testing.assert_close(alone.score, score, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.eps, -sigma * score, rtol=1e-6, atol=1e-6)
    single = oracle(x_t.float(), t)
    assert single.x0.dtype == torch.float32
    assert torch.equal(single.x0, oracle(x_t.float().double(), t).x0.float())


def test_examples_keep_their_shape() -> None:
    weights, means, covariances = parameters(4)
    flat = GaussianMixture(weights, means, covariances, VP)
    square = GaussianMixture(weights, means.reshape(3, 1, 2, 2), covariances, VP)
    assert square.sample_shape == (1, 2, 2)
    x = points(7, 4)
    torch.testing.assert_close(square(x.reshape(7, 1, 2, 2), 0.5).x0.flatten(1), flat(x, 0.5).x0)
    assert square.score(x.reshape(7, 1, 2, 2), 0.6, 0.8).shape == (7, 1, 2, 2)
    assert square.draw(Stream("x", indices=range(3))).shape == (3, 1, 2, 2)
    assert DDIM(steps=3).sample(square, 5).x.shape == (5, 1, 2, 2)


class TestDraw:
    n = 40_000

    def stream(self) -> Stream:
        return Stream("draw", indices=range(self.n))

    @pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.8, 0.6), (1.0, 2.0)])
    def test_moments(self, alpha: float, sigma: float) -> None:
        weights, means, covariances = parameters(2)
        x = mixture(2).draw(self.stream(), alpha, sigma).numpy()
        mean = alpha * weights @ means
        away = alpha * means - mean
        within = alpha**2 * covariances + sigma**2 * np.eye(2)
        covariance = np.einsum("k,kij->ij", weights, within + away[:, :, None] * away[:, None, :])
        spread = np.sqrt(covariance.diagonal() / self.n)
        np.testing.assert_array_less(np.abs(x.mean(0) - mean), 5 * spread)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.05 * covariance.max())

    def test_distribution(self) -> None:
        weights, means, covariances = parameters(1)
        x = mixture(1).draw(self.stream(), 0.9, 0.3)[:, 0].numpy()
        deviation = np.sqrt(0.81 * covariances[:, 0, 0] + 0.09)

        def cdf(v: np.ndarray) -> np.ndarray:
            return stats.norm.cdf(v[:, None], 0.9 * means[:, 0], deviation) @ weights

        assert stats.kstest(x, cdf).pvalue > 1e-3

    def test_rows_are_addressed_and_components_can_be_chosen(self) -> None:
        oracle = mixture(2)
        whole = oracle.draw(self.stream())
        some = oracle.draw(Stream("draw", indices=[7, 300]))
        torch.testing.assert_close(some, whole[[7, 300]])
        _, means, covariances = parameters(2)
        x = oracle.draw(self.stream(), y=torch.full((self.n,), 1))
        spread = np.sqrt(covariances[1].diagonal() / self.n)
        np.testing.assert_array_less(np.abs(x.mean(0).numpy() - means[1]), 5 * spread)
        free = oracle.draw(self.stream(), y=torch.full((self.n,), 3))
        assert torch.equal(free, whole)


class TestEntropy:
    @pytest.mark.parametrize("d", [1, 2])
    @pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
    def test_of_one_gaussian(self, d: int, alpha: float, sigma: float) -> None:
        _, means, covariances = parameters(d, 1)
        oracle = GaussianMixture([1.0], means, covariances, VP)
        total = alpha**2 * covariances[0] + sigma**2 * np.eye(d)
        expected = 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * total))
        assert oracle.entropy(alpha, sigma) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("sigma", [0.0, 0.5])
    def test_of_a_mixture_by_scipy(self, sigma: float) -> None:
        def integrand(x: float) -> float:
            log_q = reference_log_density(np.array([[x]]), 1, 1.0, sigma).item()
            return -math.exp(log_q) * log_q

        expected, _ = integrate.quad(integrand, -15, 15, limit=500, epsabs=1e-10)
        assert mixture(1).entropy(1.0, sigma) == pytest.approx(expected, abs=1e-7)

    def test_of_components_far_apart(self) -> None:
        """log K more than one component's: nothing overlaps."""
        of = toy.ring()
        oracle = GaussianMixture(of.weights, of.means, of.covariances, VE)
        expected = math.log(8) + math.log(2 * math.pi * math.e * 0.05**2)
        assert oracle.entropy() == pytest.approx(expected, abs=1e-6)

    def test_of_a_plane_mixture_by_monte_carlo(self) -> None:
        oracle = mixture(2)
        x = oracle.draw(Stream("mc", indices=range(100_000)))
        log_q = reference_log_density(x.numpy(), 2, 1.0, 0.0)
        found = oracle.entropy()
        assert found == pytest.approx(-log_q.mean(), abs=5 * log_q.std() / 100_000**0.5)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="one or two dimensions, not 5"):
            mixture(5).entropy()
        point = GaussianMixture([1.0], [[0.0]], [[[0.0]]], VP)
        with pytest.raises(ValueError, match="no density"):
            point.entropy()
        assert math.isfinite(point.entropy(1.0, 0.1))
        wide = GaussianMixture(
            [0.5, 0.5], np.zeros((2, 2)), np.stack([np.eye(2), 1e-8 * np.eye(2)]), VP
        )
        with pytest.raises(ValueError, match="differ too much in width"):
            wide.entropy()


class TestLabels:
    def test_a_component_is_one_gaussian(self) -> None:
        weights, means, covariances = parameters(2)
        oracle, x = mixture(2, labelled=True), points(6, 2)
        y = torch.tensor([0, 1, 2, 0, 1, 3])
        given = oracle(x, 0.4, y)
        for k in range(3):
            one = GaussianMixture([1.0], means[k : k + 1], covariances[k : k + 1], VP)
            torch.testing.assert_close(given.x0[:5][y[:5] == k], one(x[:5][y[:5] == k], 0.4).x0)
            density = oracle.log_density(x, 0.8, 0.6, torch.full((6,), k))
            expected = one.log_density(x, 0.8, 0.6) + math.log(weights[k])
            torch.testing.assert_close(density, expected)
        torch.testing.assert_close(given.x0[5], oracle(x, 0.4).x0[5])

    def test_guidance(self) -> None:
        oracle, x, y = mixture(2, labelled=True), points(6, 2), torch.arange(6) % 3
        free, given = oracle(x, 0.4).eps, oracle(x, 0.4, y).eps
        guided = Guided(oracle, 2.0)(x, 0.4, y).eps
        torch.testing.assert_close(guided, free + 2 * (given - free), rtol=1e-6, atol=1e-6)

    def test_oracles_without_classes_refuse_labels(self) -> None:
        for oracle in (mixture(2), EmpiricalDenoiser(points(4, 2), VP)):
            assert oracle.num_classes == 0
            with pytest.raises(UserError, match="no classes"):
                oracle(points(3, 2), 0.5, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "bad",
    [
        ([0.5, -0.5], np.zeros((2, 1)), np.ones((2, 1, 1))),
        ([1.0], np.zeros((2, 1)), np.ones((2, 1, 1))),
        ([1.0], np.zeros((1, 2)), np.ones((1, 1, 1))),
        ([1.0], np.zeros((1, 2)), [[[1.0, 0.5], [0.0, 1.0]]]),
        ([1.0], np.zeros((1, 2)), [[[1.0, 2.0], [2.0, 1.0]]]),
    ],
)
def test_parameters_of_no_mixture(bad) -> None:
    with pytest.raises(ValueError, match=r"weights|covariance"):
        GaussianMixture(*bad, VP)


class TestEmpirical:
    def brute_force(self, x: Tensor, data: Tensor, alpha: float, sigma: float) -> np.ndarray:
        squares = ((x.numpy()[:, None] - alpha * data.numpy()) ** 2).sum(2)
        return softmax(-squares / (2 * sigma**2), axis=1) @ data.numpy()

    @pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
    @pytest.mark.parametrize(("alpha", "sigma"), LEVELS[1:])
    def test_it_is_the_softmax(self, chunk: int, alpha: float, sigma: float) -> None:
        data, x = points(50, 3), points(9, 3)
        found = EmpiricalDenoiser(data, VP, chunk=chunk).posterior_mean(x, alpha, sigma)
        expected = self.brute_force(x, data, alpha, sigma)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)

    def test_it_is_a_mixture_of_points(self) -> None:
        data, x = points(20, 2, 2), points(5, 2, 2)
        mix = GaussianMixture(np.full(20, 0.05), data, np.zeros((20, 4, 4)), VE)
        for t in (0.1, 0.5, 1.0):
            found = EmpiricalDenoiser(data, VE)(x, t)
            torch.testing.assert_close(found.x0, mix(x, t).x0, rtol=1e-9, atol=1e-9)
        assert found.x0.shape == (5, 2, 2)

    def test_extremes_of_noise(self) -> None:
        data = points(200, 16)
        oracle = EmpiricalDenoiser(data, VE, chunk=64)
        near = data[[3, 150]] + 1e-4
        torch.testing.assert_close(oracle.posterior_mean(near, 1.0, 1e-5), data[[3, 150]])
        far = torch.full((2, 16), 300.0, dtype=torch.float64)
        assert torch.isfinite(oracle.posterior_mean(far, 1.0, 1e-5)).all()
        whole = oracle.posterior_mean(points(2, 16), 1.0, 1e4)
        torch.testing.assert_close(whole, data.mean(0).expand(2, 16), rtol=1e-3, atol=1e-5)

    def test_the_size_of_mnist_in_chunks(self, monkeypatch) -> None:
        generator = torch.Generator().manual_seed(0)
        data = torch.rand(60_000, 16, generator=generator)
        oracle = EmpiricalDenoiser(data, VE, chunk=4096)
        largest = 0
        exp = torch.exp

        def watched(values: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, values.numel())
            return exp(values)

        monkeypatch.setattr(torch, "exp", watched)
        x = data[:8] + 0.3
        found = oracle.posterior_mean(x, 1.0, 0.4)
        assert largest == 4096 * 8
        np.testing.assert_allclose(
            found.numpy(), self.brute_force(x.double(), data.double(), 1.0, 0.4), rtol=1e-8
        )

    @pytest.mark.parametrize("chunk", [3, 1000])
    def test_labels_choose_the_data(self, chunk: int) -> None:
        data, x = points(30, 3), points(6, 3)
        labels = torch.arange(30) // 10
        oracle = EmpiricalDenoiser(data, VE, labels, chunk=chunk)
        assert oracle.num_classes == 3
        y = torch.tensor([0, 1, 2, 0, 1, 3])
        found = oracle(x, 0.7, y).x0
        for i in range(5):
            only = EmpiricalDenoiser(data[labels == y[i]], VE)
            torch.testing.assert_close(found[i], only(x[i : i + 1], 0.7).x0[0])
        torch.testing.assert_close(found[5], oracle(x, 0.7).x0[5])

    def test_per_example_times_and_dtype(self) -> None:
        oracle, x = EmpiricalDenoiser(points(30, 3).float(), VP), points(4, 3).float()
        t = torch.tensor([0.001, 0.2, 0.7, 1.0], dtype=torch.float64)
        found = oracle(x, t).x0
        assert found.dtype == torch.float32
        for i in range(4):
            torch.testing.assert_close(found[i], oracle(x[i : i + 1], t[i].item()).x0[0])

    def test_a_perfect_fit_is_memory(self) -> None:
        """Samples of the ideal denoiser are the data themselves, each about equally often."""
        data = 0.9 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        for schedule in (VP, geometric(20, 8.0, 0.01)):
            samples = Ancestral(steps=60).sample(EmpiricalDenoiser(data, schedule), 400).x
            distance, nearest = torch.cdist(samples, data).min(1)
            assert distance.max() < 1e-3
            counts = torch.bincount(nearest, minlength=4).numpy()
            assert stats.chisquare(counts).pvalue > 1e-3

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match="at least one example"):
            EmpiricalDenoiser(torch.zeros(0, 2), VP)
        with pytest.raises(UserError, match="none of them empty"):
            EmpiricalDenoiser(torch.zeros(3, 2), VP, torch.tensor([0, 2, 2]))
        with pytest.raises(UserError, match="none of them empty"):
            EmpiricalDenoiser(torch.zeros(3, 2), VP, torch.tensor([0, 1]))
