"""How a run ended: ``status.json``, and ``error.txt`` with its traceback; and what it does now:
``activity.json``. No heavy imports.

A job on a cluster has no terminal, and the launcher returns an exception without its stack. So
every run writes into its own directory how it ended.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from betasigma.errors import first_line
from betasigma.runs.files import read_json, write_json, write_text

STATUS, ERROR = "status.json", "error.txt"

BLOCK = 4096
"""Bytes that a disk gives to a file at a time."""

TASKS = "SLURM_STEP_NUM_TASKS"
"""SLURM's environment variable for the number of processes that one ``srun`` has started."""

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable of every process that ``torchrun`` has started."""

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


@contextmanager
def recorded(run: Path, job: int | None = None) -> Iterator[None]:
    """Record in ``status.json`` of ``run`` whether the block runs, finishes, fails or is stopped.

    Rank 0 records that the run has started and finished. A rank that fails records that and writes
    its traceback to a file of its own. The first failure is kept.
    """
    first = process_rank() == 0
    if first:
        for stale in run.glob("error*.txt"):
            stale.unlink()
        here = {"host": socket.gethostname(), "process": os.getpid(), "slurm_job": slurm_job()}
        _write(run, {"status": RUNNING, "started": _now(), "job": job, **here})
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide the error
            run.stat()  # a directory that was deleted is not made again
            write_text(error_file(run), traceback.format_exc())
        _end(run, FAILED, summary(error), getattr(error, "details", None))
        raise
    except BaseException as stop:
        _end(run, INTERRUPTED, "Ctrl-C" if isinstance(stop, KeyboardInterrupt) else str(stop))
        raise
    if first:
        _end(run, FINISHED)


def read_status(run: Path) -> dict[str, Any]:
    """The content of ``status.json``; ``{}`` if there is none."""
    return read_json(run / STATUS)


def written_at(status: Mapping[str, Any], key: str) -> float:
    """When a run ``started`` or ``ended``, in seconds since 1970; 0 where that is not said."""
    return seconds_of(status.get(key))


def seconds_of(moment: Any) -> float:
    """Seconds since 1970 of a moment as ISO 8601 writes it, which is local without a zone; 0 of
    anything else.
    """
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (TypeError, ValueError):
        return 0.0


def job_number(run: Path) -> tuple[int, str]:
    """What the run directories of a sweep are sorted by: the job's number. Directories of earlier
    versions have it at the beginning of their names only.
    """
    number = read_status(run).get("job")
    if isinstance(number, int):
        return number, run.name
    digits = re.match(r"\d+", run.name)
    return (int(digits[0]) if digits else sys.maxsize), run.name


def error_file(run: Path) -> Path:
    """Where this process writes the traceback of its failure."""
    rank = process_rank()
    return run / (ERROR if rank == 0 else f"error_rank{rank}.txt")


def process_rank() -> int:
    """Rank of this process in its run, from the launcher's environment variables: it is needed
    before there is a Trainer.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


class StartedBy(NamedTuple):
    """What has started this process as one of several."""

    name: str
    processes: int
    """How many, on all machines."""


def started_by() -> StartedBy | None:
    """``torchrun`` or ``srun``, where it has started this process as one of several."""
    named = {"torchrun": (TORCHRUN, "WORLD_SIZE"), "srun": ("SLURM_STEP_ID", TASKS)}
    for name, (mark, count) in named.items():
        processes = os.environ.get(count, "")
        if mark in os.environ and processes.isdecimal() and int(processes) > 1:
            return StartedBy(name, int(processes))
    return None


def summary(error: BaseException) -> str:
    """Type and first line of an error."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def _end(
    run: Path, status: str, error: str | None = None, details: Mapping[str, Any] | None = None
) -> None:
    content = read_status(run)
    if content.get("status") == FAILED:
        return
    ended = {"status": status, "ended": _now(), "error": error, **(details or {})}
    _write(run, {**content, **ended})


def _write(run: Path, content: dict[str, Any]) -> None:
    """Write the status. Blanks fill its block on the disk, so that on a full one its end can be
    written where its beginning stood.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    text += " " * (BLOCK - 1 - len(text.encode()) % BLOCK) + "\n"
    if not run.is_dir():
        return
    try:
        write_text(run / STATUS, text)
    except OSError:
        with suppress(OSError), (run / STATUS).open("r+b") as file:
            file.write(text.encode())
            file.truncate()


def slurm_job() -> str | None:
    """SLURM's id of the job that this process belongs to."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


ACTIVITY = "activity.json"
"""Name of the file in a run directory."""


class Activity(NamedTuple):
    """A piece of work of a run.

    Attributes:
        work: what it is: ``training``, ``sampling``.
        done: units of it.
        total: units of it.
        per_second: units; 0 before the first.
        time: when this was so, in seconds since 1970.
    """

    work: str
    done: int
    total: int
    per_second: float
    time: float

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it ends; ``None`` before the first unit."""
        return (self.total - self.done) / self.per_second if self.per_second else None


_ACTIVITY = TypeAdapter(Activity)


class ActivityLog:
    """Keeps the newest state of each piece of work of a run in its directory."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._known: dict[str, Any] = {}

    def note(self, work: str, done: int, total: int, per_second: float) -> None:
        """Note how far a piece of work is. A disk that cannot be written is not said here."""
        found = Activity(work, done, total, per_second, time.time())
        self._known.pop(work, None)
        self._known[work] = found._asdict()
        with suppress(OSError):
            self._run.stat()  # a directory that was deleted is not made again
            write_json(self._run / ACTIVITY, self._known)


def read_activities(run: Path) -> dict[str, Activity]:
    """What a run has done and does, by name of the work, the newest last."""
    found = {}
    for work, content in read_json(run / ACTIVITY).items():
        with suppress(ValidationError):
            found[work] = _ACTIVITY.validate_python(content)
    return found
