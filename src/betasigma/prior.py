r"""The Gaussian at the largest noise: where sampling starts and where every likelihood ends.

The forward process leaves data at t = 1 as α·x_0 + σ·ε. A model has to stand in for that with a
distribution it can sample and score. N(0, prior_std²·I) is the papers' choice, harmless where the
noise drowns the data (DDPM: the KL is of the order of 10⁻⁵ bits/dim) and costly where it does not
(NCSN at σ_max = 1: about a tenth of a bit per dimension). The moment-matched Gaussian N(α·m, α²·s²
+ σ²), with mean m and variance s² of the data in each dimension, is the best independent Gaussian
for either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from betasigma.schedules import NoiseSchedule


@dataclass(frozen=True)
class DataMoments:
    """Mean and variance of clean data in each dimension, in the model's value range.

    Attributes:
        mean, variance: float64 of shape ``(*sample_shape)``, on the CPU.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def uniform(cls, low: float, high: float) -> DataMoments:
        """Moments of U[low, high] in each dimension."""
        middle, variance = (low + high) / 2, (high - low) ** 2 / 12
        return cls(torch.tensor(middle).double(), torch.tensor(variance).double())

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> DataMoments:
        """Moments of all examples of these batches, each ``(b, *sample_shape)``.

        Raises:
            ValueError: where there are none.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            x = batch.double()
            count, total, squares = count + len(x), total + x.sum(0), squares + x.square().sum(0)
        if not count:
            raise ValueError("moments need at least one example")
        mean = total / count
        return cls(mean.cpu(), (squares / count - mean**2).clamp(min=0).cpu())


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, variance) in each dimension of x_t at t = 1.

    Attributes:
        mean, variance: shape ``(*sample_shape)`` or ``()``.
    """

    mean: Tensor | float
    variance: Tensor | float

    @classmethod
    def standard(cls, schedule: NoiseSchedule, t: float = 1.0) -> GaussianPrior:
        """N(0, prior_std²·I), the papers' choice, or what stands in for it at ``t``."""
        return cls(0.0, schedule.start_std(t).item() ** 2)

    @classmethod
    def matched(
        cls, schedule: NoiseSchedule, moments: DataMoments, t: float = 1.0
    ) -> GaussianPrior:
        """The Gaussian with the moments of q(x_t), from those of clean data."""
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        return cls(alpha * moments.mean, alpha**2 * moments.variance + sigma**2)

    def excess_bits(self, data: GaussianPrior) -> float:
        """KL(``data`` ‖ this) in bits per dimension: how far from the data this begins."""
        ratio = torch.as_tensor(data.variance / self.variance, dtype=torch.float64)
        shift = torch.as_tensor((data.mean - self.mean) ** 2 / self.variance, dtype=torch.float64)
        return ((ratio - 1 - ratio.log() + shift) / 2).mean().item() / math.log(2)

    def draw(self, noise: Tensor) -> Tensor:
        """A draw made of standard normal numbers, in their dtype and on their device."""
        std = torch.as_tensor(self.variance).sqrt()
        return noise * std.to(noise) + torch.as_tensor(self.mean).to(noise)

    def kl(self, schedule: NoiseSchedule, x0: Tensor) -> Tensor:
        """KL(q(x_1 | x_0) ‖ prior) of each example in nats, shape ``(B,)``, float64."""
        alpha, sigma = schedule.alpha(1.0).item(), schedule.sigma(1.0).item()
        squares = (alpha * x0.double() - self.mean) ** 2
        ratio = sigma**2 / (self.variance + 0 * squares)
        terms = ratio - 1 - ratio.log() + squares / self.variance
        return terms.flatten(1).sum(1) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x_1 in nats, shape ``(B,)``, float64."""
        x = x.double()
        variance = self.variance + 0 * x
        terms = (x - self.mean) ** 2 / variance + variance.log() + math.log(2 * math.pi)
        return -terms.flatten(1).sum(1) / 2
