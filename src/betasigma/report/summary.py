"""Runs in one table and one plot: what differs in the seed only is one row, its mean and spread.

Read from run directories alone, so it serves a sweep that has just ended here, one that ran on a
cluster, and runs that were never one sweep. The points of a study come in their order.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betasigma.report.runs import Run

INCIDENTAL = ("seed", "name", "tags", "resume", "hardware", "cluster", "logger")
"""Keys that may differ between the runs of one row: the seed, and what does not enter a result."""

DISTANCE = re.compile(r"((?:fid|fd_\w+?))(?:_(test|floor))?")
"""A Fréchet distance to the training split, to the test split, or of test images to the training
split.
"""

BITS = re.compile(r"(density_|)bits_per_dim/(\w+)/([a-z]+)(_test)?")
"""A likelihood in bits per dimension: of points or images, which, its total or one of its terms, of
the training or the test split.
"""

LAST = ("n", "NFE", "training s")
"""Columns after the results."""


@dataclass(frozen=True)
class Row:
    """Runs of one setting.

    Attributes:
        label: what it is called in the table.
        seeds: number of its runs.
        values: of each column, one a run; runs that have not measured it are left out.
    """

    label: str
    seeds: int
    values: dict[str, list[float]]

    def mean(self, column: str) -> float | None:
        """Mean over the runs; ``None`` where none has a value."""
        values = self.values.get(column)
        return statistics.fmean(values) if values else None

    def std(self, column: str) -> float | None:
        """Standard deviation over the runs (n − 1); ``None`` where there are fewer than two."""
        values = self.values.get(column, [])
        return statistics.stdev(values) if len(values) > 1 else None


def summarise(runs: Sequence[Run]) -> list[Row]:
    """One row for all runs that differ in nothing but their seed.

    Returns:
        The points of each study in their order, other runs in theirs after them.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fixed = {key: value for key, value in run.config.items() if key not in INCIDENTAL}
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: _point(group[0]))
    names = [_name(group[0]) for group in ordered]
    rows = []
    for name, group in zip(names, ordered, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({group[0].label})"
        found = [measured(run) for run in group]
        columns = dict.fromkeys(column for values in found for column in values)
        values = {c: [one[c] for one in found if c in one] for c in columns}
        rows.append(Row(label, len(group), values))
    return rows


def measured(run: Run) -> dict[str, float]:
    """Last values of a run: Fréchet distances, network evaluations per sample and n of the samples
    they were measured on, bits per dimension, seconds of training without validation and sampling.
    """
    found = results(run.record.rows(), "val")
    seconds = _training_seconds(run)
    return {**found, "training s": seconds} if seconds else found


def results(rows: Sequence[Mapping[str, str]], prefix: str) -> dict[str, float]:
    """Last distances and likelihoods in a record's rows by column, with n and NFE of the samples.

    Args:
        prefix: of their metrics: ``val``, or ``eval`` of an evaluation.
    """
    found = {}
    for row in rows:
        before, _, metric = row["metric"].partition("/")
        if before != prefix:
            continue
        if distance := DISTANCE.fullmatch(metric):
            name, against = distance.groups()
            found[f"{name} {against or 'train'}"] = float(row["value"])
            if against is None:
                found |= {key: float(row[key.lower()]) for key in ("n", "NFE") if row[key.lower()]}
        elif bits := BITS.fullmatch(metric):
            density, estimator, term, test = bits.groups()
            split = "" if test else "train "
            found[f"{density}{estimator} {split}{term}"] = float(row["value"])
    return found


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Columns that any row has, results first."""
    known = dict.fromkeys(column for row in rows for column in row.values)
    return [*(c for c in known if c not in LAST), *(c for c in LAST if c in known)]


def table_of(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and cells to print: the mean, with ± its standard deviation over the seeds.

    A likelihood is told by its total, and what all rows were measured by is in the title.
    """
    columns = [c for c in columns_of(rows) if not is_term(c)]
    cells = [
        [row.label, str(row.seeds), *(_cell(row.mean(c), row.std(c)) for c in columns)]
        for row in rows
    ]
    title, header = abbreviated("results, ± one standard deviation over the seeds", columns)
    return title, ["run", "seeds", *header], cells


def abbreviated(title: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Title and header, with what all columns of a kind were measured by in the title only."""
    header = list(columns)
    for belongs, abbreviation in ((_is_distance, "FD"), (_is_bits, "bits/dim")):
        names = {column.split()[0] for column in columns if belongs(column)}
        if len(names) == 1:
            (name,) = names
            title += f"; {abbreviation}: {name}"
            header = [c.replace(name, abbreviation).removesuffix(" total") for c in header]
    return title, header


def write_summary(rows: Sequence[Row], path: Path) -> None:
    """Write the table as CSV, in full precision: ``<column>`` is the mean, ``<column> std`` the
    standard deviation over the seeds.
    """
    columns = columns_of(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = [name for column in columns for name in (column, f"{column} std")]
        writer.writerow(["run", "seeds", *header])
        for row in rows:
            cells = [value for column in columns for value in (row.mean(column), row.std(column))]
            writer.writerow([row.label, row.seeds, *cells])


def draw_summary(rows: Sequence[Row], path: Path) -> bool:
    """Draw distances, and bits per dimension with their terms, over the rows, with error bars of
    one standard deviation over the seeds.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns_of(rows)
    panels = [[c for c in columns if belongs(c)] for belongs in (_is_distance, _is_bits)]
    panels = [panel for panel in panels if panel]
    if not panels:
        return False
    figure = Figure(figsize=(1.5 + 4.5 * len(panels), 4.5), dpi=110)
    canvas = FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for column in panel:
            places = [i for i, row in enumerate(rows) if row.mean(column) is not None]
            axes.errorbar(
                places,
                [rows[i].mean(column) or 0.0 for i in places],
                [rows[i].std(column) or 0.0 for i in places],
                label=column,
                marker="o",
                markersize=4,
                capsize=3,
                linestyle="--" if column.endswith("floor") else "-",
            )
        axes.set_xticks(range(len(rows)), [row.label for row in rows], rotation=35, ha="right")
        axes.set_ylabel("Fréchet distance" if _is_distance(panel[0]) else "bits per dimension")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    canvas.print_png(path)
    return True


def is_term(column: str) -> bool:
    """Whether a column of :func:`results` is one of a bound's terms, rather than its total."""
    return _is_bits(column) and not column.endswith(" total")


def _is_distance(column: str) -> bool:
    return DISTANCE.fullmatch(column.split()[0]) is not None


def _is_bits(column: str) -> bool:
    return column not in LAST and not _is_distance(column)


def _name(run: Run) -> str:
    study = run.config.get("study")
    return f"{study['point']} {study['label']}" if study else str(run.config["name"])


def _point(run: Run) -> tuple[bool, str, int]:
    study = run.config.get("study")
    return (False, study["name"], study["point"]) if study else (True, "", 0)


def _training_seconds(run: Run) -> float:
    """From the logged speeds, each of which holds for the steps since the one before."""
    steps, speeds = run.record.curve("train/images_per_second")
    batch: Any = run.config["batch_size"]
    return sum(
        (step - before) * batch / speed
        for before, step, speed in zip([0, *steps], steps, speeds, strict=False)
    )


def _cell(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4g}" if not std else f"{mean:.4g} ± {std:.2g}"
