r"""How well a model denoises at each noise level, in units that both families share.

The error of ε̂ at a given signal-to-noise ratio, ‖ε − ε̂‖²/d = SNR·‖x_0 − x̂_0‖²/d, does not change
when data and noise are rescaled together. It compares models across families as long as the SNR is
that of the *same* data: moving images from [0, 1] to [−1, 1] doubles them, so at equal SNR the
noise doubles too and log-SNR as the schedule counts it falls by log 4. Here log-SNR always means
that of data in [−1, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike, perturb
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule

GRID = (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
"""log-SNR (of data in [−1, 1]) that ``val/denoising_error`` is the mean over: −1, 0, …, 7. Every
default schedule covers it; a model whose schedule does not has no metric of that name.
"""


def to_schedule_log_snr(log_snr: float, value_range: tuple[float, float]) -> float:
    """log-SNR of data in [−1, 1] → log-SNR as a schedule on data in ``value_range`` counts it."""
    low, high = value_range
    return log_snr + 2 * math.log(2 / (high - low))


def from_schedule_log_snr(log_snr: float, value_range: tuple[float, float]) -> float:
    """Inverse of :func:`to_schedule_log_snr`."""
    low, high = value_range
    return log_snr - 2 * math.log(2 / (high - low))


def covered(schedule: NoiseSchedule, log_snr: float) -> bool:
    """Whether the schedule's curve reaches this log-SNR (of its own data)."""
    return bool(schedule.log_snr(1.0) <= log_snr <= schedule.log_snr(schedule.t_min))


def covered_grid(schedule: NoiseSchedule, value_range: tuple[float, float]) -> list[float]:
    """Every whole log-SNR (of data in [−1, 1]) that the schedule's curve reaches, rising."""
    shift = to_schedule_log_snr(0.0, value_range)
    low = math.ceil(schedule.log_snr(1.0).item() - shift - 1e-9)
    high = math.floor(schedule.log_snr(schedule.t_min).item() - shift + 1e-9)
    return [float(log_snr) for log_snr in range(low, high + 1)]


def denoising_error(
    denoiser: DenoiserLike, x0: Tensor, y: Tensor | None, log_snr: float, rng: Stream
) -> Tensor:
    """‖ε − ε̂‖²/d per example at this log-SNR (of data in [−1, 1]).

    Args:
        denoiser: the model.
        x0: clean data in the model's value range, shape ``(B, *sample_shape)``.
        y: class labels ``(B,)`` or ``None``.
        log_snr: within the schedule's curve (see :func:`covered`).
        rng: the numbers of these examples.

    Returns:
        Shape ``(B,)``; 0 is perfect, 1 is what ε̂ = 0 scores.
    """
    t = denoiser.schedule.t_of_log_snr(to_schedule_log_snr(log_snr, denoiser.value_range))
    eps = rng.normal(x0.shape[1:]).to(x0)
    with torch.no_grad():
        predicted = denoiser(perturb(denoiser.schedule, x0, t, eps), t, y).eps
    return (eps - predicted).square().flatten(1).mean(1)
