"""Schedules against the papers' formulas, diffusers and brute-force Bayes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from betasigma.errors import UserError
from betasigma.randomness import Stream
from betasigma.schedules import (
    NoiseSchedule,
    VarianceExploding,
    VariancePreserving,
    cosine,
    forward_path,
    geometric,
    linear,
    posterior,
    sigmoid,
    sub_vp_sde,
    transition,
    vp_sde,
)

FAMILIES = {
    "linear": linear(),
    "cosine": cosine(),
    "sigmoid": sigmoid(),
    "vp_sde": vp_sde(),
    "geometric": geometric(),
    "dense": geometric(232, 50.0, 0.01),
    "single": geometric(1, 2.0, 0.01),
}
every_family = pytest.mark.parametrize("schedule", FAMILIES.values(), ids=FAMILIES.keys())
curves = pytest.mark.parametrize(
    "schedule",
    [s for s in FAMILIES.values() if s.levels > 1],
    ids=[name for name, s in FAMILIES.items() if s.levels > 1],
)


def between(schedule: NoiseSchedule, n: int) -> torch.Tensor:
    """Times spread over the whole curve."""
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return schedule.t_min + (1 - schedule.t_min) * uniform


def betas(name: str, steps: int) -> np.ndarray:
    """β_1 … β_T written out from the papers, in long double; where T is not 1000, the ends are
    those of iDDPM's code, 1000/T times as much."""
    start, end = (np.longdouble(b) * 1000 / steps for b in ("1e-4", "0.02"))
    i = np.arange(steps, dtype=np.longdouble)
    if name == "linear":
        return start + (end - start) * i / (steps - 1)
    if name == "sigmoid":
        return start + (end - start) / (1 + np.exp(6 - 12 * i / (steps - 1)))
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def test_the_vp_sde_is_that_of_the_paper_at_every_time() -> None:
    """Song et al. 2021, equations 32 and 33: β from 0.1 to 20."""
    schedule = vp_sde(steps=10)
    t = between(schedule, 100)
    log_mean = -(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2
    torch.testing.assert_close(schedule.alpha(t), log_mean.exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        schedule.sigma(t), (1 - (2 * log_mean).exp()).sqrt(), rtol=1e-12, atol=0
    )
    f, g2 = schedule.sde(t)
    beta = 0.1 + t * (20 - 0.1)
    torch.testing.assert_close(f, -beta / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(g2, beta, rtol=1e-10, atol=0)


def test_the_sub_vp_sde_is_that_of_the_paper_at_every_time() -> None:
    """Song et al. 2021, equations 28 and 33."""
    schedule = sub_vp_sde(steps=10)
    t = between(schedule, 100)
    integral = t**2 * (20 - 0.1) / 2 + t * 0.1
    torch.testing.assert_close(schedule.alpha(t), (-integral / 2).exp(), rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.sigma(t), 1 - (-integral).exp(), rtol=1e-11, atol=0)
    f, g2 = schedule.sde(t)
    beta = 0.1 + t * (20 - 0.1)
    torch.testing.assert_close(f, -beta / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(g2, beta * (1 - (-2 * integral).exp()), rtol=1e-10, atol=0)


def test_ddpm_s_steps_are_those_of_the_vp_sde() -> None:
    steps = linear(steps=1000)
    torch.testing.assert_close(
        vp_sde().sigma(steps.times()[9:]), steps.sigma(steps.times()[9:]), rtol=0.03, atol=0
    )


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
def test_alpha_bar_is_the_product_of_the_paper(make, steps: int) -> None:
    expected = np.cumprod(1 - betas(make.__name__, steps))
    schedule = make(steps=steps)
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), expected.astype(float), rtol=1e-11)
    np.testing.assert_allclose(
        schedule.alpha(schedule.times()).numpy(), np.sqrt(expected).astype(float), rtol=1e-11
    )
    np.testing.assert_allclose(
        schedule.sigma(schedule.times()).numpy(), np.sqrt(1 - expected).astype(float), rtol=1e-11
    )


@pytest.mark.parametrize(
    ("make", "theirs"),
    [(linear, "linear"), (cosine, "squaredcos_cap_v2"), (sigmoid, "sigmoid")],
)
@pytest.mark.parametrize("steps", [1000, 100])
def test_alpha_bar_equals_diffusers(make, theirs: str, steps: int) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=steps, beta_start=1e-4, beta_end=0.02, beta_schedule=theirs
    )
    schedule = make(steps=steps) if make is cosine else make(1e-4, 0.02, steps)
    # they accumulate a thousand factors in float32
    np.testing.assert_allclose(
        schedule.alpha_bar.numpy(), scheduler.alphas_cumprod.numpy(), rtol=2e-4
    )
    _, variance = transition(schedule, schedule.times()[1:], schedule.times()[:-1])
    np.testing.assert_allclose(variance.numpy(), scheduler.betas[1:].numpy(), rtol=1e-4)


