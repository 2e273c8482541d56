"""One process at a time writes to a run directory. No heavy imports.

The lock is the operating system's, on a file in the directory: it ends with the process that holds
it, however that ends, also where the directory is shared between machines by NFS. The file only
says who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from betasigma.errors import UserError
from betasigma.runs.files import read_json

LOCK = ".lock"
"""Name of the file in a run directory."""

HELD = (errno.EACCES, errno.EAGAIN)
"""What the system answers where another process holds a lock."""

_own: set[Path] = set()
"""Lock files whose locks this process holds. It does not read them: closing such a file, wherever
it was opened, releases the lock.
"""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run directory inside the block.

    Raises:
        UserError: where another process holds it, naming host, process and since when.
    """
    path = (run / LOCK).resolve()
    with path.open("a+", encoding="utf-8") as file:
        _take(file, run)
        with suppress(OSError):  # a full disk: the lock holds, nobody reads whose it is
            file.truncate(0)
            this = {"host": socket.gethostname(), "process": os.getpid()}
            file.write(json.dumps({**this, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}))
            file.flush()
        _own.add(path)
        try:
            yield
        finally:
            _own.discard(path)


def refuse_locked(run: Path) -> None:
    """Refuse a run directory that another process writes to."""
    if (run / LOCK).is_file():
        with (run / LOCK).open("r+", encoding="utf-8") as file:
            _take(file, run)


def is_held(run: Path) -> bool:
    """Whether another process of this machine holds a directory's lock, which is left alone."""
    path = (run / LOCK).resolve()
    return path not in _own and _is_alive(read_json(path))


def _take(file: IO[str], run: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = read_json(run / LOCK)
        # where a file system has no locks, what is written in the file must do
        if error.errno in HELD or _is_alive(holder):
            raise UserError(
                f"{run} is in use: process {holder.get('process', '?')} on "
                f"{holder.get('host', '?')} writes to it since {holder.get('since', '?')}; wait "
                f"for it, or end it"
            ) from None


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that still runs."""
    process = holder.get("process")
    return (
        holder.get("host") == socket.gethostname()
        and isinstance(process, int)
        and process != os.getpid()
        and Path(f"/proc/{process}").exists()
    )
