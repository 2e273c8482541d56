"""Mixtures whose flow and whose conditional distributions are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from betasigma.oracles import GaussianMixture
from betasigma.schedules import NoiseSchedule, geometric, linear

SCHEDULES: dict[str, NoiseSchedule] = {
    "ddpm": linear(start=1e-3, end=0.3, steps=60),
    "ncsn": geometric(30, 2.0, 0.04),
}


@pytest.fixture(params=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    """A schedule of either family."""
    return SCHEDULES[request.param]


@pytest.fixture
def gaussian() -> Callable[..., GaussianMixture]:
    """``gaussian(schedule, shape)``: one correlated Gaussian with a mean that is not 0."""

    def make(schedule: NoiseSchedule, shape: tuple[int, ...]) -> GaussianMixture:
        d = int(np.prod(shape))
        random = np.random.default_rng(0)
        root = random.normal(size=(d, d)) / np.sqrt(d)
        mean = random.uniform(0.3, 0.7, size=shape)
        covariance = 0.2 * root @ root.T + 0.05 * np.eye(d)
        return GaussianMixture(np.ones(1), mean[None], covariance[None], schedule)

    return make


@pytest.fixture
def moments() -> Callable[[GaussianMixture], tuple[torch.Tensor, torch.Tensor]]:
    """``moments(gaussian)``: mean ``(d,)`` and covariance ``(d, d)``."""

    def of(oracle: GaussianMixture) -> tuple[torch.Tensor, torch.Tensor]:
        axes, variances = oracle.axes[0], oracle.variances[0]
        return oracle.means[0], axes @ torch.diag(variances) @ axes.mT

    return of