def test_geometric_ladder_is_the_official_one() -> None:
    # ermongroup/ncsn, models/anneal_runner.py: sigmas fall from σ_begin to σ_end
    theirs = np.exp(np.linspace(np.log(1.0), np.log(0.01), 10))
    schedule = geometric(10, 1.0, 0.01)
    np.testing.assert_allclose(schedule.sigma(schedule.times()).flip(0).numpy(), theirs, rtol=1e-14)
    assert schedule.sigma(1.0).item() == 1.0
    assert schedule.prior_std == 1.0
    t = between(schedule, 50)
    continuous = 0.01 * 100 ** ((t * 10 - 1) / 9)
    torch.testing.assert_close(schedule.sigma(t), continuous, rtol=1e-12, atol=0)
    assert (schedule.alpha(t) == 1).all()


def test_published_end_points() -> None:
    # Ho et al. 2020: L_T ≈ 0 because ᾱ_T is 4·10⁻⁵
    assert linear().alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert linear().alpha_bar[0].item() == pytest.approx(1 - 1e-4, rel=1e-12)
    assert cosine().alpha_bar[-1].item() < 1e-8
    # iDDPM trains its linear schedule with 4,000 steps and ends where DDPM's 1,000 do
    assert linear(steps=4000).alpha_bar[-1].item() == pytest.approx(4.2e-5, rel=0.02)
    assert linear(1e-4, 0.02, 4000).alpha_bar[-1].item() == pytest.approx(2.7e-18, rel=0.02)
    assert linear(1e-4, 0.02, 100).alpha_bar[-1].item() == pytest.approx(0.364, rel=2e-3)


@pytest.mark.parametrize("steps", [21, 100, 4000])
@pytest.mark.parametrize("make", [linear, sigmoid])
def test_the_number_of_steps_does_not_move_the_end(make, steps: int) -> None:
    """T·β is, so that Σβ = (0.1 + 20)/2 at any T, and ᾱ_T = exp(−Σβ) up to Σβ²/2 and more."""
    alpha_bar = make(steps=steps).alpha_bar
    beta = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    assert beta.sum().item() == pytest.approx(10.05, rel=1e-6)
    assert alpha_bar[-1].item() < math.exp(-10.05)


@every_family
def test_times_are_levels(schedule: NoiseSchedule) -> None:
    expected = torch.arange(1, schedule.levels + 1, dtype=torch.float64) / schedule.levels
    assert torch.equal(schedule.times(), expected)
    assert schedule.t_min == 1 / schedule.levels
    assert (schedule.log_snr(expected).diff() < 0).all()


@every_family
def test_kernel_follows_from_log_snr(schedule: NoiseSchedule) -> None:
    t = between(schedule, 100)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(2 * torch.log(alpha / sigma), schedule.log_snr(t))
    torch.testing.assert_close(schedule.ratio(t), sigma / alpha, rtol=1e-12, atol=0)
    if isinstance(schedule, VariancePreserving):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
        assert schedule.prior_std == 1
    else:
        assert isinstance(schedule, VarianceExploding)
        assert torch.equal(alpha, torch.ones_like(t))
        assert schedule.prior_std == pytest.approx(schedule.sigma(1.0).item(), rel=1e-14)


