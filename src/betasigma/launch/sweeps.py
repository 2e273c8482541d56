"""The sweep that this process runs: what it launches, and how it ends."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from betasigma.errors import UserError, counted
from betasigma.runs.directory import short
from betasigma.runs.job_states import ENDED_BADLY
from betasigma.runs.lock import locked
from betasigma.runs.start import program
from betasigma.runs.status import FINISHED, STATUS, read_status
from betasigma.runs.sweep_record import read_sweep


class Sweep(NamedTuple):
    """A sweep that was started.

    Attributes:
        directory: of the sweep.
        launched: overrides of each job to launch, Hydra's own among them. Empty if the sweeper
            chooses them while it runs.
        names: of the directories of these jobs, relative to the sweep's, or absolute.
        app: that each job runs.
    """

    directory: Path
    launched: list[list[str]]
    names: list[str]
    app: str


class JobFailed(UserError):
    """A job of a sweep ended with an error. Its run directory has the traceback.

    It replaces the error itself, which may not be picklable between machines.
    """


_sweeps: list[Sweep] = []
"""The sweep that this process started, if any."""

_held = ExitStack()
"""Holds the lock of its directory."""


def begin_sweep(sweep: Sweep) -> None:
    """Remember the sweep, and hold its directory against another command."""
    _held.enter_context(locked(sweep.directory))
    _sweeps.append(sweep)


def this_sweep() -> Sweep | None:
    """The sweep that this process started, if any."""
    return _sweeps[-1] if _sweeps else None


def forget_sweep() -> None:
    """Let go of the sweep and of its directory."""
    _sweeps.clear()
    _held.close()


def end_here(error: Exception | None = None) -> None:
    """Say how the sweep of this process has ended, if there is one: its jobs as a table, what the
    finished ones measured, and with status 1 which of those that it has launched have failed.
    """
    sweep = this_sweep()
    if sweep is None:
        return
    text = _refused(error) if error else None
    if text is None:
        from betasigma.display import Display
        from betasigma.report.jobs import end_sweep, say_failures

        jobs = end_sweep(sweep.directory, Display())
        launched = {sweep.directory / name for name in sweep.names}
        own = [job for job in jobs if not launched or job.directory in launched]
        text = say_failures(own)
        if text is None and error is None:
            states = Counter(job.state for job in jobs)
            failed = sum(states[state] for state in ENDED_BADLY)
            before = f", {failed} of an earlier command failed" if failed else ""
            where = short(sweep.directory)
            print(
                f"{counted(states[FINISHED], 'job')} finished{before}, in {where}", file=sys.stderr
            )
            found = sweep.directory / "optimization_results.yaml"
            if found.is_file():
                print(f"the best of the search: {short(found)}", file=sys.stderr)
    if text:
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)


def left_behind(sweep: Sweep) -> str:
    """Return what to print when the user stops a sweep, or stops waiting for one on a cluster."""
    record = read_sweep(sweep.directory)
    jobs = record.jobs if record else []
    numbers = sorted({job.slurm.partition("_")[0] for job in jobs if job.slurm}, key=int)
    where = short(sweep.directory)
    if numbers:
        shown = shlex.join([*program("jobs", Path.cwd()), str(where)])
        return (
            f"no longer waiting; the jobs go on, into {where}: {shown} shows them, and with "
            f"conclude=true what they have measured (scancel {' '.join(numbers)} ends them)"
        )
    begun = [path.parent for path in sweep.directory.glob(f"*/{STATUS}")]
    finished = sum(read_status(run).get("status") == FINISHED for run in begun)
    going = len(begun) - finished
    text = f"stopped: {counted(finished, 'job')} finished, {going} begun and not finished"
    if sweep.launched:
        text += f", {max(0, len(jobs) - len(begun))} never begun"
    how = shlex.join([*program("train", Path.cwd()), "-m", f"resume={where}"])
    if sweep.app != "train":
        how = f"the same command with hydra.sweep.dir={where}"
    elif not sweep.launched:
        how = (
            "the same command, where the sweeper has kept its trials (of Optuna in "
            "hydra.sweeper.storage, and with another hydra.sweeper.sampler.seed)"
        )
    return f"{text}; to go on: {how}"


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
