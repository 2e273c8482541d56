"""metrics.csv: the run directory's own record, of which every dashboard is a view.

One row a value, flushed as it is written: ``step, time, metric, value`` and, where a value was
measured on samples, what it was measured with (``n, nfe, sampler, seed, split, extractor``). The
long format holds both families and every metric without columns that come and go, and a killed run
has lost nothing but its last row.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTEXT = ("n", "nfe", "sampler", "seed", "split", "extractor")
COLUMNS = ("step", "time", "metric", "value", *CONTEXT)


class Record:
    """Appends to a metrics file, and reads it back.

    Args:
        path: the file; it is created with its header at the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self, step: int, values: Mapping[str, float], context: Mapping[str, Any] | None = None
    ) -> None:
        """Add one row for each value."""
        new = not self.path.exists()
        now = f"{time.time():.3f}"
        extra = [(context or {}).get(name, "") for name in CONTEXT]
        extra = ["" if value is None else value for value in extra]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows([step, now, name, value, *extra] for name, value in values.items())

    def truncate(self, step: int) -> None:
        """Forget rows after ``step``: a resumed run measures those again."""
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)

    def rows(self) -> list[dict[str, str]]:
        """All complete rows, in order, as strings by column."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if _whole(row)]

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.rows() if row["metric"] == metric]
        return [int(row["step"]) for row in rows], [float(row["value"]) for row in rows]


def _whole(row: dict[str, Any]) -> bool:
    """Whether a row was written to its end (a killed process can leave half a line)."""
    if None in row or any(row.get(name) is None for name in COLUMNS):
        return False
    try:
        int(row["step"])
        return not math.isnan(float(row["time"])) and float(row["value"]) is not None
    except ValueError:
        return False
