r"""Deterministic samplers converge to the probability-flow solution at their theoretical order.

For x_0 ~ N(μ, Σ) the flow is known: in the view x̄ = x/α, σ̃ = σ/α it reads dx̄/dσ̃ = σ̃·(Σ +
σ̃²·I)⁻¹·(x̄ − μ), so along every axis of Σ with variance λ

    (x̄_s − μ) = √((λ + σ̃_s²)/(λ + σ̃_t²))·(x̄_t − μ).

Errors are taken at t_min, before the last step to clean data, whose error does not fall with the
number of steps. (On N(0, I) the VP flow stands still and every method looks exact; hence the
anisotropic Gaussian off the origin.)

Euler's order in t needs a schedule that is smooth in t. Between levels log-SNR is linear, so a
schedule of two levels is the smooth log-linear curve between them (for VE the geometric ladder
itself), and on the 1,000 levels of the linear schedule the steps stay much longer than a level. The
methods in σ/α only ever see σ/α and do not feel the levels at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from launching import quick
from torch import Tensor

from betasigma.oracles import GaussianMixture
from betasigma.samplers import DDIM, AdaptiveODE, DPMSolver, Euler, Heun, Sampler
from betasigma.schedules import NoiseSchedule, VariancePreserving, geometric, linear

MEAN = np.array([0.5, -0.8, 0.2])
COVARIANCE = np.array([[0.5, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.05]])
SCHEDULES: dict[str, NoiseSchedule] = {
    "ve": geometric(2, 5.0, 0.05),
    "vp": VariancePreserving([6.0, -6.0]),
    "linear": linear(),
}
FINE = (40, 80, 160)
"""Numbers of steps N that the slope is fitted over."""


def gaussian(schedule: NoiseSchedule) -> GaussianMixture:
    return GaussianMixture(np.ones(1), MEAN[None], COVARIANCE[None], schedule)


def exact(schedule: NoiseSchedule, x: Tensor) -> Tensor:
    """The flow's state at t_min that starts from x at t = 1."""
    variances, axes = torch.linalg.eigh(torch.from_numpy(COVARIANCE))
    mean = torch.from_numpy(MEAN)
    start, end = schedule.ratio(1.0), schedule.ratio(schedule.t_min)
    factor = torch.sqrt((variances + end**2) / (variances + start**2))
    away = (x / schedule.alpha(1.0) - mean) @ axes
    return schedule.alpha(schedule.t_min) * (mean + (factor * away) @ axes.mT)


def start(schedule: NoiseSchedule, d: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return schedule.prior_std * torch.randn(8, d, generator=generator, dtype=torch.float64)


def at_t_min(sampler: Sampler, oracle: GaussianMixture, x: Tensor) -> Tensor:
    *_, state, _ = sampler.states(oracle, x, None)  # type: ignore[arg-type]
    return state


def slope(make: Callable[[int], Sampler], oracle: GaussianMixture, x: Tensor, truth: Tensor):
    """−d log error/d log N, N the number of steps from t = 1 to t_min."""
    errors = [(at_t_min(make(n + 1), oracle, x) - truth).norm(dim=1).max().item() for n in FINE]
    return -float(np.polyfit(np.log(FINE), np.log(errors), 1)[0])


METHODS: dict[str, tuple[Callable[[int], Sampler], int]] = {
    "euler": (lambda n: Euler(n, grid="uniform_t", dtype="float64"), 1),
    "ddim": (lambda n: DDIM(0.0, n, clip=False, grid="uniform_log_snr", dtype="float64"), 1),
    "ddim_karras": (lambda n: DDIM(0.0, n, clip=False, grid="karras", dtype="float64"), 1),
    "heun": (lambda n: Heun(steps=n, grid="uniform_log_snr", dtype="float64"), 2),
    "heun_karras": (lambda n: Heun(steps=n, grid="karras", rho=3.0, dtype="float64"), 2),
    "dpm_solver": (lambda n: DPMSolver(0.0, n, grid="uniform_log_snr", dtype="float64"), 2),
    "dpm_solver_karras": (lambda n: DPMSolver(0.0, n, grid="karras", dtype="float64"), 2),
}


@pytest.mark.parametrize("family", SCHEDULES)
@pytest.mark.parametrize(
    "method", quick(METHODS, "euler", "ddim", "heun", "dpm_solver", "heun_karras")
)
def test_order_on_a_gaussian(family: str, method: str) -> None:
    schedule, (make, order) = SCHEDULES[family], METHODS[method]
    x = start(schedule)
    found = slope(make, gaussian(schedule), x, exact(schedule, x))
    assert found == pytest.approx(order, abs=0.06)


@pytest.mark.parametrize("family", SCHEDULES)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_the_adaptive_solver_meets_its_tolerance(family: str, tolerance: float) -> None:
    schedule = SCHEDULES[family]
    x = start(schedule)
    found = at_t_min(AdaptiveODE(tolerance, tolerance, dtype="float64"), gaussian(schedule), x)
    # in x/α, of order 1 at t_min, summed over a few dozen steps
    assert (found - exact(schedule, x)).abs().max() < 10 * tolerance


@cache
def bent(family: str) -> tuple[GaussianMixture, Tensor, Tensor]:
    """A mixture, where the flow is not linear; a start; and its end by the adaptive solver at a
    tolerance of 1e-10, itself met above.
    """
    means = np.array([[0.8, 0.2], [-0.6, 0.4], [0.1, -0.7]])
    covariances = 0.2 * np.stack([np.eye(2)] * 3)
    oracle = GaussianMixture(np.array([0.5, 0.3, 0.2]), means, covariances, SCHEDULES[family])
    x = start(SCHEDULES[family], 2)
    return oracle, x, at_t_min(AdaptiveODE(1e-10, 1e-10, dtype="float64"), oracle, x)


@pytest.mark.parametrize("family", ["ve", "vp"])
@pytest.mark.parametrize("method", ["euler", "ddim", "heun", "dpm_solver"])
def test_order_on_a_mixture(family: str, method: str) -> None:
    make, order = METHODS[method]
    assert slope(make, *bent(family)) == pytest.approx(order, abs=0.1)


def test_on_the_standard_normal_the_vp_flow_stands_still() -> None:
    """Why none of this is measured on N(0, I): one step of any method in t is exact there."""
    oracle = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], linear())
    x = start(linear(), 2)
    for steps in (2, 50):
        torch.testing.assert_close(at_t_min(Euler(steps, dtype="float64"), oracle, x), x)
