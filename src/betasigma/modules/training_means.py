"""What training itself says of the model: means over the steps since the last value of the log.

A step only puts its values aside (:meth:`TrainingMean.see`); they are added up many steps at once,
which takes a twentieth of the time. Sums stay on the device: nothing is read back until they are
logged. (They are no buffers: DistributedDataParallel would overwrite each rank's with the first
one's.) A value that is not finite is left out: its step is skipped and counted.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from betasigma.objectives.error_curve import from_schedule_log_snr
from betasigma.schedules import NoiseSchedule

AT_ONCE = 64
"""Micro-batches that are added up at once."""


class TrainingMean(Metric):
    """A metric whose values come one micro-batch at a time and are added up ``AT_ONCE`` together.

    When they are added up depends on their number alone, and neither on who reads the mean nor on
    when a checkpoint is written: a run that is resumed adds the same numbers in the same order.

    Attributes:
        sums: of what has been added up.
        waiting: arguments of ``update`` that have not been.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Tensor, ...]] = []

    def see(self, *values: Tensor) -> None:
        """Put the arguments of an ``update`` aside, as they are: each of any shape, with as many
        examples as the others.
        """
        self.waiting.append(tuple(value.detach() for value in values))
        if len(self.waiting) >= AT_ONCE:
            self.add_up()

    def add_up(self) -> None:
        """Add up what waits."""
        if self.waiting:
            columns, self.waiting = self._columns(), []
            self.update(*columns)

    def added_up(self) -> Self:
        """Itself with all that it has seen added up: a copy, where something waits."""
        if not self.waiting:
            return self
        other = copy(self)  # not what hooks of a profiler hold
        other.sums = self.sums.clone()
        other.add_up()
        return other

    def reset(self) -> None:
        """Forget all values."""
        super().reset()
        self.waiting = []

    def packed(self) -> list[Tensor]:
        """What waits: the length of each piece, and for each argument all pieces in a row."""
        if not self.waiting:
            return []
        lengths = torch.tensor([values[0].numel() for values in self.waiting])
        return [lengths, *self._columns()]

    def unpack(self, packed: list[Tensor]) -> None:
        """Have wait what :meth:`packed` returned."""
        lengths, *columns = packed
        pieces = [column.split(lengths.tolist()) for column in columns]
        self.waiting = list(zip(*pieces, strict=True))

    def _columns(self) -> list[Tensor]:
        """Each argument's pieces in a row, where its latest is: a checkpoint's are on the CPU."""
        return [
            torch.cat([piece.reshape(-1).to(pieces[-1].device) for piece in pieces])
            for pieces in zip(*self.waiting, strict=True)
        ]


class FiniteMean(TrainingMean):
    """Mean of the values that are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Take in values, of any shape."""
        finite = values.isfinite()
        kept = torch.where(finite, values, 0)
        self.sums += torch.stack([kept.sum(), finite.sum()])

    def compute(self) -> float:
        """The mean; NaN without values."""
        total, number = self.sums.tolist()
        return total / number if number else math.nan


class MeanError(TrainingMean):
    """Mean ‖ε − ε̂‖²/d at whole log-SNRs (of data in [−1, 1]), out of the errors of training.

    A family draws its noise levels in its own way, so that the mean over what it draws compares
    with no other. Here examples are gathered around each whole log-SNR, and the error *at* it lies
    on straight lines through the means. Nothing is said before every part that the levels of the
    schedule reach between the ends of ``grid`` has had an example.

    Args:
        schedule: of the model.
        value_range: of its data.
        grid: the log-SNRs, rising, within the schedule's curve.
    """

    def __init__(
        self, schedule: NoiseSchedule, value_range: tuple[float, float], grid: tuple[float, ...]
    ) -> None:
        super().__init__()
        self._schedule, self._value_range, self._grid = schedule, value_range, grid
        of_levels = _nearest(self._log_snr(schedule.times()))
        self._first, last = int(of_levels.min()), int(of_levels.max())
        self._needed = self._between(set(of_levels.tolist()))
        self.add_state("sums", torch.zeros(3, last - self._first + 1), dist_reduce_fx="sum")

    def update(self, error: Tensor, t: Tensor) -> None:
        """Take in the errors of examples at times t, both ``(B,)``, t on the CPU."""
        at = self._log_snr(t).float().to(self.device, non_blocking=True)
        part = (_nearest(at) - self._first).clamp(0, self.sums.shape[1] - 1)
        finite = error.isfinite()
        values = torch.stack([torch.where(finite, error, 0).float(), finite.float(), at * finite])
        self.sums.index_add_(1, part, values)

    def compute(self) -> dict[float, float]:
        """Error at each log-SNR of ``grid``; empty as long as a part that is needed has had no
        example.
        """
        errors, counts, log_snr = np.array(self.sums.tolist())
        known = counts > 0
        if not (self._needed and known[[part - self._first for part in self._needed]].all()):
            return {}
        x, y = log_snr[known] / counts[known], errors[known] / counts[known]
        return {log_snr: float(np.interp(log_snr, x, y)) for log_snr in self._grid}

    def _log_snr(self, t: Tensor) -> Tensor:
        shift = from_schedule_log_snr(0.0, self._value_range)
        return self._schedule.log_snr(t) + shift

    def _between(self, parts: set[int]) -> list[int]:
        """Those of ``parts`` that the ends of the grid lie between."""
        if not self._grid:
            return []
        low = max(part for part in parts if part <= self._grid[0])
        high = min(part for part in parts if part >= self._grid[-1])
        return sorted(part for part in parts if low <= part <= high)


def _nearest(log_snr: Tensor) -> Tensor:
    """The whole number next to each."""
    return (log_snr + 0.5).floor().long()
