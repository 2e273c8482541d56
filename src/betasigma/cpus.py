"""How many CPUs this process may use, how many of them others leave idle, and the control groups by
which Linux, containers and jobs limit it.

PyTorch shares an operation among threads that wait for one another. Where other processes take
CPUs, all wait for the slowest thread: beside one busy process, two threads on two CPUs do a sixth
of what one does, or at best as much (``benchmarks/neighbours.py``). So a command, and each job of a
sweep, looks at the machine when it starts, and takes as many threads as CPUs are idle then. It goes
on looking, and follows those that come to stay or leave; not sooner, since the last bits of sums
depend on the number.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """A group, of version 1 or 2 of the system, whose files hold its limits."""

    version: int
    folder: Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups whose ``controller`` (``cpu``, ``memory``) limits this process, each before those
    above it, whose limits hold as well. ``/proc`` and ``/sys`` are in ``root``.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        path_in_tree = PurePosixPath(path.lstrip("/"))
        for group in (path_in_tree, *path_in_tree.parents):
            yield ControlGroup(1 if controllers else 2, top / controllers / group)


PER_TASK, ON_NODE = "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"
"""SLURM's environment variables for the CPUs of each process of a job, and of the job on this node.
"""


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may run on, within the quota of its container; at least 1."""
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    # rounded up: one thread cannot use up a quota of 1.5 CPUs, and two can
    return max(1, min([count, *map(math.ceil, _quotas(root).values())]))


def cpus_of_a_process(processes: int) -> int:
    """CPUs for each of the processes of a run on this machine; at least 1.

    A job of SLURM has those that it was given, also where nothing keeps it off the others.
    """
    per_task, on_node = (os.environ.get(name, "") for name in (PER_TASK, ON_NODE))
    share = min([usable_cpus(), *map(int, filter(str.isdecimal, [on_node]))]) // processes
    return max(1, min(usable_cpus(), int(per_task)) if per_task.isdecimal() else share)


THREADS = "OMP_NUM_THREADS"
"""Environment variable of the number of threads, which a user, a cluster or joblib sets."""

THREADS_OF_USER = {THREADS, "MKL_NUM_THREADS"}
"""Environment variables that PyTorch takes its number of threads from."""

LOOK_SECONDS = 0.1
"""How long the machine is looked at."""

_idle_at_start: list[int | None] = []


def look_for_idle_cpus(root: Path = Path("/")) -> None:
    """Count the CPUs that other processes leave idle now, unless the environment has a number of
    threads.
    """
    if not os.environ.keys() & THREADS_OF_USER:
        _idle_at_start[:] = [_idle_cpus(root)]


def idle_cpus() -> int:
    """CPUs that were idle when this process looked, of those that it may run on; at least 1, and
    all where it has not looked or the system does not tell.
    """
    found = _idle_at_start[0] if _idle_at_start else None
    return usable_cpus() if found is None else max(1, min(found, usable_cpus()))


def _idle_cpus(root: Path) -> int | None:
    look = Look(root)
    time.sleep(LOOK_SECONDS)
    return look.idle(LOOK_SECONDS)


class Look:
    """A look at the machine, from when it is made on. ``/proc`` and ``/sys`` are in ``root``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root, self._quotas = root, _quotas(root)
        self._before, self._workers_before = self._seconds(), self._workers()

    def idle(self, passed: float) -> int | None:
        """CPUs that others have left idle in the seconds that have passed, of the machine and of
        the quota of each control group; ``None`` where the system does not tell.
        """
        spent = zip(self._before, self._seconds(), strict=True)
        own, idle, *used = ((later - earlier) / passed for earlier, later in spent)
        if math.isnan(idle):
            return None
        # threads that earlier jobs have left in this process are no neighbours, nor are workers
        for worker, seconds in self._workers().items():
            own += (seconds - self._workers_before.get(worker, 0)) / passed
        quotas = self._quotas.values()
        left = (math.ceil(q) - round(u - own) for q, u in zip(quotas, used, strict=True))
        return min([round(idle + own), *left])

    def _seconds(self) -> list[float]:
        used = map(_used_seconds, self._quotas)
        return [time.process_time(), _idle_seconds(self._root), *used]

    def _workers(self) -> dict[str, float]:
        """CPU time of the processes that this one has started and that have not ended."""
        lists = (self._root / "proc/self/task").glob("*/children")
        numbers = [number for file in lists for number in _read(file).split()]
        return {number: _seconds_of(self._root / "proc" / number) for number in numbers}


def _seconds_of(process: Path) -> float:
    """CPU time of a process; 0 where it has just ended."""
    _, _, after = _read(process / "stat").rpartition(") ")  # a name may have brackets
    numbers = after.split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK") if numbers else 0.0


def _idle_seconds(root: Path) -> float:
    """Time that the CPUs of this process have been idle; NaN where the system does not tell."""
    try:
        lines = (root / "proc/stat").read_text(encoding="utf-8").splitlines()
        own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # another system than Linux
        return math.nan
    counts = [line.split() for line in lines if line.partition(" ")[0] in own]
    ticks = sum(int(idle) + int(waiting) for _, _, _, _, idle, waiting, *_ in counts)
    return ticks / os.sysconf("SC_CLK_TCK")


def _quotas(root: Path) -> dict[ControlGroup, float]:
    """Quotas, in CPUs, of the control groups that this process is in and that have one."""
    found = {}
    for group in control_groups("cpu", root):
        version, folder = group
        if version == 2:  # microseconds of CPU time in a period, or ``max``
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:  # a quota of −1 is none
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            found[group] = int(quota) / int(period)
    return found


def _used_seconds(group: ControlGroup) -> float:
    """CPU time of all processes of a group; 0 where the system does not tell."""
    if group.version == 2:
        _, _, after = _read(group.folder / "cpu.stat").partition("usage_usec ")
        return int(after.split()[0]) / 1e6 if after else 0.0
    return int(_read(group.folder / "cpuacct.usage") or 0) / 1e9


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
