"""What a page about runs is made of: plain containers, small enough for one file.

A page holds the metrics that its panels name. Long curves are thinned to what the page has room
for: of each stretch the least and the greatest value stay, and of all the last.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from betasigma.options.base import dump
from betasigma.options.dashboards import (
    DashboardOptions,
    HealthOptions,
    PanelOptions,
    RunPageOptions,
)
from betasigma.options.training import AT_LOG_SNR, SKIPPED, SPEED
from betasigma.report.rows import INCIDENTAL
from betasigma.report.scan import Recorded, Series
from betasigma.runs.directory import LOG, SUMMARY
from betasigma.runs.files import read_json
from betasigma.runs.job_states import is_dead
from betasigma.runs.record import METRICS
from betasigma.runs.status import ERROR, FINISHED, RUNNING, STATUS
from betasigma.runs.sweep_record import read_sweep

POINTS = 300_000
"""Points of all curves of a page."""

DIGITS = 5
"""Significant digits of a value on a page."""

TAIL = 16_384
"""Bytes of the end of a log that are read."""

LONGEST = 300
"""Characters of a value of a config, or of a line of a log, that are shown."""

REST = "the rest"
"""Time that no kind of work is known of."""

Content = dict[str, Any]


class Pictures(Protocol):
    """Pictures of a page."""

    def of(self, run: Recorded) -> Content:
        """Samples of a run."""
        ...

    def real(self) -> Content:
        """Real images, by the data that they are of."""
        ...


Kind = TypeVar("Kind", bound=PanelOptions)


def page_data(
    runs: Sequence[Recorded],
    dashboard: DashboardOptions,
    pictures: Pictures,
    defaults: Mapping[str, Any],
) -> Content:
    """Describe runs for a page.

    Args:
        runs: training runs, and evaluations of them.
        dashboard: what the page shows.
        pictures: of the samples of these runs.
        defaults: the config of a run that is told nothing, by dotted key.
    """
    trainings = [run for run in runs if run.is_training and passes(run, dashboard.filters)]
    common = os.path.commonpath([run.directory.resolve() for run in trainings] or [Path("/")])
    evaluated = _evaluations(runs)
    wanted = _Wanted(dashboard)
    kept = [
        [s for s in [*run.series, *evaluated.get(run.directory, [])] if wanted(s.metric)]
        for run in trainings
    ]
    most = _fitting(len(series.steps) for found in kept for series in found)
    shared = _shared([run.leaves for run in trainings])
    contexts: dict[str, int] = {"{}": 0}
    metrics: dict[str, int] = {}
    described = []
    for run, found in zip(trainings, kept, strict=True):
        seconds = partial(_seconds, _pauses(run))
        columns = [
            {
                "metric": metrics.setdefault(series.metric, len(metrics)),
                "context": contexts.setdefault(
                    json.dumps(series.context, sort_keys=True), len(contexts)
                ),
                **_columns(series, most, seconds),
            }
            for series in found
        ]
        own = {key: value for key, value in run.leaves.items() if key not in shared}
        described.append(
            {
                **_identity(run, common),
                **_state(run, 60 * panel_of(dashboard, HealthOptions).stalled),
                **_provenance(run, panel_of(dashboard, RunPageOptions).lines),
                "config": {key: shown(value) for key, value in own.items()},
                "spent": _spent(run),
                "series": columns,
                **pictures.of(run),
            }
        )
    return {
        "title": dashboard.title,
        "built": round(time.time()),
        "spec": dump(dashboard),
        "speed": SPEED,
        "skipped": SKIPPED,
        "incidental": list(INCIDENTAL),
        "shared": {key: shown(value) for key, value in shared.items()},
        "defaults": {key: shown(value) for key, value in defaults.items()},
        "contexts": [json.loads(context) for context in contexts],
        "metrics": list(metrics),
        "runs": described,
        "real": pictures.real(),
        "sweeps": list(_sweeps(runs, common)),
    }


def panel_of(dashboard: DashboardOptions, kind: type[Kind]) -> Kind:
    """The first panel of a kind; its defaults where there is none."""
    return next((p for p in dashboard.panels.values() if isinstance(p, kind)), kind())


def passes(run: Recorded, filters: Mapping[str, Any]) -> bool:
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
    if isinstance(value, int | float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class _Wanted:
    """Whether a metric is on the page: one that a panel names, or the floor of one."""

    def __init__(self, dashboard: DashboardOptions) -> None:
        named = [p for panel in dashboard.panels.values() for p in panel.patterns]
        self._patterns = dict.fromkeys([*named, SPEED, SKIPPED])
        self._known: dict[str, bool] = {}

    def __call__(self, metric: str) -> bool:
        if metric not in self._known:
            names = (metric, metric.removesuffix("_floor"))
            self._known[metric] = any(fnmatchcase(n, p) for n in names for p in self._patterns)
        return self._known[metric]


# ---------------------------------------------------------------- curves


def _fitting(lengths: Iterable[int]) -> int:
    """The most points of a curve with which all fit."""
    left, room = sorted(lengths), POINTS
    while left:
        share = room // len(left)
        if left[0] > share:
            return max(2, share)
        room -= left.pop(0)
    return POINTS


def _columns(series: Series, most: int, seconds: Callable[[float], float]) -> Content:
    """Steps, seconds and values; what was measured on samples also has spreads and seeds."""
    at = _thinned(series.values, most)
    columns: Content = {
        "steps": [series.steps[i] for i in at],
        "seconds": [round(seconds(series.times[i])) for i in at],
        "values": [_rounded(series.values[i]) for i in at],
    }
    if any(series.stds):
        columns["stds"] = [_rounded(series.stds[i]) for i in at]
    if any(series.seeds):
        columns["seeds"] = [series.seeds[i] for i in at]
    bad = sum(not math.isfinite(value) for value in series.values)
    return columns | ({"bad": bad} if bad else {})


def _thinned(values: Sequence[float], most: int) -> Sequence[int]:
    """Places of at most about ``most`` values: the first, the last, and of each stretch between
    them the least and the greatest.
    """
    count = len(values)
    if count <= most:
        return range(count)
    kept, stretches = {0, count - 1}, max(1, (most - 2) // 2)
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def _rounded(value: float | None) -> float | None:
    """A value as the page holds it; ``None`` where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------- time


