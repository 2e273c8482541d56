r"""What can be said of a score in the plane when the truth is known in closed form.

Two round Gaussians far apart (:func:`betasigma.data.toy.two`), after Song & Ermon (2019, section 3)
and section 2.2.6 of the chapter:

- **Where a learned score is wrong.** Score matching averages its error over q_σ, so that nothing is
  learned where q_σ has no mass. The error is given as σ·‖ŝ − ∇log q_σ‖ = ‖ε̂ − E[ε | x]‖, the
  square root of what the weighted loss punishes: 0 is perfect, and errors at several σ compare.
- **What more noise costs.** q_σ fills the plane as σ grows, but is less and less the data. The
  total variation TV(p, q_σ) = ½·∫|p − q_σ| = ∫ max(p − q_σ, 0) is the share of probability that is
  in the wrong place.
- **The weights of the modes.** With p = w·p_1 + (1 − w)·p_2 and supports apart, ∇log p does not
  depend on w where either is, and Langevin dynamics that never crosses the gap cannot know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from betasigma.data.toy import Mixture
from betasigma.denoiser import DenoiserLike
from betasigma.oracles import GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import AnnealedLangevin
from betasigma.schedules import NoiseSchedule, geometric

SQUARE = 0.8
"""Half the side of the square that Langevin dynamics starts in, uniformly: [−8, 8]² in the units
of the paper, in which the modes are at ±(5, 5)."""

GAP = 0.2
"""Radius of the disc around the origin that counts as the region between the modes; the density
there is below exp(−11) of that at either mode.
"""


FAR = 5.0
"""Standard deviations of the data beyond which a point has not arrived at a mode."""


@dataclass(frozen=True)
class Share:
    """How many of n points ended at one mode, with an interval for the probability.

    Attributes:
        count, n: points at the mode, and in all.
        low, high: 95 % confidence interval (Wilson 1927).
    """

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.count / self.n


def truth(mixture: Mixture, schedule: NoiseSchedule) -> GaussianMixture:
    """The toy distribution in closed form at the noise levels of ``schedule``."""
    return GaussianMixture(mixture.weights, mixture.means, mixture.covariances, schedule)


def square_grid(side: int, half: float = 1.0) -> Tensor:
    """The points of a square grid on [−half, half]², float64 ``(side·side, 2)``; the second
    coordinate, which pictures draw upwards, changes slowest.
    """
    axis = torch.linspace(-half, half, side, dtype=torch.float64)
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([first, second], dim=-1).reshape(-1, 2)


@torch.no_grad()
def score_errors(denoiser: DenoiserLike, mixture: Mixture, places: Tensor, t: float) -> Tensor:
    """σ·‖ŝ(x) − ∇log q_t(x)‖ at x = α·place, float64 ``(n,)``.

    Args:
        denoiser: the model.
        mixture: what it was trained on.
        places: in the units of the data, shape ``(n, 2)``.
        t: time on the model's schedule.
    """
    exact = truth(mixture, denoiser.schedule)
    x = denoiser.schedule.alpha(t).item() * places.double()
    return torch.linalg.vector_norm(denoiser(x, t).eps - exact(x, t).eps, dim=1)


def at_the_modes(mixture: Mixture, n: int, seed: int) -> Tensor:
    """Points where the data are: n draws of the mixture, float64 ``(n, 2)``."""
    rng = Stream("plane", "modes", seed, indices=range(n))
    return truth(mixture, geometric()).draw(rng)


def between_the_modes(n: int, seed: int) -> Tensor:
    """Points where data never are: uniform on the disc of radius :data:`GAP` about the origin,
    float64 ``(n, 2)``.
    """
    rng = Stream("plane", "between", seed, indices=range(n))
    radius = GAP * rng.uniform().sqrt()
    angle = 2 * torch.pi * rng.uniform()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def score_error(denoiser: DenoiserLike, mixture: Mixture, places: Tensor, t: float) -> float:
    """Root mean square of :func:`score_errors`."""
    return score_errors(denoiser, mixture, places, t).square().mean().sqrt().item()


def total_variation(mixture: Mixture, sigma: float, side: int = 401) -> float:
    """TV(p, q_σ) between data and data with noise σ added, by the trapezoidal rule.

    ∫ max(p − q_σ, 0) has to be taken only where p is not negligible: on the square that reaches
    eight standard deviations beyond every mean.
    """
    exact = truth(mixture, geometric())
    half = float(exact.means.abs().max() + 8 * exact.variances.max().sqrt())
    x = square_grid(side, half)
    excess = (exact.log_density(x).exp() - exact.log_density(x, 1.0, sigma).exp()).clamp(min=0)
    return (excess.sum() * (2 * half / (side - 1)) ** 2).item()


def langevin(
    sampler: AnnealedLangevin, denoiser: DenoiserLike, n: int, seed: int
) -> Iterator[Tensor]:
    """Langevin dynamics from points uniform on the square of :data:`SQUARE`: first the start, then
    the states of ``sampler``, float32 ``(n, 2)``.

    On a model of one noise level it is the plain dynamics on q_σ. Start and noise are a function of
    ``seed`` and a point's number, so that two models see the same.
    """
    rng = Stream("plane", "langevin", seed, indices=range(n))
    start = SQUARE * (2 * rng.uniform((2,)) - 1)
    x = (denoiser.schedule.alpha(1.0).item() * start).float()
    yield x
    yield from sampler.states(denoiser, x, rng)


def shares(x: Tensor, mixture: Mixture) -> list[Share]:
    """How the points divide among the means, each going to the nearest.

    Args:
        x: shape ``(n, 2)``.
        mixture: whose means.
    """
    means = torch.from_numpy(mixture.means)
    nearest = torch.cdist(x.double(), means).argmin(1)
    counts = torch.bincount(nearest, minlength=len(means)).tolist()
    return [_share(count, len(x)) for count in counts]


def astray(x: Tensor, mixture: Mixture) -> int:
    """How many points are more than :data:`FAR` standard deviations from every mean."""
    deviation = float(mixture.covariances[0, 0, 0]) ** 0.5
    distance = torch.cdist(x.double(), torch.from_numpy(mixture.means)).amin(1)
    return int((distance > FAR * deviation).sum())


def _share(count: int, n: int) -> Share:
    interval = binomtest(count, n).proportion_ci(0.95, method="wilson")
    return Share(count, n, float(interval.low), float(interval.high))
