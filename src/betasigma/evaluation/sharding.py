"""Sharing an evaluation among processes: who does which indices, and how the parts meet.

Results depend on the indices alone, so a share is a range of them: contiguous, so that parts put
together by rank are in order again, and cut at multiples of the block in which noise is drawn.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from betasigma.randomness import BLOCK

T = TypeVar("T")


def shard(n: int, rank: int, world_size: int) -> range:
    """Indices out of 0 … n−1 that fall to ``rank``; may be empty."""
    blocks = -(-n // BLOCK)
    share = -(-blocks // world_size) * BLOCK
    return range(min(n, rank * share), min(n, (rank + 1) * share))


def gather(part: T, rank: int, world_size: int) -> list[T] | None:
    """Every process's part, by rank, on rank 0; ``None`` elsewhere."""
    if world_size == 1:
        return [part]
    parts: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(part, parts)
    return parts


def gather_rows(part: Tensor, group: Any = None) -> list[Tensor]:
    """Every process's part of a metric's state, by rank, on every process.

    torchmetrics' own gathering, also where a process has seen nothing, so that its part has neither
    the shape nor the type of the others.
    """
    kinds: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(kinds, (part.shape[1:], part.dtype) if part.numel() else None, group)
    if part.numel() == 0 and any(kinds):
        shape, dtype = next(kind for kind in kinds if kind)
        part = torch.empty(0, *shape, dtype=dtype, device=part.device)
    return gather_all_tensors(part, group)


def broadcast(value: T, world_size: int) -> T:
    """What rank 0 holds, on every process."""
    if world_size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]
