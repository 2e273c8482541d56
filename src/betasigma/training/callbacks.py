"""What happens around the training steps: metrics, progress, sample grids, checkpoints,
evaluation.
"""

from __future__ import annotations

import signal
import statistics
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
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.samplers import Sampler
from betasigma.tracking.loggers import log_picture, log_values
from betasigma.tracking.pictures import picture, save
from betasigma.training.checkpoints import HEADER, MOMENTS
from betasigma.training.display import Display


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


class Metrics(StepCallback):
    """Logs loss, loss by noise level, learning rate and speed every ``every`` steps; shows
    progress.

    Args:
        display: where progress is shown.
        every: steps between two values.
        batch_size: examples per step.
        total: steps of the whole run.
    """

    def __init__(self, display: Display, every: int, batch_size: int, total: int) -> None:
        super().__init__()
        self._display, self._every, self._batch_size, self._total = (
            display,
            every,
            batch_size,
            total,
        )
        self._durations: list[float] = []
        self._stack = ExitStack()
        self._update: Callable[[int, str], None] | None = None
        self._note = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._update = self._stack.enter_context(
            self._display.work("training", self._total, trainer.global_step)
        )
        self._clock = time.perf_counter()

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        now = time.perf_counter()
        self._durations.append(now - self._clock)
        self._clock = now
        if step % self._every == 0 or step == self._total:
            # the median leaves out the pauses for validation and sampling
            speed = self._batch_size / statistics.median(self._durations)
            self._durations.clear()
            metrics = module.pop_training_metrics()
            metrics["train/images_per_second"] = speed
            metrics["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
            self._note = f"loss {metrics['train/loss']:.4f}  {speed:.0f} images/s"
            if trainer.is_global_zero:
                log_values(trainer.loggers, metrics, step)
        if self._update is not None:
            self._update(step, self._note)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
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


class SampleGrids(StepCallback):
    """Draws the same samples every ``every`` steps and saves them as a picture.

    Args:
        run: the run directory; pictures go to ``samples/step_<step>.png``.
        draw: draws the samples: ``draw(denoiser, step)`` → uint8 images or points.
        every: steps between two pictures.
    """

    def __init__(self, run: Path, draw: Callable[[DenoiserLike], Tensor], every: int) -> None:
        super().__init__()
        self._run, self._draw, self._every = run, draw, every

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if step % self._every == 0 and step < trainer.max_steps:
            self.show(trainer, module, step)

    def show(self, trainer: Trainer, module: MeasuredModule, step: int) -> None:
        """Draw, save and log the samples of this step."""
        if trainer.is_global_zero:
            image = picture(self._draw(module.average))
            save(image, self._run / "samples" / f"step_{step:07d}.png")
            log_picture(trainer.loggers, "samples", image, step)
        trainer.strategy.barrier()


class Checkpoints(StepCallback):
    """Keeps ``last.ckpt`` and ``best.ckpt``.

    Args:
        folder: where they go.
        header: what every checkpoint carries beside its weights: format, version, seed, config.
        every: steps between two writings of ``last.ckpt``; it is also written at the end and on an
            interrupt. ``best.ckpt`` is of the validation with the least ``monitor`` of the module.

    Attributes:
        saved: step of the ``last.ckpt`` that this process has written; −1 for none.
    """

    def __init__(self, folder: Path, header: dict[str, Any], every: int) -> None:
        super().__init__()
        self._folder, self._header, self._every = folder, header, every
        self._best = float("inf")
        self.saved = -1

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
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        assert isinstance(pl_module, MeasuredModule)
        value = trainer.callback_metrics.get(pl_module.monitor)
        if trainer.sanity_checking or value is None or not float(value) < self._best:
            return
        self._best = float(value)
        trainer.save_checkpoint(self._folder / "best.ckpt")
        if trainer.global_step == self.saved:  # before this validation: it must know the best
            trainer.save_checkpoint(self._folder / "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # after any other error the weights may not be whole
        if isinstance(exception, KeyboardInterrupt | Terminated) and self.between_steps:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved:
            trainer.save_checkpoint(self._folder / "last.ckpt")
            self.saved = trainer.global_step


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
    """Lets Ctrl-C and SIGTERM end a run between two steps; a second one ends it where it is.

    Several processes have to agree on when they end: there SIGTERM is left to the Trainer.

    Args:
        display: where it says that it was heard.
    """

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display
        self._asked: KeyboardInterrupt | Terminated | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            # the Trainer restores the ones before
            signal.signal(signal.SIGINT, self._hear)
            if trainer.world_size == 1:
                signal.signal(signal.SIGTERM, self._hear)

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        self._obey()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._obey()

    def _hear(self, number: int, frame: Any) -> None:
        asked = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if self.between_steps or self._asked:
            raise asked
        self._asked = asked
        again = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        self._display.line(f"stopping after this step; {again} again stops at once")

    def _obey(self) -> None:
        if self._asked:
            raise self._asked


class Evaluation(StepCallback):
    """Runs ``evaluate(denoiser, step)`` every ``every`` steps.

    Args:
        evaluate: measures the averaged weights and logs what it finds; called by all ranks.
        every: steps between two evaluations; ``None`` for none during training.
    """

    def __init__(self, evaluate: Callable[[DenoiserLike, int], None], every: int | None) -> None:
        super().__init__()
        self._evaluate, self._every = evaluate, every

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if self._every and step % self._every == 0 and step < trainer.max_steps:
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
