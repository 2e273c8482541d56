"""What training reports as it runs: loss, learning rate, speed, validation, a progress bar, and how
long it still takes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer

from betasigma.data.datamodule import ImageDataModule
from betasigma.display import Display, Update, clock
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.options.training import LEARNING_RATE, SPEED
from betasigma.training.checkpoints import Checkpoints
from betasigma.training.steps import VALIDATION, StepCallback, Stopwatch
from betasigma.training.tracking import log_values

EVALUATIONS = 3
"""Network evaluations that a training step counts as, for each of its examples."""


class Work(NamedTuple):
    """Work beside the steps: validation, sampling, evaluation.

    Attributes:
        size: network evaluations each time, of one example each.
        every: steps between two times; ``None`` for never.
        after: network evaluations of it after the last step.
        with_last: whether it is also done at the last step, where that is one of ``every``.
    """

    size: float = 0.0
    every: int | None = None
    after: float = 0.0
    with_last: bool = False

    def between(self, begin: int, end: int, total: int) -> float:
        """Network evaluations of it after step ``begin``, up to step ``end`` of ``total``."""
        if self.every is None:
            return 0.0
        last = end if self.with_last else min(end, total - 1)
        return self.size * max(0, last // self.every - begin // self.every)


class Forecast:
    """Predicts the seconds that are left.

    Work that was done before takes as long as then. Work that is new takes as long as training
    steps of as many network evaluations.

    Args:
        total: steps of the whole run.
        works: asked when the run begins.
        budget: gives the seconds of training that the run may still take.
    """

    def __init__(
        self,
        watch: Stopwatch,
        batch_size: int,
        total: int,
        works: Callable[[], Mapping[str, Work]],
        budget: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self.watch, self.batch_size, self.total = watch, batch_size, total
        self._ask, self._budget = works, budget
        self._works: Mapping[str, Work] = {}
        self._first = 0

    def begin(self, step: int) -> None:
        """The run, or this start of it, begins after this step."""
        self._first, self._works = step, self._ask()

    def beside_steps(self, step: int, seconds_per_step: float) -> tuple[float, float]:
        """Seconds of what comes between the steps after ``step``, and of what comes at the end."""
        between = after = 0.0
        for what, work in self._works.items():
            done = work.between(self._first, step, self.total)
            spent = self.watch.spent.get(what, 0.0)
            as_new = seconds_per_step / (EVALUATIONS * self.batch_size)
            one = spent / done if done and spent else as_new
            between += one * work.between(step, self.total, self.total)
            after += one * work.after
        return between, after

    def seconds(self, step: int, seconds_per_step: float) -> float:
        """Seconds left after ``step``."""
        between, after = self.beside_steps(step, seconds_per_step)
        training = (self.total - step) * seconds_per_step + between
        return min(training, max(0.0, self._budget())) + after


MEASURED = 5
"""Steps by which the time of a run is estimated."""

REFRESHED = 0.5
"""Seconds between two looks at the loss, for which the device must be waited for."""

REMEMBERED = 20
"""Looks over which the speed is taken."""


class Metrics(StepCallback):
    """Logs objective, denoising error, learning rate and speed every ``every`` steps. The speed is
    that of all steps since the last value, pauses left out.
    """

    def __init__(self, forecast: Forecast, every: int, data: ImageDataModule) -> None:
        super().__init__()
        self._watch, self._validation = forecast.watch, ExitStack()
        self._batch_size, self._total = forecast.batch_size, forecast.total
        self._every, self._data = every, data
        self._logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._logged = trainer.global_step
        self._watch.begin()

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if step % self._every == 0 or step == self._total:
            self._log(trainer, module.pop_training_metrics(), step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation.enter_context(self._watch.pause(trainer.strategy.root_device, VALIDATION))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation.close()
        if trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            values = {name: float(value) for name, value in found if name.startswith("val/")}
            context = {"n": self._data.validated, "split": "test"}
            log_values(trainer.loggers, values, trainer.global_step, context)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logged < trainer.global_step:  # it was stopped between two values
            assert isinstance(pl_module, DiffusionModule)
            self._log(trainer, pl_module.training_metrics(), trainer.global_step)

    def _log(self, trainer: Trainer, metrics: dict[str, float], step: int) -> None:
        """Log the means since the last value, which have waited for the device, and the speed."""
        speed = (step - self._logged) * self._batch_size / self._watch.lap()
        self._logged = step
        metrics[SPEED] = speed
        metrics[LEARNING_RATE] = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.is_global_zero:
            log_values(trainer.loggers, metrics, step)


class ShowProgress(StepCallback):
    """Shows on the terminal what a training is doing: loss and speed from the first step on, how
    far a validation is and what it found, and the time until all has ended. After the first steps
    it says how long training will take, where many more are to come: only a measured step tells the
    time of one. The first is left out, in which libraries start and a network is compiled.

    It acts before :class:`Metrics`, whose means begin anew when they are logged, and before
    ``checkpoints``, which take over what is better.
    """

    def __init__(self, display: Display, forecast: Forecast, checkpoints: Checkpoints) -> None:
        super().__init__()
        self.watch, self._total = forecast.watch, forecast.total
        self._display, self._forecast, self._checkpoints = display, forecast, checkpoints
        self._bar, self._validation = ExitStack(), ExitStack()
        self._update: Update | None = None
        self._advance: Callable[[float], None] | None = None
        self._refreshed = -math.inf
        self._shown: tuple[str, float | None] = "", None
        self._looks: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        self._first, self._began = step + 1, 0.0
        self._forecast.begin(step)
        if not trainer.is_global_zero:
            return
        self._update = self._bar.enter_context(self._display.work("training", self._total, step))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._looks:  # not before all has started: the watch begins anew there
            self._looks.append((trainer.global_step, self.watch.seconds))

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._estimate(module, step)
        now = time.monotonic()
        if self._update is None or (now - self._refreshed < REFRESHED and step < self._total):
            return
        self._refreshed = now
        loss = module.recent_objective()
        self._looks.append((step, self.watch.seconds))
        (first, began), (last, ends) = self._looks[0], self._looks[-1]
        per_step = (ends - began) / (last - first)
        note = f"objective {loss:.4f}  {self._forecast.batch_size / per_step:.0f} images/s"
        self._shown = note, self._forecast.seconds(step, per_step)
        self._update(step, *self._shown)

    def _estimate(self, module: DiffusionModule, step: int) -> None:
        last, forecast = self._first + MEASURED, self._forecast
        if self._total - last < 4 * MEASURED or step not in (self._first, last):
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        if step == self._first:
            self._began = self.watch.seconds
            return
        seconds, left = (self.watch.seconds - self._began) / MEASURED, self._total - step
        beside = clock(sum(forecast.beside_steps(step, seconds)))
        self._display.line(
            f"{left} more steps will take about {clock(seconds * left)}, at "
            f"{forecast.batch_size / seconds:.0f} images/s by the first {MEASURED + 1}; "
            f"validation, samples and evaluation about {beside} more"
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.is_global_zero:
            if self._update is not None:
                self._update(trainer.global_step, *self._shown)
            self._advance = self._validation.enter_context(
                self._display.share("validating", ends=False)
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._advance is not None:
            self._advance(1 / sum(map(int, trainer.num_val_batches)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation.close()
        self._advance = None
        assert isinstance(pl_module, MeasuredModule)
        name, step = pl_module.monitor, trainer.global_step
        if not trainer.is_global_zero or name not in trainer.callback_metrics:
            return
        found = float(trainer.callback_metrics[name])
        best = self._checkpoints.best
        told = "the best so far" if found < best else f"best {best:.4g}"
        self._display.line(f"step {step}: {name} {found:.4g}, {told}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._validation.close()
        self._bar.close()
