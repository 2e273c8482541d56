"""How OpenMP's threads wait for each other, which is settled before PyTorch is loaded.

PyTorch shares an operation among threads, and a thread that has done its part waits for the others.
GNU's OpenMP, which PyTorch's builds for Linux bring, has it spin for milliseconds before it sleeps.
On a quiet machine that saves the time to wake up: 15 to 45 % of a step of a small network. Beside
other processes it burns the time that the other threads need to finish, and a step takes up to
three times as long (``benchmarks/neighbours.py``). No value serves both, and it cannot be changed
later; nor can the number of threads, on which the last bits of sums depend. So each command looks
at the machine once, when it starts.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from betasigma.cpus import usable_cpus

SPIN_COUNT = "GOMP_SPINCOUNT"
"""Environment variable of the turns in which a thread waits before it sleeps."""

USERS_OWN = (SPIN_COUNT, "OMP_WAIT_POLICY")
"""Environment variables that decide it. One that is set stays."""

QUIET, BUSY = 300_000, 100
"""Turns on a quiet machine (as OpenMP has it by itself) and beside other processes."""

LOOK_SECONDS = 0.1
"""How long the machine is looked at."""


def choose_waiting(root: Path = Path("/")) -> None:
    """Set how long threads wait, in this process and those that it starts, unless the user has.

    Without effect where PyTorch is loaded already.

    Args:
        root: where ``/proc`` is.
    """
    if not any(name in os.environ for name in USERS_OWN):
        idle = _idle_cpus(root)
        enough = idle is None or idle > usable_cpus() - 0.5
        os.environ[SPIN_COUNT] = str(QUIET if enough else BUSY)


def _idle_cpus(root: Path) -> float | None:
    """How many of the CPUs that this process may run on are idle while it sleeps; ``None`` where
    the system does not tell.
    """
    before = _idle_ticks(root)
    time.sleep(LOOK_SECONDS)
    after = _idle_ticks(root)
    if before is None or after is None:
        return None
    return (after - before) / os.sysconf("SC_CLK_TCK") / LOOK_SECONDS


def _idle_ticks(root: Path) -> int | None:
    """Time that these CPUs have been idle, in the kernel's ticks."""
    try:
        lines = (root / "proc/stat").read_text(encoding="utf-8").splitlines()
        own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # another system than Linux
        return None
    counts = [line.split() for line in lines if line.partition(" ")[0] in own]
    return sum(int(idle) + int(waiting) for _, _, _, _, idle, waiting, *_ in counts)
