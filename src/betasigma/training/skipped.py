"""What becomes of a run whose loss, gradient or weights are not finite: it says so, and stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from betasigma.display import warn
from betasigma.errors import UserError, counted
from betasigma.evaluation.sharding import broadcast, gather
from betasigma.modules import DiffusionModule
from betasigma.modules.averaging import is_in_parts
from betasigma.modules.finite import Skipped, all_finite
from betasigma.options.training import SKIPPED
from betasigma.runs.header import newest_step
from betasigma.training.steps import StepCallback
from betasigma.training.tracking import log_values

OUTLIER = 1
"""Skipped steps in a row that a single bad batch explains. More say that the weights are bad."""


class NotFinite(UserError):
    """Training has left the finite numbers."""


class SkippedSteps(StepCallback):
    """Counts steps that were skipped, and stops a run that skips too many in a row."""

    def __init__(self, limit: int, log_every: int, run: Path) -> None:
        super().__init__()
        self._limit, self._log_every, self._run = limit, log_every, run
        self._said = 0

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        last = step == trainer.max_steps
        if step % self._limit and step % self._log_every and not last:
            return
        found = module.finite_steps.read()
        if found.total > self._said and trainer.is_global_zero:
            skipped = "1 step was" if found.total == 1 else f"{found.total} steps were"
            warn(
                f"at step {step}: {skipped} skipped in this run, as loss or "
                f"gradient was not finite (the last from step {found.since} on)"
            )
        self._said = found.total
        if found.total and trainer.is_global_zero and (step % self._log_every == 0 or last):
            log_values(trainer.loggers, {SKIPPED: found.total}, step)
        if found.longest >= self._limit or (last and found.in_a_row > OUTLIER):
            raise self._stop(trainer, module, found)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        refuse_not_finite(trainer)

    def _stop(self, trainer: Trainer, module: DiffusionModule, found: Skipped) -> NotFinite:
        """Say which step, examples and noise levels began it; all ranks call it together."""
        parts = broadcast(gather((found.positions, found.times))) or []
        index = [position for positions, _ in parts for position in positions]
        times = [t for _, many in parts for t in many]
        step = newest_step(self._run)
        stands = "there is no checkpoint yet" if step is None else f"that of step {step} stands"
        what = f"the loss of {counted(len(index), 'example')}" if index else "the gradient"
        steps = f"{found.longest} steps in a row, from step {found.since} on, were"
        if found.longest == 1:
            steps = f"step {found.since} was"
        error = NotFinite(
            f"{steps} skipped: {what} was not finite. {stands[0].upper()}{stands[1:]}; a lower "
            f"optimizer.lr or training.clip may help"
        )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        error.details = {
            "not_finite": {
                "since_step": found.since,
                "steps": found.longest,
                "examples": data.training_examples(found.since - 1, index),
                "times": [round(t, 6) for t in times],
                "log_snr": module.average.schedule.log_snr(torch.tensor(times)).tolist(),
                "checkpoint_step": step,
            }
        }
        return error


def skipping(module: LightningModule) -> bool:
    """Whether more steps in a row were skipped than an outlier explains; waits for the device."""
    return isinstance(module, DiffusionModule) and module.finite_steps.read().in_a_row > OUTLIER


def refuse_not_finite(trainer: Trainer) -> None:
    """Refuse weights that are not finite; waits for the device.

    Raises:
        NotFinite: so that they are neither saved nor validated.
    """
    module = trainer.lightning_module
    # weights in parts are seen in their average, which is whole: all ranks must find the same
    weights = [p.detach() for p in module.parameters() if not is_in_parts(p)]
    if isinstance(module, DiffusionModule) and not all_finite(weights):
        raise NotFinite(
            f"weights are not finite after step {trainer.global_step}: they are neither saved nor "
            f"validated, and the last checkpoint stands; a lower optimizer.lr or training.clip may "
            f"help"
        )
