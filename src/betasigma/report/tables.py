"""Tables on the terminal and as CSV, and what a sweep ends with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from betasigma.display import Display
from betasigma.report.measurements import DENOISING_ERROR, DISTANCE
from betasigma.report.plots import draw_results
from betasigma.report.rows import Row, rows_of_evaluations, rows_of_settings
from betasigma.report.runs import Run
from betasigma.runs.directory import short
from betasigma.runs.files import replace_file

LAST = ("n", "NFE", "training s")
"""Columns after the results."""


class Table(NamedTuple):
    """Lines of cells below a header."""

    title: str
    header: list[str]
    cells: list[list[Any]]


def report_runs(runs: Sequence[Run], out: Path) -> None:
    """Print what training runs achieved, one row a setting, and leave it as ``summary.csv`` and
    ``summary.png`` in ``out``.
    """
    out, display = short(out), Display()
    rows = rows_of_settings(runs)
    display.table(*short_table("results, ± one standard deviation over the seeds", rows))
    write_csv(full_table(rows), out / "summary.csv")
    display.line(f"summary {out}/summary.csv")
    columns = columns_of(rows)
    panels = {
        "Fréchet distance": [c for c in columns if is_distance(c)],
        "bits per dimension": [c for c in columns if is_bits(c)],
        "denoising error ‖ε − ε̂‖²/d": [c for c in columns if c == DENOISING_ERROR],
    }
    if draw_results(rows, panels, out / "summary.png"):
        display.line(f"plot    {out}/summary.png")


def report_evaluations(jobs: Sequence[Run], out: Path) -> None:
    """Print what evaluations have measured, one row a job, and leave it as ``sweep.csv`` in
    ``out``.
    """
    out, display = short(out), Display()
    rows = rows_of_evaluations(jobs)
    display.table(*short_table("evaluations", rows))
    write_csv(full_table(rows), out / "sweep.csv")
    display.line(f"sweep   {out}/sweep.csv")


def short_table(title: str, rows: Sequence[Row]) -> Table:
    """The table to print: the mean, with ± its standard deviation where a row has several runs.

    Of a likelihood only the total is shown, and what all rows were measured by is in the title.
    """
    columns = [c for c in columns_of(rows) if not is_term(c)]
    title, header = _abbreviated(title, columns)
    cells = [
        [*row.described.values(), *(_cell(row.mean(c), row.std(c)) for c in columns)]
        for row in rows
    ]
    return Table(title, [*_described(rows), *header], cells)


def full_table(rows: Sequence[Row]) -> Table:
    """The table to keep, in full precision: ``<column>`` is the mean and ``<column> std`` the
    standard deviation, where some row has several runs.
    """
    columns = columns_of(rows)
    spread = any(row.std(column) is not None for row in rows for column in columns)
    header = _described(rows)
    cells: list[list[Any]] = [[*row.described.values()] for row in rows]
    for column in columns:
        header += [column, f"{column} std"] if spread else [column]
        for line, row in zip(cells, rows, strict=True):
            line += [row.mean(column), row.std(column)] if spread else [row.mean(column)]
    return Table("", header, cells)


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with replace_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.header, *table.cells])


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Columns that any row has: distances, likelihoods, other metrics, then :data:`LAST`."""
    known = dict.fromkeys(column for row in rows for column in row.values)
    results = sorted((c for c in known if c not in LAST), key=_kind)
    return [*results, *(c for c in LAST if c in known)]


def is_distance(column: str) -> bool:
    """Whether a column is a Fréchet distance."""
    return DISTANCE.fullmatch(column.split()[0]) is not None


def is_bits(column: str) -> bool:
    """Whether a column is a likelihood or one of its terms."""
    return column not in LAST and not is_distance(column) and " " in column


def is_term(column: str) -> bool:
    """Whether a column is one of a bound's terms, rather than its total."""
    return is_bits(column) and not column.endswith(" total")


def _kind(column: str) -> int:
    return 0 if is_distance(column) else 1 if is_bits(column) else 2


def _described(rows: Sequence[Row]) -> list[str]:
    return list(rows[0].described) if rows else ["run"]


def _abbreviated(title: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Title and header, with what all columns of a kind were measured by in the title only."""
    header = list(columns)
    for belongs, abbreviation in ((is_distance, "FD"), (is_bits, "bits/dim")):
        names = {column.split()[0] for column in columns if belongs(column)}
        if len(names) == 1:
            (name,) = names
            title += f"; {abbreviation}: {name}"
            header = [c.replace(name, abbreviation).removesuffix(" total") for c in header]
    return title, header


def _cell(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    text = str(mean) if isinstance(mean, int) else f"{mean:.4g}"
    return f"{text} ± {std:.2g}" if std else text
