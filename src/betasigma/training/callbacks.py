"""What happens around the training steps: metrics, progress, sample grids, checkpoints,
evaluation.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from betasigma.denoiser import DenoiserLike, Guided
from betasigma.display import Display
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.report.pictures import picture, save
from betasigma.runs.checkpoint import HEADER, MOMENTS
from betasigma.runs.record import Record
from betasigma.samplers import Sampler
from betasigma.training.loggers import log_picture, log_values


class StepCallback(Callback):
    """Calls ``on_step`` once after each optimizer step, whatever the number of micro-batches.

    Attributes:
        between_steps: whether no step and no validation is under way, so that weights, optimizer
            and counters are whole and agree.
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
        self.on_step(trainer, _module(pl_module), trainer.global_step)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        raise NotImplementedError


class Stopwatch:
    """Seconds of training without its pauses. The device is waited for wherever a pause begins, so
    that what it still has to do counts as training; the caller of ``lap`` waits for it itself.
    """

    def __init__(self) -> None:
        self._since, self._paused = time.perf_counter(), 0.0

    def lap(self) -> float:
        """Seconds since the last lap, or the beginning, without the pauses in between."""
        now = time.perf_counter()
        seconds = now - self._since - self._paused
        self._since, self._paused = now, 0.0
        return seconds

    @contextmanager
    def pause(self, device: torch.device) -> Iterator[None]:
        """What is done inside is not training."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin


class Metrics(StepCallback):
    """Logs loss, loss by noise level, learning rate and speed every ``every`` steps; shows
    progress. The speed is that of all steps since the last value, pauses left out.

    Args:
        display: where progress is shown.
        watch: knows of the pauses.
        every: steps between two values.
        batch_size: examples per step.
        total: steps of the whole run.
    """

    def __init__(
        self, display: Display, watch: Stopwatch, every: int, batch_size: int, total: int
    ) -> None:
        super().__init__()
        self._display, self._watch = display, watch
        self._every, self._batch_size, self._total = every, batch_size, total
        self._logged = 0
        self._stack, self._validation = ExitStack(), ExitStack()
        self._update: Callable[[int, str], None] | None = None
        self._note = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._update = self._stack.enter_context(
            self._display.work("training", self._total, trainer.global_step)
        )
        self._logged = trainer.global_step
        self._watch.lap()

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if step % self._every == 0 or step == self._total:
            metrics = module.pop_training_metrics()  # waits for the device
            speed = (step - self._logged) * self._batch_size / self._watch.lap()
            self._logged = step
            metrics["train/images_per_second"] = speed
            metrics["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
            self._note = f"loss {metrics['train/loss']:.4f}  {speed:.0f} images/s"
            if trainer.is_global_zero:
                log_values(trainer.loggers, metrics, step)
        if self._update is not None:
            self._update(step, self._note)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation.enter_context(self._watch.pause(trainer.strategy.root_device))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation.close()
        if trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            values = {name: float(value) for name, value in found if name.startswith("val/")}
            log_values(trainer.loggers, values, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stack.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stack.close()


class Periodic(StepCallback):
    """Does something every ``every`` steps, but for the last one. A run that was stopped before it
    was done at the step it continues from, does it first.

    Args:
        every: steps between two times; ``None`` for never.
        watch: is told of the pause.
    """

    def __init__(self, every: int | None, watch: Stopwatch) -> None:
        super().__init__()
        self._every, self._watch = every, watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        # one process decides: another could look after the first has done it
        if step and not trainer.strategy.broadcast(self.done(step)):
            self.on_step(trainer, _module(pl_module), step)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if self._every and step % self._every == 0 and step < trainer.max_steps:
            with self._watch.pause(trainer.strategy.root_device):
                self.act(trainer, module, step)

    def done(self, step: int) -> bool:
        """Whether it was done at this step."""
        raise NotImplementedError

    def act(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        """Do it; called by all ranks."""
        raise NotImplementedError


class SampleGrids(Periodic):
    """Draws the same samples every ``every`` steps and saves them as a picture.

    Args:
        run: the run directory; pictures go to ``samples/step_<step>.png``.
        draw: draws the samples: ``draw(denoiser, step)`` → uint8 images or points.
        every, watch: see :class:`Periodic`.
    """

    def __init__(
        self, run: Path, draw: Callable[[DenoiserLike], Tensor], every: int, watch: Stopwatch
    ) -> None:
        super().__init__(every, watch)
        self._run, self._draw = run, draw

    def done(self, step: int) -> bool:
        return self._path(step).exists()

    def act(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self.show(trainer, module, step)

    def _path(self, step: int) -> Path:
        return self._run / "samples" / f"step_{step:07d}.png"

    def show(self, trainer: Trainer, module: MeasuredModule, step: int) -> None:
        """Draw, save and log the samples of this step."""
        if trainer.is_global_zero:
            image = picture(self._draw(module.average))
            save(image, self._path(step))
            log_picture(trainer.loggers, "samples", image, step)
        trainer.strategy.barrier()


class Checkpoints(StepCallback):
    """Keeps ``last.ckpt`` and ``best.ckpt``.

    Args:
        folder: where they go.
        header: what every checkpoint carries beside its weights: format, version, seed, config.
        every: steps between two writings of ``last.ckpt``; it is also written at the end and on an
            interrupt. ``best.ckpt`` is of the validation with the least ``monitor`` of the module.
        watch: is told of the pauses.

    Attributes:
        saved: step of the ``last.ckpt`` that this process has written; −1 for none.
    """

    def __init__(self, folder: Path, header: dict[str, Any], every: int, watch: Stopwatch) -> None:
        super().__init__()
        self._folder, self._header, self._every, self._watch = folder, header, every, watch
        self._best = float("inf")
        self._began = 0
        self.saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[HEADER] = {**self._header, "step": trainer.global_step}
        assert isinstance(pl_module, MeasuredModule)
        moments = pl_module.average.moments
        if moments is not None:
            checkpoint[MOMENTS] = {"mean": moments.mean, "variance": moments.variance}

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if step % self._every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        assert isinstance(pl_module, MeasuredModule)
        value = trainer.callback_metrics.get(pl_module.monitor)
        if trainer.sanity_checking or value is None or not float(value) < self._best:
            return
        self._best = float(value)
        self._write(trainer, "best.ckpt")
        if trainer.global_step == self.saved:  # before this validation: it must know the best
            self._write(trainer, "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # after any other error the weights may not be whole
        asked = isinstance(exception, KeyboardInterrupt | Terminated)
        if asked and self.between_steps and trainer.global_step > self._began:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless it is of this step; by all processes together."""
        if trainer.global_step != self.saved:
            self._write(trainer, "last.ckpt")
            self.saved = trainer.global_step

    def _write(self, trainer: Trainer, name: str) -> None:
        with self._watch.pause(trainer.strategy.root_device):
            trainer.save_checkpoint(self._folder / name)


