"""Callbacks count optimizer steps, and the clock leaves out what is not training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from betasigma.modules import DiffusionModule


class StepCallback(Callback):
    """Calls ``on_step`` once after each optimizer step, whatever the number of micro-batches.

    Attributes:
        between_steps: whether no step and no validation is running, so that weights, optimizer and
            counters belong to the same step.
    """

    def __init__(self) -> None:
        self._last = 0
        self.between_steps = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.between_steps = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.between_steps = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.between_steps = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        self.between_steps = True
        assert isinstance(pl_module, DiffusionModule)
        self.on_step(trainer, pl_module, trainer.global_step)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        """Called after optimizer step ``step``, counted from 1."""
        raise NotImplementedError


STEPS = "training"
VALIDATION, SAMPLING, EVALUATION = "validation", "sampling", "evaluation"
LIKELIHOOD, SAVING, REST = "likelihood", "saving", "the rest"
"""What a run spends its time on."""


class Stopwatch:
    """Seconds of training without its pauses, and what the pauses were for.

    A pause first waits for the device, so that the work still queued there counts as training. The
    caller of ``lap`` waits for the device itself.

    Attributes:
        spent: seconds by what they were spent on, :data:`STEPS` up to the last lap among them.
    """

    def __init__(self) -> None:
        self._made = self._since = time.perf_counter()
        self._paused = 0.0
        self.spent: dict[str, float] = {}

    def begin(self) -> None:
        """Start the first lap here."""
        self._since, self._paused = time.perf_counter(), 0.0

    def lap(self) -> float:
        """Seconds since the last lap or the start, pauses left out."""
        now = time.perf_counter()
        seconds = now - self._since - self._paused
        self._since, self._paused = now, 0.0
        self._add(STEPS, seconds)
        return seconds

    @property
    def seconds(self) -> float:
        """Seconds of training so far, pauses left out."""
        lap = time.perf_counter() - self._since - self._paused
        return self.spent.get(STEPS, 0.0) + lap

    def shares(self) -> dict[str, float]:
        """What :attr:`spent` has, and the rest of the time since this was made."""
        rest = time.perf_counter() - self._made - sum(self.spent.values())
        return {**self.spent, REST: max(0.0, rest)}

    @contextmanager
    def pause(self, device: torch.device, what: str) -> Iterator[None]:
        """Leave out the time that the block takes, and count it as time for ``what``."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._paused += seconds
            self._add(what, seconds)

    def _add(self, what: str, seconds: float) -> None:
        self.spent[what] = self.spent.get(what, 0.0) + seconds
