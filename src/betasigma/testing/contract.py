"""How a contract is asserted, and how its failure reads.

A check raises at the first contract that does not hold, in one sentence: what was expected, what
was found, and where the contract is explained. An exception inside the code that is checked is not
caught: its traceback is what its author needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PAGE = "docs/conformance.md"
"""Explains every contract by its name."""

TOLERANCE = 1e-4
"""Relative difference up to which float32 results count as equal: kernels sum in an order that
depends on the size of a batch."""


class ContractError(AssertionError):
    """A contract that does not hold, in one sentence.

    Attributes:
        contract: its name, ``noun.what``, as ``docs/conformance.md`` lists it.
    """

    def __init__(self, contract: str, expected: str, found: str) -> None:
        self.contract = contract
        super().__init__(f"expected {expected}, but {found} (contract {contract}, see {PAGE})")


def require(holds: bool, contract: str, expected: str, found: str) -> None:
    """Raise a :class:`ContractError` unless ``holds``.

    Args:
        holds: whether the contract is kept.
        contract: its name.
        expected, found: complete the sentence "expected …, but …".
    """
    if not holds:
        raise ContractError(contract, expected, found)


def of_kind(given: Any, kind: type, contract: str, expected: str, *arguments: Any) -> Any:
    """The component that is given, or what a function that is given makes of ``arguments``, which
    must be of a kind.
    """
    instead = isinstance(given, (kind, nn.Module)) or not callable(given)
    # a class that is given without the arguments of its constructor is none of its objects
    made = given if instead or (arguments and isinstance(given, type)) else given(*arguments)
    require(isinstance(made, kind), contract, expected, f"it is {kind_of(made)}")
    return made


def kind_of(found: Any) -> str:
    """``of class DiT``; ``a class`` where one was given instead of what it makes."""
    return "a class" if isinstance(found, type) else f"of class {type(found).__name__}"


def require_equal(
    found: Tensor,
    wanted: Tensor,
    contract: str,
    expected: str,
    told: str = "it differs",
    tolerance: float = TOLERANCE,
) -> None:
    """Raise a :class:`ContractError` unless two tensors differ by at most ``tolerance``, of which
    the sentence says: ``told`` by so much of its size.
    """
    off = difference(found, wanted)
    require(off <= tolerance, contract, expected, f"{told} by {off:.2g} of its size")


@contextmanager
def generator_untouched(contract: str, expected: str, what: str) -> Iterator[None]:
    """Raise a :class:`ContractError` where the block moves PyTorch's global generator.

    Args:
        contract: its name.
        expected: ends "expected PyTorch's global generator to be left as it is".
        what: has moved it.
    """
    torch.rand(3)
    before = torch.get_rng_state()
    yield
    require(
        torch.equal(torch.get_rng_state(), before),
        contract,
        f"PyTorch's global generator to be left as it is{expected}",
        f"{what} changed its state",
    )


def difference(a: Tensor, b: Tensor) -> float:
    """Largest |a − b| in units of the largest |b| (of 1 where that is smaller); ∞ where shapes
    differ or a number is not finite.
    """
    if a.shape != b.shape:
        return torch.inf
    a, b = a.detach().double(), b.detach().double()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return torch.inf
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def shape(x: Tensor) -> str:
    """Shape and dtype as a sentence names them."""
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
