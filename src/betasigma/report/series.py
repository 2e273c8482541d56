"""Records read back as series: values of one metric that were measured alike."""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import Any, cast, get_args

from betasigma.options.evaluation import METRICS
from betasigma.options.likelihoods import LEAST_BITS
from betasigma.options.training import LEAST, SPEED, Best
from betasigma.runs.record import COLUMNS, CONTEXT, Columns, Record

RecordedRow = dict[str, str]


@dataclass(kw_only=True)
class Series(Columns):
    """Values of one metric that were measured alike, in the order in which they were logged.

    Attributes:
        metric: its name.
        context: what they were measured with, by column of the record, without seed and spread.
        best: which of them is the best; ``None`` where none is, or nobody says.
        stds: NaN where there is none; empty, as ``seeds``, where there is no context.
        end: index of the last one among all values that have a context.
    """

    metric: str
    context: dict[str, str]
    best: Best | None
    stds: array[float] = field(default_factory=lambda: array("d"))
    seeds: list[str] = field(default_factory=list)
    end: int = -1

    def row(self, index: int) -> RecordedRow:
        """The row of the record that a value is from, in so far as it can differ within one."""
        own = dict.fromkeys(COLUMNS, "") | self.context
        if self.seeds:
            std = self.stds[index]
            own |= {"seed": self.seeds[index], "std": "" if math.isnan(std) else str(std)}
        known = {"step": self.steps[index], "time": self.times[index], "value": self.values[index]}
        return own | {"metric": self.metric} | {key: str(value) for key, value in known.items()}


def read_series(record: Record) -> list[Series]:
    """Read a record; values that were measured alike together. What is read stays in memory, 40
    bytes a value, until the file changes.
    """
    if not record.path.is_file():
        return []
    stat = record.path.stat()
    state = stat.st_size, stat.st_mtime_ns
    kept = _kept.get(record.path)
    if kept is None or kept[0] != state:
        kept = _kept[record.path] = (state, _series(record))
    return kept[1]


_kept: dict[Path, tuple[tuple[int, int], list[Series]]] = {}
"""Size and time of change of each record that was read, and its series."""


def _series(record: Record) -> list[Series]:
    columns, lines = record.split()
    plain = [
        Series(metric=metric, context={}, best=best_of(metric), **vars(own))
        for metric, own in columns.items()
    ]
    found: dict[tuple[str, ...], Series] = {}
    known: dict[tuple[Any, ...], Series] = {}
    index_of = {name: number for number, name in enumerate(COLUMNS)}
    apart = [index_of[name] for name in CONTEXT if name not in ("std", "seed", "best")]
    key_of = itemgetter(index_of["metric"], *apart)
    std, seed, best = index_of["std"], index_of["seed"], index_of["best"]
    for number, line in enumerate(lines):
        key = key_of(line)
        series = found.get(key)
        if series is None:
            context = {COLUMNS[at]: line[at] for at in apart if line[at]}
            for name in WEIGHTS & context.keys():
                context[name] = WHOLE.sub(r"\1", context[name])
            alike = (key[0], *context.items())
            if alike not in known:
                known[alike] = Series(metric=key[0], context=context, best=best_of(key[0]))
            series = found[key] = known[alike]
        if line[best] in BESTS:  # which an earlier version did not record
            series.best = cast(Best, line[best])
        series.steps.append(int(line[0]))
        series.times.append(float(line[1]))
        series.values.append(float(line[3]))
        series.stds.append(_number(line[std]))
        series.seeds.append(line[seed])
        series.end = number
    return [*plain, *known.values()]


WEIGHTS = {"guidance", "settings"}
"""Columns with numbers that earlier versions wrote as they were typed, ``eta=1`` or ``eta=1.0``."""

WHOLE = re.compile(r"((?:^|=)-?\d+)\.0(?!\S)")

BESTS = get_args(Best)


def best_of(metric: str) -> Best | None:
    """Which value of a metric is its best, as its name says."""
    if metric == SPEED:
        return "max"
    if any(fnmatchcase(metric, pattern) for pattern in (*LEAST, *LEAST_BITS)):
        return "min"
    kind, _, rest = metric.partition("/")[2].partition("_")
    known = METRICS.get("fd" if kind == "fid" else kind)
    if known is None or known.higher_is_better is None or rest.endswith("floor"):
        return None
    return "max" if known.higher_is_better else "min"


def _number(text: str) -> float:
    """A number; NaN for none."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan
