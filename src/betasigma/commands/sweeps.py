"""What became of a sweep's jobs, told in a few lines, wherever they ran."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from betasigma.errors import UserError
from betasigma.training.runs import short
from betasigma.training.status import FAILED, FINISHED, INTERRUPTED, STATUS, read_status

LOGS = "slurm"
"""Folder of the sweep directory with SLURM's logs, by job."""


class Sweep(NamedTuple):
    """A sweep that was started."""

    directory: Path
    jobs: list[list[str]]
    """Overrides of each job, by number."""


class JobFailed(UserError):
    """A job of a sweep ended with an error, which its run directory tells.

    It stands for the error itself, which may not survive the way back from another machine.
    """


def report(sweep: Sweep, error: Exception) -> str | None:
    """What to print when a sweep ends with ``error``: every job that failed and where it says why.

    Returns:
        ``None`` where no job had anything to do with it.
    """
    runs = {path.parent: read_status(path.parent) for path in _statuses(sweep)}
    lines = [
        f"{short(run)}: {status.get('error')}"
        for run, status in runs.items()
        if status.get("status") in (FAILED, INTERRUPTED)
    ]
    lost = _lost(sweep, error)
    if lost:
        lines.append(lost)
    if not lines:
        return _refused(error)
    ended = sum(status.get("status") == FINISHED for status in runs.values()) + len(lines)
    text = f"{len(lines)} of {len(sweep.jobs)} jobs failed (tracebacks in error.txt):"
    text = "\n  ".join([text, *lines])
    if ended < len(sweep.jobs):
        text += f"\n{len(sweep.jobs) - ended} jobs have not ended; squeue --me shows them"
    return text


def closing(sweep: Sweep) -> str:
    """What to print when all jobs of a sweep have done their work."""
    count = len(sweep.jobs)
    return f"{count} job{'s' if count > 1 else ''} finished, in {short(sweep.directory)}"


def left_behind(sweep: Sweep) -> str | None:
    """What to print when a person stops waiting for a sweep on a cluster."""
    folders = [path.name for path in (sweep.directory / LOGS).glob("[0-9]*")]
    if not folders:
        return None
    numbers = sorted({name.partition("_")[0] for name in folders})
    return (
        f"no longer waiting; the jobs go on, into {short(sweep.directory)} "
        f"(scancel {' '.join(numbers)} ends them)"
    )


def _statuses(sweep: Sweep) -> list[Path]:
    """Status files of the jobs, by job number."""

    def number(path: Path) -> tuple[int, str]:
        digits = re.match(r"\d+", path.parent.name)
        return (int(digits[0]) if digits else len(sweep.jobs), path.parent.name)

    return sorted(sweep.directory.glob(f"*/{STATUS}"), key=number)


def _lost(sweep: Sweep, error: Exception) -> str | None:
    """Which job SLURM lost, where the launcher says that it brought back no result."""
    found = re.search(r"Job (\d+(?:_(\d+))?) .*\(state: ([^)]*)\)", str(error), re.DOTALL)
    if type(error).__name__ != "UncompletedJobError" or not found:
        return None
    job, number, state = found[1], int(found[2] or 0), found[3]
    name = next(
        (str(short(path.parent)) for path in _statuses(sweep) if _is(path, job)),
        f"job {number} ({' '.join(sweep.jobs[number])})",
    )
    log = short(sweep.directory) / LOGS / job
    return f"{name}: ended without a result, SLURM says {state}; its log is in {log}"


def _is(path: Path, job: str) -> bool:
    return read_status(path.parent).get("slurm_job") == job


def _refused(error: Exception) -> str | None:
    """Why SLURM took no job, or what a job died of before it had a directory."""
    if not type(error).__module__.startswith("submitit."):
        return None
    text = str(error)
    if "failed during processing" in text:
        trace = [line for line in text.partition("----\n")[2].splitlines() if line.strip()]
        last = next((line for line in trace if re.match(r"[\w.]+(Error|Exception)\b", line)), "")
        return f"a job could not start: {last or trace[-1]}"
    reasons = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()]
    return f"SLURM did not take the jobs: {'; '.join(reasons)}"
