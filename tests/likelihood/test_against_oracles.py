"""Likelihoods of distributions whose density is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchdiffeq import odeint

from betasigma.data.pixels import dequantized_bits
from betasigma.errors import UserError
from betasigma.gaussian import discretized_gaussian_bits
from betasigma.likelihood import (
    ContinuousBound,
    DiscreteBound,
    Examples,
    FlowLikelihood,
    GaussianPrior,
)
from betasigma.oracles import EmpiricalDenoiser, GaussianMixture
from betasigma.prior import DataMoments
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, geometric, linear, vp_sde

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[0.35, 0.55], [0.6, 0.4]])
COVARIANCES = np.array([[[0.004, 0.001], [0.001, 0.003]], [[0.003, -0.001], [-0.001, 0.005]]])
"""A mixture well inside [0, 1]², so that bytes hold it without clipping."""

SCHEDULES = {
    "ddpm": (linear(), (-1.0, 1.0)),
    "ncsn": (geometric(10, 1.0, 0.01), (0.0, 1.0)),
}

VP_SDE = {"vp_sde": (vp_sde(), (-1.0, 1.0))}

MORE = 1.2
"""Times as many network evaluations of the adaptive solver as were counted, at most, since it may
take a step more on another platform.
"""


def mixture(family: str, components: int = 2) -> GaussianMixture:
    """The mixture in the family's value range."""
    schedule, (low, high) = (SCHEDULES | VP_SDE)[family]
    width = high - low
    keep = slice(None) if components == 2 else slice(0, 1)
    return GaussianMixture(
        WEIGHTS[keep],
        low + width * MEANS[keep],
        width**2 * COVARIANCES[keep],
        schedule,
        (low, high),
    )


class ExactPrior(GaussianPrior):
    """The mixture's own density at t = 1."""

    def __init__(self, oracle: GaussianMixture) -> None:
        super().__init__(0.0, 1.0)
        object.__setattr__(self, "oracle", oracle)

    def log_prob(self, x: Tensor) -> Tensor:
        schedule: NoiseSchedule = self.oracle.schedule  # type: ignore[attr-defined]
        kernel = schedule.alpha(1.0).item(), schedule.sigma(1.0).item()
        return self.oracle.log_density(x, *kernel)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "components", "counted"),
    [("ddpm", 1, 74), ("ddpm", 2, 80), ("ncsn", 1, 50), ("ncsn", 2, 62)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_gives_the_density_at_the_smallest_noise(
    family: str, components: int, counted: int, dtype: torch.dtype
) -> None:
    oracle = mixture(family, components)
    x = oracle.draw(Stream("x", indices=range(64))).to(dtype)
    schedule = oracle.schedule
    noise = (schedule.sigma(schedule.t_min) / schedule.alpha(schedule.t_min)).item()
    truth = oracle.log_density(x, 1.0, noise)
    found, nfe = FlowLikelihood(trace="exact").log_prob(oracle, x, ExactPrior(oracle))
    bits = (found - truth) / 2 / math.log(2)
    assert bits.abs().max() < 1e-3  # 100 times the tolerance of a step
    assert nfe <= MORE * counted


@pytest.mark.parametrize(
    ("family", "tolerance", "counted", "of_theirs"),
    [
        pytest.param("ddpm", 1e-6, 110, 1514, marks=pytest.mark.slow),
        ("ddpm", 1e-5, 80, 416),
        ("ncsn", 1e-6, 80, 98),
        ("ncsn", 1e-5, 56, 86),
        ("vp_sde", 1e-8, 230, 212),
        ("vp_sde", 1e-5, 80, 68),
    ],
)
def test_flow_is_score_sde_s(family: str, tolerance: float, counted: int, of_theirs: int) -> None:
    """Theirs integrates x_t over t: dx = (f·x − ½g²·score) dt. docs/equations.md has the counts."""
    oracle = mixture(family)
    schedule = oracle.schedule
    x = oracle.draw(Stream("x", indices=range(8)))
    calls = 0

    def velocity(t: float, x_t: Tensor) -> Tensor:
        drift, diffusion = (c.item() for c in schedule.sde(t))
        return drift * x_t - diffusion / 2 * oracle(x_t, t).score

    def theirs(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        t = min(max(time.item(), schedule.t_min), 1.0)
        with torch.enable_grad():
            point = state[0].detach().requires_grad_(True)
            moved = velocity(t, point)
            slopes = [
                torch.autograd.grad(moved[:, i].sum(), point, retain_graph=True)[0][:, i]
                for i in range(2)
            ]
        return moved.detach(), torch.stack(slopes).sum(0)

    alpha = schedule.alpha(schedule.t_min).item()
    ends = torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)
    path, change = odeint(
        theirs,
        (alpha * x, torch.zeros(len(x), dtype=x.dtype)),
        ends,
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
    )
    prior = ExactPrior(oracle)
    expected = prior.log_prob(path[-1]) + change[-1] + 2 * math.log(alpha)
    found, nfe = FlowLikelihood(trace="exact", tolerance=tolerance).log_prob(oracle, x, prior)
    noise = (schedule.sigma(schedule.t_min) / alpha).item()
    truth = oracle.log_density(x, 1.0, noise)
    assert (expected - truth).abs().max() < 0.05  # its slope in t jumps from level to level
    assert (found - truth).abs().max() < 20 * tolerance
    print(f"{family} at {tolerance:g}: {nfe} network evaluations, theirs {calls}")
    assert nfe <= MORE * counted
    assert of_theirs / MORE <= calls <= MORE * of_theirs
    assert (nfe < calls) == (counted < of_theirs)


def test_hutchinson_is_unbiased_for_the_exact_trace() -> None:
    oracle = mixture("ncsn")
    x = oracle.draw(Stream("x", indices=range(8)))
    exact, _ = FlowLikelihood(trace="exact").log_prob(oracle, x)
    # every row has a random vector of its own
    draws = FlowLikelihood().log_prob(oracle, x.repeat(400, 1))[0].reshape(400, 8)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 4 * error + 1e-3).all()
    assert draws.std(0).max() > 1e-3  # it is a random estimate where the Jacobian is not diagonal


