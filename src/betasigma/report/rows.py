"""Rows of a table: the runs of one setting with their spread over the seeds, or one evaluation.

Read from run directories alone, so they serve a sweep that has just ended here, one that ran on a
cluster, and runs that were never one sweep.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from betasigma.report.measurements import (
    Values,
    last_step,
    measured_by,
    of_evaluation,
    of_training,
    sampler_of,
    told_apart,
)
from betasigma.report.runs import Run, evaluated_run, leaves

INCIDENTAL = ("seed", "name", "tags", "resume", "hardware", "cluster", "logger", "loggers")
"""Keys that may differ between the runs of one row: the seed, and what does not enter a result."""

ENTERING = ("hardware.precision",)
"""Keys inside those nodes that do enter a result."""

OWN_COLUMNS = ("run", "n", "sampler")
"""Keys of an evaluation's command line that have columns of their own."""

LABELS = "labels"
"""Key of the classes that an evaluation is of, which is told in a column."""

MOST_KEYS = 4
"""A row is named by at most as many keys that differ from other rows'."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        described: what was measured, cell by column; ``run`` comes first.
        values: what was found, by column, one value a seed; those that have not measured it are
            left out.
        family: of the model; ``""`` where it is not known.
        measured: n and NFE by which a column was measured, ``n=500``.
    """

    described: dict[str, str]
    values: dict[str, list[float]]
    family: str = ""
    measured: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.described["run"]

    def mean(self, column: str) -> float | None:
        """Mean over the seeds; ``None`` where none has a value."""
        values = self.values.get(column)
        return statistics.mean(values) if values else None

    def error(self, column: str) -> float | None:
        """Standard error of the mean; ``None`` where it has none."""
        return standard_error(self.values.get(column, []))

    def size(self, column: str) -> float | None:
        """The one value of a column that all runs of a row have in common, as n and NFE are."""
        return next(iter(self.values.get(column, [])), None)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean; ``None`` of fewer than two values, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


