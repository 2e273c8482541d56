"""List the images below a folder, with their classes and splits. No file is opened.

Splits are ``root/train`` and ``root/test`` (or ``root/val``) where both exist. Otherwise an image
is held out for testing if the hash of its relative name falls in the lowest tenth. The split of an
image depends on its name only, so adding or removing images moves no other image.

Classes are the first-level folders, if every image is in one and there are at least two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from betasigma.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of file names that count as images (those of torchvision's ImageFolder)."""

HELD_OUT = 0.1
"""Share of the images that are held out if the folder has no split of its own."""


@dataclass(frozen=True)
class FolderSplit:
    """Images of one split: ``base/names[i]``, with label ``labels[i]`` if there are classes."""

    base: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None


@dataclass(frozen=True)
class Listing:
    """Both splits of a folder and the names of its classes (``()`` for none)."""

    train: FolderSplit
    test: FolderSplit
    classes: tuple[str, ...]


def has_images(root: Path) -> bool:
    """Whether there is an image in ``root`` or below."""
    return next(_images(root), None) is not None


def list_folder(root: Path) -> Listing:
    """Find the images below ``root``, in the order of their names.

    Raises:
        UserError: if there are too few for a train and a test split.
    """
    held_out = next((root / n for n in ("test", "val") if (root / n).is_dir()), None)
    train = root / "train" if (root / "train").is_dir() else root
    names = _names(train)
    if train != root and held_out is not None:
        train_names, test_names, test = names, _names(held_out), held_out
    else:
        train_names, test_names = _hold_out(names)
        test = train
    for what, base, found in (("train", train, train_names), ("test", test, test_names)):
        if not found:
            raise UserError(
                f"data.root={root} leaves no image to {what} on: {base} must have at least "
                f"{2 if train == test else 1} (it has {len(names) if train == test else 0})"
            )
    classes = _classes([*train_names, *test_names])
    return Listing(
        FolderSplit(train, tuple(train_names), _labels(train_names, classes)),
        FolderSplit(test, tuple(test_names), _labels(test_names, classes)),
        classes,
    )


def _images(base: Path) -> Iterator[str]:
    """Paths of the images below ``base``, relative to it, with forward slashes."""
    for folder, below, files in os.walk(base, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(folder, name).relative_to(base).as_posix()


def _names(base: Path) -> list[str]:
    return sorted(_images(base))


def _hold_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Train and test names; each has at least one where there are two names or more."""
    ranked = sorted(names, key=_hash)
    count = sum(_hash(name) < HELD_OUT * 2**64 for name in ranked)
    count = min(max(count, 1), len(ranked) - 1)
    held_out = set(ranked[: max(count, 0)])
    return [n for n in names if n not in held_out], sorted(held_out)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest(), "little")


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    if any("/" not in name for name in names):
        return ()
    folders = sorted({name.split("/", 1)[0] for name in names})
    return tuple(folders) if len(folders) > 1 else ()


def _labels(names: Sequence[str], classes: tuple[str, ...]) -> tuple[int, ...] | None:
    if not classes:
        return None
    number = {folder: i for i, folder in enumerate(classes)}
    return tuple(number[name.split("/", 1)[0]] for name in names)
