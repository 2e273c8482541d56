"""The contract of a network: a function of each example alone, that knows nothing of diffusion.

``network(x, c_noise, y)`` maps ``x``, images ``(B, C, H, W)`` or points ``(B, d)``, to the same
shape, given one number per example and optionally a class label. Everything above it relies on
that: samples would depend on the batch size if examples mixed, a checkpoint would be another model
if something lived outside ``state_dict``, a resumed run would drift if a random number came from a
generator of the network's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

import torch
from torch import Tensor, nn

from betasigma.options.plugins import other_signature
from betasigma.testing.contract import (
    ContractError,
    difference,
    generator_untouched,
    of_kind,
    require,
    require_equal,
    shape,
)

BATCH = 4
LABELS = 16
"""At most as many classes are told apart, of more every other, or third, …"""


class _Inputs(NamedTuple):
    x: Tensor
    c_noise: Tensor
    y: Tensor | None

    def rows(self, chosen: slice) -> _Inputs:
        y = None if self.y is None else self.y[chosen]
        return _Inputs(self.x[chosen], self.c_noise[chosen], y)


def check_network(
    build: Callable[[], nn.Module],
    sample_shape: Sequence[int],
    *,
    num_classes: int = 0,
    conditional: bool = True,
    learns_variance: bool = False,
    without_gradient: Sequence[str] = (),
) -> None:
    """Assert the contract of a network, on the CPU.

        check_network(lambda: DiT(width=64), (3, 32, 32), num_classes=10)

    Args:
        build: makes the network. Two are made, to see that weights say all there is to say.
        sample_shape: of one example, ``(C, H, W)`` or ``(d,)``.
        num_classes: class labels; label ``num_classes`` is the null class, and so is ``y=None``.
        conditional: whether the noise level may change the output.
        learns_variance: whether the output has twice the channels.
        without_gradient: patterns of the names of parameters that no loss reaches.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    made = "a function that makes a torch.nn.Module"
    require(not isinstance(build, nn.Module), "network.type", made, "it is a module, made already")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = of_kind(build, nn.Module, "network.type", made)
        signature = other_signature(network.forward, "x", "c_noise", "y")
        require(
            not signature,
            "network.call",
            "a network that is called as forward(x, c_noise, y)",
            f"it has forward{signature}",
        )
        network, inputs = _stirred(network).eval(), _draw(tuple(sample_shape), num_classes)
        with torch.no_grad():
            output = _check_output(network, inputs, learns_variance)
            _check_what_it_depends_on(network, inputs, output, num_classes, conditional)
            _check_other_batches(network, inputs, output)
            _check_layout(network, inputs, output)
            _check_copies(network, build, inputs, output)
            _check_precision(network, inputs, output)
        _check_training(network, inputs, without_gradient)


def _stirred(network: nn.Module) -> nn.Module:
    """Weights that start at zero hide what lies behind them: every weight gets some noise."""
    with torch.no_grad():
        for weight in network.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 100
            weight.add_(torch.randn_like(weight) / (2 * fan_in**0.5))
    return network


def _draw(sample_shape: tuple[int, ...], num_classes: int) -> _Inputs:
    c_noise = torch.tensor([0.4, 1.7, 3.2, 5.9])
    labels = torch.tensor([0, num_classes, num_classes - 1, 0]) if num_classes else None
    return _Inputs(torch.randn(BATCH, *sample_shape), c_noise, labels)


def _check_output(network: nn.Module, inputs: _Inputs, doubled: bool) -> Tensor:
    before = inputs.x.clone()
    output = network(*inputs) if inputs.y is not None else _without_label(network, inputs)
    wanted = list(inputs.x.shape)
    wanted[1] *= 2 if doubled else 1
    require(
        isinstance(output, Tensor) and list(output.shape) == wanted,
        "network.shape",
        f"an output of shape {tuple(wanted)} for x of shape {tuple(inputs.x.shape)}",
        f"it is {shape(output) if isinstance(output, Tensor) else type(output).__name__}",
    )
    require(
        torch.equal(before, inputs.x),
        "network.inputs",
        "the network to leave its input as it is",
        "forward changed x in place",
    )
    return output


def _without_label(network: nn.Module, inputs: _Inputs) -> Tensor:
    try:
        return network(inputs.x, inputs.c_noise, None)
    except Exception as error:
        network(inputs.x, inputs.c_noise, torch.zeros(BATCH, dtype=torch.long))  # or it is another
        expected = "a network to take y=None, which is no label"
        raise ContractError("network.null_class", expected, f"it raised {error!r}") from error