@every_family
def test_clean_data_is_an_end_point_of_its_own(schedule: NoiseSchedule) -> None:
    assert schedule.alpha(0.0) == 1
    assert schedule.sigma(0.0) == 0
    assert schedule.ratio(0.0) == 0
    for t in (schedule.t_min / 2, -0.1, 1.01, math.nan):
        with pytest.raises(UserError, match="is not a time: t is step/levels"):
            schedule.alpha(t)


def test_the_number_of_a_step_is_told_from_its_time() -> None:
    with pytest.raises(UserError) as refused:
        linear().alpha(10)
    assert str(refused.value) == (
        "t=10 is not a time: t is step/levels, here in [1/1000, 1], or 0 for clean data; step 10 "
        "is t=0.01"
    )
    with pytest.raises(UserError, match=r"clean data$"):
        linear(1e-4, 0.02, 5).alpha(torch.tensor([0.2, 6.0]))


@curves
def test_time_and_log_snr_are_inverse(schedule: NoiseSchedule) -> None:
    t = between(schedule, 1000)
    torch.testing.assert_close(schedule.t_of_log_snr(schedule.log_snr(t)), t, rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.t_of_ratio(schedule.ratio(t)), t, rtol=1e-11, atol=0)
    levels = schedule.times()
    torch.testing.assert_close(
        schedule.t_of_log_snr(schedule.log_snr(levels)), levels, rtol=1e-14, atol=0
    )
    for outside in (schedule.log_snr(1.0) - 0.1, schedule.log_snr(schedule.t_min) + 0.1):
        with pytest.raises(ValueError, match="outside the schedule's range"):
            schedule.t_of_log_snr(outside)


@pytest.mark.parametrize(
    "schedule", [s for n, s in FAMILIES.items() if s.levels > 1 and n != "vp_sde"]
)
def test_between_levels_log_snr_is_linear(schedule: NoiseSchedule) -> None:
    left, right = schedule.times()[:-1], schedule.times()[1:]
    for share in (0.25, 0.5, 0.9):
        t = left + share * (right - left)
        expected = torch.lerp(schedule.log_snr(left), schedule.log_snr(right), share)
        torch.testing.assert_close(schedule.log_snr(t), expected, rtol=1e-10, atol=1e-10)


@curves
def test_slopes_are_derivatives(schedule: NoiseSchedule) -> None:
    step = 1e-6 / schedule.levels
    t = schedule.times()[:-1] + 0.4 / schedule.levels

    def derivative(of) -> torch.Tensor:
        return (of(t + step) - of(t - step)) / (2 * step)

    torch.testing.assert_close(
        schedule.log_snr_slope(t), derivative(schedule.log_snr), rtol=1e-4, atol=0
    )
    f, g2 = schedule.sde(t)
    d_log_alpha = derivative(lambda t: torch.log(schedule.alpha(t)))
    torch.testing.assert_close(f, d_log_alpha, rtol=1e-4, atol=1e-6)
    d_variance = derivative(lambda t: schedule.sigma(t) ** 2)
    torch.testing.assert_close(d_variance, 2 * f * schedule.sigma(t) ** 2 + g2, rtol=1e-3, atol=0)


def test_slope_at_a_level_is_that_of_the_interval_below() -> None:
    schedule = NoiseScheduleOf([5.0, 4.0, 1.0])
    assert schedule.log_snr_slope(1.0) == -9
    assert schedule.log_snr_slope(2 / 3) == -3
    assert schedule.log_snr_slope(1 / 3) == -3


def test_vp_sde_is_the_paper_s() -> None:
    # Song et al. 2021, equation 11: dx = −½β(t)·x dt + √β(t) dw with β(t) = T·β_i
    schedule = linear(steps=1000)
    t = schedule.times()[100:]
    f, g2 = schedule.sde(t)
    torch.testing.assert_close(f, -g2 / 2, rtol=1e-12, atol=0)
    expected = 1000 * torch.from_numpy(betas("linear", 1000).astype(float))[100:]
    torch.testing.assert_close(g2, expected, rtol=0.03, atol=0)


