"""When checkpoints are written, how Lightning writes and reads them, and which Weights & Biases
keeps.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer

from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import Stopped, UserError
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.options.loggers import Kept
from betasigma.runs.checkpoint import HEADER, MOMENTS, read, save
from betasigma.runs.files import write_patiently
from betasigma.runs.header import BEST, LAST, PREVIOUS, read_header
from betasigma.training.skipped import refuse_not_finite, skipping
from betasigma.training.steps import SAVING, StepCallback, Stopwatch
from betasigma.training.tracking import log_checkpoint

STATE = ("pytorch-lightning_version", "global_step", "loops", "optimizer_states", "lr_schedulers")
"""What a checkpoint needs besides weights for the run to continue as if it had never stopped."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written and read by :mod:`betasigma.runs.checkpoint`. What Lightning
    calls storage options is the name under which the file that is replaced stays.

    Args:
        wait: seconds to wait for space on the disk.
    """

    def __init__(self, wait: float) -> None:
        super().__init__()
        self._wait = wait

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        write_patiently(lambda: self._save(checkpoint, target, storage_options), target, self._wait)

    @staticmethod
    def _save(checkpoint: dict[str, Any], path: Path, keep: Path | None) -> None:
        if not path.parents[1].is_dir():  # it would be made again, with nothing else in it
            raise FileNotFoundError(errno.ENOENT, "the run directory is gone")
        save(checkpoint, path, keep)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        contents = read(Path(path), "resume")
        missing = [name for name in STATE if name not in contents]
        if missing:
            raise UserError(
                f"resume={path} cannot be continued: it has no {', '.join(missing)}; it can still "
                f"be sampled and evaluated if it has weights"
            )
        optimizers = contents["optimizer_states"]
        if contents["global_step"] and not (
            isinstance(optimizers, list)
            and len(optimizers) == 1
            and isinstance(optimizers[0], dict)
            and optimizers[0].get("state")
        ):
            raise UserError(
                f"resume={path} cannot be continued: it has no state of the optimizer, which would "
                f"begin anew"
            )
        return contents


class Checkpoints(StepCallback):
    """Keeps ``last.ckpt``, the ``previous.ckpt`` before it, and ``best.ckpt``.

    ``last.ckpt`` is written every ``every`` steps, at the end and on an interrupt. ``best.ckpt`` is
    that of the validation with the smallest ``monitor`` of the module, among those of as many
    images: a run that is resumed for more steps may validate on more.

    Args:
        header: what every checkpoint has besides its weights: format, version, seed, config.
        every: steps between two writes of ``last.ckpt``.
        data: says on how many images a validation is made.
        artifacts: which go to Weights & Biases: the best at the end, or all, each as it is written.

    Attributes:
        saved: step of the ``last.ckpt`` that this process has written; −1 for none.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        every: int,
        data: ImageDataModule,
        watch: Stopwatch,
        artifacts: Kept,
    ) -> None:
        super().__init__()
        self._folder, self._header, self._every, self._watch = folder, header, every, watch
        self._data, self._artifacts = data, artifacts
        self._best, self._images = math.inf, 0
        self._first, self._restored = 0, 0
        self._sent: dict[str, int] = {}
        self.saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = trainer.global_step
        if self._first != self._restored:
            raise UserError(
                f"the checkpoint cannot be continued: it is of step {self._restored}, and its loop "
                f"counts {self._first} steps"
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint[HEADER]["step"]

    @property
    def best(self) -> float:
        """Least value of the validations so far of as many images as now; infinity for none."""
        return self._best if self._images == self._data.val_size else math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]
        # earlier checkpoints do not say it
        self._images = state_dict.get("images", self._data.val_size)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        step, threads = trainer.global_step, torch.get_num_threads()
        own = {**self._header, "step": step, "threads": threads}
        checkpoint[HEADER] = {**checkpoint.get(HEADER, {}), **own}
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
        self._best, self._images = self.best, self._data.val_size
        if trainer.sanity_checking or value is None or not float(value) < self._best:
            return
        self._best = float(value)
        self._write(trainer, BEST)
        if trainer.global_step == self.saved:  # last.ckpt must know the new best value too
            self._write(trainer, LAST)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        if self._artifacts == "best" and trainer.is_global_zero:
            for path in to_keep(self._folder, "best"):
                log_checkpoint(trainer.loggers, path, read_header(path)["step"], "best")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # any other error may leave the weights of half a step
        stopped = isinstance(exception, KeyboardInterrupt | Stopped)
        if stopped and self.between_steps and trainer.global_step > self._first:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless it is already of this step or the steps before were skipped;
        all ranks call it together.
        """
        if trainer.global_step != self.saved and not skipping(trainer.lightning_module):
            self._write(trainer, LAST, self._folder / PREVIOUS)
            self.saved = trainer.global_step

    def _write(self, trainer: Trainer, name: str, keep: Path | None = None) -> None:
        refuse_not_finite(trainer)
        path, step = self._folder / name, trainer.global_step
        with self._watch.pause(trainer.strategy.root_device, SAVING):
            trainer.save_checkpoint(path, storage_options=keep)
        if self._artifacts == "all" and self._sent.get(name) != step:  # else the same weights again
            self._sent[name] = step
            log_checkpoint(trainer.loggers, path, step, path.stem)


def to_keep(folder: Path, which: str) -> Iterator[Path]:
    """Checkpoints to be kept of a run that has ended, the best last: which is the last one where
    there is no best.
    """
    found = [path for name in (LAST, BEST) if (path := folder / name).is_file()]
    yield from {"all": found, "best": found[-1:]}.get(which, [])
