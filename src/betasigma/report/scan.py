"""Find run directories of any state, and read what they hold without loading a checkpoint, and how
long they have worked.

A run that has just begun, failed or was killed counts: a dashboard shows how it stands. Whatever is
read here may be damaged or a stranger's, so sizes are bounded and nothing is resolved.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

from betasigma.errors import UserError
from betasigma.options.base import typed
from betasigma.report.runs import COMPOSED, Run, read_config
from betasigma.runs.directory import CONFIG, ENVIRONMENT, SAMPLES
from betasigma.runs.header import CHECKPOINTS
from betasigma.runs.record import METRICS
from betasigma.runs.status import STATUS, written_at

DEEPEST = 8
"""Directories are searched to this depth."""

LONGEST = 300
"""Characters of a value of a config, or of a line of a log, that are shown."""

_SKIPPED = frozenset({CHECKPOINTS, SAMPLES, "wandb", "tensorboard", "__pycache__"})


def find_recorded(paths: Sequence[str | Path]) -> list[Run]:
    """Find the runs in some directories, at any depth, the older first."""
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        shown = f"runs=[{path}]"
        if not path.is_dir():
            raise UserError(f"{shown} is not a directory: give a run directory, or one of several")
        here = {directory.resolve(): directory for directory in run_directories(path)}
        if not here:
            raise UserError(
                f"{shown} is no run directory and has none in it: no {CONFIG} beside {METRICS} or "
                f"{STATUS}"
            )
        read = {real: _read(directory) for real, directory in here.items()}
        if len(read) == 1 and not any(read.values()):
            raise UserError(f"{shown} is half written: its {CONFIG} cannot be read")
        found |= {real: run for real, run in read.items() if run is not None}
    runs = sorted(found.values(), key=lambda run: (str(run.status.get("started")), run.directory))
    if not any(run.is_training for run in runs):
        raise UserError(f"runs=[{','.join(map(str, paths))}] has no training run")
    return runs


def check_common(runs: Sequence[Run]) -> None:
    """Refuse training runs that cannot be compared: no two of them have a metric in common."""
    measured = [run for run in runs if run.is_training and run.metrics]
    counts = Counter(metric for run in measured for metric in run.metrics)
    if len(measured) > 1 and max(counts.values()) == 1:
        first, second, *_ = measured
        raise UserError(
            f"runs: {first.directory} and {second.directory} have nothing in common: no metric of "
            f"one is in another"
        )


def check_filters(runs: Sequence[Run], filters: Mapping[str, Any]) -> None:
    """Refuse filters that leave no training run."""
    trained = [run for run in runs if run.is_training]
    if any(passes(run, filters) for run in trained):
        return
    known = [
        f"{key} of {', '.join(dict.fromkeys(str(shown(run.leaves.get(key))) for run in trained))}"
        for key in filters
    ]
    told = " and ".join(f"{key}={typed(value)}" for key, value in filters.items())
    raise UserError(f"dashboard.filters: no run has {told}; they have {'; '.join(known)}")


def passes(run: Run, filters: Mapping[str, Any]) -> bool:
    """Whether the config of a run has one of the values of each key."""
    for key, wanted in filters.items():
        text = str(shown(run.leaves.get(key)))
        values = wanted if isinstance(wanted, list) else [wanted]
        if not any(fnmatchcase(text, str(shown(value))) for value in values):
            return False
    return True


def shown(value: Any) -> Any:
    """A value of a config as a page holds it: numbers as they are, anything else as text."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):  # of which a browser knows those that are finite floats
        return value if abs(value) < sys.float_info.max else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def run_directories(top: Path) -> Iterator[Path]:
    """Run directories from ``top`` down; a run has none inside."""
    base = len(top.parts)
    for folder, inner, files in os.walk(top):
        here = Path(folder)
        if STATUS in files or (CONFIG in files and {METRICS, ENVIRONMENT} & set(files)):
            yield here
            inner.clear()
        elif len(here.parts) - base >= DEEPEST:
            inner.clear()
        else:
            inner[:] = sorted(n for n in inner if n not in _SKIPPED and not n.startswith("."))


def _read(directory: Path) -> Run | None:
    """Read a run directory; one whose config is damaged is left out with a warning."""
    own = directory / CONFIG
    path = own if own.is_file() else directory / COMPOSED
    config = read_config(path) if path.is_file() else {}
    if config is None:
        warnings.warn(f"{path} cannot be read: the run is left out", stacklevel=3)
        return None
    return Run(directory, config)


class WorkTime:
    """Seconds of work of a run: the time between two starts is none.

    Args:
        run: whose start of the process counts, or its first value where that is not known.

    Attributes:
        starts: moments at which it was started and continued, as far as they are known.
    """

    def __init__(self, run: Run) -> None:
        earlier = run.environment.get("resumed_after")
        nodes = [*(earlier if isinstance(earlier, list) else []), run.environment]
        known = (written_at(node, "started") for node in nodes if isinstance(node, dict))
        self.starts = sorted(filter(None, known))
        self._pauses = _pauses(run, self.starts)

    def until(self, moment: float) -> float:
        """Seconds of work until a moment."""
        off = [off for start, off in self._pauses if start <= moment]
        off = off or [off for _, off in self._pauses[:1]]
        return max(0.0, moment - off[-1]) if off else 0.0


def _pauses(run: Run, starts: list[float]) -> list[tuple[float, float]]:
    """Moments of starts, and how much is taken off the clock from there on: the time before the
    first start, and that between the last value of each start and the next start.
    """
    known = [series.times for series in run.series if series.times]
    if not starts:
        first = min(map(min, known), default=None)
        return [] if first is None else [(first, first)]
    pauses = [(starts[0], starts[0])]
    for before, start in pairwise(starts):
        here = (moment for times in known for moment in times if before <= moment < start)
        last = max(here, default=before)
        pauses.append((start, pauses[-1][1] + start - last))
    return pauses
