r"""Stochastic samplers have exactly the mean and covariance that their equations predict.

On x_0 ~ N(μ, Σ) score and denoiser are affine in x, and a sampler is an affine map of its start and
its noise. Its mean and covariance are therefore known without drawing anything: from its responses
to one unit of every coordinate of the start and of every draw, all in one batch. They are compared
with the recursion m ← A·m + b, P ← A·P·Aᵀ + Q, written here from the papers' own form of each step.

They are not the target's at a finite number of steps. For data narrower than the prior, β_t leaves
too much variance and β̃_t too little, and Langevin dynamics of relative step a ends at 1/(1 − a/2)
times the variance of q_σ: 11 % over for NCSN's a = 0.2 and 3 % for NCSNv2's 0.062, that is 5 % and
2 % in standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from launching import quick
from torch import Tensor

from betasigma.oracles import EmpiricalDenoiser, GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.samplers.sampler import CountingDenoiser
from betasigma.schedules import (
    NoiseSchedule,
    VarianceExploding,
    VariancePreserving,
    geometric,
    linear,
)

D = 2
EYE = np.eye(D)
MEAN = np.array([0.3, -0.6])
COVARIANCE = np.array([[0.4, 0.15], [0.15, 0.08]])
SCHEDULES: dict[str, NoiseSchedule] = {
    "vp": linear(1e-4, 0.02, 200),
    "ve": geometric(200, 20.0, 0.02),
}
families = pytest.mark.parametrize("family", SCHEDULES)

Moments = tuple[np.ndarray, np.ndarray]
Step = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A, b, Q of x ← A·x + b + N(0, Q)."""


def gaussian(schedule: NoiseSchedule) -> GaussianMixture:
    return GaussianMixture(np.ones(1), MEAN[None], COVARIANCE[None], schedule)


class Impulses:
    """Noise that is one unit of one coordinate of one draw in each row, and nothing else."""

    def __init__(self, size: int, first: int) -> None:
        self.size, self.first, self.draws = size, first, 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        rows = torch.zeros(self.size, D, dtype=torch.float64)
        row = self.first + D * self.draws
        rows[row : row + D] = torch.eye(D, dtype=torch.float64)[: max(0, self.size - row)]
        self.draws += 1
        return rows


def moments(sampler: Sampler, schedule: NoiseSchedule, start: Moments) -> list[Moments]:
    """Mean and covariance of the sampler's states from a start of this mean and covariance."""
    oracle, first = gaussian(schedule), 1 + D
    counter = Impulses(1, first)
    for _ in sampler.states(oracle, torch.zeros(1, D, dtype=torch.float64), counter):
        pass
    rng = Impulses(first + D * counter.draws, first)
    x = torch.zeros(rng.size, D, dtype=torch.float64)
    x[1:first] = torch.eye(D, dtype=torch.float64)
    found = []
    for state in sampler.states(oracle, x, rng):
        origin, rows = state[0].numpy(), (state[1:] - state[0]).numpy()
        of_start, of_noise = rows[:D].T, rows[D:].T
        covariance = of_start @ start[1] @ of_start.T + of_noise @ of_noise.T
        found.append((origin + of_start @ start[0], covariance))
    return found


def prior(schedule: NoiseSchedule) -> Moments:
    return np.zeros(D), schedule.prior_std**2 * EYE


def marginal(schedule: NoiseSchedule, t: float) -> Moments:
    """Moments of q_t."""
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * EYE


class At:
    """The kernel and the ideal answers at t, as matrices: score = S·x + s, x̂_0 = K·x + k."""

    def __init__(self, schedule: NoiseSchedule, t: float) -> None:
        self.alpha, self.sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        self.bar = self.alpha**2  # ᾱ_t
        mean, covariance = marginal(schedule, t)
        self.S = -np.linalg.inv(covariance)
        self.s = -self.S @ mean
        self.K = (EYE + self.sigma**2 * self.S) / self.alpha
        self.k = self.sigma**2 * self.s / self.alpha
        self.E, self.e = -self.sigma * self.S, -self.sigma * self.s  # ε̂ = E·x + e


def to_clean(at: At) -> Step:
    return at.K, at.k, 0 * EYE


def ancestral(variance: str) -> Callable[[At, At, bool], Step]:
    """Ho et al. 2020, algorithm 2, and Song et al. 2021, equation 47."""

    def step(t: At, s: At, vp: bool) -> Step:
        if vp:
            beta = 1 - t.bar / s.bar
            shrink, small = np.sqrt(1 - beta), (1 - s.bar) / (1 - t.bar) * beta
        else:
            beta = t.sigma**2 - s.sigma**2
            shrink, small = 1.0, s.sigma**2 * beta / t.sigma**2
        noise = beta if variance == "beta" else small
        return (EYE + beta * t.S) / shrink, beta * t.s / shrink, noise * EYE

    return step


def reverse_diffusion(t: At, s: At, vp: bool) -> Step:
    """Song et al. 2021, equation 46 (VP) and 48 (VE)."""
    beta = 1 - t.bar / s.bar if vp else t.sigma**2 - s.sigma**2
    kept = 2 - np.sqrt(1 - beta) if vp else 1.0
    return kept * EYE + beta * t.S, beta * t.s, beta * EYE


def ddim(eta: float) -> Callable[[At, At, bool], Step]:
    """Song, Meng & Ermon 2021, equations 12 and 16."""

    def step(t: At, s: At, vp: bool) -> Step:
        if vp:
            noise = eta * np.sqrt((1 - s.bar) / (1 - t.bar)) * np.sqrt(1 - t.bar / s.bar)
        else:
            noise = eta * s.sigma * np.sqrt(1 - s.sigma**2 / t.sigma**2)
        direction = np.sqrt(s.sigma**2 - noise**2)
        return (
            s.alpha * t.K + direction * t.E,
            s.alpha * t.k + direction * t.e,
            noise**2 * EYE,
        )

    return step


CHAINS: dict[str, tuple[Sampler, Callable[[At, At, bool], Step]]] = {
    "ancestral_beta": (Ancestral("beta", 20, clip=False, dtype="float64"), ancestral("beta")),
    "ancestral_posterior": (
        Ancestral("posterior", 20, clip=False, grid="karras", dtype="float64"),
        ancestral("posterior"),
    ),
    "ddim_0.5": (DDIM(0.5, 20, clip=False, dtype="float64"), ddim(0.5)),
    "ddim_1": (DDIM(1.0, 20, clip=False, grid="uniform_log_snr", dtype="float64"), ddim(1.0)),
    "pc_reverse": (
        PredictorCorrector(corrector_steps=0, steps=20, dtype="float64"),
        reverse_diffusion,
    ),
    "pc_ancestral": (
        PredictorCorrector("ancestral", corrector_steps=0, steps=20, dtype="float64"),
        ancestral("posterior"),
    ),
}


def same(found: Moments, expected: Moments) -> None:
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-9 * np.sqrt(scale) + 1e-10)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-9 * scale)


def advance(state: Moments, step: Step) -> Moments:
    A, b, Q = step
    return A @ state[0] + b, A @ state[1] @ A.T + Q


@families
@pytest.mark.parametrize("name", CHAINS)
def test_recursion(family: str, name: str) -> None:
    schedule, (sampler, law) = SCHEDULES[family], CHAINS[name]
    found = moments(sampler, schedule, prior(schedule))
    state, times = prior(schedule), sampler.times(schedule)
    for (t, s), ours in zip(pairwise(times), found, strict=False):
        state = advance(state, law(At(schedule, t), At(schedule, s), family == "vp"))
        same(ours, state)
    same(found[-1], advance(state, to_clean(At(schedule, times[-1]))))
    assert len(found) == len(times) == 20


@families
def test_euler_maruyama(family: str) -> None:
    """dx = [f·x − g²·score] dt + g dw̄, on the curves whose f and g are known in t: log-SNR linear
    (VP) and Song et al.'s g = σ·√(2·log(σ_max/σ_min)) (VE).
    """
    if family == "ve":
        schedule: NoiseSchedule = geometric(2, 20.0, 0.02)
    else:
        schedule = VariancePreserving([5.0, -7.0])
    sampler = PredictorCorrector(
        "euler_maruyama", corrector_steps=0, steps=40, grid="uniform_t", dtype="float64"
    )
    found = moments(sampler, schedule, prior(schedule))
    state = prior(schedule)
    for (t, s), ours in zip(pairwise(sampler.times(schedule)), found, strict=False):
        at = At(schedule, t)
        # t runs from 1/2 to 1: the slopes are twice those over the unit interval
        g2 = at.sigma**2 * 2 * (2 * np.log(20.0 / 0.02) if family == "ve" else 12.0)
        f = 0.0 if family == "ve" else -g2 / 2
        A = EYE - (t - s) * (f * EYE - g2 * at.S)
        state = advance(state, (A, (t - s) * g2 * at.s, (t - s) * g2 * EYE))
        same(ours, state)


