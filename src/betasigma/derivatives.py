"""Derivatives of a network's output by its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian_trace(field: Tensor, point: Tensor, create_graph: bool = False) -> Tensor:
    """tr ∂field/∂point of each example, ``(B,)``, exactly: one backward pass per dimension."""
    flat = field.flatten(1)
    trace = torch.zeros_like(flat[:, 0])
    for k in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(
            flat[:, k].sum(), point, create_graph=create_graph, retain_graph=True
        )
        trace = trace + gradient.flatten(1)[:, k]
    return trace


@contextmanager
def differentiable() -> Iterator[None]:
    """Let a network be differentiated in its input, and that once more in its weights.

    Validation runs in inference mode, where nothing can be differentiated, and fused attention has
    no second derivative.
    """
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
