"""How a run is stopped from outside: Ctrl-C, and the SIGTERM of a cluster or of ``kill``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from betasigma.display import Display
from betasigma.modules import DiffusionModule
from betasigma.training.steps import StepCallback


class Terminated(SystemExit):
    """SIGTERM was received. The process ends with status 143, as one that SIGTERM killed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def catch_sigterm() -> Iterator[None]:
    """Make SIGTERM raise :class:`Terminated` inside the block, unless it already has a handler."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interrupts(StepCallback):
    """Stops a run between two steps after Ctrl-C or SIGTERM; a second signal stops it at once.

    If a validation belongs to the step, the run stops after it. Several processes exchange the
    signal at every step, so that all stop at the same one.

    Args:
        display: where it says that the signal was received.
        validate_every: steps between two validations.
        save: saves a step before its validation, which may take longer than the cluster waits.
    """

    def __init__(
        self, display: Display, validate_every: int, save: Callable[[Trainer], None]
    ) -> None:
        super().__init__()
        self._display, self._validate_every, self._save = display, validate_every, save
        self._signal = 0
        self._several, self._validation_follows = False, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            # the Trainer restores the previous handlers
            signal.signal(signal.SIGINT, self._receive)
            signal.signal(signal.SIGTERM, self._receive)
        self._several = trainer.world_size > 1
        if self._several:  # on the CPU: an exchange between GPUs would wait for their work
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._validation_follows = step % self._validate_every == 0
        self._exchange()
        if self._signal and self._validation_follows:
            self._save(trainer)
        else:
            self._stop_if_signalled()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation_follows = False
        self._exchange()
        self._stop_if_signalled()

    def _receive(self, number: int, frame: Any) -> None:
        safe = self.between_steps and not self._validation_follows and not self._several
        if safe or self._signal:
            raise _exception(number)
        self._signal = number
        again = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        self._display.line(f"stopping after this step; {again} again stops at once")

    def _exchange(self) -> None:
        """Learn whether any process has received a signal."""
        if self._several:
            received = torch.tensor(self._signal)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX, self._group)
            self._signal = int(received)

    def _stop_if_signalled(self) -> None:
        if not self._signal:
            return
        if self._several:  # the first process to end must not end the others, which are saving
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _exception(self._signal)


def _exception(number: int) -> KeyboardInterrupt | Terminated:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
