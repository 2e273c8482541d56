"""metrics.csv: the run directory's own record. Every dashboard is a view of it.

Each value is one row, written at once: ``step, time, metric, value``. A value that was measured on
samples also has what it was measured with (``CONTEXT``). With one row a value, the columns are the
same for every metric, and a killed run loses at most its last row. A file of an earlier version
lacks the later columns: they are read as empty, and added before the next row is written.

Earlier versions called the objective ``train/loss`` and ``val/loss``: it is read under its present
name.

``n``: samples; ``nfe``: network evaluations of each; ``sampler``, ``seed``: how they were drawn;
``split``, ``extractor``: what they were compared with; ``std``: over the
metric's own subsets (of a likelihood: standard error of the mean); ``guidance``: weight;
``n_reference``: number of images of the split that were taken;
``settings``: every option of the sampler or estimator, ``key=value`` separated by blanks;
``best``: ``min`` or ``max``, which value of the metric is its best.
"""

from __future__ import annotations

import csv
import math
import re
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from betasigma.runs.files import append_whole, replace_file

METRICS = "metrics.csv"
"""Name of the file in a run directory."""

CONTEXT = (
    *("n", "nfe", "sampler", "seed", "split", "extractor"),
    *("std", "guidance", "n_reference", "settings", "best"),
)
COLUMNS = ("step", "time", "metric", "value", *CONTEXT)
METRIC = COLUMNS.index("metric")
SIZES = COLUMNS.index("n"), COLUMNS.index("nfe")


@dataclass
class Columns:
    """Values of a metric in the order in which they were recorded, with their steps and times."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def extend(self, steps: Sequence[str], times: Sequence[str], values: Sequence[str]) -> None:
        """Add values.

        Raises:
            ValueError: where one is no number, or a time NaN.
        """
        self.steps.extend(map(int, steps))
        self.times.extend(map(float, times))
        self.values.extend(map(float, values))
        if math.isnan(sum(self.times)):
            raise ValueError("a time is no number")


def current_name(text: str) -> str:
    """A metric's name, or a text with one in it, with the objective's present name."""
    if "/loss" not in text:  # which is quick, and true of almost all
        return text
    return re.sub(r"\b(train|val)/loss\b(?!/)", r"\1/objective", text)


class Record:
    """Appends to a metrics file, and reads it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, run: Path) -> Record:
        """The record of a run directory."""
        return cls(run / METRICS)

    def append(
        self, step: int, values: Mapping[str, float], context: Mapping[str, Any] | None = None
    ) -> None:
        """Add one row for each value."""
        self.append_together(step, [(values, context or {})])

    def append_together(
        self, step: int, groups: Sequence[tuple[Mapping[str, float], Mapping[str, Any]]]
    ) -> None:
        """Add one row for each value of several groups, at once: a killed process leaves all of
        them or none.
        """
        new = not self.path.exists()
        if not new and next(csv.reader(StringIO(self._text(), newline="")), []) != list(COLUMNS):
            self._rewrite(self.rows())
        now, text = f"{time.time():.3f}", StringIO(newline="")
        writer = csv.writer(text)
        if new:
            writer.writerow(COLUMNS)
        for values, context in groups:
            extra = ["" if context.get(name) is None else context[name] for name in CONTEXT]
            writer.writerows([step, now, name, value, *extra] for name, value in values.items())
        append_whole(self.path, text.getvalue().encode())

    def truncate(self, step: int, measured: bool = True) -> None:
        """Remove the rows after ``step``, which a resumed run measures again.

        Args:
            step: of the checkpoint that is continued.
            measured: keep those of this step that the run has measured on samples and examples;
                ``False`` for a run that was killed while it did.
        """
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        if not measured:
            rows = [row for row in rows if not (row["step"] == str(step) and _is_measured(row))]
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with (
            replace_file(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def rows(self) -> list[dict[str, str]]:
        """All complete rows, in order, as strings by column."""
        return [dict(zip(COLUMNS, line, strict=True)) for line in self.lines()]

    def lines(self) -> Iterator[list[str]]:
        """The same as lists in the order of ``COLUMNS``."""
        return self._lines(self._text())

    @staticmethod
    def _lines(text: str) -> Iterator[list[str]]:
        reader = csv.reader(StringIO(text, newline=""))
        head = next(reader, [])
        if not {"step", "metric", "value"} <= set(head):  # it is damaged
            reader, head = csv.reader(StringIO(text, newline="")), list(COLUMNS)
        indices = [head.index(name) if name in head else None for name in COLUMNS]
        as_it_is = head == list(COLUMNS)
        for line in reader:
            if len(line) != len(head):  # a killed process can leave half a line
                continue
            if not as_it_is:
                line = ["" if i is None else line[i] for i in indices]
            if _has_numbers(line):
                line[METRIC] = current_name(line[METRIC])
                yield line

    def split(self) -> tuple[dict[str, Columns], Iterator[list[str]]]:
        """The same in two parts, which is three times as fast where there are many: what has no
        context, as columns by metric, and the other lines.
        """
        text = self._text()
        head, *lines = text.split("\n")
        no_context = "," * (head.count(",") - 4)
        found: dict[str, tuple[list[str], list[str], list[str]]] = {}
        others = [head]
        for line in lines:
            cells = line.split(",", 4)
            if cells[-1] != no_context or len(cells) < 5 or '"' in line:
                others.append(line)
                continue
            own = found.get(cells[2])
            if own is None:
                own = found[cells[2]] = ([], [], [])
            own[0].append(cells[0])
            own[1].append(cells[1])
            own[2].append(cells[3])
        columns: dict[str, Columns] = {}
        try:
            if not head.startswith("step,time,metric,value,"):
                raise ValueError
            for metric, own in found.items():
                columns.setdefault(current_name(metric), Columns()).extend(*own)
        except (ValueError, OverflowError):  # it is damaged: line by line
            return {}, self._lines(text)
        return columns, self._lines("\n".join(others))

    def _text(self) -> str:
        """The file, without what a damaged disk or machine puts into it; ``""`` without one."""
        if not self.path.exists():
            return ""
        return self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "")

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.rows() if row["metric"] == current_name(metric)]
        return [int(row["step"]) for row in rows], [float(row["value"]) for row in rows]


def format_settings(settings: Mapping[str, Any]) -> str:
    """Settings as ``key=value`` separated by blanks, values as they are typed in a config."""
    named = {None: "null", True: "true", False: "false"}
    typed = {
        key: named[value] if value is None or isinstance(value, bool) else str(value)
        for key, value in settings.items()
    }
    return " ".join(f"{key}={value.replace(', ', ',')}" for key, value in typed.items())


def _has_numbers(line: Sequence[str]) -> bool:
    """Whether step, time, value, n and NFE are numbers, and the step one of 64 bits."""
    step, now, _, value = line[:4]
    try:
        float(value)
        sizes = [float(line[i]) for i in SIZES if line[i]]
        return abs(int(step)) < 2**63 and not math.isnan(float(now)) and all(map(isfinite, sizes))
    except ValueError:
        return False


def _is_measured(row: Mapping[str, str]) -> bool:
    """Whether a row is of samples or examples that the run itself has measured."""
    kind = row["metric"].partition("/")[0]
    return kind == "sample" or (kind == "val" and row["extractor"] != "")
