r"""Exponential moving average of the weights: the weights that count.

Validation, sampling, evaluation and export use the average; the raw weights are kept for resuming.
The published decay (0.9999 for DDPM) averages over 10,000 steps, in a shorter run mostly over the
random initialisation. So the decay ramps up with the number k of updates,

    decay_k = min(decay, (1 + k)/(10 + k)),

which averages over about the last tenth of the steps so far until the published value is reached.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def averaged_copy(model: Model) -> Model:
    """A copy of ``model`` that holds the average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def ramped_decay(decay: float, updates: int) -> float:
    """Decay of update number ``updates`` (from 0) on the way to ``decay``."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·model, parameters in one pass; buffers are copied.

    Parameters of which each process holds a part are gathered one after the other.
    """
    means, values = _tensors(average.parameters()), _tensors(model.parameters())
    if any(is_in_parts(value) for value in values):
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(whole(value), 1 - decay)
    else:
        torch._foreach_lerp_(means, values, 1 - decay)
    for mean, buffer in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(buffer)


def is_in_parts(tensor: Tensor) -> bool:
    """Whether each process holds a part of it (``hardware.strategy=fsdp``)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is in parts all processes call this together."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _tensors(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.detach() for p in parameters]
