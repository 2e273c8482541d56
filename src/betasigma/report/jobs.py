"""The jobs of a sweep as a table, and what the sweep ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from betasigma.display import Display, clock
from betasigma.errors import counted
from betasigma.options.drawing import DrawingOptions
from betasigma.report.runs import COMPOSED, read_run
from betasigma.runs import job_states
from betasigma.runs.directory import CONFIG, short
from betasigma.runs.record import METRICS
from betasigma.runs.status import ERROR, FINISHED, RUNNING
from betasigma.runs.sweep_record import SweepRecord, read_sweep

FEW_ROWS = 40
"""Jobs that a sweep's last table shows; of more it leaves out those that have finished."""

WORDS = ("state", "node", "SLURM", "error")

LONGEST_ERROR = 160
"""Most characters of an error in a table."""

COLUMNS = ["job", "state", "step", "steps/s", "left", "node", "SLURM", "error"]


def show_jobs(
    sweep: Path, jobs: Sequence[job_states.JobState], display: Display, most: int | None = None
) -> None:
    """Print the jobs of a sweep as a table."""
    states = Counter(job.state for job in jobs)
    counts = ", ".join(f"{number} {state}" for state, number in states.most_common())
    all_of_them = most is None or len(jobs) <= most
    shown = [_cells(job) for job in jobs if all_of_them or job.state != FINISHED]
    title = f"{short(sweep)}: {counts or 'no jobs'}"
    if not shown:
        display.line(title)
        return
    used = [n for n in range(len(COLUMNS)) if n < 2 or any(row[n] for row in shown)]
    cells = [[row[n] for n in used] for row in shown]
    display.table(title, [COLUMNS[n] for n in used], cells, WORDS)


def _cells(job: job_states.JobState) -> list[str]:
    steps = "" if job.steps is None else f"/{job.steps}"
    step = job.work or (f"{job.step or 0}{steps}" if job.step is not None or steps else "")
    return [
        job.directory.name,
        job.state,
        step,
        f"{job.per_second:.3g}" if job.per_second else "",
        clock(job.seconds_left) if job.seconds_left is not None and job.state == RUNNING else "",
        job.node,
        job.slurm,
        shorten(job.error, LONGEST_ERROR, placeholder="…"),
    ]


def end_sweep(
    sweep: Path, display: Display, look: DrawingOptions | None = None
) -> list[job_states.JobState]:
    """Print what a sweep ends with: its jobs, and one table of what the finished ones measured.

    Training runs that differ only in the seed share a row; an evaluation is one row.
    """
    from betasigma.report.tables import report_evaluations, report_runs  # seconds, with PyTorch

    look = look or DrawingOptions()
    jobs = job_states.read_jobs(sweep)
    show_jobs(sweep, jobs, display, FEW_ROWS)
    finished = [job.directory for job in jobs if job.state == FINISHED]
    app = _app(read_sweep(sweep), finished)
    config = COMPOSED if app == "evaluate" else CONFIG
    measured = [run for run in finished if (run / METRICS).is_file() and (run / config).is_file()]
    if app == "evaluate" and measured:
        report_evaluations([read_run(run, config) for run in measured], sweep, look)
    elif app == "train" and len(measured) > 1:
        report_runs([read_run(run) for run in measured], sweep, look=look)
    return jobs


def _app(record: SweepRecord | None, runs: Sequence[Path]) -> str:
    """Which app the jobs of a sweep run; of an earlier version's by what its jobs have left."""
    if record is not None:
        return record.app
    return "train" if any((run / CONFIG).is_file() for run in runs) else "evaluate"


def say_failures(jobs: Sequence[job_states.JobState]) -> str | None:
    """Which jobs have failed, and why; ``None`` if none has."""
    bad = [job for job in jobs if job.state in job_states.ENDED_BADLY]
    if not bad:
        return None
    told = any((job.directory / ERROR).is_file() for job in bad)
    text = f"{len(bad)} of {counted(len(jobs), 'job')} failed"
    text += f" (tracebacks in their {ERROR}):" if told else ":"
    text = "\n  ".join([text, *(f"{short(job.directory)}: {job.error}" for job in bad)])
    going_on = sum(job.state in job_states.UNDER_WAY for job in jobs)
    if going_on:
        text += f"\n{counted(going_on, 'job')} not ended yet: squeue --me"
    begun_never = sum(job.state == job_states.NOT_BEGUN for job in jobs)
    if begun_never:
        text += f"\n{counted(begun_never, 'job')} never begun"
    return text
