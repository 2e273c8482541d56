"""Learning rate as a function of the optimizer step: a linear warm-up, then a schedule.

In step k (from 0) of a warm-up of W steps the rate is (k + 1)/W of the optimizer's own; from step W
on a schedule takes over, at its own step 0. Schedules are PyTorch's (``torch.optim.lr_scheduler``),
or any function of an optimizer that returns one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR

LearningRate = Callable[[Optimizer, int], LRScheduler]
"""``(optimizer, steps of the warm-up)`` → what sets the learning rate in every step."""


def constant(optimizer: Optimizer, warmup: int) -> LRScheduler:
    """The optimizer's own learning rate after the warm-up."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)))


def after_warmup(schedule: Callable[[Optimizer], LRScheduler]) -> LearningRate:
    """``schedule`` from the end of the warm-up on, with its step 0 there."""

    def start(optimizer: Optimizer, warmup: int) -> LRScheduler:
        if not warmup:
            return schedule(optimizer)
        parts = [constant(optimizer, warmup), schedule(optimizer)]
        return SequentialLR(optimizer, parts, milestones=[warmup])

    return start
