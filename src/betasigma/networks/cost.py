"""What one evaluation of a network costs in arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Flop(NamedTuple):
    """Floating-point operations for one example."""

    forward: int
    """Of one evaluation."""
    backward: int
    """Of the gradient of the parameters."""


def count_flop(network: nn.Module, shape: Sequence[int], num_classes: int = 0) -> Flop | None:
    """Count what a network's matrix products, convolutions and attention do, two operations for
    each multiplication with its addition; what is done element by element (normalisation,
    activation, preconditioning) is left out, as ``torch.utils.flop_counter`` does.

    Nothing is computed: the weights are replaced by their shapes.

    Args:
        network: not compiled; called as ``network(x, c_noise, y)``.
        shape: of one example.
        num_classes: whether it takes class labels.

    Returns:
        ``None`` where that cannot be told: an energy network differentiates inside its forward
        pass, and one of one's own may read values.
    """
    weights = {
        name: torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    x = torch.empty(1, *shape, device="meta")
    y = torch.empty(1, device="meta", dtype=torch.int64) if num_classes else None
    arguments = (x, torch.empty(1, device="meta"), y)
    try:
        with torch.enable_grad():
            with FlopCounterMode(display=False) as forward:
                output = functional_call(network, weights, arguments)
            with FlopCounterMode(display=False) as backward:
                output.sum().backward()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return Flop(forward.get_total_flops(), backward.get_total_flops())
