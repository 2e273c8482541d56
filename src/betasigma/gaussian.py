"""Two Gaussians, and a Gaussian on the values of a pixel: what variational bounds are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 256
"""Values of a pixel."""


def divergence(log_ratio: Tensor, error: Tensor) -> Tensor:
    """KL(N(m, u) ‖ N(m̂, v)) in nats, element by element: ½·[u/v − 1 − log(u/v) + (m − m̂)²/v].

    Args:
        log_ratio: log(u/v).
        error: (m − m̂)²/v.
    """
    return (torch.expm1(log_ratio) - log_ratio + error) / 2


def density_bits(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log₂ N(x0; mean, variance), mean over dimensions, ``(B,)``."""
    error = (x0 - mean).square() * torch.exp(-log_variance)
    nats = (math.log(2 * math.pi) + log_variance + error) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def discretized_gaussian_bits(
    x0: Tensor, mean: Tensor, std: Tensor | float, value_range: tuple[float, float]
) -> Tensor:
    """−log₂ of the mass of N(mean, std²) in each pixel's bin, mean over dimensions, float64
    ``(B,)``.

    The first and the last bin reach to −∞ and +∞ (Ho et al. 2020, equation 13).
    """
    low, high = value_range
    half = (high - low) / (BINS - 1) / 2
    x, mean = x0.double(), mean.double()
    upper, lower = (x + half - mean) / std, (x - half - mean) / std
    upper = torch.where(x > high - half, torch.inf, upper)
    lower = torch.where(x < low + half, -torch.inf, lower)
    # by symmetry both ends are brought to the side where the distribution function is small
    flip = lower > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_b, log_a = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    nats = -(log_b + torch.log1p(-torch.exp(log_a - log_b).clamp(max=1 - 1e-15)))
    return nats.flatten(1).mean(1) / math.log(2)
