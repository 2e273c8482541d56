"""Where metrics go: always to metrics.csv, and to a dashboard if the config names one; and how a
run looks on Weights & Biases: its axes, its best values, its charts.

Metric names and config keys are the same for both families, so that a dashboard compares them
without work.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from betasigma.build import make
from betasigma.devices import uses_gpu
from betasigma.display import warn
from betasigma.errors import first_line
from betasigma.options.training import AT_LOG_SNR, DENOISING_ERROR, LEAST, PREFIXES, Best
from betasigma.runs.files import write_patiently
from betasigma.runs.record import Record
from betasigma.training.account import sweep_run_id, wandb_mode, wandb_place

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

    def log_evaluations(self, columns: Sequence[str], rows: list[list[Any]], step: int) -> None:
        """Show measurements as a table, and as lines over evaluations of the network."""
        import wandb

        table = wandb.Table(columns=list(columns), data=rows)
        title = "Quality against network evaluations"
        chart = wandb.plot.line(table, "NFE", "value", stroke="series", title=title)
        self.log_metrics({EVALUATIONS: table, f"{EVALUATIONS}_by_nfe": chart}, step)

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


class RecordLogger(Logger):
    """Lightning's view of the run directory's metrics.csv. With ``anew`` the first values that are
    written take the place of all that it has.
    """

    def __init__(self, record: Record, wait: float = 0.0, anew: bool = False) -> None:
        super().__init__()
        self.record, self._wait, self._anew = record, wait, anew

    @property
    def name(self) -> str:
        return "record"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self.write(step or 0, [(values, {})])

    def write(
        self, step: int, groups: Sequence[tuple[Mapping[str, float], Mapping[str, Any]]]
    ) -> None:
        """Add rows at once, see :meth:`Record.append_together`."""
        if self._anew and any(values for values, _ in groups):
            self.record.path.unlink(missing_ok=True)
            self._anew = False
        write_patiently(
            lambda: self.record.append_together(step, groups), self.record.path, self._wait
        )

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has config.yaml."""


def make_loggers(
    settings: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
    run: Path,
    config: dict[str, Any],
    run_id: str | None = None,
    job_type: str = "train",
) -> list[Logger]:
    """Loggers of a run: the record first, then the one that ``settings`` names, and those beside.

    Args:
        settings: the config's ``logger`` node: a ``kind`` of ours, or the ``_target_`` of any
            Lightning logger. One that takes ``save_dir`` is given the run directory.
        more: its ``loggers`` node: the ``_target_`` of any Lightning logger, by name.
        config: the resolved config, sent to the dashboard, with whatever else it is to show.
        run_id: Weights & Biases' id of a run that is continued.

    Raises:
        UserError: where the logger may not be imported or does not take its arguments.
    """
    wait, anew = config["training"]["wait_for_space"], job_type == "evaluate"
    loggers: list[Logger] = [RecordLogger(Record.of(run), wait, anew)]
    others = {f"loggers.{name}": node for name, node in more.items()}
    if "_target_" in settings:
        others = {"logger": settings, **others}
    elif settings["kind"] == "tensorboard":
        loggers.append(TensorBoardLogger(save_dir=run, name="tensorboard", version=""))
    elif settings["kind"] == "wandb":
        logger = _wandb_logger(settings, run, config, run_id, job_type)
        loggers += [logger] if logger else []
    for key, node in others.items():
        loggers.append(make(node, "logger", key, offered={"save_dir": str(run)}, kind=Logger))
        careful(loggers[-1].log_hyperparams, config)
    return loggers


def shows_config(content: Mapping[str, Any]) -> bool:
    """Whether a logger that a config names is sent the config."""
    settings = content["logger"]
    return "_target_" in settings or settings["kind"] == "wandb" or bool(content["loggers"])


def _wandb_logger(
    settings: Mapping[str, Any],
    run: Path,
    config: dict[str, Any],
    run_id: str | None,
    job_type: str,
) -> WandbRun | None:
    """Start a run of Weights & Biases: online, else offline, else none. A dashboard is a view of
    metrics.csv, so nothing that is wrong with it stops a run.
    """
    mode = wandb_mode(settings["mode"])
    if mode == "disabled":
        return None
    identity = run_id or sweep_run_id() or secrets.token_hex(4)

    def start(mode: str) -> WandbRun:
        resume = "allow" if run_id and mode == "online" else None
        experiment = begin_wandb(settings, run, config, identity, mode, job_type, resume=resume)
        asked = config.get(OBJECTIVE)
        return WandbRun(experiment, run, identity, config["batch_size"], asked)

    try:
        return start(mode)
    except Exception as error:  # whatever it raises, training goes on
        reason = first_line(error)
        if mode == "offline":
            warn(f"Weights & Biases cannot write ({reason}); metrics.csv has the values")
            return None
    warn(f"Weights & Biases did not answer ({reason}); logging offline")
    try:
        import wandb

        wandb.teardown()  # its service holds the run's id
        with _without("WANDB_BASE_URL"):  # which may be no address
            return start("offline")
    except Exception as error:
        warn(f"Weights & Biases cannot write ({first_line(error)}); metrics.csv has the values")
        return None