@families
def test_heun_with_churn(family: str) -> None:
    """Karras et al. 2022, algorithm 2, in x/α."""
    schedule = SCHEDULES[family]
    sampler = Heun(6.0, 0.05, 10.0, 1.01, 15, grid="karras", dtype="float64")
    found = moments(sampler, schedule, prior(schedule))
    mean, covariance = prior(schedule)
    alpha = schedule.alpha(1.0).item()
    state = mean / alpha, covariance / alpha**2
    view = VarianceExploding(schedule.log_snr(schedule.times()).numpy())
    times = sampler.times(schedule)
    for (t, s), ours in zip(pairwise(times), found, strict=False):
        ratio, lower = view.sigma(t).item(), view.sigma(s).item()
        gamma = min(6.0 / 15, np.sqrt(2) - 1) if 0.05 <= ratio <= 10.0 else 0.0
        higher = min((1 + gamma) * ratio, view.sigma(1.0).item())
        state = state[0], state[1] + 1.01**2 * (higher**2 - ratio**2) * EYE
        now, then = At(view, view.t_of_ratio(higher).item()), At(view, s)
        step = lower - higher
        A1, b1 = EYE + step * now.E, step * now.e
        A = EYE + step / 2 * (now.E + then.E @ A1)
        state = advance(state, (A, step / 2 * (now.e + then.E @ b1 + then.e), 0 * EYE))
        scale = schedule.alpha(s).item()
        same(ours, (scale * state[0], scale**2 * state[1]))
    assert view.sigma(times[-1]) < 0.05  # where nothing is added any more
    same(found[-1], advance(state, to_clean(At(view, times[-1]))))


@families
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_dpm_solver_sde(family: str, eta: float) -> None:
    """Lu et al. 2022, SDE-DPM-Solver++(2M), as an affine recursion of the pair (x, x̂_0 before)."""
    schedule = SCHEDULES[family]
    sampler = DPMSolver(eta, 15, grid="uniform_log_snr", dtype="float64")
    found = moments(sampler, schedule, prior(schedule))
    mean, covariance = prior(schedule)
    pair = np.concatenate([mean, mean]), np.kron([[1, 0], [0, 0]], covariance)
    times, h_before = sampler.times(schedule), None
    for (t, s), ours in zip(pairwise(times), found, strict=False):
        now, then = At(schedule, t), At(schedule, s)
        h = np.log(then.alpha / then.sigma) - np.log(now.alpha / now.sigma)
        half = 0.0 if h_before is None else h / h_before / 2
        gain = then.alpha * (1 - np.exp(-(1 + eta) * h))
        kept = then.sigma / now.sigma * np.exp(-eta * h)
        A = np.block(
            [[kept * EYE + gain * (1 + half) * now.K, -gain * half * EYE], [now.K, 0 * EYE]]
        )
        b = np.concatenate([gain * (1 + half) * now.k, now.k])
        noise = then.sigma**2 * (1 - np.exp(-2 * eta * h))
        pair = A @ pair[0] + b, A @ pair[1] @ A.T + np.kron([[1, 0], [0, 0]], noise * EYE)
        h_before = h
        same(ours, (pair[0][:D], pair[1][:D, :D]))


@families
@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin(family: str, denoise: bool) -> None:
    """Song & Ermon 2019, algorithm 1: five steps at each of eight levels."""
    schedule = SCHEDULES[family]
    sampler = AnnealedLangevin(5, 0.2, denoise, steps=8, dtype="float64")
    found = iter(moments(sampler, schedule, prior(schedule)))
    state = prior(schedule)
    for t, s in pairwise([*sampler.times(schedule), 0.0]):
        at = At(schedule, t)
        step = 0.2 * at.sigma**2
        for _ in range(5):
            state = advance(state, (EYE + step * at.S, step * at.s, 2 * step * EYE))
            same(next(found), state)
        if s == 0 and denoise:
            state = advance(state, to_clean(at))
        else:
            scale = schedule.alpha(s).item() / at.alpha
            state = scale * state[0], scale**2 * state[1]
    same(next(found), state)


def ratios(sampler: Sampler, schedule: NoiseSchedule) -> np.ndarray:
    """Variances of the state at t_min over those of q_t, along the axes of Σ, from q_1 itself."""
    *_, at_t_min, _ = moments(sampler, schedule, marginal(schedule, 1.0))
    mean, covariance = marginal(schedule, schedule.t_min)
    assert np.abs(at_t_min[0] - mean).max() < 0.2
    _, axes = np.linalg.eigh(COVARIANCE)
    return (axes.T @ at_t_min[1] @ axes).diagonal() / (axes.T @ covariance @ axes).diagonal()