def test_units_of_the_flow_follow_from_the_value_range() -> None:
    # the same data in either range has the same bits per dimension, at the same SNR
    bits = {}
    for family, schedule in (
        ("ncsn", geometric(10, 1.0, 0.01)),
        ("ddpm", geometric(10, 2.0, 0.02)),
    ):
        low, high = SCHEDULES[family][1]
        width = high - low
        oracle = GaussianMixture(
            WEIGHTS, low + width * MEANS, width**2 * COVARIANCES, schedule, (low, high)
        )
        x = low + width * mixture("ncsn").draw(Stream("x", indices=range(16)))
        examples = Examples(x, x, dequantized_bits((low, high)), torch.arange(len(x)))
        found = FlowLikelihood(trace="exact", tolerance=1e-7).terms(
            oracle, examples, ExactPrior(oracle)
        )
        bits[family] = found.bits["total"]
    assert torch.allclose(bits["ncsn"], bits["ddpm"], atol=1e-3)


@pytest.mark.parametrize("family", SCHEDULES)
def test_continuous_bound_is_above_the_entropy_and_tight_for_the_oracle(family: str) -> None:
    oracle = mixture(family)
    low, high = oracle.value_range
    x = oracle.draw(Stream("x", indices=range(12_000)))
    grey = ((x - low) / (high - low) * 255).round()
    assert grey.min() >= 0
    assert grey.max() <= 255
    x0 = low + (high - low) * grey / 255
    prior = GaussianPrior.matched(oracle.schedule, DataMoments.of([x0]))
    bound = ContinuousBound(draws=48).bits_per_dim(oracle, x0, prior)
    # the entropy of this very sample, of which the distribution's differs by Monte Carlo
    exact = -oracle.log_density(x) / 2 / math.log(2) + math.log2(255 / (high - low))
    excess = bound.total - exact
    error = (excess.std() / len(x) ** 0.5).item()
    assert error < 0.012
    # what an exact bound leaves is a Gaussian prior and a round decoder: below 0.002 here
    assert abs(excess.mean().item()) < 4 * error
    for term in (bound.prior, bound.diffusion, bound.decoder):
        assert (term >= -1e-9).all()


@pytest.mark.parametrize("schedule", [linear(0.02, 0.4, 8), geometric(8, 2.0, 0.1)])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_discrete_bound_of_a_gaussian_level_by_level(schedule: NoiseSchedule, variance) -> None:
    """x_0 ~ N(0, diag λ) given x_t has the variance λ·σ²/(α²·λ + σ²), which is the ideal
    denoiser's error; the divergence of each step is that of two Gaussians.
    """
    spread, n = np.array([0.5, 0.05]), 8000
    oracle = GaussianMixture([1.0], np.zeros((1, 2)), np.diag(spread)[None], schedule)
    x0 = oracle.draw(Stream("x0", indices=range(n)))
    found = DiscreteBound(variance=variance).bits_per_dim(oracle, x0).per_level
    alpha, sigma = (f(schedule.times()).numpy() for f in (schedule.alpha, schedule.sigma))
    for i in range(1, 8):
        kept = alpha[i] / alpha[i - 1]
        beta = sigma[i] ** 2 - kept**2 * sigma[i - 1] ** 2
        small = beta * sigma[i - 1] ** 2 / sigma[i] ** 2
        v = beta if variance == "beta" else small
        left = spread * sigma[i] ** 2 / (alpha[i] ** 2 * spread + sigma[i] ** 2)
        apart = (alpha[i - 1] * beta / sigma[i] ** 2) ** 2 * left
        nats = (np.log(v / small) + (small + apart) / v - 1) / 2
        ours = found[:, i - 1]
        expected = nats.mean() / math.log(2)
        error = (ours.std() / n**0.5).item()
        assert ours.mean().item() == pytest.approx(expected, abs=4 * error)
        assert error < 0.015 * expected


