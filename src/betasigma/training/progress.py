"""What training reports as it runs: loss, learning rate, speed, validation, a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from pytorch_lightning import LightningModule, Trainer

from betasigma.display import Display, clock
from betasigma.modules import DiffusionModule
from betasigma.options.training import SPEED, TRAIN_LOSS
from betasigma.training.steps import StepCallback, Stopwatch
from betasigma.training.tracking import log_values

MEASURED = 5
"""Steps by which the time of a run is estimated."""


class TimedCallback(StepCallback):
    """Measures the time of steps, without that of validations.

    Args:
        watch: of the steps.
    """

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch
        self._validation = ExitStack()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation.enter_context(self._watch.pause(trainer.strategy.root_device))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation.close()


class Estimate(TimedCallback):
    """Says after the first steps how long training will take, where many more are to come.

    The first step is left out, in which libraries start and a network is compiled, and so are
    validations. Only a measured step tells the time of one: it depends on the machine, the network
    and whoever else computes there.

    Args:
        display: where it is said.
        batch_size: examples per step.
        total: steps of the whole run.
    """

    def __init__(self, display: Display, batch_size: int, total: int) -> None:
        super().__init__(Stopwatch())
        self._display, self._batch_size, self._total = display, batch_size, total

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = trainer.global_step + 1
        self._last_measured = self._first + MEASURED

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        few = self._total - self._last_measured < 4 * MEASURED
        if few or step not in (self._first, self._last_measured):
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        seconds = self._watch.lap() / MEASURED
        if step == self._last_measured:
            self._display.line(
                f"{self._total - step} more steps will take about "
                f"{clock(seconds * (self._total - step))}, at {self._batch_size / seconds:.0f} "
                f"images/s by the first {MEASURED + 1}; validation, samples and evaluation come on "
                f"top"
            )


class Metrics(TimedCallback):
    """Logs loss, loss by noise level, learning rate and speed every ``every`` steps, and shows
    progress. The speed is that of all steps since the last value, pauses left out.

    Args:
        display: where progress is shown.
        watch: measures the time of the steps.
        every: steps between two values.
        batch_size: examples per step.
        total: steps of the whole run.
    """

    def __init__(
        self, display: Display, watch: Stopwatch, every: int, batch_size: int, total: int
    ) -> None:
        super().__init__(watch)
        self._display, self._every = display, every
        self._batch_size, self._total = batch_size, total
        self._logged = 0
        self._bar = ExitStack()
        self._update: Callable[[int, str], None] | None = None
        self._note = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._update = self._bar.enter_context(
            self._display.work("training", self._total, trainer.global_step)
        )
        self._logged = trainer.global_step
        self._watch.lap()

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if step % self._every == 0 or step == self._total:
            self._log(trainer, module.pop_training_metrics(), step)
        if self._update is not None:
            self._update(step, self._note)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            values = {name: float(value) for name, value in found if name.startswith("val/")}
            log_values(trainer.loggers, values, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logged < trainer.global_step:  # it was stopped between two values
            assert isinstance(pl_module, DiffusionModule)
            self._log(trainer, pl_module.training_metrics(), trainer.global_step)
        self._bar.close()

    def _log(self, trainer: Trainer, metrics: dict[str, float], step: int) -> None:
        """Log the losses since the last value, which have waited for the device, and the speed."""
        speed = (step - self._logged) * self._batch_size / self._watch.lap()
        self._logged = step
        metrics[SPEED] = speed
        metrics["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._note = f"loss {metrics[TRAIN_LOSS]:.4f}  {speed:.0f} images/s"
        if trainer.is_global_zero:
            log_values(trainer.loggers, metrics, step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._bar.close()