@families
def test_beta_is_over_and_posterior_under_and_both_approach(family: str) -> None:
    for variance, over in (("beta", True), ("posterior", False)):
        found = [
            ratios(
                Ancestral(variance, steps, clip=False, grid="uniform_log_snr", dtype="float64"),
                SCHEDULES[family],
            )
            for steps in (25, 50, 100)
        ]
        for ratio in found:
            assert (ratio > 1).all() if over else (ratio < 1).all()
        coarse, middle, fine = (np.abs(ratio - 1).max() for ratio in found)
        assert coarse > 1.5 * middle > 1.5**2 * fine


@families
@pytest.mark.parametrize(
    "make",
    [
        lambda n: DDIM(1.0, n, clip=False, grid="uniform_log_snr", dtype="float64"),
        lambda n: DPMSolver(1.0, n, grid="uniform_log_snr", dtype="float64"),
        lambda n: Heun(0.2 * n, steps=n, grid="uniform_log_snr", dtype="float64"),
        lambda n: PredictorCorrector(
            corrector_steps=0, steps=n, grid="uniform_log_snr", dtype="float64"
        ),
        lambda n: PredictorCorrector(
            "euler_maruyama", corrector_steps=0, steps=n, grid="uniform_log_snr", dtype="float64"
        ),
    ],
    ids=["ddim_1", "dpm_solver_sde", "heun_churn", "reverse_diffusion", "euler_maruyama"],
)
def test_the_target_is_approached(family: str, make) -> None:
    coarse, fine = (np.abs(ratios(make(n), SCHEDULES[family]) - 1).max() for n in (40, 160))
    assert fine < coarse / 2.5
    assert fine < 0.2


@families
@pytest.mark.parametrize("step", quick([0.2, 0.062], 0.062))
def test_annealed_langevin_ends_wide(family: str, step: float) -> None:
    """Where σ is what is left of the data (a point, Σ = 0), the variance is σ²/(1 − step/2)."""
    schedule = SCHEDULES[family]
    oracle = GaussianMixture(np.ones(1), MEAN[None], 0 * COVARIANCE[None], schedule)
    sampler = AnnealedLangevin(100, step, steps=10, dtype="float64")
    rng = Impulses(1 + D * 1000, 1)
    x = torch.zeros(rng.size, D, dtype=torch.float64)
    *_, last = sampler.states(oracle, x, rng)
    rows = (last[1:] - last[0]).numpy()
    ratio = schedule.ratio(schedule.t_min).item()
    np.testing.assert_allclose(last[0].numpy(), MEAN, atol=1e-2)
    np.testing.assert_allclose(rows.T @ rows / ratio**2, EYE / (1 - step / 2), atol=1e-3)
    assert 1.03 < 1 / (1 - step / 2) < 1.12


def test_the_corrector_ends_wide_by_snr_squared() -> None:
    """One point of data in many dimensions: score = −x/σ², and r² = ‖x‖²/(d·σ²) goes to
    r²·(1 − 2·snr²/r²)² + 4·snr²/r², which stays where r² = 1 + snr²: 2.6 % over at 0.16.
    """
    d, snr = 4096, 0.16
    schedule = geometric(1, 3.0, 0.01)
    model = CountingDenoiser(EmpiricalDenoiser(torch.zeros(1, d), schedule), False, None)
    sampler = PredictorCorrector(snr=snr)
    rng = Stream("corrector", indices=range(4))
    x, squares = 3 * rng.normal((d,), torch.float64), []
    for _ in range(300):
        x = sampler.correct(model, x, 1.0, 0.0, rng)
        squares.append(x.square().mean().item() / 9)
    # forgets its start at a rate of 4·snr² a step; 200 steps of 16,384 numbers, correlated over 10
    assert np.mean(squares[100:]) == pytest.approx(1 + snr**2, abs=0.008)


def test_a_sample_s_corrector_does_not_know_its_neighbours() -> None:
    schedule = geometric(3, 3.0, 0.01)
    model = CountingDenoiser(gaussian(schedule), False, None)
    x = torch.tensor([[1.0, 2.0], [30.0, -40.0]], dtype=torch.float64)
    both, one = (Stream("c", indices=range(n)) for n in (2, 1))
    sampler = PredictorCorrector()
    together = sampler.correct(model, x, 1.0, 2 / 3, both)
    alone = sampler.correct(model, x[:1], 1.0, 2 / 3, one)
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=0)
