"""Tables on the terminal and as CSV, and what a sweep ends with."""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from betasigma.display import Bold, Display
from betasigma.options.drawing import DrawingOptions
from betasigma.report.measurements import DENOISING_ERROR, DISTANCE
from betasigma.report.plots import AS_IT_IS, draw_results
from betasigma.report.quality import draw_quality, quality_of_jobs
from betasigma.report.rows import LABELS, Row, rows_of_evaluations, rows_of_settings
from betasigma.report.runs import Run
from betasigma.report.series import best_of
from betasigma.runs.directory import short
from betasigma.runs.files import replace_file

LAST = ("n", "NFE", "training s")
"""Columns after the results."""


class Table(NamedTuple):
    """Lines of cells below a header."""

    title: str
    header: list[str]
    cells: list[list[Any]]


def report_runs(
    runs: Sequence[Run], out: Path, display: Display | None = None, look: DrawingOptions = AS_IT_IS
) -> list[Row]:
    """Print what training runs achieved, one row a setting, and leave it as ``summary.csv`` and as
    a picture in ``out``.
    """
    out, display = short(out), display or Display()
    rows = rows_of_settings(runs)
    display.table(*short_table("results", rows))
    write_csv(full_table(rows), out / "summary.csv")
    display.line(f"summary {out}/summary.csv")
    drawn = draw_results(rows, drawable(rows), out / "summary", look=look)
    if drawn:
        display.line(f"plot    {drawn}")
    return rows


def report_evaluations(jobs: Sequence[Run], out: Path, look: DrawingOptions = AS_IT_IS) -> None:
    """Print what evaluations have measured, one row for those that differ in the seed alone, and
    leave it as ``sweep.csv`` and, where there are distances, as a picture in ``out``.
    """
    out, display = short(out), Display()
    rows = rows_of_evaluations(jobs)
    display.table(*short_table("evaluations", rows))
    write_csv(full_table(rows), out / "sweep.csv")
    display.line(f"sweep   {out}/sweep.csv")
    drawn = draw_quality(quality_of_jobs(jobs), out / "sweep", look)
    if drawn:
        display.line(f"plot    {drawn}")


def drawable(rows: Sequence[Row]) -> list[str]:
    """Columns of which a picture is drawn: distances, likelihoods, the denoising error."""
    return [c for c in columns_of(rows) if is_distance(c) or is_bits(c) or c == DENOISING_ERROR]


def short_table(title: str, rows: Sequence[Row]) -> Table:
    """The table to print: the mean, with ± its standard error where a row has several runs.

    Of a likelihood only the total is shown, and what all rows were measured by is in the title.
    What is least of its column by more than twice the standard error of the difference is bold.
    """
    columns = [c for c in columns_of(rows) if not is_term(c)]
    title, header = _abbreviated(title, columns)
    if any(row.error(c) is not None for row in rows for c in columns):
        title += "; ± one standard error over the seeds, bold (*): least by over two of them"
    best = {column: clearly_least(rows, column) for column in columns}
    cells: list[list[Any]] = []
    for row in rows:
        line: list[Any] = [*row.described.values()]
        for column in columns:
            text = _cell(row.mean(column), row.error(column))
            line.append(Bold(text) if row in best[column] else text)
        cells.append(line)
    return Table(title, [*_described(rows), *header], cells)


def clearly_least(rows: Sequence[Row], column: str) -> list[Row]:
    """The row whose mean is below every other's by more than twice the standard error of their
    difference, among rows of the same classes and, for a distance, of the same n. Only for columns
    in which less is better.
    """
    if best_of(_metric_of(column)) != "min":
        return []
    groups: dict[tuple[str | None, float | None], list[Row]] = {}
    for row in rows:
        if row.mean(column) is not None:
            n = row.size("n") if is_distance(column) else None
            groups.setdefault((row.described.get(LABELS), n), []).append(row)
    found = []
    for group in groups.values():
        least, *others = sorted(group, key=lambda row: row.mean(column) or 0.0)
        if others and all(_exceeds(other, least, column) for other in others):
            found.append(least)
    return found


def _metric_of(column: str) -> str:
    """Name of the metric that a column shows."""
    name, _, rest = column.partition(" ")
    if is_distance(column):
        return f"val/{name}_{rest}"
    if is_bits(column):
        return f"val/bits_per_dim/{name}/{rest.split()[-1]}"
    return f"val/{column}"


def _exceeds(row: Row, least: Row, column: str) -> bool:
    errors = row.error(column), least.error(column)
    difference = statistics.mean(row.values[column]) - statistics.mean(least.values[column])
    return None not in errors and difference > 2 * math.hypot(*errors)  # type: ignore[arg-type]


def full_table(rows: Sequence[Row]) -> Table:
    """The table to keep, in full precision: ``<column>`` is the mean and ``<column> se`` its
    standard error, where some row has several runs.
    """
    columns = columns_of(rows)
    spread = any(row.error(column) is not None for row in rows for column in columns)
    header = _described(rows)
    cells: list[list[Any]] = [[*row.described.values()] for row in rows]
    for column in columns:
        header += [column, f"{column} se"] if spread else [column]
        for line, row in zip(cells, rows, strict=True):
            line += [row.mean(column), row.error(column)] if spread else [row.mean(column)]
    return Table("", header, cells)


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with replace_file(path) as partial:
        partial.write_text(as_csv(table), encoding="utf-8", newline="")


def as_csv(table: Table) -> str:
    """A table as CSV, its header first."""
    text = StringIO(newline="")
    csv.writer(text).writerows([table.header, *table.cells])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A table for a paper, by the package booktabs."""
    lines = [[_latex(str(cell), isinstance(cell, Bold)) for cell in line] for line in table.cells]
    return "\n".join(
        [
            f"% {table.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(_latex(name) for name in table.header) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(text: str, bold: bool = False) -> str:
    escaped = re.sub(r"[\\{}~^]", " ", text)
    escaped = re.sub(r"([&%$#_])", r"\\\1", escaped).replace("±", r"$\pm$")
    return rf"\textbf{{{escaped}}}" if bold else escaped


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Columns that any row has: distances, likelihoods, other metrics, then :data:`LAST`."""
    known = dict.fromkeys(column for row in rows for column in row.values)
    measured = [c for c in known if c not in LAST]
    results = sorted(measured, key=lambda c: 0 if is_distance(c) else 1 if is_bits(c) else 2)
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
    if DENOISING_ERROR in header:
        title += f"; error: {DENOISING_ERROR}"
        header[header.index(DENOISING_ERROR)] = "error"
    return title, header


def _cell(mean: float | None, error: float | None) -> str:
    if mean is None:
        return ""
    text = str(mean) if isinstance(mean, int) else f"{mean:.4g}"
    return f"{text} ± {error:.2g}" if error else text