class Terminated(SystemExit):
    """SIGTERM was received. A process that ends by it has the status of one that SIGTERM ended."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what is done inside as an exception does, unless somebody else handles it."""
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interrupts(StepCallback):
    """Lets Ctrl-C and SIGTERM end a run between two steps, after the validation that belongs to the
    first of them; a second one ends it where it is.

    Several processes agree at every step whether one of them was asked: they end at the same one.

    Args:
        display: where it says that it was heard.
        validate_every: steps between two validations.
        save: saves the step that a validation follows, which may take longer than there is time.
    """

    def __init__(
        self, display: Display, validate_every: int, save: Callable[[Trainer], None]
    ) -> None:
        super().__init__()
        self._display, self._validate_every, self._save = display, validate_every, save
        self._asked = 0
        self._several, self._validation_follows = False, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            # the Trainer restores the ones before
            signal.signal(signal.SIGINT, self._hear)
            signal.signal(signal.SIGTERM, self._hear)
        self._several = trainer.world_size > 1
        if self._several:  # between CPUs: to ask a GPU would be to wait for it
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._validation_follows = step % self._validate_every == 0
        self._agree()
        if self._asked and self._validation_follows:
            self._save(trainer)
        else:
            self._obey()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validation_follows = False
        self._agree()
        self._obey()

    def _hear(self, number: int, frame: Any) -> None:
        alone = self.between_steps and not self._validation_follows and not self._several
        if alone or self._asked:
            raise _stop(number)
        self._asked = number
        again = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        self._display.line(f"stopping after this step; {again} again stops at once")

    def _agree(self) -> None:
        if self._several:
            asked = torch.tensor(self._asked)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, self._group)
            self._asked = int(asked)

    def _obey(self) -> None:
        if not self._asked:
            return
        if self._several:  # the first to end must not end the others, who are saving
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _stop(self._asked)


def _stop(number: int) -> KeyboardInterrupt | Terminated:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


class PeriodicEvaluation(Periodic):
    """Runs ``evaluate(denoiser, step)`` every ``every`` steps.

    Args:
        evaluate: measures the averaged weights and logs what it finds; called by all ranks.
        record: where it is found again.
        every, watch: see :class:`Periodic`.
    """

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


def guided(denoiser: DenoiserLike, weight: float) -> DenoiserLike:
    """The denoiser itself, or with classifier-free guidance where the weight is not 1."""
    return denoiser if weight == 1 else Guided(denoiser, weight)


def class_labels(num_classes: int, indices: range | list[int]) -> Tensor | None:
    """Labels 0, 1, …, in turn for the samples of these indices; ``None`` without classes."""
    if num_classes == 0:
        return None
    return torch.as_tensor(list(indices), dtype=torch.int64) % num_classes


def draw(
    denoiser: DenoiserLike,
    sampler: Sampler,
    n: int,
    seed: int,
    weight: float,
    progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, int]:
    """Samples 0 … n−1 in the model's value range, with labels in turn; and their NFE."""
    labels = class_labels(denoiser.num_classes, range(n))
    samples = sampler.sample(guided(denoiser, weight), n, seed=seed, y=labels, progress=progress)
    return samples.x, samples.nfe


def _module(module: LightningModule) -> DiffusionModule:
    assert isinstance(module, DiffusionModule)
    return module