def _starts(run: Recorded) -> list[float]:
    """When a run was started and continued."""
    known = [*_nodes(run.environment.get("resumed_after")), run.environment]
    return sorted(filter(None, (_timestamp(node.get("started")) for node in known)))


def _pauses(run: Recorded) -> list[tuple[float, float]]:
    """From when on how much is taken off the clock: the time before the first start, and that
    between the last value of a start and the next start.
    """
    starts = _starts(run)
    times = [moment for series in run.series for moment in series.times]
    if not starts:
        return [(min(times), min(times))] if times else []
    pauses = [(starts[0], starts[0])]
    for before, start in pairwise(starts):
        last = max([before, *(moment for moment in times if before <= moment < start)])
        pauses.append((start, pauses[-1][1] + start - last))
    return pauses


def _seconds(pauses: Sequence[tuple[float, float]], moment: float) -> float:
    """Seconds of work until a moment."""
    if len(pauses) == 1:
        return max(0.0, moment - pauses[0][1])
    off = [off for start, off in pauses if start <= moment] or [off for _, off in pauses[:1]]
    return max(0.0, moment - off[-1]) if off else 0.0


def _spent(run: Recorded) -> dict[str, float]:
    """Seconds by kind of work: as a run that has ended has counted them, else out of the times of
    what was logged.

    The time before a value of samples or of a validation is of that kind; of that before a value of
    training, what its steps took at the speed that was logged. The rest is the start, sample grids
    and checkpoints.
    """
    counted = read_json(run.directory / SUMMARY).get("seconds")
    if isinstance(counted, dict) and all(isinstance(s, int | float) for s in counted.values()):
        return {kind: round(seconds, 1) for kind, seconds in counted.items()}
    batch, pauses = run.config.get("batch_size"), _pauses(run)
    spent = dict.fromkeys(("training", "validation", "evaluation", REST), 0.0)
    last, done = 0.0, 0
    for moment, (kind, step, speed) in sorted(_logged(run).items()):
        now = _seconds(pauses, moment)
        passed, last = max(0.0, now - last), max(now, last)
        took = passed
        if kind == "training" and isinstance(batch, int) and speed > 0:
            took = min(passed, max(0, step - done) * batch / speed)
            done = step
        spent[kind] += took
        spent[REST] += passed - took
    return {kind: round(seconds, 1) for kind, seconds in spent.items()}


def _logged(run: Recorded) -> dict[float, tuple[str, int, float]]:
    """Kind of work, step and value of what was logged at one time by training."""
    found: dict[float, tuple[str, int, float]] = {}
    for series in run.series:
        of_samples = not {"extractor", "settings"}.isdisjoint(series.context)
        if series.metric == SPEED:
            kind = "training"
        elif series.metric.startswith("val/") and AT_LOG_SNR not in series.metric:
            kind = "evaluation" if of_samples else "validation"
        else:
            continue
        for moment, step, value in zip(series.times, series.steps, series.values, strict=True):
            found[moment] = (kind, step, value)
    return found


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


