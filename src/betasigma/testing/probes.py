"""What the checks put in the place of a model: denoisers whose answer is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from betasigma.denoiser import Prediction
from betasigma.oracles import ExactDenoiser, GaussianMixture
from betasigma.schedules import NoiseSchedule, Times, geometric, linear

SCHEDULES: tuple[NoiseSchedule, ...] = (linear(1e-3, 0.2, 100), geometric(100, 20.0, 0.02))
"""One that preserves variance and one that explodes it; both begin in noise that drowns the data
and end in almost none.
"""


def mixture(
    schedule: NoiseSchedule, sample_shape: tuple[int, ...], labelled: bool = False
) -> GaussianMixture:
    """Two round, overlapping Gaussians of unequal weight and width, whose law is not symmetric."""
    d = math.prod(sample_shape)
    means = np.stack([np.full(sample_shape, -0.15), np.full(sample_shape, 0.2)])
    covariances = np.stack([0.12 * np.eye(d), 0.04 * np.eye(d)])
    return GaussianMixture(np.array([0.35, 0.65]), means, covariances, schedule, labelled=labelled)


def points(
    schedule: NoiseSchedule, at: tuple[float, ...], sample_shape: tuple[int, ...]
) -> GaussianMixture:
    """Data that are one of these points, labelled by which."""
    d, k = math.prod(sample_shape), len(at)
    means = np.stack([np.full(sample_shape, value) for value in at])
    return GaussianMixture(np.ones(k), means, np.zeros((k, d, d)), schedule, labelled=True)


class BareDenoiser:
    """A denoiser with nothing to it but what :class:`~betasigma.denoiser.DenoiserLike` declares,
    counting the calls and keeping the times at which it is asked, and asked with labels.

    Args:
        denoiser: answers.
        evaluations_per_call: what it says that a call costs.
        disguised: give the schedule another class, so that its family cannot be asked.
    """

    def __init__(
        self, denoiser: ExactDenoiser, evaluations_per_call: int = 1, disguised: bool = False
    ) -> None:
        self._denoiser = denoiser
        self.schedule = Disguised(denoiser.schedule) if disguised else denoiser.schedule
        self.sample_shape = denoiser.sample_shape
        self.value_range = denoiser.value_range
        self.num_classes = denoiser.num_classes
        self.evaluations_per_call = evaluations_per_call
        self.device, self.moments = denoiser.device, denoiser.moments
        self.calls = 0
        self.asked, self.labelled = set[float](), set[float]()

    def __call__(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        self.calls += 1
        times = torch.as_tensor(t).double().flatten().tolist()
        self.asked.update(times)
        self.labelled.update(times if y is not None else ())
        return self._denoiser(x_t, t, y)


class Disguised(NoiseSchedule):
    """A schedule of no family: the same numbers from a class that nobody has heard of, which has
    nothing but what every schedule has.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self._schedule = schedule

    def __getattribute__(self, name: str) -> Any:
        known = not name.startswith("_") and hasattr(NoiseSchedule, name)
        return getattr(self._schedule, name) if known else super().__getattribute__(name)


class BesideTheTruth(nn.Module):
    """A network for ``Preconditioning("x0", "log_sigma")`` that answers x̂_0 = E[x_0 | x_t] plus
    ``weights`` times three smooth directions; at ``weights`` = 0 it is exact.

    In units of ε the directions are a constant, the true ε̂ itself (what shrinks or inflates it),
    and a bounded function of x_t. It has twice the outputs, the second half 0: the variance, where
    an objective learns one, half-way between its bounds.
    """

    def __init__(self, oracle: GaussianMixture) -> None:
        super().__init__()
        self.oracle = oracle
        self.weights = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x_t: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        schedule = self.oracle.schedule
        t = schedule.t_of_ratio(c_noise.detach().exp().cpu())
        alpha, sigma, _ = schedule.at(t)
        x0 = self.oracle.posterior_mean(x_t, alpha, sigma, y)
        column = [-1, *[1] * (x_t.ndim - 1)]
        alpha, sigma = alpha.reshape(column), sigma.reshape(column)
        eps = (x_t - alpha * x0) / sigma
        spread = (alpha**2 + sigma**2).sqrt()
        directions = torch.stack([torch.ones_like(eps), eps, torch.tanh(2 * x_t / spread)])
        x0 = x0 - sigma / alpha * torch.tensordot(self.weights, directions, dims=1)
        return torch.cat([x0, torch.zeros_like(x0)], dim=1)


def told(value: Any) -> str:
    """A number of a sentence."""
    return f"{float(value):.4g}"
