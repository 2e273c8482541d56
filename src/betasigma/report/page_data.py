"""What a page about runs is made of: plain containers, small enough for one file.

A page holds the metrics that its panels name. Long curves are thinned to what the page has room
for: the last value of each stretch stays. Stretches are so many steps that curves which were logged
at the same steps keep the same ones, so that seeds have a mean and noise levels a map.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from betasigma.errors import counted
from betasigma.options import dashboards
from betasigma.options.base import dump
from betasigma.options.training import AT_LOG_SNR, SKIPPED, SPEED, Best
from betasigma.plot_style import FAMILIES
from betasigma.report.rows import ENTERING, INCIDENTAL
from betasigma.report.runs import Run
from betasigma.report.scan import LONGEST, WorkTime, passes, shown
from betasigma.report.series import Series
from betasigma.runs.directory import LOG, SUMMARY
from betasigma.runs.files import read_json
from betasigma.runs.header import other_than_last
from betasigma.runs.job_states import is_dead, last_sign
from betasigma.runs.status import ERROR, FINISHED, RUNNING
from betasigma.runs.sweep_record import read_sweep

if TYPE_CHECKING:
    from betasigma.report.page_pictures import Album

POINTS = 300_000
"""Points of all curves of a page."""

DIGITS = 5
"""Significant digits of a value on a page."""

TAIL = 16_384
"""Bytes of the end of a log that are read."""

MOST_JOBS = 100_000
"""Jobs of a sweep; a number above is no job's."""

LONGEST_TIME = 1e10
"""Seconds; a run that took more is damaged."""

REST = "the rest"
"""Time of which no kind of work is known."""

Content = dict[str, Any]

Moments = tuple[tuple[int, ...], tuple[float, ...]]
"""Steps and times of values."""


Kind = TypeVar("Kind", bound=dashboards.PanelOptions)


