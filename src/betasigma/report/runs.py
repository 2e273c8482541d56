"""Run directories, read back: of trainings, and of the jobs of other commands. Nothing in a config
is resolved or run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from betasigma.errors import UserError, counted, did_you_mean
from betasigma.options.training import TRAIN_ERROR, VALIDATION_ERROR
from betasigma.report.series import RecordedRow, Series, read_series
from betasigma.runs.directory import CONFIG, DATA, ENVIRONMENT, OVERRIDES
from betasigma.runs.files import read_json, read_yaml
from betasigma.runs.header import run_of
from betasigma.runs.record import METRICS, Record, current_name
from betasigma.runs.status import STATUS, job_number

COMPOSED = ".hydra/config.yaml"
"""Config of any other command's job, as Hydra composed it."""


_TRAINING = frozenset({"model", "steps", "batch_size"})


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        directory: where it is.
        config: as it is in its file; ``{}`` of one that cannot be read.
        label: what tables and plots call it.
    """

    directory: Path
    config: dict[str, Any]
    label: str = ""

    @property
    def is_training(self) -> bool:
        """Whether it is of a training run rather than of another command's job."""
        return self.config.keys() >= _TRAINING

    @cached_property
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``."""
        return read_json(self.directory / STATUS)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Command, versions, machine and git state of its last start."""
        return read_json(self.directory / ENVIRONMENT)

    @cached_property
    def asked(self) -> dict[str, str]:
        """Its overrides, value by key."""
        words = _read(self.directory / OVERRIDES)
        pairs = (str(word).partition("=") for word in (words if isinstance(words, list) else ()))
        return {key.lstrip("+"): value.strip("'") for key, _, value in pairs}

    @cached_property
    def data(self) -> tuple[str, str]:
        """What its data are called, and an id that also tells apart data of one name."""
        found = read_json(self.directory / DATA)
        shape = found.get("shape")
        name = str(self.leaves.get("data.name", "?"))
        label = f"{name} {'×'.join(map(str, shape))}" if isinstance(shape, list) else name
        splits = [found.get(split) for split in ("train", "test")]
        order = [split.get("order") for split in splits if isinstance(split, dict)]
        return label, json.dumps([label, order])

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """Values of its config by dotted key; a list counts as a value."""
        return leaves(self.config)

    @property
    def series(self) -> list[Series]:
        """All that it has measured."""
        return read_series(Record.of(self.directory))

    @property
    def metrics(self) -> list[str]:
        """Names of its metrics."""
        return list(dict.fromkeys(series.metric for series in self.series))

    @property
    def last(self) -> list[RecordedRow]:
        """The last row of each series, in the order in which they were recorded."""
        ordered = sorted(self.series, key=lambda series: series.end)
        return [series.row(-1) for series in ordered]

    @property
    def measured(self) -> Iterator[RecordedRow]:
        """All rows that say what they were measured with."""
        for series in self.series:
            if series.context:
                yield from map(series.row, range(len(series.steps)))

    def curve(self, metric: str) -> dict[float, float]:
        """Values of a metric by step: the last one of each step."""
        found = (series for series in self.series if series.metric == metric)
        return {
            float(step): value
            for series in found
            for step, value in zip(series.steps, series.values, strict=True)
        }


