"""Where each job of a sweep is. No heavy imports.

Everything is read from the sweep's directory and asked of SLURM, so that it can be known whatever
has happened to the command that started the sweep.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from betasigma.errors import counted
from betasigma.runs.directory import LOG, SUMMARY, short
from betasigma.runs.files import read_json
from betasigma.runs.lock import is_held
from betasigma.runs.record import METRICS
from betasigma.runs.slurm_queue import QueuedJob, how_they_ended, queued_jobs
from betasigma.runs.status import (
    ACTIVITY,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STATUS,
    job_number,
    read_activities,
    read_status,
    written_at,
)
from betasigma.runs.sweep_record import RecordedJob, read_sweep

LOGS = "slurm"
"""Folder of SLURM's logs in the sweep directory, one folder per job."""

QUEUED, STALLED, PREEMPTED, UNKNOWN = "queued", "stalled", "preempted", "unknown"
STOPPED, NOT_BEGUN = "stopped", "not begun"

UNDER_WAY = (RUNNING, STALLED, QUEUED, PREEMPTED, UNKNOWN)
"""States of jobs that somebody still works on, or will, as far as is known."""

ENDED_BADLY = (FAILED, STOPPED)
"""States of jobs that would be launched once more."""

QUIET_MINUTES = 10
"""Minutes without a sign of life after which a running job counts as stalled."""

UNANSWERED = "it has not begun, and SLURM does not answer: it may wait or have ended"

TRAINING = "training"

OF_AN_ERROR = re.compile(r"[\w.]*(Error|Exception)\b|slurm|srun")
"""Begins the lines of a job's log that say why it ended."""


class JobState(NamedTuple):
    """Where a job of a sweep is.

    Attributes:
        directory: of its run.
        state: queued, running, stalled (running without a sign of life), preempted (stopped, and
            waiting for its next start), stopped, failed, finished, not begun, or unknown (SLURM has
            taken it, and does not say what became of it).
        step: that it has reached; ``None`` where nothing is known.
        steps: that it is to take.
        per_second: steps.
        work: what it does now, where that is not training, and how much of it is done.
        seconds_left: of what it does now.
        error: why it failed, stopped or waits, in one sentence.
        node: where it runs or ran.
        slurm: SLURM's id of it.
    """

    directory: Path
    state: str
    step: int | None = None
    steps: int | None = None
    per_second: float | None = None
    work: str = ""
    seconds_left: float | None = None
    error: str = ""
    node: str = ""
    slurm: str = ""


def read_jobs(sweep: Path, quiet_minutes: float = QUIET_MINUTES) -> list[JobState]:
    """Find out where each job of a sweep is, in the order of their numbers. A running job without a
    sign of life for so many minutes is stalled.
    """
    record = read_sweep(sweep)
    jobs = list(record.jobs) if record else []
    if record is None or record.search:  # its jobs are those that have begun
        begun = sorted((path.parent for path in sweep.glob(f"*/{STATUS}")), key=job_number)
        jobs += [RecordedJob(run.name, []) for run in begun]
    statuses = {job.directory: read_status(sweep / job.directory) for job in jobs}
    # a job that was submitted again has not written its status yet
    slurm = {
        job.directory: _newest(statuses[job.directory].get("slurm_job"), job.slurm) for job in jobs
    }
    queue = queued_jobs() if any(slurm.values()) else {}
    lost = [
        slurm[name]
        for name, status in statuses.items()
        if slurm[name] and queue is not None and slurm[name] not in queue and not _ended(status)
    ]
    asked = _Asked(queue, how_they_ended(lost), is_held(sweep), quiet_minutes)
    return [
        _state(sweep / job.directory, job, statuses[job.directory], slurm[job.directory], asked)
        for job in jobs
    ]


class _Asked(NamedTuple):
    """What is known of all jobs of a sweep."""

    queue: Mapping[str, QueuedJob] | None
    ends: Mapping[str, str]
    goes_on: bool
    """Whether the command that started it runs."""
    quiet_minutes: float


