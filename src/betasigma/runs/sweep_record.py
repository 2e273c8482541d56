"""``sweep.json``: the jobs of a sweep, written before the first one starts. No heavy imports.

With it a sweep can be continued, on any launcher, and looked at whatever has happened to the
command that started it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from betasigma.errors import UserError
from betasigma.runs.directory import OUTPUTS
from betasigma.runs.files import read_json, write_json

SWEEP = "sweep.json"
"""Name of the file in a sweep directory."""

LAUNCHER_WORD = re.compile(r"\+*(cluster|hydra/launcher|hydra\.launcher)([.=@].*)?")
"""Words of a command line that say where jobs run, rather than what they do."""

RUNS_CODE = re.compile(r"\+*(cluster\.setup|hydra\.launcher\.(?!n_jobs=))")
"""Such words that may name shell commands or classes."""

FUNCTION = re.compile(r"\$\{[^}]*:")
"""An interpolation that calls a function, such as ``${oc.env:HOME}``."""


@dataclass(frozen=True)
class RecordedJob:
    """One job of a sweep.

    Attributes:
        directory: of its run, relative to the sweep's.
        overrides: of its config, as typed, without those that say where it runs.
        steps: that it is to take, where it trains.
        slurm: SLURM's id of its newest start.
    """

    directory: str
    overrides: list[str]
    steps: int | None = None
    slurm: str | None = None


@dataclass(frozen=True)
class SweepRecord:
    """What is known of a sweep.

    Attributes:
        app: that each job runs.
        jobs: by number; of a search those that are known so far: none.
        place: the words that say where the jobs run.
        search: whether a sweeper chooses the jobs while it runs.
        code: commit, branch and changed files of the code, and where jobs take it from.
    """

    app: str
    jobs: list[RecordedJob]
    place: list[str]
    search: bool = False
    code: dict[str, Any] | None = None


_RECORD = TypeAdapter(SweepRecord)


def write_sweep(directory: Path, record: SweepRecord) -> None:
    """Write the record of a sweep."""
    write_json(directory / SWEEP, asdict(record))


def read_sweep(directory: Path) -> SweepRecord | None:
    """Read the record of a sweep, without what a later version has added to it; ``None`` where
    there is none that can be read.
    """
    try:
        return _RECORD.validate_python(read_json(directory / SWEEP))
    except ValidationError:
        return None


def note_slurm_jobs(directory: Path, started: Mapping[str, str]) -> None:
    """Note in a sweep's record which jobs SLURM has taken."""
    record = read_sweep(directory)
    if record is not None:
        jobs = [replace(job, slurm=started.get(job.directory, job.slurm)) for job in record.jobs]
        write_sweep(directory, replace(record, jobs=jobs))


def number_of(run: Path) -> int | None:
    """Number of a run among the jobs of its sweep; ``None`` where it has none."""
    record = read_sweep(run.parent)
    names = [job.directory for job in record.jobs] if record else []
    return names.index(run.name) if run.name in names else None


def newest_sweep(app: str, jobs: Sequence[Sequence[str]]) -> Path | None:
    """The newest sweep below ``outputs/`` with these jobs; ``None`` where there is none."""
    wanted = [sorted(job_words(words)) for words in jobs]
    files = sorted(OUTPUTS.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(files):
        record = read_sweep(path.parent)
        known = [sorted(job.overrides) for job in record.jobs] if record else []
        if record and record.app == app and not record.search and known == wanted:
            return path.parent
    return None


def job_words(words: Iterable[str]) -> list[str]:
    """Those words that say what a job does, rather than where or how it starts."""
    once = re.compile(r"\+*(resume|overwrite)=.*")
    return [w for w in words if not LAUNCHER_WORD.fullmatch(w) and not once.fullmatch(w)]


def launcher_words(words: Iterable[str]) -> list[str]:
    """Those words that say where jobs run."""
    return [word for word in words if LAUNCHER_WORD.fullmatch(word)]


def check_words(record: SweepRecord, directory: Path) -> None:
    """Refuse a record that would set Hydra itself, or read this machine's environment: a sweep
    directory may come from somebody else.
    """
    words = [word for job in record.jobs for word in job.overrides]
    for word in words:
        if word.lstrip("+~").startswith("hydra") or FUNCTION.search(word):
            raise UserError(
                f"{directory / SWEEP} has {word}, which is not taken from a file: give the "
                f"sweep's command again with hydra.sweep.dir={directory}"
            )


def recorded_launcher_words(
    record: SweepRecord, directory: Path, typed: Sequence[str]
) -> list[str]:
    """The words of a sweep's record that say where its jobs go on, where the user says nothing.

    Raises:
        UserError: for one that could run code, which must be typed again.
    """
    given = {word.partition("=")[0] for word in typed}
    kept = [word for word in record.place if word.partition("=")[0] not in given]
    for word in kept:
        if RUNS_CODE.match(word) or FUNCTION.search(word):
            raise UserError(
                f"{directory} was started with {word}, which is not taken from a file: give it "
                f"again, or say with cluster=… where its jobs go on"
            )
    return kept
