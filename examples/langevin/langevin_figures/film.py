"""Figure 2.1 of the chapter: one image is turned into noise, and noise into an image.

The forward strip is one path of q(x_t | x_s); the reverse strip is a sampler's trajectory from
where that path ended. Both are looked at on the same few noise levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike
from betasigma.objectives.error_curve import from_schedule_log_snr
from betasigma.randomness import Stream
from betasigma.samplers import Sampler
from betasigma.samplers.sampler import time_grid
from betasigma.schedules import NoiseSchedule, forward_path


@dataclass(frozen=True)
class Film:
    """Both strips, the clean end first.

    Attributes:
        forward, reverse: in the model's value range, float32 ``(frames, *sample_shape)``.
        log_snr: of each frame, of data in [−1, 1]; ∞ for the clean one.
        sigma: σ/α of each frame, in the model's units.
        steps: how many the sampler took.
    """

    forward: Tensor
    reverse: Tensor
    log_snr: list[float]
    sigma: list[float]
    steps: int


def film(denoiser: DenoiserLike, sampler: Sampler, x0: Tensor, frames: int, seed: int) -> Film:
    """Noise one image, and sample from what it has become.

    Args:
        denoiser: the model.
        sampler: what goes back.
        x0: the image in the model's value range, shape ``sample_shape``.
        frames: noise levels looked at, clean data and the largest noise among them; at least 3.
        seed: of the noise of both ways.
    """
    schedule = denoiser.schedule
    times = levels_to_show(schedule, frames - 1)
    rng = Stream("film", seed, indices=[0], device=denoiser.device)
    clean = x0[None].to(denoiser.device, sampler.dtype)
    noised = list(forward_path(schedule, clean, times, rng))
    reached = sampler.reached(sampler.times(schedule))
    wanted = [nearest(schedule, reached, t) for t in [0.0, *times[:-1]]]
    states = enumerate(sampler.states(denoiser, noised[-1], rng))
    kept = {number: x for number, x in states if number in wanted}
    return Film(
        torch.cat([clean, *noised]).float().cpu(),
        torch.cat([*(kept[number] for number in wanted), noised[-1]]).float().cpu(),
        [
            from_schedule_log_snr(schedule.log_snr(t).item(), denoiser.value_range)
            for t in [0.0, *times]
        ],
        [schedule.ratio(t).item() for t in [0.0, *times]],
        len(reached),
    )


def levels_to_show(schedule: NoiseSchedule, count: int) -> list[float]:
    """Rising times of at most ``count`` of the schedule's levels, about even in log-SNR, the least
    and the greatest among them.
    """
    even = time_grid(schedule, min(count, schedule.levels), "uniform_log_snr")
    return sorted({round(t * schedule.levels) / schedule.levels for t in even})


def nearest(schedule: NoiseSchedule, reached: list[float], t: float) -> int:
    """Number of the last state whose log-SNR is nearest to that of time ``t``."""
    if t == 0:
        return len(reached) - 1
    wanted = schedule.log_snr(t).item()
    log_snr = schedule.log_snr(torch.tensor(reached, dtype=torch.float64)).tolist()
    away = [abs(value - wanted) for value in log_snr]
    least = min(away)
    return max(i for i, value in enumerate(away) if math.isclose(value, least, abs_tol=1e-9))