class NoiseScheduleOf(VarianceExploding):
    """A schedule with the log-SNR that a test writes down."""


@pytest.mark.parametrize("bad", [[], [1.0, 2.0], [1.0, 1.0], [math.inf, 1.0], [math.nan]])
def test_tables_that_are_no_schedule(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="log_snr must"):
        NoiseScheduleOf(bad)


def test_one_level_has_no_slope() -> None:
    for call in (FAMILIES["single"].log_snr_slope, FAMILIES["single"].sde):
        with pytest.raises(UserError, match=r"sigma\.levels or beta\.steps must be at least 2"):
            call(1.0)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_chaining_the_steps_gives_the_kernel(name: str) -> None:
    """x_t = √(1 − β_t)·x_{t−1} + √β_t·ε chained from x_0 is √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε (2.1 → 2.2)."""
    schedule, beta = FAMILIES[name], betas(name, 1000)
    scale, variance = np.longdouble(1), np.longdouble(0)
    scales, variances = [], []
    for b in beta:
        scale, variance = np.sqrt(1 - b) * scale, (1 - b) * variance + b
        scales.append(float(scale))
        variances.append(float(variance))
    t = schedule.times()
    np.testing.assert_allclose(schedule.alpha(t).numpy(), scales, rtol=1e-11)
    np.testing.assert_allclose(schedule.sigma(t).numpy() ** 2, variances, rtol=1e-11)


@pytest.mark.parametrize("schedule", [linear(steps=40), geometric(6)])
def test_a_forward_path_is_one_process(schedule: NoiseSchedule) -> None:
    """At each time it has the kernel's mean and variance, and between two times s < t of one path
    the covariance α_t/α_s·σ_s² of a Markov chain."""
    times = [schedule.t_min, 0.5, 1.0]
    x0 = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    rng = Stream("test", indices=range(len(x0)))
    path = torch.cat(list(forward_path(schedule, x0, times, rng)), dim=1)
    alpha, sigma = (f(torch.tensor(times)).numpy() for f in (schedule.alpha, schedule.sigma))
    spread = sigma / np.sqrt(len(x0))
    assert (np.abs(path.mean(0).numpy() - 0.7 * alpha) < 4 * spread).all()
    covariance = np.cov(path.numpy().T)
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)):
        expected = alpha[j] / alpha[i] * sigma[i] ** 2
        assert covariance[i, j] == pytest.approx(expected, abs=4 * 1.5 * spread[j] * sigma[i])


