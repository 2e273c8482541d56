"""What ``scripts/evaluate.py`` does: measure a trained model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from betasigma.build import Config
from betasigma.commands.assemble import make_data
from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import validate
from betasigma.commands.describe_data import describe_data, warn_of_other_splits
from betasigma.commands.evaluate_images import evaluate_images
from betasigma.commands.evaluation_log import open_loggers, show_table
from betasigma.commands.load import Loaded, load_run, with_place
from betasigma.commands.measure import COLUMNS, Meter, results
from betasigma.commands.measure_likelihood import measure_error_curve, measure_likelihood
from betasigma.data.datamodule import ImageDataModule
from betasigma.devices import move_to_device, precision_of
from betasigma.display import Display, plain_warnings
from betasigma.options.apps import Evaluate
from betasigma.report.rows import family_of
from betasigma.runs.activity import ActivityLog
from betasigma.runs.header import checkpoint_path, other_than_last
from betasigma.runs.start import Start
from betasigma.runs.status import process_rank
from betasigma.samplers import Sampler
from betasigma.training.processes import shared_work
from betasigma.training.tracking import RecordLogger, close_loggers


def evaluate(config: DictConfig, start: Start) -> None:
    """Measure a run or a checkpoint, or images.

    Values go to ``metrics.csv`` of the run and of this evaluation.

    Raises:
        UserError: for bad input.
    """
    content = validate(config, Evaluate)
    out = start.directory
    first = process_rank() == 0
    plain_warnings(quiet=not first)
    display = Display(quiet=not first, note=ActivityLog(out).note)
    if content.get("images") is not None:
        evaluate_images(content, start, display)
        return
    loaded = load_run(content["run"], precision_of(content["hardware"]), content["data"])
    data = make_data(with_place(loaded.config, content["data"]))
    data.prepare_data()
    data.setup()
    warn_of_other_splits(checkpoint_path(content["run"]).parents[1], data.describe())
    labels, prefix = content["labels"], "eval"
    if labels is not None:
        data.keep_classes(labels)
        prefix = f"eval_of_{'+'.join(loaded.classes[label] for label in labels)}"
    describe_data(display, data)
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    with shared_work(content["hardware"], start) as device:
        move_to_device(loaded.denoiser, content["hardware"], device, display.line)
        loggers = open_loggers(content, loaded, out) if first else []
        records = [logger.record for logger in loggers if isinstance(logger, RecordLogger)]
        try:
            _measure(content, loaded, data, sampler, loggers, display, prefix, out)
        finally:
            close_loggers(loggers)
    display.line(f"metrics {', '.join(str(record.path) for record in records)}")


def _measure(
    content: Config,
    loaded: Loaded,
    data: ImageDataModule,
    sampler: Sampler,
    loggers: list[Logger],
    display: Display,
    prefix: str,
    out: Path,
) -> None:
    """Draw samples, measure and log them, and show the table. All ranks call it together."""
    labels, run = content["labels"], Path(content["run"])
    meter = Meter(
        {
            **content,
            "training": {"guidance": content["guidance"]},
            "evaluation": {**content["evaluation"], "n": content["n"]},
        },
        data,
        sampler,
        loggers,
        display,
        labels=labels,
    )
    found = meter.measure(loaded.denoiser, content["n"])
    meter.log(found, loaded.step, prefix)
    where = (loaded.denoiser, data, loggers, display, loaded.step)
    node = content.get("likelihood")
    rows = measure_likelihood(node, content["seed"], *where, prefix=prefix, out=out)
    family = family_of(loaded.config)
    show_table(loggers, found, sampler, family, loaded.step, other_than_last(content["run"]))
    if content["error_curve"] and labels is None:
        measure_error_curve(
            content["error_curve"],
            *where,
            out=out,
            label=str(loaded.config.get("name", run.name)),
            family=family,
        )
    display.table(
        f"{content['run']} by {sampler.name}, seed {content['seed']}"
        + (f", classes {prefix.removeprefix('eval_of_')}" if labels is not None else ""),
        COLUMNS,
        [row.cells for row in (*results(found), *rows)],
    )
