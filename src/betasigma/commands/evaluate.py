"""What ``scripts/evaluate.py`` does: measure a trained model, or images that there are already.

On Weights & Biases an evaluation is a run of its own, of job type ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from betasigma.build import Config
from betasigma.commands.assemble import open_data
from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import parsed, saved_header
from betasigma.commands.describe_data import describe_data, warn_of_other_splits
from betasigma.commands.load import Loaded, load_run, with_data_location
from betasigma.commands.measure import (
    COLUMNS,
    Meter,
    data_as_typed,
    label,
    log_measurements,
    make_evaluator,
    results,
)
from betasigma.commands.memory_format import choose_memory_format
from betasigma.data.image_sets import ReferenceImages, open_images
from betasigma.data.sources import Source
from betasigma.devices import Following, move_to_device, precision_of
from betasigma.display import Display, plain_warnings, warn
from betasigma.errors import UserError, counted
from betasigma.evaluation.evaluator import Evaluator, Measurement
from betasigma.evaluation.reference import DataSource
from betasigma.evaluation.sharding import made_by_first_rank_first, own_share
from betasigma.options.apps import Evaluate
from betasigma.options.evaluation import REFERENCE
from betasigma.report.rows import family_of
from betasigma.runs.directory import ENVIRONMENT, SWEEP, WANDB_ID, wandb_id
from betasigma.runs.files import read_json, write_text
from betasigma.runs.header import LAST, checkpoint_path, other_than_last, run_of
from betasigma.runs.record import Record
from betasigma.runs.start import Start
from betasigma.runs.status import ActivityLog, process_rank
from betasigma.samplers import Sampler
from betasigma.training import tracking
from betasigma.training.processes import shared_work


def evaluate(config: DictConfig, start: Start) -> None:
    """Measure a run or a checkpoint, or images.

    Values go to ``metrics.csv`` of the run and of this evaluation.
    """
    content = parsed(config, Evaluate)[0]
    out = start.directory
    first = process_rank() == 0
    plain_warnings(quiet=not first)
    display = Display(quiet=not first, note=ActivityLog(out).note)
    if Record.of(out).path.exists():
        display.line(f"{out} holds an evaluation: its values are replaced by the first new ones")
    if content.get("images") is not None:
        evaluate_images(content, start, display)
        return
    loaded = load_run(content["run"], precision_of(content["hardware"]), content["data"])
    data = open_data(with_data_location(loaded.config, content["data"]))
    warn_of_other_splits(checkpoint_path(content["run"]).parents[1], data.describe())
    describe_data(display, data)
    labels, prefix = content["labels"], "eval"
    if labels is not None:
        data.keep_classes(labels)
        named = "+".join(loaded.classes[label] for label in labels)
        prefix = f"eval_of_{named}"
        sizes = data.size("train"), data.size("test")
        display.line(f"data: {sizes[0]:,} examples to train on, {sizes[1]:,} to test, of {named}")
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    with shared_work(content["hardware"], start) as device:
        move_to_device(loaded.denoiser, content["hardware"], device, display.line)
        choose_memory_format(loaded.denoiser, content["hardware"], False, display.line)
        display.meanwhile = Following(content["hardware"], display.line)
        loggers = open_loggers(content, loaded, out) if first else []
        records = [logger.record for logger in loggers if isinstance(logger, tracking.RecordLogger)]
        measured = {**content, "evaluation": {**content["evaluation"], "n": content["n"]}}
        meter = Meter(measured, data, sampler, loggers, display, content["guidance"], labels)
        try:
            _measure(content, loaded, meter, prefix, out)
        finally:
            tracking.close_loggers(loggers)
    display.line(f"metrics {', '.join(str(record.path) for record in records)}")


def _measure(content: Config, loaded: Loaded, meter: Meter, prefix: str, out: Path) -> None:
    """Draw samples, measure and log them, and show the table. All ranks call it together."""
    labels, run, sampler = content["labels"], content["run"], meter.sampler
    denoiser, step = loaded.denoiser, loaded.step
    found = meter.measure(denoiser, content["n"])
    meter.log(found, step, prefix)
    rows = meter.likelihood(denoiser, step, out, prefix)
    family = family_of(loaded.config)
    show_table(meter.loggers, found, sampler, family, step, other_than_last(run))
    if content["error_curve"] and labels is None:
        name = str(loaded.config.get("name", Path(run).name))
        meter.error_curve(denoiser, content["error_curve"], step, out, name, family)
    if found or rows:
        meter.display.table(
            f"{run} by {sampler.name}, seed {content['seed']}"
            + (f", classes {prefix.removeprefix('eval_of_')}" if labels is not None else ""),
            COLUMNS,
            [row.cells for row in (*results(found), *rows)],
        )


FLOOR = "_floor"
TABLE = (
    *("series", "metric", "value", "NFE", "sampler", "n", "seed", "extractor", "std", "floor"),
    "checkpoint",
)
"""Of the table: a row a value; ``series`` is a line of its chart."""


def open_loggers(content: Config, loaded: Loaded, out: Path) -> list[Logger]:
    """Where the values of an evaluation go: its own record, the run's, and the logger that was
    asked for. Where none was, Weights & Biases if the run was logged there.
    """
    trained, run = loaded.config, run_of(content["run"])
    of_run = trained.get("logger") or {}
    default = of_run if of_run.get("kind") == "wandb" else {"kind": "none"}
    settings = content.get("logger") or {**default, "name": None}
    identity = wandb_id(run)
    shown = {
        **{
            key: trained[key] for key in ("name", "tags", "batch_size", "model", "data", "training")
        },
        **{key: content[key] for key in ("n", "seed", "guidance", "hardware", "evaluation")},
        "sampler": content.get("sampler") or trained["sampler"],
        SWEEP: read_json(run / ENVIRONMENT).get(SWEEP),
        "trained_run": {
            **{"id": identity, "directory": str(run.absolute()), "step": loaded.step},
            "checkpoint": other_than_last(content["run"]) or LAST,
        },
    }
    loggers = tracking.make_loggers(settings, content["loggers"], out, shown, job_type="evaluate")
    whole = Path(content["run"]).is_dir()
    for logger in loggers:
        if isinstance(logger, tracking.WandbRun):
            write_text(out / WANDB_ID, f"{logger.version}\n")
            if whole and identity is not None and settings.get("artifacts", "none") != "none":
                tracking.use_checkpoint(logger, identity)
    if whole:
        loggers.append(tracking.RecordLogger(Record.of(run)))
    return loggers


def show_table(
    loggers: list[Logger],
    found: Sequence[Measurement],
    sampler: Sampler,
    family: str,
    step: int,
    checkpoint: str = "",
) -> None:
    """Log measurements as a table, and as lines over evaluations of the network."""
    nfe = next((m.nfe for m in found if m.nfe is not None), None)
    floors = {m.name.removesuffix(FLOOR): m.value for m in found if m.name.endswith(FLOOR)}
    rows: list[list[Any]] = []
    for m in found:
        series = ", ".join(filter(None, [label(m), family, sampler.name, checkpoint]))
        if m.name.endswith(FLOOR):
            series = label(m)
        more = (m.n, m.seed, m.extractor, m.std, floors.get(m.name), checkpoint or LAST)
        rows.append([series, label(m), m.value, nfe, m.sampler, *more])
    for logger in loggers:
        if isinstance(logger, tracking.WandbRun) and rows:
            tracking.careful(logger.log_evaluations, TABLE, rows, step)


def evaluate_images(content: Config, start: Start, display: Display) -> None:
    """Measure ``images`` against a data set or ``reference``. Values go to ``metrics.csv``."""
    reference = content.get("reference")
    if reference is None:
        data = open_data(data_config(content))
        images = open_images(content["images"], "images", channels=data.sample_shape[0])
        compared: DataSource = data
        against, shape = data_as_typed(data), data.sample_shape
    else:
        other = open_images(reference, "reference")
        images = open_images(content["images"], "images", channels=other.shape[0])
        compared = ReferenceImages(other)
        against, shape = f"reference={reference}", other.shape
    if tuple(images.shape) != tuple(shape):
        sides = ",".join(map(str, images.shape[1:]))
        sized = content["data"].get("image_size") is not None
        hint = f", which data.image_size=[{sides}] would give" if sized else ""
        raise UserError(
            f"images={content['images']} are {_shown(images.shape)}, and {against} has images of "
            f"{_shown(shape)}: they must have one shape{hint}"
        )
    with shared_work(content["hardware"], start) as own:
        device = move_to_device(nn.Identity(), content["hardware"], own, display.line)
        display.meanwhile = Following(content["hardware"], display.line)
        evaluator = made_by_first_rank_first(
            lambda: make_evaluator(
                content["evaluation"],
                len(images),
                compared,
                against,
                shape,
                device,
                display,
                ("train",) if reference is not None else ("train", "test"),
            )
        )
        found = _measure_images(content, evaluator, images, against, display)
    if process_rank() != 0:
        return
    if reference is not None:
        found = [m if m.split is None else replace(m, split=REFERENCE) for m in found]
    record = Record.of(start.directory)
    loggers: list[Logger] = [tracking.RecordLogger(record, anew=True)]
    log_measurements(loggers, found, 0, "eval", {})
    display.table(
        f"{content['images']}, compared with {against}",
        COLUMNS,
        [row.cells for row in results(found)],
    )
    display.line(f"metrics {record.path}")


def _measure_images(
    content: Config, evaluator: Evaluator, images: Source, against: str, display: Display
) -> list[Measurement]:
    """Measure images, of which each process reads its share."""
    if evaluator.left_out and process_rank() == 0:
        warn(
            f"{', '.join(evaluator.left_out)} left out: needs a test split, and {against} has none"
        )
    own = own_share(len(images))
    with display.work(f"features of {counted(len(images), 'image')}", len(own)) as update:
        found = evaluator.evaluate_images(
            _batches(images, own, content["evaluation"]["batch_size"], update),
            sampler=content["images"],
        )
    if content.get("reference") is None and evaluator.measures_frechet:
        found.append(evaluator.floor(len(images)))
    return found


def data_config(content: Config) -> Config:
    """The config from which the data that images are compared with are made."""
    if content.get("run"):
        return with_data_location(saved_header(content["run"])["config"], content["data"])
    of_model = {"value_range": [0.0, 1.0]}  # of no effect: bytes are compared
    own = {"batch_size": content["evaluation"]["batch_size"], "seed": content["seed"]}
    return {"data": content["data"], "model": of_model, **own}


def _batches(
    images: Source, own: range, batch_size: int, update: Callable[[int, str], None]
) -> Iterator[Tensor]:
    for first in own[::batch_size]:
        numbers = np.arange(first, min(first + batch_size, own.stop))
        yield images.take(numbers)["image"]
        update(int(numbers[-1]) + 1 - own.start, "")


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