@curves
def test_transitions_chain(schedule: NoiseSchedule) -> None:
    """q(x_t | x_r) is q(x_s | x_r) followed by q(x_t | x_s), and q(x_t | x_0) is the kernel."""
    t, s, r = schedule.times()[2:], schedule.times()[1:-1], schedule.times()[:-2]
    (far, far_v), (first, first_v), (then, then_v) = (
        transition(schedule, t, r),
        transition(schedule, s, r),
        transition(schedule, t, s),
    )
    torch.testing.assert_close(far, first * then, rtol=1e-12, atol=0)
    torch.testing.assert_close(far_v, then**2 * first_v + then_v, rtol=1e-9, atol=0)
    ratio, variance = transition(schedule, t, 0.0)
    torch.testing.assert_close(ratio, schedule.alpha(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, schedule.sigma(t) ** 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_posterior_is_ddpm_s(name: str) -> None:
    """Equations 2.6 and 2.7 as printed: β̃_t and both coefficients of the mean."""
    schedule = FAMILIES[name]
    beta = betas(name, 1000)[1:]
    alpha_bar = np.cumprod(1 - betas(name, 1000))
    now, before = alpha_bar[1:], alpha_bar[:-1]
    c_x0, c_xt, variance = posterior(schedule, schedule.times()[1:], schedule.times()[:-1])
    for ours, theirs in (
        (c_x0, np.sqrt(before) * beta / (1 - now)),
        (c_xt, np.sqrt(1 - beta) * (1 - before) / (1 - now)),
        (variance, (1 - before) / (1 - now) * beta),
    ):
        np.testing.assert_allclose(ours.numpy(), theirs.astype(float), rtol=1e-8)


@pytest.mark.parametrize("respaced", [1000, 25])
def test_posterior_variance_equals_diffusers(respaced: int) -> None:
    scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=False)
    scheduler.set_timesteps(respaced)
    schedule, stride = linear(), 1000 // respaced
    steps = scheduler.timesteps.tolist()[:-1]
    ours = [
        posterior(schedule, (i + 1) / 1000, (i + 1 - stride) / 1000).variance.item() for i in steps
    ]
    theirs = [scheduler._get_variance(i).item() for i in steps]
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


@pytest.mark.parametrize(
    ("schedule", "t", "s"),
    [
        (linear(1e-3, 0.4, 20), 1.0, 0.95),
        (linear(1e-3, 0.4, 20), 0.7, 0.3),
        (cosine(steps=20), 0.5, 0.05),
        (geometric(10, 2.0, 0.3), 1.0, 0.4),
    ],
)
def test_posterior_is_bayes_rule(schedule: NoiseSchedule, t: float, s: float) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s)·q(x_s | x_0), normalised and integrated on a grid."""
    x0, x_t = 0.6, -0.3
    grid = np.linspace(-20, 20, 400_001)

    def normal(x: np.ndarray | float, mean: np.ndarray | float, variance: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    alpha, sigma2 = schedule.alpha(s).item(), schedule.sigma(s).item() ** 2
    ratio = schedule.alpha(t).item() / alpha
    added = schedule.sigma(t).item() ** 2 - ratio**2 * sigma2
    density = normal(x_t, ratio * grid, added) * normal(grid, alpha * x0, sigma2)
    density /= density.sum()
    mean = (grid * density).sum()
    c_x0, c_xt, variance = (c.item() for c in posterior(schedule, t, s))
    assert c_x0 * x0 + c_xt * x_t == pytest.approx(mean, abs=1e-9)
    assert variance == pytest.approx(((grid - mean) ** 2 * density).sum(), rel=1e-8)


@every_family
def test_posterior_at_clean_data(schedule: NoiseSchedule) -> None:
    c_x0, c_xt, variance = posterior(schedule, schedule.times(), 0.0)
    assert (c_x0 == 1).all()
    assert not c_xt.any()
    assert not variance.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(start=0.0), r"beta\.start=0"),
        (lambda: linear(start=0.03), r"beta\.end=0\.02 must be at least beta\.start=0\.03"),
        (lambda: linear(end=2.0), r"beta\.end=2"),
        (lambda: sigmoid(end=1.0), r"beta\.end=1"),
        (lambda: linear(steps=20), r"beta\.steps=20 is too few .*: take more than 20 steps"),
        (lambda: linear(steps=0), r"beta\.steps=0 must be at least 1"),
        (lambda: cosine(steps=0), r"beta\.steps=0"),
        (lambda: cosine(offset=0.0), r"beta\.offset=0"),
        (lambda: cosine(max_beta=1.0), r"beta\.max=1"),
        (lambda: geometric(levels=0), r"sigma\.levels=0"),
        (lambda: geometric(max=0.5, min=1.0), r"sigma\.min=1 must be below sigma\.max=0\.5"),
        (lambda: geometric(min=0.0), r"sigma\.min=0\.0 must be above 0"),
        (lambda: geometric(levels=1, max=-1.0), r"sigma\.max=-1"),
    ],
)
def test_bad_values_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_times_of_float32_are_times() -> None:
    schedule = linear()
    for t in (0.001, 1.0):
        rounded = torch.tensor(t, dtype=torch.float32)
        for shifted in (rounded, torch.nextafter(rounded, torch.tensor(2.0)), rounded * (1 - 1e-7)):
            assert schedule.alpha(shifted).item() == pytest.approx(
                schedule.alpha(t).item(), rel=1e-5
            )
    assert schedule.sigma(torch.tensor(0.0)).item() == 0


def test_what_a_run_finds_from_the_data_is_a_number_in_a_notebook():
    with pytest.raises(UserError, match=r"^sigma\.levels=auto is found .*; give a number$"):
        geometric(levels="auto")
