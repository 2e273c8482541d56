"""One denoiser seen as variance preserving and as variance exploding: x/α, σ/α.

The two describe the same distributions with the same log-SNR. A sampler that is written in σ/α
makes the same trajectory of both after rescaling, given the same noise; one that is written in t,
or that takes β_t for its variance, does not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from betasigma.oracles import GaussianMixture
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import NoiseSchedule, VarianceExploding, linear

VP = linear(1e-4, 0.02, 200)
VE = VarianceExploding(VP.log_snr(VP.times()).numpy())
STEPS = 25


def oracle(schedule: NoiseSchedule) -> GaussianMixture:
    means = np.array([[0.8, 0.2], [-0.6, 0.4], [0.1, -0.7]])
    covariances = np.stack([np.diag([0.02, 0.1]), np.diag([0.2, 0.03]), 0.05 * np.eye(2)])
    return GaussianMixture(np.array([0.5, 0.3, 0.2]), means, covariances, schedule)


def difference(sampler: Sampler, noise, replay) -> float:
    """Largest distance between the two trajectories, in units of x_0 where that is the larger."""
    x, draws = noise(8, 2), noise(200, 8, 2, seed=1)
    paths = []
    for schedule in (VP, VE):
        scale = schedule.alpha(1.0) / VP.alpha(1.0)
        paths.append(list(sampler.states(oracle(schedule), scale * x, replay(draws))))
    times = sampler.times(VP)
    if isinstance(sampler, AnnealedLangevin):  # its inner steps stay at one level
        after = [t for t in times for _ in range(sampler.inner_steps)] + [0.0]
    else:
        after = [*times[1:], 0.0]
    alphas = [VP.alpha(t).item() for t in after]
    return max(distance(vp / alpha, ve) for vp, ve, alpha in zip(*paths, alphas, strict=True))


def distance(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm(dim=1) / right.norm(dim=1).clamp(min=1)).max().item()


SAME: dict[str, Sampler] = {
    "ddim": DDIM(0.0, STEPS, clip=False),
    "ddim_clipped": DDIM(0.0, STEPS, clip=True),
    "ddim_0.5": DDIM(0.5, STEPS, clip=False, grid="karras"),
    "ancestral_posterior": Ancestral("posterior", STEPS, clip=False),
    "pc_ancestral": PredictorCorrector("ancestral", corrector_steps=0, steps=STEPS),
    "heun": Heun(steps=STEPS, grid="karras"),
    "heun_churn": Heun(10.0, 0.02, 50.0, 1.01, STEPS, grid="uniform_log_snr"),
    "dpm_solver": DPMSolver(0.0, STEPS),
    "dpm_solver_sde": DPMSolver(1.0, STEPS, grid="uniform_log_snr"),
    "annealed_langevin": AnnealedLangevin(3, 0.1, steps=STEPS),
    "annealed_langevin_denoise": AnnealedLangevin(3, 0.1, denoise=True, steps=STEPS),
}
OTHER: dict[str, Sampler] = {
    "euler": Euler(STEPS),
    "ancestral_beta": Ancestral("beta", STEPS, clip=False),
    "reverse_diffusion": PredictorCorrector(corrector_steps=0, steps=STEPS),
    "euler_maruyama": PredictorCorrector("euler_maruyama", corrector_steps=0, steps=STEPS),
}


@pytest.mark.parametrize("name", SAME)
def test_same_trajectory(name: str, noise, replay) -> None:
    sampler = SAME[name]
    sampler.dtype = torch.float64
    assert difference(sampler, noise, replay) < 1e-9


@pytest.mark.parametrize("name", OTHER)
def test_another_trajectory(name: str, noise, replay) -> None:
    assert difference(OTHER[name], noise, replay) > 0.02


def test_the_adaptive_solver_sees_no_difference(noise, replay) -> None:
    assert difference(AdaptiveODE(1e-6, 1e-6, dtype="float64"), noise, replay) < 1e-9


def test_euler_s_two_views_meet_as_steps_grow(noise, replay) -> None:
    coarse, fine = (difference(Euler(steps), noise, replay) for steps in (25, 200))
    assert fine < coarse / 4