def test_discrete_bound_approaches_the_continuous_one_from_above() -> None:
    x = mixture("ncsn").draw(Stream("x", indices=range(256)))
    x0 = (x * 255).round() / 255
    totals = []
    for levels in (10, 40, 160):
        oracle = GaussianMixture(
            WEIGHTS, MEANS, COVARIANCES, geometric(levels, 1.0, 0.01), (0.0, 1.0)
        )
        bound = DiscreteBound(variance="posterior", decoder_std="fitted").bits_per_dim(oracle, x0)
        totals.append(bound.diffusion.mean().item())
        assert bound.per_level.shape == (256, levels - 1)
        assert torch.allclose(bound.per_level.sum(1), bound.diffusion)
    fine = ContinuousBound(draws=64).bits_per_dim(oracle, x0).diffusion.mean().item()
    assert totals[0] > totals[1] > totals[2]
    assert totals[2] == pytest.approx(fine, rel=0.1)


def test_prior_term_of_the_linear_schedule_is_negligible_and_of_a_short_ladder_is_not() -> None:
    black = torch.full((1, 784), -1.0)
    nats = GaussianPrior.standard(linear()).kl(linear(), black).item()
    assert 1e-5 < nats / 784 / math.log(2) < 5e-5
    ladder = geometric(10, 1.0, 0.01)
    images = torch.bernoulli(torch.full((512, 784), 0.15), generator=torch.manual_seed(0))
    standard = GaussianPrior.standard(ladder).kl(ladder, images).mean().item() / 784 / math.log(2)
    matched = GaussianPrior.matched(ladder, DataMoments.of([images]))
    assert standard > 0.07
    assert matched.kl(ladder, images).mean().item() / 784 / math.log(2) < standard


def test_prior_kl_equals_torch_distributions() -> None:
    schedule = geometric(10, 1.0, 0.01)
    x0 = torch.rand(5, 3, generator=torch.manual_seed(1)).double()
    prior = GaussianPrior.matched(schedule, DataMoments.of([x0]))
    q = torch.distributions.Normal(x0, 1.0)
    p = torch.distributions.Normal(
        torch.as_tensor(prior.mean), torch.as_tensor(prior.variance).sqrt()
    )
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    assert torch.allclose(prior.kl(schedule, x0), expected)
    assert torch.allclose(prior.log_prob(x0), p.log_prob(x0).sum(1))


def test_discretised_gaussian_sums_to_one_and_survives_far_tails() -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    bits = discretized_gaussian_bits(values, torch.full_like(values, 0.1), 0.05, (-1.0, 1.0))
    assert (2.0**-bits).sum().item() == pytest.approx(1, abs=1e-9)
    far = discretized_gaussian_bits(
        torch.tensor([[1.0]]), torch.tensor([[-1.0]]), 0.01, (-1.0, 1.0)
    )
    assert torch.isfinite(far).all()
    assert far.item() == pytest.approx(2**2 / (2 * 0.01**2) / math.log(2), rel=0.02)


def test_a_decoder_as_wide_as_the_noise_costs_bits_that_the_denoiser_does_not_deserve() -> None:
    # data on a few points only: the denoiser knows them almost exactly at σ = 0.01
    oracle = GaussianMixture(
        np.full(4, 0.25),
        np.array([[a, b] for a in (51, 204) for b in (51, 204)]) / 255,
        np.full((4, 2, 2), 0.0) + 1e-8 * np.eye(2),
        geometric(10, 1.0, 0.01),
        (0.0, 1.0),
    )
    x0 = oracle.means.repeat(16, 1)
    fitted = ContinuousBound(draws=4).bits_per_dim(oracle, x0).decoder.mean()
    kernel = ContinuousBound(draws=4, decoder_std="kernel").bits_per_dim(oracle, x0).decoder.mean()
    assert fitted < 0.1
    # log₂(2.55·√(2π)) of a centred Gaussian of σ_min, in grey levels
    assert kernel.item() == pytest.approx(math.log2(2.55 * math.sqrt(2 * math.pi)), abs=0.05)


