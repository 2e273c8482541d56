"""How many CPUs this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from betasigma.control_groups import control_groups

PER_TASK, ON_NODE = "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"
"""SLURM's environment variables for the CPUs of each process of a job, and of the job on this node.
"""


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may run on, within the quota of its container; at least 1.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    # rounded up: one thread cannot use up a quota of 1.5 CPUs, and two can
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def cpus_of_a_process(processes: int) -> int:
    """CPUs for each of the processes of a run on this machine; at least 1.

    A job of SLURM has those that it was given, also where nothing keeps it off the others.
    """
    per_task, on_node = (os.environ.get(name, "") for name in (PER_TASK, ON_NODE))
    share = min([usable_cpus(), *map(int, filter(str.isdecimal, [on_node]))]) // processes
    return max(1, min(usable_cpus(), int(per_task)) if per_task.isdecimal() else share)


def _quotas(root: Path) -> Iterator[float]:
    """Quotas, in CPUs, of the control groups that this process is in."""
    for version, folder in control_groups("cpu", root):
        found = _second(folder) if version == 2 else _first(folder)
        if found is not None:
            yield found


def _second(group: Path) -> float | None:
    """``cpu.max`` of version 2: microseconds of CPU time in a period, or ``max``."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _first(group: Path) -> float | None:
    """The two files of version 1; a quota of −1 is none."""
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
