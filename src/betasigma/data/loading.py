"""Make batches from an order of examples, in this process or by workers that decode ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from betasigma.data.order import MicroBatch
from betasigma.data.sources import InMemory, Source
from betasigma.errors import UserError, first_line

Batch = dict[str, Any]
"""``image``, ``label`` (if there are classes), ``index``, ``step``, ``augment``."""

WORKER_SECONDS = 50.0
"""Seconds to wait for a batch from a worker, which decodes ahead."""

LOOK_SECONDS = 5.0
"""Seconds after which PyTorch looks whether the workers live: the signal of one that ends before it
is watched is missed.
"""

END_SECONDS = 5.0
"""Seconds within which PyTorch learns that a worker has ended."""


@dataclass
class Batches:
    """Batches of ``source``, in an order that each ``iter`` asks for again.

    It is not a ``DataLoader``, so Lightning does not change its order. It has no length, because
    training has no end.

    Args:
        source: the examples.
        plan: returns the order.
        augment: whether random flips and dequantisation apply to these batches.
        workers: processes that decode images ahead. Tensors in memory need none.
        pin: put batches in page-locked memory, from which a GPU copies without waiting.
    """

    source: Source
    plan: Callable[[], Iterable[MicroBatch]]
    augment: bool
    workers: int
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
            timeout=min(LOOK_SECONDS, WORKER_SECONDS),
            # otherwise PyTorch would advance the global one, which dropout uses
            generator=torch.Generator().manual_seed(0),
        )
        batches = iter(loader)
        try:
            while True:
                try:
                    batch = _next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    raise worker_failure(error) or error from None
                except (ConnectionError, EOFError) as error:
                    if str(error).startswith("Caught"):  # of the worker's own code
                        raise
                    raise _broken_off(error) from None
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            del batches  # which the error would keep: found as garbage it waits 5 s for its workers


def _next(batches: Iterator[Any]) -> Any:
    """The next batch of the workers, awaited for ``WORKER_SECONDS``."""
    began = time.monotonic()
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() - began >= WORKER_SECONDS:
                raise _worker_failure("none came") from None


def worker_failure(error: BaseException) -> UserError | None:
    """What to say of an error that PyTorch raises, at any moment, where a worker is gone or silent;
    ``None`` for another error.
    """
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader")):
        return None
    return _worker_failure(str(error).splitlines()[0].rstrip(". "))


def _broken_off(error: BaseException) -> UserError:
    """What to say of a worker that has gone while it handed over a batch. PyTorch raises an error
    of its own as soon as it learns that the worker has ended, wherever this process then stands, so
    that is awaited here.
    """
    how = f"a worker exited unexpectedly while it handed over a batch ({first_line(error)})"
    try:
        time.sleep(END_SECONDS)
    except RuntimeError as seen:
        return worker_failure(seen) or _worker_failure(how)
    return _worker_failure(how)


def _worker_failure(how: str) -> UserError:
    return UserError(
        f"a worker process of the data has ended, or has read for {WORKER_SECONDS:g} s without a "
        f"batch (a full /dev/shm, too little memory, a file that hangs): {how}; data.workers=0 "
        f"reads in the main process"
    )


@dataclass
class SizedBatches(Batches):
    """Batches of an order that ends."""

    length: int = 0

    def __len__(self) -> int:
        return self.length


def collect(source: Source, micro_batch: MicroBatch) -> Batch:
    """Read the examples of ``micro_batch``, with the index of their random numbers."""
    return {
        **source.take(micro_batch.examples),
        "index": micro_batch.index,  # no tensor: those are moved to the GPU
        "step": micro_batch.step,
    }


class _Collected(Dataset):
    """What a worker runs: it turns a micro-batch into a batch."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | UserError:
        try:
            return collect(self._source, micro_batch)
        except UserError as error:  # PyTorch would wrap it in the worker's traceback
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _pinned(batch: Batch) -> Batch:
    return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