# ---------------------------------------------------------------- one run


def _identity(run: Recorded, common: str) -> Content:
    """Where a run is, what it is called, and which data it has."""
    place = run.directory.resolve()
    own = os.path.relpath(place, common)
    job = run.status.get("job")
    return {
        "id": place.name if own == "." else Path(own).as_posix(),
        "directory": str(run.directory),
        "name": str(run.config.get("name", "")),
        "job": job if isinstance(job, int) else None,
        "data": {"label": run.data[0], "id": run.data[1]},
        "batch_size": _integer(run.config.get("batch_size")),
        "most_steps": _integer(run.config.get("steps")),
    }


def _state(run: Recorded, patience: float) -> Content:
    """How a run stands."""
    status = run.status
    known = {key: status.get(key) for key in ("status", "started", "ended", "error", "host")}
    return {
        **{key: None if value is None else str(value) for key, value in known.items()},
        "slurm": None if status.get("slurm_job") is None else str(status["slurm_job"]),
        "not_finite": shown(status["not_finite"]) if "not_finite" in status else None,
        "stalled": _stalled(run, patience) if status.get("status") == RUNNING else None,
        "starts": max(1, len(_starts(run))),
    }


def _stalled(run: Recorded, patience: float) -> str | None:
    """Why a run that has not ended is not going on either; ``None`` where it is."""
    if is_dead(run.status):
        return "its process has ended without a word"
    changed = [
        path.stat().st_mtime
        for name in (METRICS, LOG, STATUS)
        if (path := run.directory / name).is_file()
    ]
    idle = time.time() - max(changed, default=0.0)
    return f"no value for {idle / 60:.0f} minutes" if changed and idle > patience else None


def _provenance(run: Recorded, lines: int) -> Content:
    """What a run was started with and on, and what it has said last."""
    found = run.environment
    git, packages = found.get("git"), found.get("packages")
    return {
        "command": [str(word) for word in _list(found.get("command"))],
        "asked": [str(word) for word in _list(found.get("overrides"))],
        "git": {k: str(v) for k, v in git.items()} if isinstance(git, dict) else None,
        "packages": {k: str(v) for k, v in packages.items()} if isinstance(packages, dict) else {},
        "python": str(found.get("python", "")),
        "log": _tail(run.directory / LOG, lines),
        "traceback": _tail(run.directory / ERROR, lines),
    }


def _tail(path: Path, lines: int) -> list[str]:
    """Last lines of a text file; none where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return []
    return [line[:LONGEST] for line in text.splitlines()[-lines:]]


# ---------------------------------------------------------------- several runs


def _shared(described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the configs of all runs have in common."""
    first, *others = described or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _evaluations(runs: Sequence[Recorded]) -> dict[Path, list[Series]]:
    """What was measured of a checkpoint, by the directory of its run. An evaluation of a run's
    directory is in the record of the run already.
    """
    known = {run.directory.resolve(): run.directory for run in runs if run.is_training}
    found: dict[Path, list[Series]] = {}
    for job in runs:
        measured = job.config.get("run")
        if job.is_training or not isinstance(measured, str) or Path(measured).is_dir():
            continue
        for parent in Path(measured).resolve().parents:
            if parent in known:
                found.setdefault(known[parent], []).extend(job.series)
    return found


def _sweeps(runs: Sequence[Recorded], common: str) -> Iterator[Content]:
    """Sweeps, their jobs without a directory and those that have failed."""
    jobs: dict[Path, dict[int, str]] = {}
    for run in runs:
        number = run.status.get("job")
        if isinstance(number, int):
            jobs.setdefault(run.directory.resolve().parent, {})[number] = str(
                run.status.get("status")
            )
    for sweep, states in jobs.items():
        record = read_sweep(sweep)
        count = max(len(record.jobs) if record else 0, max(states) + 1)
        missing = [number for number in range(count) if number not in states]
        failed = [number for number, state in states.items() if state not in (FINISHED, RUNNING)]
        yield {
            "id": Path(os.path.relpath(sweep, common)).as_posix(),
            "jobs": count,
            "missing": missing,
            "failed": sorted(failed),
        }


def _nodes(value: Any) -> list[dict[str, Any]]:
    return [node for node in _list(value) if isinstance(node, dict)]


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
