"""Several runs side by side, from their directories alone."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from betasigma.errors import UserError
from betasigma.runs.directory import job_number
from betasigma.runs.record import Record


@dataclass(frozen=True)
class Run:
    """A run read back.

    Attributes:
        label: name of its directory.
        record: its metrics.
        config: its resolved config.
    """

    label: str
    record: Record
    config: dict[str, Any]


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: where it is not one.
    """
    record = Record(path / "metrics.csv")
    if not record.path.is_file() or not (path / "config.yaml").is_file():
        raise UserError(
            f"runs=[{path}] is not a run directory: it has no metrics.csv and config.yaml (nor has "
            f"a folder in it, as in a sweep's directory)"
        )
    config: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    return Run(path.resolve().name, record, config)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read several run directories, or sweeps' with all their runs; runs of one name are labelled
    with their parent's too.

    Raises:
        UserError: where one is not a run directory, or is named twice.
    """
    given = [run for path in paths for run in jobs(Path(path))]
    places = [run.resolve() for run in given]
    if len(set(places)) < len(places):
        raise UserError(f"runs=[{','.join(paths)}] names a run twice")
    runs = [read_run(run) for run in given]
    names = [place.name for place in places]
    return [
        run if names.count(place.name) == 1 else replace(run, label="/".join(place.parts[-2:]))
        for run, place in zip(runs, places, strict=True)
    ]


def jobs(path: Path) -> list[Path]:
    """The run directories of a sweep's directory, by job number; of any other, itself."""
    if (path / "config.yaml").is_file():
        return [path]
    runs = [record.parent for record in path.glob("*/metrics.csv")]
    runs = [run for run in runs if (run / "config.yaml").is_file()]
    return sorted(runs, key=job_number) or [path]


def check_curves(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """See that every metric is in some run.

    Raises:
        UserError: where it is in none.
    """
    known = {row["metric"] for run in runs for row in run.record.rows()}
    for metric in metrics:
        if metric not in known:
            near = difflib.get_close_matches(metric, sorted(known), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"they have {_listed(known)}"
            raise UserError(f"metrics=[{metric}] is in no run; {hint}")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def last_values(runs: list[Run]) -> list[list[str]]:
    """Rows metric, value of each run: the last of every metric, told apart by how it was
    measured: by n, NFE and sampler, and by whatever else differs between values of one metric.
    """
    tables = [_last(run.record) for run in runs]
    found = list(dict.fromkeys(measured for table in tables for measured in table))
    names = dict(zip(found, _names(found), strict=True))
    return [
        [names[measured], *(table.get(measured, "") for table in tables)]
        for measured in sorted(found, key=lambda measured: names[measured])
    ]


class Measured(NamedTuple):
    """What a value is of, and how it was measured."""

    name: str
    settings: frozenset[tuple[str, str]]


def _last(record: Record) -> dict[Measured, str]:
    values = {}
    for row in record.rows():
        if row["metric"].startswith(("train/loss_by_noise", "sample/")):
            continue
        context = [f"{key}={row[key]}" for key in ("n", "nfe", "sampler") if row[key]]
        own = {key: row[key] for key in ("guidance", "n_reference") if row[key]}
        own |= dict(word.split("=", 1) for word in row["settings"].split())
        measured = Measured(" ".join([row["metric"], *context]), frozenset(own.items()))
        values[measured] = f"{float(row['value']):.4g}"
    return values


def _names(found: Sequence[Measured]) -> list[str]:
    """A name for each, with the settings that not all of its name have in common."""
    common: dict[str, frozenset[tuple[str, str]]] = {}
    for name, settings in found:
        common[name] = common.get(name, settings) & settings
    return [
        " ".join([name, *(f"{k}={v}" for k, v in sorted(settings - common[name]))])
        for name, settings in found
    ]


ERROR = "/denoising_error/log_snr_"


def error_curve(run: Run) -> dict[float, float]:
    """Denoising error by log-SNR as it was last measured: by an evaluation, or else in training."""
    recorded = run.record.rows()
    for prefix in ("eval", "val"):
        rows = [row for row in recorded if row["metric"].startswith(prefix + ERROR)]
        if rows:
            return {
                float(r["metric"].removeprefix(prefix + ERROR)): float(r["value"]) for r in rows
            }
    return {}


def write_table(rows: list[list[str]], labels: list[str], path: Path) -> None:
    """Write the table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["metric", *labels], *rows])


def draw_curves(runs: list[Run], metrics: list[str], path: Path) -> None:
    """Draw each metric over the steps, one line a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(metrics), 4), dpi=110)
    canvas = FigureCanvasAgg(figure)
    for number, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(1, len(metrics), number)
        for run in runs:
            steps, values = run.record.curve(metric)
            if steps:
                axes.plot(steps, values, label=run.label, marker="." if len(steps) < 20 else None)
        axes.set(xlabel="optimizer step", ylabel=metric, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    canvas.print_png(path)