def test_a_single_level_has_no_likelihood() -> None:
    oracle = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, geometric(1, 1.0, 0.01), (0.0, 1.0))
    x = torch.full((2, 2), 0.5)
    for measure in (DiscreteBound(), ContinuousBound()):
        with pytest.raises(UserError, match="at least 2 noise levels"):
            measure.bits_per_dim(oracle, x)
    with pytest.raises(UserError, match="at least 2 noise levels"):
        FlowLikelihood().log_prob(oracle, x)


def test_exact_trace_in_many_dimensions_says_what_it_would_cost() -> None:
    oracle = GaussianMixture(
        np.ones(1), np.zeros((1, 784)), np.eye(784)[None], geometric(), (0.0, 1.0)
    )
    with pytest.raises(UserError, match=r"784 backward passes.*trace=hutchinson"):
        FlowLikelihood(trace="exact").log_prob(oracle, torch.zeros(1, 784))


@pytest.mark.slow
def test_the_decoder_of_ddpm_s_code() -> None:
    """√β̃_2 and x̂_0 clipped, written out with scipy's normal distribution."""
    schedule = linear()
    beta = np.linspace(1e-4, 0.02, 1000)[:2]
    alpha_bar = np.cumprod(1 - beta)
    std = math.sqrt(beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1]))
    assert std == pytest.approx(0.007385, abs=1e-6)  # Ho et al.'s; 0.01 is the kernel's
    data = (torch.randint(0, 256, (50, 1, 4, 4)) / 127.5 - 1).double()

    class Beyond(EmpiricalDenoiser):
        """Knows x_0 and misses it by 0.02, at white pixels beyond the range."""

        def posterior_mean(self, x_t, alpha, sigma, y=None):
            return data + 0.02

    model = Beyond(data, schedule)
    found = DiscreteBound(decoder_std="posterior", clip=True).bits_per_dim(model, data)
    mean = np.clip(data.numpy() + 0.02, -1, 1)
    upper, lower = data.numpy() + 1 / 255, data.numpy() - 1 / 255
    upper[upper > 1], lower[lower < -1] = np.inf, -np.inf
    mass = stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std)
    expected = -np.log2(mass).mean((1, 2, 3))
    np.testing.assert_allclose(found.decoder.numpy(), expected, rtol=1e-5)
    plain = DiscreteBound().bits_per_dim(model, data)
    assert plain.decoder.mean() != pytest.approx(found.decoder.mean().item(), rel=0.02)
    white = (data == 1).flatten(1).any(1)
    assert (found.diffusion[white] < plain.diffusion[white]).all()
    torch.testing.assert_close(found.prior, plain.prior)


def test_ddpm_s_decoder_costs_what_ddpm_published() -> None:
    """Section 4.3 of Ho et al. 2020: a distortion of 1.97 bits/dim at a root mean square error of
    0.95 grey levels. Their code's √β̃_2 gives that; σ_1/α_1, which section 3.3 asks for, 0.12 more.
    """
    error = 0.95 / 127.5
    grey = torch.randint(20, 236, (64, 3, 16, 16), generator=torch.manual_seed(0))
    data = grey.double() / 127.5 - 1
    missed = data + error * Stream("miss", indices=range(64)).normal(data.shape[1:], data.dtype)

    class Missing(EmpiricalDenoiser):
        def posterior_mean(self, x_t, alpha, sigma, y=None):
            return missed

    model = Missing(data, linear())
    e = np.linspace(-8, 8, 20_001)
    share = stats.norm.pdf(e) / stats.norm.pdf(e).sum()
    bits = {}
    for name, std in (("posterior", 0.0073846), ("kernel", 0.0100005)):
        bound = DiscreteBound(decoder_std=name, clip=name == "posterior")
        rng = Stream("bound", indices=range(64))
        bits[name] = bound.decoder(model, data, None, rng).mean().item()
        ends = [stats.norm.cdf((side / 255 - error * e) / std) for side in (1, -1)]
        closed = -(share * np.log2(ends[0] - ends[1])).sum()
        assert bits[name] == pytest.approx(closed, abs=0.01)  # of 49,152 errors
    assert bits["posterior"] == pytest.approx(1.97, abs=0.015)
    assert bits["kernel"] - bits["posterior"] == pytest.approx(0.12, abs=0.01)


def test_what_a_bound_was_made_with_is_recorded() -> None:
    theirs = DiscreteBound(decoder_std="posterior", clip=True)
    assert theirs.settings == "variance=beta decoder=posterior clip=true"
