r"""Learning the reverse variance with the mean: the hybrid objective of Nichol & Dhariwal (2021).

Besides its estimate of the noise the network gives, for each number of x_t, a place between the two
extremes that the variance of the reverse step can have (their equation 15),

    log v = w·log β_t + (1 − w)·log β̃_t,        w = (output + 1)/2.

The simple loss (2.10 of docs/equations.md) says nothing of v, the bound (2.4) does, but is noisy to
train on. So they minimise (section 3.1, equation 16)

    L_hybrid = L_simple + 0.001·L_vlb,        L_vlb = Σ_t L_t,

with the mean held fixed in L_vlb: v follows the bound, the mean the simple loss. L_t is the
divergence of step t and, at level 1, the decoder (see :mod:`betasigma.likelihood.bound`), here as
in their code in bits per dimension, at one level drawn uniformly for each example and multiplied by
the number of levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser, Prediction, expand
from betasigma.gaussian import density_bits, discretized_gaussian_bits, divergence
from betasigma.objectives.denoising import Denoising, Noised
from betasigma.options.objectives import HybridOptions
from betasigma.randomness import Stream
from betasigma.schedules import posterior, reverse_log_variances


@dataclass(frozen=True)
class Hybrid(Denoising):
    """L_simple + vlb_weight·L_vlb, for a network with twice the outputs.

    Args:
        vlb_weight: λ of the paper.

    Raises:
        UserError: for times off the levels, or the bound's weight on the simple part too.
    """

    options = HybridOptions

    vlb_weight: float = 0.001

    def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        predicted = denoiser(noised.x_t, noised.t, noised.y)
        simple = self.weighted(denoiser, noised.t, noised.error(predicted))
        weight = self.vlb_weight * denoiser.schedule.levels
        return simple + weight * level_bits(denoiser, noised, predicted)


def level_bits(denoiser: Denoiser, noised: Noised, predicted: Prediction) -> Tensor:
    """L_t of each example in bits per dimension, ``(B,)``; only the variance has a gradient."""
    schedule, t = denoiser.schedule, noised.t
    s = (t * schedule.levels - 1).round() / schedule.levels
    low, high = reverse_log_variances(schedule, t, s)
    log_v = predicted.log_variance(low, high)
    x0 = predicted.x0.detach()
    gap = expand(posterior(schedule, t, s).c_x0, x0) * (noised.x0 - x0)
    kl = divergence(expand(low, log_v) - log_v, gap.square() * torch.exp(-log_v))
    bits = kl.flatten(1).mean(1) / math.log(2)
    first = (s == 0).nonzero()[:, 0]  # found on the CPU: nothing waits for the device
    if not len(first):
        return bits
    rows = first.to(bits.device, non_blocking=True)
    return bits.index_copy(0, rows, _decoder_bits(denoiser, noised.x0[rows], x0[rows], log_v[rows]))


def _decoder_bits(denoiser: Denoiser, x0: Tensor, mean: Tensor, log_v: Tensor) -> Tensor:
    """−log₂ p(x_0 | x_1) per dimension: over the bins of pixels, or a density for points."""
    if x0.ndim == 2:
        return density_bits(x0, mean, log_v)
    std = torch.exp(log_v.double() / 2)
    return discretized_gaussian_bits(x0, mean, std, denoiser.value_range).to(x0.dtype)
