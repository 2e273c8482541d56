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
from dataclasses import dataclass

from torch import Tensor

from betasigma.schedules import NoiseSchedule


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, variance) in each dimension of x_t at t = 1.

    Attributes:
        mean, variance: shape ``(*sample_shape)`` or ``()``.
    """

    mean: Tensor | float
    variance: Tensor | float

    @classmethod
    def standard(cls, schedule: NoiseSchedule) -> GaussianPrior:
        """N(0, prior_std²·I), the papers' choice."""
        return cls(0.0, schedule.prior_std**2)

    @classmethod
    def matched(cls, schedule: NoiseSchedule, x0: Tensor) -> GaussianPrior:
        """Moments of q(x_1), from data ``(n, *sample_shape)`` in the model's value range."""
        alpha, sigma = schedule.alpha(1.0).item(), schedule.sigma(1.0).item()
        data = x0.double()
        return cls(alpha * data.mean(0), alpha**2 * data.var(0, correction=0) + sigma**2)

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
