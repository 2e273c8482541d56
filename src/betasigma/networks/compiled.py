"""A network run through torch.compile, and as it is where that fails.

Compiling needs what a machine may not have (a C++ compiler on a CPU, Triton on a GPU) and takes
minutes, so it is a choice; a run that made it on the wrong machine trains all the same.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from betasigma.errors import first_line


def compile_in_place(network: nn.Module, cuda_graphs: bool = False) -> None:
    """Compile ``network`` as ``nn.Module.compile`` does; a copy of it is not compiled.

    Where its first call cannot be compiled it says so once, as a warning, and goes on uncompiled.

    Args:
        network: whose parameters stay what they are.
        cuda_graphs: replay the kernels of a call as one CUDA graph, which saves launching them one
            by one. On a CPU this is plain compilation.
    """
    plain = network._call_impl
    try:
        network.compile(mode="reduce-overhead" if cuda_graphs else "default")
    except RuntimeError as error:  # a Python that torch.compile does not know yet
        _give_up(network, error)
        return
    fast = network._compiled_call_impl
    assert fast is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        if cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            output = fast(*args, **kwargs)
        except Exception as error:
            # imported by the call that has just failed
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            output = plain(*args, **kwargs)  # what is wrong with the call itself is raised here
            _give_up(network, error)
            return output
        # the next replay writes into the same memory
        return output.clone() if cuda_graphs else output

    network._compiled_call_impl = call


def is_compiled(network: nn.Module) -> bool:
    """Whether ``network`` has been compiled in place."""
    return network._compiled_call_impl is not None


def _give_up(network: nn.Module, error: Exception) -> None:
    network._compiled_call_impl = None
    # what a compiler did not foresee is wrapped, below a line that names the compiler alone
    cause = getattr(error, "inner_exception", error)
    why = first_line(error) if cause is error else f"{type(cause).__name__}: {first_line(cause)}"
    warnings.warn(f"torch.compile failed, going on without it: {why}", stacklevel=1)
