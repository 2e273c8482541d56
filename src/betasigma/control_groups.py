"""Control groups that this process is in, by which Linux, containers and jobs limit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """A group, of version 1 or 2 of the system, whose files hold its limits."""

    version: int
    folder: Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups whose ``controller`` (``cpu``, ``memory``) limits this process, each before those
    above it, whose limits hold as well.

    Args:
        controller: what is limited.
        root: where ``/proc`` and ``/sys`` are.
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
        place = PurePosixPath(path.lstrip("/"))
        for group in (place, *place.parents):
            yield ControlGroup(1 if controllers else 2, top / controllers / group)
