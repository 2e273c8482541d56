"""A network run through torch.compile, and as it is where that fails.

Compiling needs what a machine may not have (a C++ compiler on a CPU, Triton on a GPU) and takes
minutes, so it is a choice; a run that made it on the wrong machine trains all the same.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


def compile_in_place(network: nn.Module, cuda_graphs: bool = False) -> None:
    """Let ``network`` compute by a compiled copy of its ``forward``, from its next call on.

    Where compilation fails it says so once, as a warning, and goes on uncompiled.

    Args:
        network: whose parameters stay what they are.
        cuda_graphs: replay the kernels of a call as one CUDA graph, which saves launching them one
            by one. On a CPU this is plain compilation.
    """
    plain = network.forward
    fast: Any = torch.compile(plain, mode="reduce-overhead" if cuda_graphs else "default")

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal fast
        if fast is None:
            return plain(*args, **kwargs)  # type: ignore[no-any-return]
        if cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            output: Tensor = fast(*args, **kwargs)
        except Exception as error:
            # imported by the call that has just failed
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            fast = None
            first = next((line for line in str(error).splitlines() if line), type(error).__name__)
            warnings.warn(f"torch.compile failed, going on without it: {first}", stacklevel=2)
            return plain(*args, **kwargs)  # type: ignore[no-any-return]
        # the next replay writes into the same memory
        return output.clone() if cuda_graphs else output

    network.forward = forward