def _state(
    run: Path, job: RecordedJob, status: Mapping[str, Any], slurm: str, asked: _Asked
) -> JobState:
    queue = asked.queue
    waiting = (queue or {}).get(slurm)
    if slurm and _is_of_an_earlier_start(run, status, slurm, waiting):
        status = {}  # it was submitted or started once more, and has not said so yet
    elif status.get("slurm_job") is None and waiting is None:
        slurm = ""  # it was continued without SLURM, which knows nothing of that
    word = status.get("status")
    works = read_activities(run)
    trained = works.get(TRAINING)
    now = next(reversed(works.values()), None)
    found = JobState(
        run,
        str(word or NOT_BEGUN),
        step=trained.done if trained else None,
        steps=trained.total if trained else job.steps,
        per_second=trained.per_second if trained else None,
        error=str(status.get("error") or ""),
        node=str(status.get("host") or ""),
        slurm=slurm,
    )
    if word == FINISHED:
        step = read_json(run / SUMMARY).get("step", found.step)
        return found._replace(step=step)
    if waiting is not None and waiting.waits:
        again = PREEMPTED if status else QUEUED
        why = "; ".join(filter(None, [found.error, waiting.reason.replace("None", "")]))
        return found._replace(state=again, error=why)
    if word in (FAILED, INTERRUPTED):
        return found._replace(state=FAILED if word == FAILED else STOPPED)
    if word is None:
        if waiting is not None:
            return found._replace(state=RUNNING, node=waiting.node)
        if slurm and queue is None:
            return found._replace(state=UNKNOWN, error=UNANSWERED)
        if slurm:
            return found._replace(state=FAILED, error=_unsaid(run, slurm, asked.ends))
        return found._replace(state=QUEUED if asked.goes_on else NOT_BEGUN)
    if slurm and queue is not None and waiting is None:
        return found._replace(state=FAILED, error=_unsaid(run, slurm, asked.ends))
    if not slurm and is_dead(status):
        died = f"process {status.get('process')} has ended without saying why; it was killed"
        return found._replace(state=STOPPED, error=died)
    quiet = time.time() - max(last_sign(run), waiting.began if waiting is not None else 0.0)
    if quiet > 60 * asked.quiet_minutes:
        silent = f"no sign of life for {counted(round(quiet / 60), 'minute')}"
        return found._replace(state=STALLED, error=silent)
    if now is None:
        return found
    shown = "" if now.work == TRAINING else f"{now.work} {100 * now.done // max(1, now.total)} %"
    return found._replace(work=shown, seconds_left=now.seconds_left)


def _is_of_an_earlier_start(
    run: Path, status: Mapping[str, Any], slurm: str, queued: QueuedJob | None
) -> bool:
    """Whether a status is of a start before the last one that SLURM knows. A run that was continued
    without SLURM since then has a later one.
    """
    job = status.get("slurm_job")
    if job is not None and str(job) != slurm:
        return True
    if job is None:
        folder = run.parent / LOGS / slurm
        return not folder.is_dir() or written_at(status, "started") < int(folder.stat().st_mtime)
    return _ended(status) and queued is not None and queued.began > written_at(status, "ended")


def _ended(status: Mapping[str, Any]) -> bool:
    return status.get("status") in (FINISHED, FAILED, INTERRUPTED)


def _newest(*ids: Any) -> str:
    """The one of SLURM's ids that it has given last; ``""`` where there is none."""
    numbers = {str(job): re.match(r"\d+", str(job)) for job in ids if job}
    return max(numbers, key=lambda job: int(found[0]) if (found := numbers[job]) else 0, default="")


def is_dead(status: Mapping[str, Any]) -> bool:
    """Whether the process of a run was on this machine and no longer exists."""
    process, here = status.get("process"), status.get("host") == socket.gethostname()
    known = here and isinstance(process, int) and Path("/proc").is_dir()
    return known and not Path(f"/proc/{process}").exists()


def last_sign(run: Path) -> float:
    """When a run has last written something that shows that it goes on."""
    times = [0.0]
    for name in (STATUS, ACTIVITY, LOG, METRICS):
        with suppress(OSError):
            times.append((run / name).stat().st_mtime)
    return max(times)


def _unsaid(run: Path, slurm: str, ends: Mapping[str, str]) -> str:
    """Why a job has ended that could not say it itself."""
    folder = run.parent / LOGS / slurm
    how = ends.get(slurm)
    text = f"ended without saying why{f', SLURM says {how}' if how else ''}"
    logs = sorted(folder.glob("*_log.err"))
    for log in logs:
        lines = log.read_text("utf-8", "replace").splitlines()[-200:]
        errors = [line.strip() for line in lines if OF_AN_ERROR.match(line)]
        if errors:
            text += f": {errors[-1]}"
            break
    return f"{text}; {'its log is' if logs else 'it left no log'} in {short(folder)}"
