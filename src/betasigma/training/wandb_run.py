"""How a run looks on Weights & Biases: its axes, its best values, its charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from betasigma.display import warn
from betasigma.options.training import (
    AT_LOG_SNR,
    DENOISING_ERROR,
    LEAST,
    PREFIXES,
    Best,
)

STEP, IMAGES, SECONDS = "trainer/global_step", "trainer/images_seen", "trainer/seconds"
"""The axes: optimizer steps, which is Lightning's name, the examples in them, and the wall clock:
seconds of training, validation and sampling over all starts of the run.
"""

LOG_SNR = "log-SNR (data in [-1, 1])"
"""An axis of charts."""

OBJECTIVE = "objective_metric"
"""The value that a sweep is given."""

EVALUATIONS = "evaluations"
"""Table that an evaluation logs, a row a value."""


def define_axes(experiment: Any) -> None:
    """Declare axes and best values to a run that has begun. Parts of the denoising error get no
    panel each: they are drawn in one.
    """
    experiment.define_metric(STEP, hidden=True)
    experiment.define_metric("*", step_metric=STEP)
    for metric in LEAST:
        define_best(experiment, metric, "min")
    for split in PREFIXES:
        experiment.define_metric(f"{split}{AT_LOG_SNR}*", step_metric=STEP, hidden=True)


def define_best(experiment: Any, metric: str, best: Best) -> None:
    """Have the summary show a metric's best value beside its last."""
    experiment.define_metric(metric, step_metric=STEP, summary=f"{best},last")


class WandbRun(WandbLogger):
    """Lightning's logger, with two more axes and the errors by log-SNR as a chart.

    Args:
        experiment: the run that has begun.
        save_dir: the run directory.
        id: of the run.
        batch_size: examples per optimizer step.
        objective_metric: logged under this name too, as a plain number for sweeps: the summary of a
            metric that has a best value is no number.

    Attributes:
        seconds: reads the wall clock, see :data:`SECONDS`.
    """

    def __init__(
        self,
        experiment: Any,
        save_dir: Path,
        id: str,
        batch_size: int,
        objective_metric: str | None = None,
    ) -> None:
        super().__init__(experiment=experiment, save_dir=save_dir, id=id)
        self._batch_size, self._objective_metric = batch_size, objective_metric
        self._known: set[str] = set()
        self.seconds: Callable[[], float] = lambda: 0.0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        more = self._charts(metrics)
        if self._objective_metric is not None and self._objective_metric in metrics:
            more[OBJECTIVE] = metrics[self._objective_metric]
        axes = {IMAGES: (step or 0) * self._batch_size, SECONDS: round(self.seconds(), 3)}
        super().log_metrics({**metrics, **more, **axes}, step)

    def define_best(self, best: Mapping[str, Best]) -> None:
        """Declare metrics, by name, before their first values."""
        for metric in best.keys() - self._known:
            define_best(self.experiment, metric, best[metric])
        self._known |= best.keys()

    def log_histogram(self, key: str, images: Tensor, step: int) -> None:
        """Show how often each byte is in uint8 images."""
        import wandb

        counts = torch.bincount(images.flatten().int(), minlength=256)
        histogram = wandb.Histogram(np_histogram=(counts.numpy(), np.arange(257)))
        self.log_metrics({key: histogram}, step)

    def log_evaluations(
        self, key: str, columns: Sequence[str], rows: list[list[Any]], step: int
    ) -> None:
        """Show measurements as a table, and as lines over evaluations of the network."""
        import wandb

        table = wandb.Table(columns=list(columns), data=rows)
        title = "Quality against network evaluations"
        chart = wandb.plot.line(table, "NFE", "value", stroke="series", title=title)
        try:
            self.log_metrics({key: table, f"{key}_by_nfe": chart}, step)
        except Exception as error:  # whatever a dashboard raises, the values are in metrics.csv
            warn(f"the table of evaluations was not logged ({type(error).__name__}: {error})")

    def _charts(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The denoising error over log-SNR, where it has been measured: in training it comes too
        often.
        """
        import wandb

        charts = {}
        for split in ("val", "eval"):
            start = f"{split}{AT_LOG_SNR}"
            points = {
                float(name.removeprefix(start)): value
                for name, value in metrics.items()
                if name.startswith(start)
            }
            if points:
                data = [list(point) for point in sorted(points.items())]
                table = wandb.Table(columns=[LOG_SNR, DENOISING_ERROR], data=data)
                charts[f"{split}/{DENOISING_ERROR}_by_log_snr"] = wandb.plot.line(
                    table, LOG_SNR, DENOISING_ERROR, title=f"{DENOISING_ERROR}, {split}"
                )
        return charts
