"""Writing whole files: a reader finds the old content or the new one, never half of it.

A file is written beside its destination, flushed to the disk and renamed. A crash, a full disk or a
lost machine leaves the destination as it was.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; what is there at the end of the block becomes ``path``.

    The folder is created if needed. The yielded path belongs to this call alone, so that several
    processes may write the same file: the last one wins.

    Raises:
        OSError: if it cannot be written. ``path`` is then untouched and nothing else is left, as
            after any error inside the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file of UTF-8 text."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int = 2) -> None:
    """Write a whole JSON file."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
