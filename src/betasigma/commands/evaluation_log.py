"""An evaluation on Weights & Biases: a run of its own, of job type ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from betasigma.build import Config
from betasigma.commands.load import Loaded
from betasigma.commands.measure import label
from betasigma.evaluation.evaluator import Measurement
from betasigma.runs.directory import ENVIRONMENT, SWEEP, WANDB_ID, wandb_id
from betasigma.runs.files import read_json, write_text
from betasigma.runs.header import LAST, other_than_last, run_of
from betasigma.runs.record import Record
from betasigma.samplers import Sampler
from betasigma.training.tracking import RecordLogger, make_loggers, use_checkpoint
from betasigma.training.wandb_run import EVALUATIONS, WandbRun

FLOOR = "_floor"
COLUMNS = (
    *("series", "metric", "value", "NFE", "sampler", "n", "seed", "extractor", "std", "floor"),
    "checkpoint",
)
"""Of the table: a row a value; ``series`` is a line of its chart."""


def open_loggers(content: Config, loaded: Loaded, out: Path) -> list[Logger]:
    """Where the values of an evaluation go: its own record, the run's, and the logger that was
    asked for. Where none was, Weights & Biases if the run was logged there.

    Args:
        content: the evaluation's config.
        loaded: the model.
        out: directory of the evaluation.
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
    loggers = make_loggers(settings, out, shown, job_type="evaluate")
    whole = Path(content["run"]).is_dir()
    for logger in loggers:
        if isinstance(logger, WandbRun):
            write_text(out / WANDB_ID, f"{logger.version}\n")
            if whole and identity is not None and settings.get("artifacts", "none") != "none":
                use_checkpoint(logger, identity)
    if whole:
        loggers.append(RecordLogger(Record.of(run)))
    return loggers


def show_table(
    loggers: list[Logger],
    found: Sequence[Measurement],
    sampler: Sampler,
    family: str,
    step: int,
    checkpoint: str = "",
) -> None:
    """Log measurements as a table, and their distance against evaluations of the network as lines.

    Args:
        loggers: of the evaluation.
        found: the measurements.
        sampler: that drew the samples.
        family: of the model.
        step: that it was trained for.
        checkpoint: which one of the run, where it is not the last.
    """
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
        if isinstance(logger, WandbRun) and rows:
            logger.log_evaluations(EVALUATIONS, COLUMNS, rows, step)
