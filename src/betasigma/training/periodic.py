"""Work that is done every so many steps: pictures of samples, and an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from betasigma.denoiser import DenoiserLike
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.options.training import VALIDATION_OBJECTIVE
from betasigma.pictures import picture, save
from betasigma.runs.directory import SAMPLES
from betasigma.runs.files import write_patiently
from betasigma.runs.record import Record
from betasigma.training.steps import EVALUATION, SAMPLING, StepCallback, Stopwatch
from betasigma.training.tracking import log_histogram, log_picture


class Periodic(StepCallback):
    """Calls ``act`` every ``every`` steps, except after the last one.

    If a run was stopped between a step and its ``act``, the resumed run begins with that ``act``.
    """

    what: str
    """What the time of ``act`` is spent on."""

    def __init__(self, every: int | None, watch: Stopwatch) -> None:
        super().__init__()
        self._every, self._watch = every, watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        # one process decides: another might look after the first has already acted
        if step and not trainer.strategy.broadcast(self.done(step)):
            assert isinstance(pl_module, DiffusionModule)
            self.on_step(trainer, pl_module, step)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if self._every and step % self._every == 0 and step < trainer.max_steps:
            with self._watch.pause(trainer.strategy.root_device, self.what):
                self.act(trainer, module, step)

    def done(self, step: int) -> bool:
        """Whether ``act`` has already been called for this step."""
        raise NotImplementedError

    def act(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        """Do the work; all ranks call it together."""
        raise NotImplementedError


class SampleGrids(Periodic):
    """Draws the same samples every ``every`` steps and saves them as a picture.

    Args:
        run: the run directory; pictures go to ``samples/step_<step>.png``.
        draw: ``draw(denoiser, n)`` returns uint8 images or points, and how they were drawn.
        sizes: n between two steps, and after the last one.
        wait: seconds to wait for space on the disk.
    """

    what = SAMPLING

    def __init__(
        self,
        run: Path,
        draw: Callable[[DenoiserLike, int], tuple[Tensor, str]],
        sizes: tuple[int, int],
        every: int,
        watch: Stopwatch,
        wait: float,
    ) -> None:
        super().__init__(every, watch)
        self._run, self._draw, self._wait = run, draw, wait
        self._between, self._last_size = sizes

    def done(self, step: int) -> bool:
        return self._path(step).exists()

    def act(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self.show(trainer, module, step, self._between)

    def _path(self, step: int) -> Path:
        return self._run / SAMPLES / f"step_{step:07d}.png"

    def show(
        self, trainer: Trainer, module: MeasuredModule, step: int, n: int | None = None
    ) -> None:
        """Draw, save and log the samples of this step, by default as many as after the last."""
        if trainer.is_global_zero:
            samples, how = self._draw(module.average, self._last_size if n is None else n)
            image, caption = picture(samples), f"step {step}: {how}"
            path = self._path(step)
            write_patiently(lambda: save(image, path, caption, len(samples)), path, self._wait)
            log_picture(trainer.loggers, "samples", image, step, caption)
            log_histogram(trainer.loggers, "pixels/samples", samples, step)
        trainer.strategy.barrier()


class PeriodicEvaluation(Periodic):
    """Calls ``evaluate(denoiser, step)`` every ``every`` steps.

    Args:
        evaluate: measures the averaged weights and logs the values; all ranks call it together.
        record: metrics.csv, where a resumed run looks up which evaluations it has.
    """

    what = EVALUATION

    def __init__(
        self,
        evaluate: Callable[[DenoiserLike, int], None],
        record: Record,
        every: int | None,
        watch: Stopwatch,
    ) -> None:
        super().__init__(every, watch)
        self._evaluate, self._record = evaluate, record

    def done(self, step: int) -> bool:
        rows = [row for row in self._record.rows() if row["step"] == str(step)]
        return any(row["metric"].startswith("val/") and row["extractor"] for row in rows)

    def act(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._evaluate(module.average, step)


class MissedValidation(Callback):
    """Validates first, if a run was stopped between a step and its validation. It acts last. Which
    validations a resumed run has, every so many steps, says its record.
    """

    def __init__(self, every: int, record: Record) -> None:
        self._every, self._record = every, record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_missing(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # the checkpoint's counters are of an earlier validation
            trainer.validating = True
            loop.run()
            trainer.training = True

    def is_missing(self, trainer: Trainer) -> bool:
        """Whether this step has a validation that is not in the record; one process looks."""
        step = trainer.global_step
        if not step or step % self._every:
            return False
        steps = self._record.curve(VALIDATION_OBJECTIVE)[0]
        return bool(trainer.strategy.broadcast(step not in steps))