def _check_what_it_depends_on(
    network: nn.Module, inputs: _Inputs, output: Tensor, num_classes: int, conditional: bool
) -> None:
    with generator_untouched("network.deterministic", " in evaluation mode", "forward"):
        again = network(*inputs)
    expected = "the same output twice in evaluation mode"
    require_equal(again, output, "network.deterministic", expected, tolerance=0)
    told_otherwise = network(inputs.x, inputs.c_noise.flip(0) + 0.3, inputs.y)
    changed = difference(told_otherwise, output) > 0
    require(
        changed == conditional,
        "network.c_noise",
        f"the output {'to depend' if conditional else 'not to depend'} on c_noise "
        f"(conditional={conditional})",
        f"another c_noise {'changed it' if changed else 'left it as it was'}",
    )
    if not num_classes:
        return
    step = math.ceil(num_classes / LABELS)
    outputs = [
        network(inputs.x, inputs.c_noise, torch.full((BATCH,), label))
        for label in (*range(0, num_classes, step), num_classes)
    ]
    without = _without_label(network, inputs)
    expected = f"y=None to mean the null class, label num_classes={num_classes}"
    require_equal(without, outputs[-1], "network.null_class", expected, "the output differs")
    require(
        len(torch.stack(outputs).unique(dim=0)) == len(outputs),
        "network.labels",
        f"the output to depend on the label out of {num_classes} classes",
        "two labels gave the same output",
    )


def _check_other_batches(network: nn.Module, inputs: _Inputs, output: Tensor) -> None:
    x = inputs.x.clone()
    x[1] = 3 - x[1]
    beside = network(x, inputs.c_noise, inputs.y)
    others = [0, 2, 3]
    require_equal(
        beside[others],
        output[others],
        "network.independent",
        "each output to depend on its own example alone in evaluation mode",
        "changing example 1 changed that of the others",
    )
    alone = torch.cat([network(*inputs.rows(slice(i, i + 1))) for i in range(BATCH)])
    expected = "the same output for an example alone and in a batch of 4"
    require_equal(alone, output, "network.batch_size", expected)


def _check_layout(network: nn.Module, inputs: _Inputs, output: Tensor) -> None:
    strided = torch.stack([inputs.x, -inputs.x], dim=-1)[..., 0]
    layouts = {"a non-contiguous input": strided}
    if inputs.x.ndim == 4:
        layouts["channels_last"] = inputs.x.to(memory_format=torch.channels_last)
    for name, x in layouts.items():
        found = network(x, inputs.c_noise, inputs.y)
        require_equal(found, output, "network.layout", f"the same output for {name}")


def _check_copies(
    network: nn.Module, build: Callable[[], nn.Module], inputs: _Inputs, output: Tensor
) -> None:
    try:
        copied = copy.deepcopy(network)
    except Exception as error:
        expected = "copy.deepcopy to copy the network (the averaged weights are a copy)"
        raise ContractError("network.copy", expected, f"it raised {error!r}") from error
    _stirred(copied)
    require(
        torch.equal(network(*inputs), output) and difference(copied(*inputs), output) > 0,
        "network.copy",
        "copy.deepcopy to give a network with weights of its own",
        "changing the copy's weights changed the original, or changed nothing",
    )
    torch.manual_seed(1)
    other = build().eval()
    other.load_state_dict(network.state_dict())
    require_equal(
        other(*inputs),
        output,
        "network.state",
        "another network that loads this one's state_dict to give its output",
        "something else than parameters and buffers changes it",
    )


def _check_precision(network: nn.Module, inputs: _Inputs, output: Tensor) -> None:
    double = copy.deepcopy(network).double()
    for dtype, net in ((torch.float32, network), (torch.float64, double)):
        found = net(inputs.x.to(dtype), inputs.c_noise.to(dtype), inputs.y)
        require(
            found.dtype == dtype and bool(found.isfinite().all()),
            "network.dtype",
            f"finite {dtype} for weights and input of {dtype}",
            f"the output is {shape(found)}, its largest value {found.abs().max().item():g}",
        )
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*inputs)
    require(
        bool(found.isfinite().all()) and found.shape == output.shape,
        "network.autocast",
        "finite output of the same shape under autocast to bfloat16",
        f"it is {shape(found)}, its largest value {found.abs().max().item():g}",
    )


def _check_training(network: nn.Module, inputs: _Inputs, without_gradient: Sequence[str]) -> None:
    network.train()
    torch.manual_seed(2)
    output = network(*inputs)
    (output * torch.randn_like(output)).sum().backward()
    names = [
        name
        for name, weight in network.named_parameters()
        if weight.requires_grad
        and (weight.grad is None or not weight.grad.isfinite().all() or not weight.grad.any())
    ]
    missed = [n for n in names if not any(fnmatch(n, pattern) for pattern in without_gradient)]
    require(
        not missed,
        "network.gradients",
        "a finite gradient that is not zero in every parameter",
        f"there is none in {', '.join(missed[:3])}"
        + (f" and {len(missed) - 3} more" if len(missed) > 3 else ""),
    )
    torch.manual_seed(2)
    require_equal(
        network(*inputs),
        output,
        "network.dropout",
        "dropout to draw from torch's global generator, which training seeds for each step",
        "equally seeded output in training mode differs",
    )
