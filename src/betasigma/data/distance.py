"""Compute the largest distance between two training examples, and cache it.

The name of the cache file is a hash of what the distance depends on: the content of the training
split and how many examples were compared. Images are compared as bytes, so one file serves every
value range.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError
from betasigma.ladder import largest_distance
from betasigma.runs.files import read_json, write_json

FORMAT = 1
MOST_BYTES = 2**32
"""Most bytes of examples that are compared; they are held in memory."""

BATCH = 512
"""Examples read at once."""


class Distance(NamedTuple):
    """The largest distance, and how many examples it is of."""

    value: float
    """In the data's value range."""
    compared: int
    """Number of examples that were compared with one another."""
    examples: int
    """Number of examples in the split."""


def measure(
    data: ImageDataModule,
    most: int | None,
    cache: str | os.PathLike[str],
    progress: Callable[[float], None] = lambda share: None,
) -> Distance:
    """Largest distance between two training examples, from the cache or from the data.

    Args:
        data: the training examples; flips and dequantisation are left out.
        most: number of examples to compare, evenly spaced over the split; ``None`` for all.
        cache: folder of the cache.
        progress: called with each share of the work that is done.
    """
    examples = data.size("train")
    compared = examples if most is None else min(most, examples)
    key = repr((FORMAT, data.content_key("train"), compared))
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = Path(cache).expanduser() / "distances" / f"{data.data_name}-{name}.json"
    squared = _load(path, key)
    if squared is None:
        distance = largest_distance(
            _read(data, compared, progress), progress=lambda share: progress(share / 2)
        )
        squared = distance**2
        _save(path, {"key": key, "squared": squared})
    low, high = data.value_range
    unit = (high - low) / 255 if data.has_pixels else 1.0
    return Distance(unit * math.sqrt(squared), compared, examples)


def _read(data: ImageDataModule, count: int, progress: Callable[[float], None]) -> Tensor:
    """``count`` training examples, evenly spaced: files are often sorted by what they show."""
    source = data.source("train")
    size = math.prod(source.shape) * (1 if data.has_pixels else 4)
    if count * size > MOST_BYTES:
        raise UserError(
            f"sigma.max=auto would hold {count} examples of {size:,} bytes in memory to compare "
            f"them: give sigma.examples={MOST_BYTES // size} at most, or sigma.max=…"
        )
    numbers = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
    parts = []
    for batch in data.examples("train", numbers, BATCH):
        parts.append(batch["image"])
        progress(len(parts[-1]) / (2 * count))
    return torch.cat(parts)


def _load(path: Path, key: str) -> float | None:
    """Read the squared distance of ``key``; ``None`` if it is missing or damaged."""
    content = read_json(path)
    try:
        return float(content["squared"]) if content.get("key") == key else None
    except (ValueError, TypeError, KeyError):
        return None


def _save(path: Path, content: dict[str, object]) -> None:
    """Write the whole file. A cache that cannot be written is a warning, not an error."""
    try:
        write_json(path, content)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error})", stacklevel=3)
