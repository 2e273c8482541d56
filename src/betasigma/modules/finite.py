"""Optimizer steps whose loss or gradient is not finite are skipped, and counted on the device.

One bad batch must not turn every weight into NaN. Whether a step is taken is decided where the
gradient is: nothing is read back until somebody asks (:meth:`FiniteSteps.read`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer


class Skipped(NamedTuple):
    """What :meth:`FiniteSteps.read` found."""

    total: int
    """Steps skipped in the whole run."""
    in_a_row: int
    """Steps skipped since the last one that was taken."""
    longest: int
    """Longest such row since this process began."""
    since: int
    """Step, from 1, at which the latest row began."""
    positions: list[int]
    """Positions in that step's batch of the examples whose loss was not finite, on this process;
    none where only the gradient was not.
    """
    times: list[float]
    """Their times t in (0, 1]."""


class FiniteSteps:
    """Decides on the device which optimizer steps are taken."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None
        self._counts = torch.zeros(4, dtype=torch.int64)  # total, in a row, longest, since
        self._suspect: tuple[Tensor, ...] = ()
        self._first: tuple[Tensor, ...] = ()

    def see(self, loss: Tensor, per_sample: Tensor, t: Tensor, first_index: int) -> None:
        """Take in one micro-batch.

        Args:
            loss: its loss, a scalar.
            per_sample, t: loss and time of each example, ``(b,)``.
            first_index: position of its first example in the step's batch.
        """
        per_sample, t = per_sample.detach(), t.to(loss.device, non_blocking=True)
        bad = ~(loss.detach().isfinite() & per_sample.isfinite().all())
        position = torch.full((), first_index, device=loss.device)
        now = (per_sample, t, position)
        if self._bad is None:
            self._bad, self._suspect = bad, now
            return
        self._suspect = tuple(
            torch.where(bad, *pair) for pair in zip(now, self._suspect, strict=True)
        )
        self._bad = self._bad | bad

    def decide(self, optimizer: Optimizer, norm: Tensor, step: int, several: bool) -> None:
        """Have ``optimizer`` skip its step if a loss or the gradient is not finite.

        Args:
            optimizer: whose step follows.
            norm: of the gradient.
            step: the step, from 1.
            several: whether other processes take the step too, which must all do the same.
        """
        bad = ~norm.isfinite()
        if self._bad is not None:  # a training step of one's own may not show its losses
            bad = bad | self._bad
        if several:  # a loss may overflow where the gradient does not, and then on one process only
            shared = bad.to(torch.int32)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            bad = shared.bool()
        self._count(bad, step)
        self._bad = None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        elif bad.is_cuda:  # without waiting for the device, only the gradient can be left out
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(bad, 0)
        elif bad:
            optimizer.zero_grad()

    def read(self) -> Skipped:
        """Wait for the device and return what was skipped."""
        total, in_a_row, longest, since = self._counts.tolist()
        positions: list[int] = []
        times: list[float] = []
        if total and self._first:
            losses, t, first = (value.cpu() for value in self._first)
            found = (~losses.isfinite()).nonzero()[:, 0]
            positions, times = (found + first).tolist(), t[found].tolist()
        return Skipped(total, in_a_row, longest, since, positions, times)

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"counts": self._counts.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters. The longest row begins anew: a run that was stopped for one may go
        on.
        """
        self._counts = state["counts"].clone()
        self._counts[2] = self._counts[1]

    def _count(self, bad: Tensor, step: int) -> None:
        counts = self._counts = self._counts.to(bad.device, non_blocking=True)
        total, in_a_row, longest, since = counts.unbind()
        begins = bad & (in_a_row == 0)
        row = torch.where(bad, in_a_row + 1, 0)
        since = torch.where(begins, step, since)
        self._counts = torch.stack([total + bad, row, torch.maximum(longest, row), since])
        if not self._first:
            self._first = self._suspect
        else:
            pairs = zip(self._suspect, self._first, strict=True)
            self._first = tuple(torch.where(begins, *pair) for pair in pairs)


@torch.no_grad()
def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every number in the tensors is finite; waits for the device once."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    largest = torch._foreach_norm(floating, ord=float("inf"))
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())
