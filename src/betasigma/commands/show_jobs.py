"""What ``scripts/jobs.py`` does: show where each job of a sweep is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from betasigma.commands.config import parsed
from betasigma.display import Display
from betasigma.options.apps import Jobs
from betasigma.report.jobs import FEW_ROWS, end_sweep, say_failures, show_jobs
from betasigma.runs.job_states import UNDER_WAY, read_jobs
from betasigma.runs.start import Start
from betasigma.runs.status import FINISHED


def show_sweep(config: DictConfig, start: Start) -> None:
    """Print the jobs of a sweep.

    Raises:
        SystemExit: with status 1, of ``conclude=true``, unless all jobs have finished.
    """
    _, asked = parsed(config, Jobs)
    sweep, display = Path(asked.sweep).expanduser(), Display()
    jobs = read_jobs(sweep, asked.quiet_minutes)
    while asked.watch and any(job.state in UNDER_WAY for job in jobs):
        display.console.clear()
        show_jobs(sweep, jobs, display, FEW_ROWS)
        time.sleep(asked.every)
        jobs = read_jobs(sweep, asked.quiet_minutes)
    if not asked.conclude:
        show_jobs(sweep, jobs, display)
        return
    jobs = end_sweep(sweep, display, asked)
    if text := say_failures(jobs):
        print(f"error: {text}", file=sys.stderr)
    if any(job.state != FINISHED for job in jobs):
        sys.exit(1)