def read_run(path: Path, config: str = CONFIG) -> Run:
    """Read a run directory."""
    lacks = [name for name in (METRICS, config) if not (path / name).is_file()]
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise UserError(f"runs=[{path}] {fault}: give a run directory, or a sweep's")
    if len(lacks) == 1:
        raise UserError(f"runs=[{path}] is half written: it has no {lacks[0]}")
    if lacks:
        raise UserError(
            f"runs=[{path}] is not a run directory: it has no {METRICS} and {config} (nor has "
            f"a folder in it, as in a sweep's directory)"
        )
    content = read_config(path / config)
    if not content:
        raise UserError(f"runs=[{path}] is half written: its {config} cannot be read")
    return Run(path, content, path.resolve().name)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read several run directories, or sweeps' with all their runs; runs of one name are labelled
    with their parent's too.
    """
    given = runs_in(paths)
    directories = [run.resolve() for run in given]
    if len(set(directories)) < len(directories):
        raise UserError(f"runs=[{','.join(paths)}] names a run twice")
    runs = [read_run(run) for run in given]
    names = [directory.name for directory in directories]
    return [
        run
        if names.count(directory.name) == 1
        else replace(run, label="/".join(directory.parts[-2:]))
        for run, directory in zip(runs, directories, strict=True)
    ]


def curves_to_draw(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics whose curves are drawn: those asked for, or else the denoising errors that the
    runs have.

    Raises:
        UserError: where a metric that was asked for is in no run.
    """
    known = {metric for run in runs for metric in run.metrics}
    if asked is None:
        return [metric for metric in (TRAIN_ERROR, VALIDATION_ERROR) if metric in known]
    for metric in map(current_name, asked):
        if metric not in known:
            listed = ", ".join(sorted(known)) or "none"
            hint = did_you_mean(metric, known, 3, 0.5) or f"they have {listed}"
            raise UserError(f"metrics=[{metric}] is in no run; {hint}")
    return list(asked)


def evaluated_run(job: Run) -> Run:
    """The run that an evaluation has measured; without a config if that is neither a run directory
    nor a checkpoint in one.
    """
    path = run_of(str(job.config.get("run")))
    return Run(path, read_config(path / CONFIG) or {}, path.name)


def read_evaluations(paths: Sequence[str]) -> list[Run]:
    """The evaluations in some directories, of sweeps or of single evaluations.

    Returns:
        ``[]`` where there are none, as in the directory of a training run.
    """
    found = []
    for path in map(Path, paths):
        alone = (path / COMPOSED).is_file() and (path / METRICS).is_file()
        for job in [path] if alone else _jobs(path, COMPOSED):
            if not (job / CONFIG).is_file():
                found.append(read_run(job, COMPOSED))
    return [job for job in found if job.config.get("run")]


def check_comparable(runs: Sequence[Run]) -> None:
    """Check that runs can be compared: that each has measured something that another has too."""
    measured = [set(run.metrics) for run in runs]
    for number, (run, own) in enumerate(zip(runs, measured, strict=True)):
        others = set[str]().union(*measured[:number], *measured[number + 1 :])
        if len(runs) > 1 and not own & others:
            told = ", ".join(sorted(own)[:4]) or "nothing"
            raise UserError(
                f"runs=[…] have nothing in common: no other run has measured what {run.label} has "
                f"({told})"
            )


def runs_in(paths: Sequence[str]) -> list[Path]:
    """The runs of sweeps' directories, and any other directories themselves."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += [path] if (path / CONFIG).is_file() else _jobs(path, CONFIG) or [path]
    return found


def left_out(paths: Sequence[str]) -> str:
    """Sentence about runs that are too deep in ``runs=…`` to be read; ``""`` without any."""
    tops = [path for path in map(Path, paths) if not (path / CONFIG).is_file()]
    directories = [
        record.parents[1]
        for top in tops
        for record in sorted(top.glob(f"*/*/{METRICS}"))
        if (record.parent / CONFIG).is_file()
    ]
    named = ", ".join(dict.fromkeys(map(str, directories)))
    runs = counted(len(directories), "run")
    return f"{runs} in {named} left out: runs=[…] names runs or sweeps" if directories else ""


def _jobs(sweep: Path, config: str) -> list[Path]:
    """The run directories in a sweep's directory that have measured something, by job number."""
    runs = [record.parent for record in sweep.glob(f"*/{METRICS}")]
    return sorted((run for run in runs if (run / config).is_file()), key=job_number)


def read_config(path: Path) -> dict[str, Any] | None:
    """Read a config; ``None`` where it is damaged or too large."""
    content = _read(path)
    return content if isinstance(content, dict) else None


def _read(path: Path) -> Any:
    try:
        state = path.stat()
    except OSError:
        return None
    return _parsed(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _parsed(path: Path, size: int, changed: int) -> Any:
    """Content of a file in this state, which callers must not change."""
    try:
        return read_yaml(path)
    except (OSError, ValueError):
        return None


MOST_KEYS = 5000


def leaves(node: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config by dotted key, at most :data:`MOST_KEYS`."""
    return dict(islice(_leaves(node), MOST_KEYS))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
