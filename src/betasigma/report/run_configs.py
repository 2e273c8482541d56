"""Configs of run directories, read as plain containers: nothing in them is resolved or run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

LARGEST_CONFIG = 2**20
"""Bytes of a config that is read; those of the framework have a few thousand."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(path: Path) -> dict[str, Any] | None:
    """Read a config; ``None`` where it is damaged or too large."""
    content = _read(path)
    return content if isinstance(content, dict) else None


def read_words(path: Path) -> list[str]:
    """Read a list of words, as a run's overrides are; ``[]`` where there are none."""
    content = _read(path)
    return [str(word) for word in content] if isinstance(content, list) else []


def _read(path: Path) -> Any:
    try:
        state = path.stat()
    except OSError:
        return None
    return _parsed(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _parsed(path: Path, size: int, changed: int) -> Any:
    """Content of a file in this state, which whoever is given it leaves as it is."""
    if size > LARGEST_CONFIG:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        anchors = "&" in text and "*" in text  # else there is no alias, and looking takes long
        if anchors and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, _LOADER)):
            return None  # a few lines of them stand for gigabytes
        return yaml.load(text, Loader=_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