def begin_wandb(
    settings: Mapping[str, Any],
    run: Path,
    config: dict[str, Any],
    identity: str,
    mode: str,
    job_type: str = "train",
    resume: str | None = None,
    finish_timeout: float | None = None,
) -> Any:
    """Begin a run of Weights & Biases, of this id there; ``resume="allow"`` continues it. Uploads
    may take ``finish_timeout`` seconds at its end, by default few.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # read at import

    import wandb

    # made here rather than by Lightning, which would pass on an option that wandb warns of
    experiment = wandb.init(
        dir=run.absolute(),  # its service stands where an earlier run started it
        **wandb_place(settings, config, run),
        id=identity,
        job_type=job_type,
        config=config,
        mode=mode,  # type: ignore[arg-type]
        resume=resume,  # type: ignore[arg-type]
        reinit="finish_previous",
        settings=wandb.Settings(
            init_timeout=settings["timeout"],
            finish_timeout=finish_timeout or FINISH_SECONDS,
            silent=True,
            console="auto" if _is_on(settings.get("console"), config) else "off",
            x_disable_stats=not _is_on(settings.get("system"), config),
        ),
    )
    define_axes(experiment)
    return experiment


def _is_on(knob: bool | str | None, config: Mapping[str, Any]) -> bool:
    """Whether W&B collects something of the machine by itself: ``auto`` on GPUs."""
    return uses_gpu(config["hardware"]) if knob == "auto" else bool(knob)


FINISH_SECONDS = 20.0
"""Seconds that uploads may take when a run has ended. The run directory has what is left."""


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Leave a variable out of the environment."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def close_loggers(loggers: list[Logger]) -> None:
    """Close the loggers, so that the next run in this process starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            careful(logger.experiment.finish)
        elif isinstance(logger, TensorBoardLogger):
            careful(logger.experiment.close)
        else:
            careful(logger.finalize, "success")


def log_values(
    loggers: list[Logger],
    values: Mapping[str, float],
    step: int,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Send values to every logger; metrics.csv also keeps what they were measured with."""
    log_together(loggers, [(values, context or {})], step)


def log_together(
    loggers: list[Logger],
    groups: Sequence[tuple[Mapping[str, float], Mapping[str, Any]]],
    step: int,
) -> None:
    """The same for several groups of values, each with its own context."""
    best = {name: told["best"] for values, told in groups for name in values if told.get("best")}
    for logger in loggers:
        if isinstance(logger, RecordLogger):
            logger.write(step, groups)
        else:
            if isinstance(logger, WandbRun):
                careful(logger.define_best, best)
            for values, _ in groups:
                careful(logger.log_metrics, dict(values), step)


def log_picture(
    loggers: list[Logger], key: str, image: Image.Image, step: int, caption: str
) -> None:
    """Show a picture on the dashboards that have pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            careful(logger.experiment.add_image, key, np.asarray(image), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            more = {"caption": [caption]} if isinstance(logger, WandbRun) else {}
            careful(logger.log_image, key, [image], step, **more)


def log_histogram(loggers: list[Logger], key: str, images: Tensor, step: int) -> None:
    """Show how often each byte is in uint8 images, on the dashboards that have histograms. Points
    have no bytes.
    """
    for logger in loggers if images.dtype == torch.uint8 else []:
        if isinstance(logger, TensorBoardLogger):
            careful(logger.experiment.add_histogram, key, images, step)
        elif isinstance(logger, WandbRun):
            import wandb

            counts = torch.bincount(images.flatten().int(), minlength=256)
            histogram = wandb.Histogram(np_histogram=(counts.numpy(), np.arange(257)))
            careful(logger.log_metrics, {key: histogram}, step)


def show_wall_clock(loggers: list[Logger], seconds: Callable[[], float]) -> None:
    """Have the dashboards show ``seconds()`` beside every value."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.seconds = seconds


CHECKPOINT = "model.ckpt"
"""Name of a checkpoint in its artifact."""


def artifact_name(identity: str) -> str:
    """Name on Weights & Biases of the checkpoints of a run, by its id."""
    return f"model-{identity}"


def log_checkpoint(loggers: list[Logger], path: Path, step: int, alias: str) -> None:
    """Keep a checkpoint on Weights & Biases. Offline it stays in the run directory, from which
    ``scripts/sync.py`` sends it.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun) and not logger.experiment.settings._offline:
            careful(keep_checkpoint, logger.experiment, path, step, alias)


def use_checkpoint(logger: WandbRun, identity: str) -> None:
    """Say that a run of Weights & Biases takes the checkpoint of another, which has this id."""
    if not logger.experiment.settings._offline:
        careful(logger.experiment.use_artifact, f"{artifact_name(identity)}:latest")


def keep_checkpoint(experiment: Any, path: Path, step: int, alias: str) -> None:
    """Add a checkpoint to a run of Weights & Biases as a version of its artifact."""
    import wandb

    artifact = wandb.Artifact(artifact_name(experiment.id), "model", metadata={"step": step})
    artifact.add_file(str(path), name=CHECKPOINT)  # a copy: the file is replaced by the next one
    experiment.log_artifact(artifact, aliases=[alias, f"step-{step}"])


def careful(log: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a logger. If it fails, warn and continue: the run directory has the values."""
    try:
        log(*args, **kwargs)
    except Exception as error:  # whatever a dashboard raises, training continues
        warn(f"logging failed ({type(error).__name__}: {error}); metrics.csv has the values")
