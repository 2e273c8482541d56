"""Report how the jobs of a sweep ended, on this machine or on a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from betasigma.errors import UserError
from betasigma.runs.directory import CONFIG, short
from betasigma.runs.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    STATUS,
    job_number,
    read_status,
)

LOGS = "slurm"
"""Folder of SLURM's logs in the sweep directory, one folder per job."""


class Sweep(NamedTuple):
    """A sweep that was started."""

    directory: Path
    jobs: list[list[str]]
    """Overrides of each job, by number. Empty if the sweeper chooses them while it runs."""
    app: str = "train"
    """App that each job runs."""


class JobFailed(UserError):
    """A job of a sweep ended with an error. Its run directory has the traceback.

    It replaces the error itself, which may not be picklable between machines.
    """


def report(sweep: Sweep, error: Exception | None) -> str | None:
    """Return what to print about failed jobs: which, and why.

    Args:
        sweep: a sweep that has ended.
        error: the error that ended it, if any.

    Returns:
        ``None`` if no job failed.
    """
    runs = {path.parent: read_status(path.parent) for path in _statuses(sweep)}
    reasons = {
        str(short(run)): str(status.get("error"))
        for run, status in runs.items()
        if status.get("status") in (FAILED, INTERRUPTED)
    }
    lost = _lost(sweep, error, runs) if error else None
    if lost:
        name, reason = lost
        reasons[name] = "; ".join([*filter(None, [reasons.get(name)]), reason])
    if not reasons:
        return _refused(error) if error else None
    number = max(len(sweep.jobs), len(runs))
    text = f"{len(reasons)} of {number} jobs failed (tracebacks in their error.txt):"
    text = "\n  ".join([text, *(f"{name}: {reason}" for name, reason in reasons.items())])
    finished = sum(status.get("status") == FINISHED for status in runs.values())
    going_on = number - finished - len(reasons)
    if going_on > 0:
        text += f"\n{_count(going_on)} not ended yet: squeue --me"
    return text


def closing(sweep: Sweep) -> str:
    """Return what to print when all jobs have finished."""
    number = max(len(sweep.jobs), len(_statuses(sweep)))
    text = f"{_count(number)} finished, in {short(sweep.directory)}"
    found = sweep.directory / "optimization_results.yaml"
    return f"{text}; the best of them: {short(found)}" if found.is_file() else text


def conclude(sweep: Sweep) -> None:
    """Write one table of what the finished jobs have measured.

    An evaluation is one row. Training runs that differ only in the seed share a row.
    """
    from betasigma.report.runs import COMPOSED, finished_jobs, read_run
    from betasigma.report.tables import report_evaluations, report_runs

    if sweep.app == "evaluate":
        if jobs := finished_jobs(sweep.directory, COMPOSED):
            report_evaluations([read_run(job, COMPOSED) for job in jobs], sweep.directory)
    elif sweep.app == "train":
        jobs = finished_jobs(sweep.directory, CONFIG)
        if len(jobs) > 1:
            report_runs([read_run(job) for job in jobs], sweep.directory)


def left_behind(sweep: Sweep) -> str:
    """Return what to print when the user stops a sweep, or stops waiting for one on a cluster."""
    folders = [path.name for path in (sweep.directory / LOGS).glob("[0-9]*")]
    if not folders:
        states = [read_status(path.parent).get("status") for path in _statuses(sweep)]
        finished = states.count(FINISHED)
        text = (
            f"stopped: {_count(finished)} finished, {len(states) - finished} begun and not finished"
        )
        if sweep.jobs:
            text += f", {max(0, len(sweep.jobs) - len(states))} never begun"
        return (
            f"{text}; to go on, give the same command with hydra.sweep.dir={short(sweep.directory)}"
        )
    numbers = sorted({name.partition("_")[0] for name in folders})
    return (
        f"no longer waiting; the jobs go on, into {short(sweep.directory)} "
        f"(scancel {' '.join(numbers)} ends them)"
    )


def _statuses(sweep: Sweep) -> list[Path]:
    """Status files of the jobs, by job number."""
    return sorted(sweep.directory.glob(f"*/{STATUS}"), key=lambda path: job_number(path.parent))


def _lost(
    sweep: Sweep, error: Exception, runs: dict[Path, dict[str, Any]]
) -> tuple[str, str] | None:
    """Return the job without a result, and what SLURM says of it."""
    found = re.search(r"Job (\d+(?:_(\d+))?) .*\(state: ([^)]*)\)", str(error), re.DOTALL)
    if type(error).__name__ != "UncompletedJobError" or not found:
        return None
    job, number, state = found[1], int(found[2] or 0), found[3]
    own = [str(short(run)) for run, status in runs.items() if status.get("slurm_job") == job]
    words = f" ({' '.join(sweep.jobs[number])})" if sweep.jobs else ""
    name = own[0] if own else f"job {number}{words}"
    log = short(sweep.directory) / LOGS / job
    return name, f"ended without a result, SLURM says {state}; its log is in {log}"


def _count(jobs: int) -> str:
    return f"{jobs} job{'s' if jobs != 1 else ''}"


def _refused(error: Exception) -> str | None:
    """Return why SLURM accepted no job, or why a job ended before it had a directory."""
    if not type(error).__module__.startswith("submitit."):
        return None
    text = str(error)
    if "failed during processing" in text:
        trace = [line for line in text.partition("----\n")[2].splitlines() if line.strip()]
        last = next((line for line in trace if re.match(r"[\w.]+(Error|Exception)\b", line)), "")
        return f"a job could not start: {last or trace[-1]}"
    reasons = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()]
    return f"SLURM did not take the jobs: {'; '.join(reasons)}"
