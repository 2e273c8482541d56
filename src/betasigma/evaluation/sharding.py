"""Divide an evaluation among ranks, and gather the parts.

Results depend on sample indices only, so the share of a rank is a range of indices. It is
contiguous, so parts joined by rank are in order, and it is cut at multiples of the block in which
noise is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from betasigma.randomness import BLOCK

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and world size of this process; 0 and 1 where it is alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def own_share(n: int) -> range:
    """Return this process's share of the indices 0 … n−1; it may be empty."""
    return shard(n, *rank_and_world_size())


def shard(n: int, rank: int, world_size: int) -> range:
    """Return the share of ``rank`` of the indices 0 … n−1; it may be empty."""
    blocks = -(-n // BLOCK)
    share = -(-blocks // world_size) * BLOCK
    return range(min(n, rank * share), min(n, (rank + 1) * share))


def gather(part: T) -> list[T] | None:
    """Return the parts of all ranks, in order, on rank 0; ``None`` on other ranks."""
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return [part]
    parts: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(part, parts)
    return parts


def gather_rows(part: Tensor, group: Any = None) -> list[Tensor]:
    """Return the parts of a metric's state of all ranks, in order, on every rank.

    torchmetrics gathers them, and would wait for ever for a rank without samples: here that one
    first takes shape and type from the others.
    """
    kinds: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(kinds, (part.shape[1:], part.dtype) if part.numel() else None, group)
    if part.numel() == 0 and any(kinds):
        shape, dtype = next(kind for kind in kinds if kind)
        part = torch.empty(0, *shape, dtype=dtype, device=part.device)
    return gather_all_tensors(part, group)


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if rank_and_world_size()[1] == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def made_by_first_rank_first(make: Callable[[], T]) -> T:
    """Return what ``make`` does on each rank, on rank 0 before the others: what it downloads or
    writes is there for them.
    """
    if first := rank_and_world_size()[0] == 0:
        made = make()
    broadcast(None)
    return made if first else make()
