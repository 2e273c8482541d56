"""How many network evaluations a sample takes, before one is drawn."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from betasigma.denoiser import Prediction
from betasigma.oracles import EmpiricalDenoiser
from betasigma.randomness import Stream
from betasigma.samplers.sampler import CountingDenoiser, Sampler
from betasigma.schedules import NoiseSchedule

MOST_COUNTED, MOST_OF_ADAPTIVE, COUNTING_SECONDS = 200, 2000, 2.0
"""Evaluations and seconds that counting those of a sample takes, at most."""


def evaluations(
    sampler: Sampler, schedule: NoiseSchedule, shape: tuple[int, ...], guidance: float
) -> int:
    """Network evaluations of a sample, as far as they are known before it is drawn: counted with
    the ideal denoiser of two examples in the network's place, over the first of many steps.

    Args:
        sampler: whose samples.
        schedule: the noise levels.
        shape: of one example; of larger images a part is counted with.
        guidance: weight of the guidance; any but 1 takes each evaluation twice.
    """
    part = [min(size, 8) for size in shape]
    denoiser = EmpiricalDenoiser(torch.stack([torch.full(part, -1.0), torch.ones(part)]), schedule)
    model, rng = _Limited(denoiser, sampler), Stream("cost", 0, indices=[0])
    steps, drawn = len(sampler.reached(sampler.times(schedule))), 0
    try:
        with torch.inference_mode():
            for _ in sampler.trajectory(model, sampler.begin(denoiser, rng), rng):
                drawn += 1
        found = model.nfe
    except _LimitReached:
        found = model.nfe if sampler.adaptive else steps * model.nfe // max(drawn, 1)
    except Exception:  # one of the user's own may draw from networks alone
        found = steps
    return max(1, found) * (1 if guidance == 1 else 2)


class _LimitReached(Exception):
    """As many evaluations as are counted have been made."""


class _Limited(CountingDenoiser):
    """A denoiser for so many evaluations, and for so long."""

    def __init__(self, denoiser: EmpiricalDenoiser, sampler: Sampler) -> None:
        super().__init__(denoiser, sampler.clip, None)
        self._most = MOST_OF_ADAPTIVE if sampler.adaptive else MOST_COUNTED
        self._end = time.monotonic() + COUNTING_SECONDS

    def __call__(self, x: Tensor, t: float) -> Prediction:
        if self.nfe >= self._most or time.monotonic() > self._end:
            raise _LimitReached
        return super().__call__(x, t)
