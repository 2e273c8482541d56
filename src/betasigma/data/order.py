r"""Data order: which example is used where is a function of the seed and a counter.

Position j of the batch of optimizer step k (both from 0) has the counter c = k·B + j. Counters walk
through epoch after epoch: c is element c mod N of the permutation of epoch ⌊c / N⌋, itself a
function of (seed, epoch). So batches straddle epochs, nothing is dropped, training can start at any
step, and a set smaller than a batch is merely several epochs at once.

A step's positions are divided among its micro-batches (gradient accumulation) and, within each,
among the devices, in contiguous slices: the batch is the same however the work is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from betasigma.options.training import BatchOptions, TrainingOptions, check_division
from betasigma.randomness import philox


class DataOrder:
    """The endless sequence of examples of a data set.

    Args:
        size: number of examples N ≥ 1.
        seed: of the run.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a data order needs at least one example, not {size}")
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        """Examples of ``epoch`` in order, int64 of shape ``(N,)``. The last result is cached."""
        if epoch != self._epoch:
            self._permutation = philox("order", self.seed, epoch).permutation(self.size)
            self._epoch = epoch
        return self._permutation

    def examples(self, start: int, stop: int) -> np.ndarray:
        """Examples of the counters start, …, stop − 1, int64 of shape ``(stop − start,)``."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, self.size)
            taken = min(stop - start, self.size - position)
            parts.append(self.permutation(epoch)[position : position + taken])
            start += taken
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class OneBatch(DataOrder):
    """The first batch of an order, again and again, to see whether a model can learn it.

    Args:
        size, seed: see :class:`DataOrder`.
        batch_size: examples per optimizer step.
    """

    def __init__(self, size: int, seed: int, batch_size: int) -> None:
        super().__init__(size, seed)
        self.batch_size = batch_size

    def examples(self, start: int, stop: int) -> np.ndarray:
        position = start % self.batch_size
        return super().examples(position, position + stop - start)


@dataclass(frozen=True)
class Division:
    """How micro-batches and devices divide the examples of an optimizer step.

    Args:
        batch_size: examples per optimizer step, over all micro-batches and devices.
        accumulate: micro-batches per optimizer step.
        world_size: number of devices.
        rank: of this device.

    Raises:
        UserError: if ``batch_size`` is below 1 or cannot be divided evenly.
    """

    batch_size: int
    accumulate: int = TrainingOptions.DEFAULTS["accumulate"]
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        BatchOptions.check(batch_size=self.batch_size)
        check_division(self.batch_size, self.accumulate, self.world_size)

    @property
    def micro_batch_size(self) -> int:
        """Examples per forward pass on one device."""
        return self.batch_size // (self.accumulate * self.world_size)

    def start(self, micro_batch: int) -> int:
        """Position in the step's batch of this device's first example of ``micro_batch``."""
        return (micro_batch * self.world_size + self.rank) * self.micro_batch_size


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward pass on one device.

    Attributes:
        step: optimizer step.
        index: address of the random numbers, int64 of shape ``(b,)``: positions in the step's batch
            when training, otherwise numbers of the examples.
        examples: numbers of the examples in the data set, int64 of shape ``(b,)``.
    """

    step: int
    index: np.ndarray
    examples: np.ndarray

    @staticmethod
    def of(examples: np.ndarray) -> MicroBatch:
        """Make a micro-batch outside training, where an example is addressed by its number."""
        return MicroBatch(0, examples, examples)


def training_order(order: DataOrder, division: Division, step: int) -> Iterator[MicroBatch]:
    """Yield this device's micro-batches from optimizer step ``step`` on, without end."""
    size = division.micro_batch_size
    while True:
        for micro_batch in range(division.accumulate):
            start = division.start(micro_batch)
            counter = step * division.batch_size + start
            yield MicroBatch(
                step, np.arange(start, start + size), order.examples(counter, counter + size)
            )
        step += 1


def subset(size: int, limit: int | None) -> np.ndarray:
    """Choose ``limit`` of ``size`` examples (all if it is ``None`` or more); numbers rise.

    The choice is random but fixed: in a folder sorted by class, the first examples are of one
    class. A smaller choice is part of a larger one.
    """
    if limit is None or limit >= size:
        return np.arange(size)
    return np.sort(philox("subset", size).permutation(size)[:limit])


def fixed_order(
    examples: np.ndarray, batch_size: int, world_size: int = 1, rank: int = 0
) -> list[MicroBatch]:
    """Return ``examples`` once, in order, in batches of at most ``batch_size`` per device.

    Batch sizes differ by at most one. Every device has the same number of batches if there are
    enough examples.
    """
    rounds = -(-len(examples) // (batch_size * world_size))
    pieces = np.array_split(examples, max(rounds, 1) * world_size)
    return [MicroBatch.of(piece) for piece in pieces[rank::world_size] if len(piece)]
