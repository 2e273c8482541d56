"""``activity.json``: what a run does now, how far it is and how fast. No heavy imports."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from betasigma.runs.files import read_json, write_json

ACTIVITY = "activity.json"
"""Name of the file in a run directory."""


class Activity(NamedTuple):
    """A piece of work of a run.

    Attributes:
        work: what it is: ``training``, ``sampling``.
        done: units of it.
        total: units of it.
        per_second: units; 0 before the first.
        time: when this was so, in seconds since 1970.
    """

    work: str
    done: int
    total: int
    per_second: float
    time: float

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it ends; ``None`` before the first unit."""
        return (self.total - self.done) / self.per_second if self.per_second else None


class ActivityLog:
    """Keeps the newest state of each piece of work of a run in its directory.

    Args:
        run: the directory.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._known: dict[str, Any] = {}

    def note(self, work: str, done: int, total: int, per_second: float) -> None:
        """Note how far a piece of work is. A disk that cannot be written is not said here."""
        found = Activity(work, done, total, per_second, time.time())
        self._known.pop(work, None)
        self._known[work] = found._asdict()
        with suppress(OSError):
            self._run.stat()  # a directory that was deleted is not made again
            write_json(self._run / ACTIVITY, self._known)


def read_activities(run: Path) -> dict[str, Activity]:
    """What a run has done and does, by name of the work, the newest last."""
    found = {}
    for work, content in read_json(run / ACTIVITY).items():
        with suppress(LookupError, TypeError, ValueError):
            done, total = int(content["done"]), int(content["total"])
            pace, when = float(content["per_second"]), float(content["time"])
            found[work] = Activity(work, done, total, pace, when)
    return found
