"""From an order of examples to batches: in this process, or decoded ahead by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from betasigma.data.order import MicroBatch
from betasigma.data.sources import InMemory, Source
from betasigma.errors import UserError

Batch = dict[str, Any]
"""``image``, ``label`` (where there are classes), ``index``, ``step``, ``augment``."""


@dataclass
class Batches:
    """Batches of ``source`` in an order that is looked up anew by every ``iter``.

    It is not a ``DataLoader``, so that Lightning leaves its order alone; it has no length, because
    training has no end.

    Args:
        source: the examples.
        plan: gives the order.
        augment: what batches say of themselves: whether random flips and dequantisation apply.
        workers: processes that decode images ahead; tensors in memory need none.
        pin: put batches in page-locked memory, from which a GPU copies without waiting.
    """

    source: Source
    plan: Callable[[], Iterable[MicroBatch]]
    augment: bool
    workers: int = 0
    pin: bool = False

    def __iter__(self) -> Iterator[Batch]:
        decode_ahead = self.workers > 0 and not isinstance(self.source, InMemory)
        make = self._from_workers if decode_ahead else self._here
        for batch in make():
            yield batch | {"augment": self.augment}

    def _here(self) -> Iterator[Batch]:
        for micro_batch in self.plan():
            batch = collect(self.source, micro_batch)
            yield _pinned(batch) if self.pin else batch

    def _from_workers(self) -> Iterator[Batch]:
        loader = DataLoader(
            _Collected(self.source),
            batch_size=None,
            sampler=self.plan(),
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=self.pin,
            # its own, lest PyTorch advance the global one that dropout draws from
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


@dataclass
class SizedBatches(Batches):
    """Batches of an order that ends.

    Args:
        length: number of batches.
    """

    length: int = 0

    def __len__(self) -> int:
        return self.length


def collect(source: Source, micro_batch: MicroBatch) -> Batch:
    """The examples of ``micro_batch``, with what their random numbers are addressed by."""
    index = torch.from_numpy(micro_batch.index)
    return {**source.take(micro_batch.examples), "index": index, "step": micro_batch.step}


class _Collected(Dataset):
    """What a worker runs: micro-batch → batch."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | UserError:
        try:
            return collect(self._source, micro_batch)
        except UserError as error:  # raised here, PyTorch would wrap it in the worker's traceback
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _pinned(batch: Batch) -> Batch:
    return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
