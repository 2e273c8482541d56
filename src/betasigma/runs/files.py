"""Writing whole files: a reader finds the old content or the new one, never half of it.

A file is written beside its destination, flushed to the disk and renamed. A crash, a full disk or a
lost machine leaves the destination as it was.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from betasigma.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Errors that end when somebody makes room."""

DISK_ERRORS = (*NO_SPACE, errno.EROFS, errno.ESTALE)
"""Errors of a disk that is full, read-only or gone, which are nobody's bug."""

SPARE = 2**20
"""Bytes; with fewer left on a disk, a library that fails to write fails because of that."""

LOOK_AGAIN = 2.0
"""Seconds between two looks for space."""

LARGEST_YAML = 2**20
"""Bytes of a YAML file that is read; a config has a few thousand."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PARTIAL = ".partial"
"""Ending of a file that is being written."""


@contextmanager
def replace_file(path: str | Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; what is there at the end of the block becomes ``path``.

    The folder is created if needed. The yielded path belongs to this call alone, so that several
    processes may write the same file: the last one wins.

    Args:
        path: the destination.
        keep: what has been there so far stays under this name.

    Raises:
        OSError: if it cannot be written. ``path`` is then untouched and nothing else is left, as
            after any error inside the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with _saying_where(path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                _keep(path, keep)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _saying_where(path: Path) -> Iterator[None]:
    """Have an error of the disk name ``path``, also one of a library that raises another kind.

    Raises:
        OSError: for both.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception:
        if shutil.disk_usage(path.parent).free >= SPARE:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name; at no moment is there nothing under either."""
    link = _beside(name)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        os.replace(path, name)
    else:
        os.replace(link, name)


_may_wait = True


def allow_waiting(allowed: bool) -> None:
    """Whether this process may wait for space on a disk. Where it is to end it may not."""
    global _may_wait
    _may_wait = allowed


def write_patiently(write: Callable[[], object], path: Path, patience: float = 0.0) -> None:
    """Write a file of a run; where there is no space for it, wait for some and write it then.

    Raises:
        UserError: where it cannot be written, or there is still no space.
    """
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            write()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            gives_up = time.monotonic() >= deadline or not _may_wait
            if error.errno not in NO_SPACE or gives_up:
                raise UserError(f"{path} cannot be written: {reason}") from None
        if not said:
            warnings.warn(
                f"{path} cannot be written: {reason}; waiting {patience:g} s for space",
                stacklevel=2,
            )
            said = True
        time.sleep(min(LOOK_AGAIN, max(0.0, deadline - time.monotonic())))


def append_whole(path: Path, data: bytes) -> None:
    """Add to a file all of ``data``, or nothing.

    Raises:
        OSError: where it cannot be written.
    """
    with _saying_where(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        if file.write(data) < len(data):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; ``{}`` where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path) -> Any:
    """Content of a YAML file, plain values. The file may be a stranger's.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML, is too large, or has aliases: a few lines of them stand for
            gigabytes.
    """
    if path.stat().st_size > LARGEST_YAML:
        raise ValueError(f"{path} is larger than {LARGEST_YAML} bytes")
    text = path.read_text(encoding="utf-8")
    try:
        anchors = "&" in text and "*" in text  # else there is no alias, and looking takes long
        if anchors and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, _LOADER)):
            raise ValueError(f"{path} has aliases")
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def check_place(directory: Path, named: str) -> None:
    """Refuse a directory that cannot be made or written to. Its permissions do not say all: a disk
    may be read-only, and nobody can write to ``/proc``.
    """
    try:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"{named} cannot be made: {there} is a file")
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"{named} cannot be written: {error.strerror}") from None


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder to fill; at the end of the block it becomes ``path``, whole.

    Raises:
        OSError: if it cannot be written, or ``path`` holds something. Nothing is left then, as
            after any error inside the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    partial.mkdir()
    try:
        with _saying_where(path):
            yield partial
            if path.is_dir():
                path.rmdir()
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file of UTF-8 text."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write a whole JSON file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
