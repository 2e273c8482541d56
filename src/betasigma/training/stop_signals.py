"""The signals that stop a command, and what SLURM is asked then. No heavy imports: a signal may
come while PyTorch is still being imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from betasigma.errors import Stopped
from betasigma.runs.header import newest_step
from betasigma.runs.slurm_queue import is_preempted
from betasigma.runs.status import process_rank, slurm_job

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a cluster says that a job's time ends."""

STOPS = (signal.SIGTERM, *WARNINGS)

IDLE_STARTS = 3
"""How often a job may be started again by SLURM without having taken a step."""


@contextmanager
def caught_signals() -> Iterator[None]:
    """Make the signals that stop a run raise :class:`Stopped` inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def queued_again(run: Path) -> Iterator[None]:
    """Have SLURM start the job again if the block is stopped, as :func:`queue_again` does."""
    begun = newest_step(run)
    try:
        yield
    except Stopped as stop:
        queue_again(stop, idle=newest_step(run) == begun)
        raise


def queue_again(stop: Stopped, idle: bool = True) -> None:
    """Ask SLURM, once for a stop, to start the job again if its time ends, or another job takes its
    place.

    Args:
        stop: what ends the job.
        idle: whether it has taken no step.
    """
    job = slurm_job()
    if job and process_rank() == 0 and not stop.asked and _goes_on(stop.number, job):
        stop.asked = True
        if idle and int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= IDLE_STARTS:
            _warn(f"SLURM job {job} is not queued again: it has not taken a step in its time")
        else:
            _queue(job)


def _goes_on(number: int, job: str) -> bool:
    """Whether a job that a signal has stopped is to be started again: its time ends, or another
    one takes its place. Of a job that ends by itself in its grace period SLURM thinks it is done.
    """
    return number in WARNINGS or (number == signal.SIGTERM and is_preempted(job))


def _queue(job: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which SLURM ends the job that it queues
    try:
        subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        _warn(f"SLURM does not queue job {job} again: {str(said).strip()}")


def _warn(text: str) -> None:
    from betasigma.display import warn

    warn(text)
