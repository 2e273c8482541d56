"""Checkpoints that Weights & Biases keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from betasigma.options.loggers import Kept
from betasigma.runs.header import BEST, LAST, read_header
from betasigma.training.tracking import log_checkpoint


def to_keep(folder: Path, which: str) -> Iterator[Path]:
    """Checkpoints to be kept of a run that has ended, the best last: which is the last one where
    there is no best.
    """
    found = [path for name in (LAST, BEST) if (path := folder / name).is_file()]
    yield from {"all": found, "best": found[-1:]}.get(which, [])


class KeptCheckpoints(Callback):
    """Sends checkpoints: the best at the end, or all, each after it is written.

    It stands behind the callback that writes them.

    Args:
        folder: where they are.
        which: of them.
    """

    def __init__(self, folder: Path, which: Kept) -> None:
        self._folder, self._which = folder, which
        self._seen: dict[Path, int] = {}
        self._sent: dict[Path, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = {path: path.stat().st_mtime_ns for path in self._files()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._send_new(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send_new(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send_new(trainer)
        if self._which == "best" and trainer.is_global_zero:
            for path in to_keep(self._folder, self._which):
                log_checkpoint(trainer.loggers, path, read_header(path)["step"], "best")

    def _files(self) -> list[Path]:
        return [path for name in (LAST, BEST) if (path := self._folder / name).is_file()]

    def _send_new(self, trainer: Trainer) -> None:
        if self._which != "all" or not trainer.is_global_zero:
            return
        for path in self._files():
            written = path.stat().st_mtime_ns
            if self._seen.get(path) == written:
                continue
            self._seen[path] = written
            if self._sent.get(path) != trainer.global_step:  # else the same weights once more
                self._sent[path] = trainer.global_step
                log_checkpoint(trainer.loggers, path, trainer.global_step, path.stem)
