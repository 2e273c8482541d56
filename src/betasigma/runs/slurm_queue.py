"""What SLURM says of its jobs. No heavy imports."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from betasigma.runs.status import seconds_of

TIMEOUT = 30.0
"""Seconds that SLURM has for an answer."""

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
"""States of a job that SLURM will start, again or for the first time."""


class QueuedJob(NamedTuple):
    """A job that has not ended.

    Attributes:
        state: SLURM's word for it.
        node: where it runs.
        reason: why it waits.
        began: when it was started, in seconds since 1970; 0 where it was not.
    """

    state: str
    node: str
    reason: str
    began: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether it waits for a start."""
        return self.state in WAITING


class Partition(NamedTuple):
    """A part of a cluster.

    Attributes:
        minutes: longest time limit; ``None`` for no limit.
        default: whether jobs go there that name none.
    """

    minutes: int | None
    default: bool


def queued_jobs() -> dict[str, QueuedJob] | None:
    """The user's jobs that have not ended, by SLURM's id (``12``, of an array ``12_3``); ``None``
    where SLURM does not answer.
    """
    said = _ask(
        "squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%N|%S|%r"
    )
    if said is None:
        return None
    found = {}
    for line in said.splitlines():
        if line.count("|") >= 4:
            job, state, node, began, reason = line.split("|", 4)
            when = 0.0 if state in WAITING else seconds_of(began)
            found[job.strip()] = QueuedJob(state, node, reason.strip("() "), when)
    return found


def is_preempted(job: str) -> bool:
    """Whether SLURM ends a job to make room for another one."""
    said = _ask("scontrol", "--oneliner", "show", "job", job)
    return re.search(r"\bPreemptTime=\d", said or "") is not None


def how_they_ended(ids: Iterable[str]) -> dict[str, str]:
    """How jobs have ended, by id, in SLURM's words; empty where its accounting is off."""
    wanted = sorted({job.partition("_")[0] for job in ids})
    if not wanted:
        return {}
    named = [word for job in wanted for word in ("-j", job)]
    said = _ask("sacct", "-n", "-X", "--parsable2", "-o", "JobID,State", *named)
    pairs = [line.split("|") for line in (said or "").splitlines() if "|" in line]
    return {pair[0]: pair[1] for pair in pairs if not pair[0].endswith("]")}


def partitions() -> dict[str, Partition] | None:
    """The partitions of the cluster, by name; ``None`` where SLURM does not answer."""
    said = _ask("sinfo", "--noheader", "--format=%P|%l")
    if said is None:
        return None
    found = {}
    for line in said.splitlines():
        name, _, limit = line.strip().partition("|")
        if name:
            found[name.rstrip("*")] = Partition(_minutes(limit), name.endswith("*"))
    return found


def _minutes(limit: str) -> int | None:
    """Minutes of SLURM's ``days-hours:minutes:seconds``; ``None`` for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not found:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return (24 * days + hours) * 60 + minutes


def _ask(*command: str) -> str | None:
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # whatever the user likes to see
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
