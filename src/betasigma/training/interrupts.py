"""How a run ends before its last step: Ctrl-C, a signal of ``kill`` or a cluster, a time budget.

There is one mechanism for all. A signal lets the step end; it is saved, and the run ends with the
status of its signal. Whoever starts the same command again continues it
(:func:`betasigma.commands.resume.continue_in`). Where SLURM warns a job by USR1 or USR2 that its
time ends, or ends it by SIGTERM for the sake of another one, SLURM is asked to start it again. On
any other SIGTERM it is not: whoever cancels a job wants it to end.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Timer

from betasigma.display import Display
from betasigma.errors import Stopped
from betasigma.modules import DiffusionModule
from betasigma.runs.checkpoint import HEADER
from betasigma.runs.files import allow_waiting
from betasigma.training.steps import StepCallback
from betasigma.training.stop_signals import STOPS


class Interrupts(StepCallback):
    """Stops a run between two steps; a second signal stops it at once.

    If a validation belongs to the step, the run stops after it. Several processes exchange what
    they know at every step, so that all stop at the same one.

    Args:
        validate_every: steps between two validations.
        save: saves a step before its validation, which may take longer than a cluster waits.
        budget: seconds of training of the whole run, over all its starts; ``None`` for no limit.
        grace: seconds between a signal and the end. A step that takes longer is saved when it has
            ended: a signal during the next one would come too late.
    """

    def __init__(
        self,
        display: Display,
        validate_every: int,
        save: Callable[[Trainer], None],
        budget: float | None,
        grace: float,
    ) -> None:
        super().__init__()
        self._display, self._validate_every, self._save = display, validate_every, save
        self._budget, self._grace = budget, grace
        self._received, self._signal, self._spent = 0, 0, False
        self._several, self._validation_follows = False, False
        self._before, self._started, self._step_began = 0.0, 0.0, 0.0

    @property
    def seconds_here(self) -> float:
        """Seconds of training, validation and sampling in this start; 0 before the first step."""
        return time.monotonic() - self._started if self._started else 0.0

    @property
    def seconds(self) -> float:
        """The same of all starts of the run."""
        return self._before + self.seconds_here

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[HEADER] = {**checkpoint.get(HEADER, {}), "seconds": round(self.seconds, 1)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._before = float(checkpoint[HEADER].get("seconds", 0.0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        allow_waiting(True)
        # by which Lightning validates; a signal may have come between a batch's count and its step
        counted = trainer.fit_loop.epoch_loop.batch_progress.total
        counted.ready = trainer.global_step * trainer.accumulate_grad_batches
        self._started = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *STOPS):  # the Trainer restores the previous handlers
                signal.signal(number, self._receive)
        self._several = trainer.world_size > 1
        if self._several:  # on the CPU: an exchange between GPUs would wait for their work
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.between_steps:
            self._step_began = time.monotonic()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._validation_follows = step % self._validate_every == 0
        slow = self._exchange(time.monotonic() - self._step_began > self._grace)
        if slow or (self._signal and self._validation_follows):
            self._save(trainer)
        if self._spent and not trainer.should_stop:
            self._display.line(f"the time budget (stop.minutes, stop.hours) ends at step {step}")
            trainer.should_stop = True
        if not self._validation_follows:
            self._stop_if_signalled()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation_follows = False
        self._exchange(False)
        self._stop_if_signalled()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        left = [one.time_remaining() for one in callbacks if isinstance(one, Timer)]
        over = any(seconds is not None and seconds <= 0 for seconds in left)  # None: without an end
        if over and trainer.global_step < trainer.max_steps:
            self._display.line(f"trainer.max_time has ended training at step {trainer.global_step}")

    def _receive(self, number: int, frame: Any) -> None:
        safe = self.between_steps and not self._validation_follows and not self._several
        if safe or self._received:
            raise Stopped(number)
        self._received = number
        allow_waiting(False)
        again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._display.line(f"stopping after this step; {again} again stops at once")

    def _exchange(self, slow: bool) -> bool:
        """Learn whether any process has received a signal, has spent the budget or was slow.

        What this process received is kept apart from what all know: a signal that arrives during
        the exchange is told at the next one.
        """
        spent = self._budget is not None and self.seconds >= self._budget
        known = torch.tensor([self._received, spent, slow])
        if self._several:
            torch.distributed.all_reduce(known, torch.distributed.ReduceOp.MAX, self._group)
        self._signal, self._spent = int(known[0]), bool(known[1])
        return bool(known[2])

    def _stop_if_signalled(self) -> None:
        if not self._signal:
            return
        if self._several:  # the first process to end must not end the others, which are saving
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(self._signal)