def page_data(
    runs: Sequence[Run],
    dashboard: dashboards.DashboardOptions,
    pictures: Album,
    defaults: Mapping[str, Any],
) -> Content:
    """Describe training runs, and evaluations of them, for a page; ``defaults`` is the config of a
    run without overrides, by dotted key.
    """
    trainings = [run for run in runs if run.is_training and passes(run, dashboard.filters)]
    common = os.path.commonpath([run.directory.resolve() for run in trainings] or [Path("/")])
    evaluated = _evaluations(runs)
    named = [pattern for panel in dashboard.panels.values() for pattern in panel.patterns]

    @cache
    def wanted(metric: str) -> bool:
        names = (metric, metric.removesuffix("_floor"))
        return any(fnmatchcase(n, p) for n in names for p in {*named, SPEED, SKIPPED})

    kept = [
        [s for s in [*run.series, *evaluated.get(run.directory, [])] if wanted(s.metric)]
        for run in trainings
    ]
    most = _fitting(len(series.steps) for found in kept for series in found)
    shared = _shared([run.leaves for run in trainings])
    contexts: dict[str, int] = {"{}": 0}
    metrics: dict[str, int] = {}
    described = []
    best: dict[str, Best] = {}
    for run, found in zip(trainings, kept, strict=True):
        places: dict[Moments, int] = {}
        columns = []
        for series in found:
            if series.best is not None:
                best[series.metric] = series.best
            at = _thinned(series, most)
            moments = tuple(series.steps[i] for i in at), tuple(series.times[i] for i in at)
            context = json.dumps(series.context, sort_keys=True)
            columns.append(
                {
                    "metric": metrics.setdefault(series.metric, len(metrics)),
                    "context": contexts.setdefault(context, len(contexts)),
                    "at": places.setdefault(moments, len(places)),
                    **_columns(series, at),
                }
            )
        own = {key: value for key, value in run.leaves.items() if key not in shared}
        described.append(
            {
                **_identity(run, common),
                **_state(run, 60 * panel_of(dashboard, dashboards.HealthOptions).stalled),
                **_provenance(run, panel_of(dashboard, dashboards.RunPageOptions).lines),
                "config": {key: shown(value) for key, value in own.items()},
                "spent": _spent(run),
                "places": _places(places, WorkTime(run)),
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
        "entering": list(ENTERING),
        "shared": {key: shown(value) for key, value in shared.items()},
        "defaults": {key: shown(value) for key, value in defaults.items()},
        "contexts": [json.loads(context) for context in contexts],
        "metrics": list(metrics),
        "best": best,
        "families": list(FAMILIES),
        "runs": described,
        "real": pictures.real(),
        "sweeps": list(_sweeps(runs, common)),
    }


def panel_of(dashboard: dashboards.DashboardOptions, kind: type[Kind]) -> Kind:
    """The first panel of a kind; its defaults where there is none."""
    return next((p for p in dashboard.panels.values() if isinstance(p, kind)), kind())


# ---------------------------------------------------------------- curves


def _fitting(lengths: Iterable[int]) -> int:
    """How many points a curve may have so that all curves fit on a page."""
    left, room = sorted(lengths), POINTS
    while left:
        share = room // len(left)
        if left[0] > share:
            return max(2, share)
        room -= left.pop(0)
    return POINTS


def _columns(series: Series, at: Sequence[int]) -> Content:
    """Values at these indices; what was measured on samples also has spreads and seeds. A thinned
    curve says how many values it has, and which is the best of all.
    """
    values = series.values
    columns: Content = {"values": [_rounded(values[i]) for i in at]}
    if not all(map(math.isnan, series.stds)):
        columns["stds"] = [_rounded(series.stds[i]) for i in at]
    if any(series.seeds):
        columns["seeds"] = [series.seeds[i] for i in at]
    if bad := len(values) - sum(map(math.isfinite, values)):
        columns["bad"] = bad
    if len(at) < len(values):
        choose = max if series.best == "max" else min
        best = choose(filter(math.isfinite, values), default=None)
        columns["of"] = len(values)
        columns["best"] = None if best is None else [best, series.steps[values.index(best)]]
    return columns


def _thinned(series: Series, most: int) -> Sequence[int]:
    """Indices of at most ``most`` values: the last of each stretch of steps. What was measured with
    several seeds stays whole.
    """
    count = len(series.steps)
    if count <= most or any(series.seeds):
        return range(count)
    width = 1
    while series.steps[-1] > width * most:
        width *= 2  # so that a stretch is two of a longer curve's
    return [*{(step - 1) // width: index for index, step in enumerate(series.steps)}.values()]


def _places(found: Iterable[Moments], work: WorkTime) -> list[Content]:
    """Steps, and seconds of work until then, at which a run has values."""
    return [
        {"steps": steps, "seconds": [round(work.until(moment)) for moment in times]}
        for steps, times in found
    ]


def _rounded(value: float) -> float | None:
    """A value as the page holds it; ``None`` where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


# ---------------------------------------------------------------- time


def _spent(run: Run) -> dict[str, float]:
    """Seconds by kind of work: as the run has counted them, if it ended in its first start, and
    otherwise from the times of what was logged.

    The time before a value of samples or of a validation is of that kind; of that before a value of
    training, what its steps took at the speed that was logged. The rest is the start, sample grids
    and checkpoints.
    """
    batch, work = run.config.get("batch_size"), WorkTime(run)
    counted = read_json(run.directory / SUMMARY).get("seconds") if len(work.starts) < 2 else None
    if isinstance(counted, dict) and all(
        isinstance(seconds, int | float) and 0 <= seconds < LONGEST_TIME
        for seconds in counted.values()
    ):
        return {kind: round(seconds, 1) for kind, seconds in counted.items()}
    spent = dict.fromkeys(("training", "validation", "evaluation", REST), 0.0)
    last, done = 0.0, 0
    for moment, (kind, step, speed) in sorted(_logged(run).items()):
        now = work.until(moment)
        passed, last = max(0.0, now - last), max(now, last)
        took = passed
        if kind == "training" and isinstance(batch, int) and speed > 0:
            took = min(passed, max(0, step - done) * batch / speed)
            done = step
        spent[kind] += took
        spent[REST] += passed - took
    return {kind: round(seconds, 1) for kind, seconds in spent.items()}


def _logged(run: Run) -> dict[float, tuple[str, int, float]]:
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


# ---------------------------------------------------------------- one run


def _identity(run: Run, common: str) -> Content:
    """Where a run is, what it is called, and which data it has."""
    directory = run.directory.resolve()
    own = os.path.relpath(directory, common)
    job = run.status.get("job")
    return {
        "id": directory.name if own == "." else Path(own).as_posix(),
        "directory": str(run.directory),
        "name": str(run.config.get("name", "")),
        "job": job if isinstance(job, int) else None,
        "data": {"label": run.data[0], "id": run.data[1]},
        "batch_size": _integer(run.config.get("batch_size")),
        "most_steps": _integer(run.config.get("steps")),
    }


def _state(run: Run, patience: float) -> Content:
    """How a run stands."""
    status = run.status
    known = {key: status.get(key) for key in ("status", "started", "ended", "error", "host")}
    return {
        **{key: None if value is None else str(value) for key, value in known.items()},
        "slurm": None if status.get("slurm_job") is None else str(status["slurm_job"]),
        "not_finite": _not_finite(status.get("not_finite")),
        "stalled": _stalled(run, patience) if status.get("status") == RUNNING else None,
        "starts": max(1, len(WorkTime(run).starts)),
    }


def _not_finite(found: Any) -> str | None:
    """What is known of values that were not finite, in words."""
    if not isinstance(found, dict):
        return None if found is None else str(shown(found))
    known = {key.replace("_", " "): _list(value) or [value] for key, value in found.items()}
    words = {
        name: ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in values)
        for name, values in known.items()
        if values not in ([None], [[]])
    }
    return str(shown("; ".join(f"{name} {told}" for name, told in words.items())))


def _stalled(run: Run, patience: float) -> str | None:
    """Why a run that has not ended is not going on either; ``None`` where it is."""
    if is_dead(run.status):
        return "its process has ended without a word"
    last = last_sign(run.directory)
    idle = time.time() - last
    silent = f"no sign of life for {counted(round(idle / 60), 'minute')}"
    return silent if last and idle > patience else None


def _provenance(run: Run, lines: int) -> Content:
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


def _evaluations(runs: Sequence[Run]) -> dict[Path, list[Series]]:
    """What was measured of a checkpoint, by the directory of its run. An evaluation of a run's
    directory is in the record of the run already. Values of another checkpoint than the last say
    which, so that none stands for one of the last.
    """
    known = {run.directory.resolve(): run.directory for run in runs if run.is_training}
    found: dict[Path, list[Series]] = {}
    for job in runs:
        measured = job.config.get("run")
        if job.is_training or not isinstance(measured, str) or Path(measured).is_dir():
            continue
        named = other_than_last(measured)
        own = {"checkpoint": named} if named else {}
        for parent in Path(measured).resolve().parents:
            if parent in known:
                found.setdefault(known[parent], []).extend(
                    replace(series, context={**series.context, **own}) for series in job.series
                )
    return found


def _sweeps(runs: Sequence[Run], common: str) -> Iterator[Content]:
    """Sweeps, their jobs without a directory and those that have failed."""
    jobs: dict[Path, dict[int, str]] = {}
    for run in runs:
        number = run.status.get("job")
        if isinstance(number, int) and 0 <= number < MOST_JOBS:
            jobs.setdefault(run.directory.resolve().parent, {})[number] = str(
                run.status.get("status")
            )
    for sweep, states in jobs.items():
        record = read_sweep(sweep)
        count = max(len(record.jobs) if record else 0, max(states) + 1)
        names = dict(enumerate(job.directory for job in record.jobs)) if record else {}
        missing = [names.get(n, f"number {n}") for n in range(count) if n not in states]
        failed = [number for number, state in states.items() if state not in (FINISHED, RUNNING)]
        yield {
            "id": sweep.name if str(sweep) == common else os.path.relpath(sweep, common),
            "jobs": count,
            "missing": missing,
            "failed": sorted(failed),
        }


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