class Setting(NamedTuple):
    """Training runs that differ in nothing but their seed, and in what does not enter a result;
    their family is ``""`` where it is not known.
    """

    label: str
    family: str
    runs: list[Run]


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """The settings of training runs: the points of each study in their order, others after them."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fixed = {k: value for k, value in _given(run.config).items() if not _is_incidental(k)}
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: _sort_key(group[0]))
    labels = _labels([group[0] for group in ordered])
    return [
        Setting(label, family_of(group[0].config), group)
        for label, group in zip(labels, ordered, strict=True)
    ]


def _is_incidental(key: str) -> bool:
    return key not in ENTERING and key.partition(".")[0] in INCIDENTAL


def family_of(config: Mapping[str, Any]) -> str:
    """Family of the model of a run; ``""`` where its config does not say."""
    model = config.get("model")
    return str(model.get("family", "")) if isinstance(model, Mapping) else ""


def rows_of_settings(runs: Sequence[Run]) -> list[Row]:
    """One row for each setting. Runs of one setting that have measured with other n or NFE, or at
    another step, are rows of their own. A row of runs that were stopped says at which step.
    """
    rows = []
    for setting in settings_of(runs):
        parts = _measured_alike(setting.runs)
        for measured, found, alike in parts:
            told = len(parts) > 1 or any(map(_was_stopped, alike))
            step = f", at step {measured['step']:g}" if told else ""
            described = {"run": setting.label + step, "seeds": _seeds(alike)}
            how = measured_by(alike[0].last, "val")
            rows.append(Row(described, _by_column(alike, found), setting.family, how))
    return rows


def _was_stopped(run: Run) -> bool:
    """Whether it has begun and not taken all its steps."""
    return 0 < max((s.steps[-1] for s in run.series), default=0) < run.config.get("steps", 0)


def _by_column(runs: Sequence[Run], found: Sequence[Values]) -> dict[str, list[float]]:
    return _by_key(means_by_seed(zip(runs, found, strict=True)))


def means_by_seed(found: Iterable[tuple[Run, Mapping[Key, float]]]) -> list[Mapping[Key, float]]:
    """What the runs of each seed have found in the mean: a seed that was run twice is one draw."""
    seeds: dict[str, list[Mapping[Key, float]]] = {}
    for run, values in found:
        seeds.setdefault(str(run.config.get("seed")), []).append(values)
    return [group[0] if len(group) == 1 else _mean(group) for group in seeds.values()]


def _mean(found: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    return {key: statistics.mean(values) for key, values in _by_key(found).items()}


def _by_key(found: Sequence[Mapping[Key, float]]) -> dict[Key, list[float]]:
    keys = dict.fromkeys(key for values in found for key in values)
    return {key: [values[key] for values in found if key in values] for key in keys}


def _seeds(runs: Sequence[Run]) -> str:
    """How many seeds runs have, and how many they are where one was run more than once."""
    seeds = len({str(run.config.get("seed")) for run in runs})
    return str(seeds) if seeds == len(runs) else f"{seeds} ({len(runs)} runs)"


def _measured_alike(runs: Sequence[Run]) -> list[tuple[Values, list[Values], list[Run]]]:
    """What runs have found, with those together that have measured alike: how, the values, and the
    runs.
    """
    parts: list[tuple[Values, list[Values], list[Run]]] = []
    for run in runs:
        found = of_training(run)
        own = {key: found[key] for key in ("n", "NFE") if key in found} | {"step": last_step(run)}
        for measured, values, alike in parts:
            if all(measured.get(key, value) == value for key, value in own.items()):
                measured |= own
                values.append(found)
                alike.append(run)
                break
        else:
            parts.append((own, [found], [run]))
    return parts


def rows_of_evaluations(jobs: Sequence[Run]) -> list[Row]:
    """One row for the jobs of a sweep of evaluations that differ in the seed alone: the run, the
    sampler with those of its settings that differ between jobs, what else was swept, and always
    the classes that were asked for.
    """
    asked = [job.asked for job in jobs]
    swept = [
        key for key in _differing(asked) if key.partition(".")[0] not in (*OWN_COLUMNS, "seed")
    ]
    if any(LABELS in one for one in asked) and LABELS not in swept:
        swept.append(LABELS)
    names = without_common_parent([str(job.config["run"]) for job in jobs])
    samplers = told_apart(list(map(sampler_of, jobs)))
    groups: dict[str, tuple[dict[str, str], list[Run], list[Values]]] = {}
    for job, name, sampler in zip(jobs, names, samplers, strict=True):
        described = {
            "run": name,
            "sampler": sampler,
            **{key: job.asked.get(key, "") for key in swept},
        }
        found = of_evaluation(job)
        fixed = {key: value for key, value in job.asked.items() if key != "seed"}
        key = json.dumps([described, fixed], sort_keys=True)
        _, group, values = groups.setdefault(key, (described, [], []))
        group.append(job)
        values.append(found)
    several = any(len(group) > 1 for _, group, _ in groups.values())
    rows = []
    for described, group, values in groups.values():
        seeds = {"seeds": _seeds(group)} if several else {}
        family = family_of(evaluated_run(group[0]).config)
        how = measured_by(group[0].last, "eval")
        rows.append(Row({**described, **seeds}, _by_column(group, values), family, how))
    return rows


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each of several settings: the point of a study, and the keys in which it differs
    from others; where it has neither, the run's own name.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_point(run), []).append(run)
    told = {
        id(run): ", ".join(filter(None, [point, keys])) or str(run.config["name"])
        for point, group in alike.items()
        for run, keys in zip(group, _distinguishing_keys(group), strict=True)
    }
    return [told[id(run)] for run in runs]


def _distinguishing_keys(runs: Sequence[Run]) -> list[str]:
    """The keys in which runs differ, ``key=value``: as they were asked for, else as they are in
    the configs; the names of their directories where those keys are too many.
    """
    if len(runs) == 1:
        return [""]
    for described in (_asked(runs), [_given(run.config) for run in runs]):
        keys = [
            key
            for key in _differing(described)
            if not _is_incidental(key) and key.partition(".")[0] != "study"
        ]
        told = [[(key, own[key]) for key in keys if key in own] for own in described]
        for written in (_rounded, str):
            texts = [" ".join(f"{key}={written(value)}" for key, value in own) for own in told]
            if len(keys) <= MOST_KEYS and len(set(texts)) == len(texts):
                return texts
    names = list(map(_directory_name, runs))
    return names if len(set(names)) == len(names) else [run.label for run in runs]


def _asked(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What each was asked for; where some have asked for a model, the model of the others too."""
    if not any("model" in run.asked for run in runs):
        return [run.asked for run in runs]
    models = [run.leaves.get("model.name") for run in runs]
    return [
        {"model": model, **run.asked} if isinstance(model, str) else run.asked
        for run, model in zip(runs, models, strict=True)
    ]


def _directory_name(run: Run) -> str:
    """What the directory of a run says of its setting: of ``SWEEP/seed=1`` the sweep."""
    label = Path(run.label)
    words = [word for word in label.name.split(",") if not _is_incidental(word.partition("=")[0])]
    own = ",".join(words)
    return str(label.with_name(own)) if own else run.directory.resolve().parent.name


def _rounded(text: str) -> str:
    """A number that a search has drawn, in four digits."""
    try:
        return f"{float(text):.4g}" if "." in text and len(text) > 8 else text
    except ValueError:
        return text


def _point(run: Run) -> str:
    study = run.config.get("study")
    return f"{study['point']} {study['label']}" if study else ""


def _sort_key(run: Run) -> tuple[bool, str, int]:
    """What rows are sorted by."""
    study = run.config.get("study")
    return (False, study["name"], study["point"]) if study else (True, "", 0)


def _given(config: Mapping[str, Any]) -> dict[str, str]:
    """Values of a config by key, with dots. A key without a value is one that is not given: a run
    that was continued has those of its defaults too.
    """
    given = {key: value for key, value in leaves(config).items() if value not in (None, {})}
    return {key: str(_plain(value)) for key, value in given.items()}


def _plain(value: Any) -> Any:
    """A whole number as one: a run that was continued has 600.0 where others have 600."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _differing(described: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values are not the same in all."""
    keys = dict.fromkeys(key for one in described for key in one)
    return [key for key in keys if len({one.get(key) for one in described}) > 1]


def without_common_parent(runs: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them are in."""
    directories = [os.path.abspath(run) for run in runs]
    common = os.path.commonpath(map(os.path.dirname, directories)) if directories else ""
    return [os.path.relpath(directory, common) for directory in directories]
