"""Data sets in ``.npy`` and ``.npz`` files: their splits, shapes and classes, without PyTorch.

An ``.npy`` file holds images ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``, or floating
points ``(N, d)``. An ``.npz`` file holds them under ``images``, ``image``, ``x`` or ``arr_0``, and
labels under ``labels``, ``label``, ``y`` or ``arr_1``; of several splits under names with the split
in them (``x_train``, ``test_images``). Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from betasigma.data.file_tree import LeftOut
from betasigma.data.labels import MOST_CLASSES
from betasigma.data.listing import split_of, used_parts
from betasigma.errors import UserError
from betasigma.options.composition import DataFacts, numbered
from betasigma.options.data import Axes

IMAGE_KEYS, LABEL_KEYS = ("images", "image", "x", "arr_0"), ("labels", "label", "y", "arr_1")
"""Names of arrays in an ``.npz`` file, and keys of an item that is a dictionary."""

USUAL = (1, 2, 3, 4)
"""Numbers of channels by which the axis of the channels is known."""


@dataclass(frozen=True)
class ArrayFile:
    """A data set in a file.

    Attributes:
        path: of the file.
        parts: images and labels (or ``None``) by split; under ``whole`` where there are none.
        axes: order of the axes of an image; ``None`` to read it off the lengths.
        values: range of the values; ``None`` for bytes.
        left_out: arrays that are not used.
    """

    path: Path
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]]
    axes: Axes | None
    values: Sequence[float] | None
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def _first(self) -> np.ndarray:
        return next(iter(self.parts.values()))[0]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one example, ``(C, H, W)`` or ``(d,)``."""
        images = self._first
        if images.ndim == 2:
            return (images.shape[1],)
        if images.ndim == 3:
            return (1, *images.shape[1:])
        if images.ndim != 4:
            raise UserError(
                f"data.root={self.path} has an array of shape {images.shape}; images are "
                f"(N, H, W), (N, H, W, C) or (N, C, H, W), points (N, d)"
            )
        first, second, third = images.shape[1:]
        last = channels_last((first, second, third), self.axes, f"data.root={self.path}")
        return (third, first, second) if last else (first, second, third)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Numbers of the classes; ``()`` for none."""
        found = [labels for _, labels in self.parts.values() if labels is not None and labels.size]
        return numbered(max(int(labels.max()) for labels in found) + 1) if found else ()

    def facts(
        self, name: str, sides: tuple[int, int] | None = None, channels: int | None = None
    ) -> DataFacts:
        """What other groups ask of the data."""
        if sides and len(self.shape) == 1:
            raise UserError(
                f"data.image_size does not apply to data.root={self.path}, which holds points of "
                f"{self.shape[0]} numbers: remove it"
            )
        if channels not in (None, self.shape[0]):
            raise UserError(
                f"data.channels={channels} does not fit data.root={self.path}, whose examples have "
                f"the shape {self.shape}: an array keeps its channels"
            )
        if len(self.shape) > 1:
            shape = self.shape if sides is None else (self.shape[0], *sides)
            return DataFacts(name, shape, lambda: self.classes)
        low, high = self.values or (
            min(float(points.min()) for points, _ in self.parts.values()),
            max(float(points.max()) for points, _ in self.parts.values()),
        )
        return DataFacts(name, self.shape, lambda: self.classes, value_range=(low, high))

    def describe(self) -> dict[str, Any]:
        """What was found, for the record of a run."""
        return {
            "array": {"shape": list(self._first.shape), "dtype": str(self._first.dtype)},
            "splits": list(self.parts),
            "left_out": dict(self.left_out.counts),
        }

    def sentences(self) -> list[str]:
        """What was found, for the user."""
        images, rounded = self._first, ""
        if self.values is not None and len(self.shape) > 1:
            low, high = self.values
            rounded = f", its values from {low:g} to {high:g} rounded to 256 levels"
        return [
            f"{self.path.name}: {', '.join(self.parts)} as {images.dtype} of shape {images.shape}"
            f"{rounded}",
            *self.left_out.sentences(),
        ]


def open_array(
    path: Path, axes: Axes | None = None, values: Sequence[float] | None = None
) -> ArrayFile:
    """Open a file of arrays."""
    arrays, left_out = read_arrays(path, f"data.root={path}"), LeftOut()
    parts = _parts(arrays, path, left_out)
    for split, (images, labels) in parts.items():
        if labels is not None:
            check_labels(labels, len(images), f"data.root={path}, {split}")
    shapes = {images.shape[1:] for images, _ in parts.values()}
    if len(shapes) > 1 or len({labels is None for _, labels in parts.values()}) > 1:
        raise UserError(
            f"data.root={path} has splits that do not go together: "
            + ", ".join(
                f"{split} {images.shape}{'' if labels is None else ' with labels'}"
                for split, (images, labels) in parts.items()
            )
        )
    found = ArrayFile(path, parts, axes, values, left_out)
    dtype = found._first.dtype
    if dtype != np.uint8 and values is None and len(found.shape) > 1:
        raise UserError(
            f"data.root={path} has images of {dtype}: data.values=[low,high] must say what becomes "
            f"black and white, e.g. data.values=[0,1]; bytes (uint8) need none"
        )
    return found


def read_arrays(path: Path, key: str) -> dict[str, np.ndarray]:
    """Arrays of a file by name; that of an ``.npy`` file is called ``images``."""
    try:
        if is_zipfile(path.expanduser()):  # whatever its ending says
            with ZipFile(path.expanduser()) as archive:
                _check_size(sum(info.file_size for info in archive.infolist()), key)
        found = np.load(path.expanduser(), mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            _check_size(found.size, key)
            return {IMAGE_KEYS[0]: found}
        with found:
            return dict(found)
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise UserError(f"{key} cannot be read as .npy or .npz ({error})") from None


def read_images(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of a file of one split and their labels."""
    arrays = read_arrays(path, key)
    images, labels = images_and_labels(arrays)
    if images is None:
        raise UserError(
            f"{key} has {', '.join(arrays) or 'no array'}; images must be under one of "
            f"{', '.join(IMAGE_KEYS)}"
        )
    return images, labels


def _check_size(size: int, key: str) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"{key} has {size:,} bytes, and this machine holds {memory:,}: bring them as image "
            f"files, which are read when they are needed"
        )


def images_and_labels(
    arrays: Mapping[str, np.ndarray],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The arrays of one split, by their names."""
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    return images, next((arrays[key] for key in LABEL_KEYS if key in arrays), None)


def _parts(
    arrays: dict[str, np.ndarray], path: Path, left_out: LeftOut
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Images and labels by split; ``whole`` where the names say none."""
    by_split: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        split, own = _named(name)
        if own in (*IMAGE_KEYS, *LABEL_KEYS):
            by_split.setdefault(split, {})[own] = array
        else:
            left_out.add("array", name)
    found = {}
    for split, own_arrays in by_split.items():
        images, labels = images_and_labels(own_arrays)
        if images is not None and images.ndim:
            column = labels is not None and labels.shape == (len(images), 1)
            found[split] = images, labels[:, 0] if labels is not None and column else labels
    if not {"whole", "train"} & found.keys():
        raise UserError(
            f"data.root={path} has {', '.join(arrays) or 'no array'}; images must be under one of "
            f"{', '.join(IMAGE_KEYS)}, or x_train and x_test"
        )
    used, unused = used_parts(found)
    for split, (images, _) in unused.items():
        left_out.add(f"of the split {split}", split, len(images))
    return used


def _named(name: str) -> tuple[str, str]:
    """Split and kind of an array by its name: ``x_train``, ``train_images``, ``images``."""
    lower = name.lower()
    for one, _, other in (lower.partition("_"), lower.rpartition("_")):
        if split := split_of(one):
            return split, other
        if split := split_of(other):
            return split, one
    return "whole", lower


def check_labels(labels: np.ndarray, count: int, key: str) -> None:
    """Refuse labels that are not one integer for each of ``count`` examples."""
    if labels.shape != (count,) or labels.dtype.kind not in "biu":
        raise UserError(
            f"{key}: labels of shape {labels.shape} and {labels.dtype} do not fit {count} "
            f"examples; there must be an integer from 0 for each"
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        raise UserError(
            f"{key}: labels from {labels.min()} to {labels.max()}; they are integers from 0 to "
            f"{MOST_CLASSES - 1}"
        )


def channels_last(shape: Sequence[int], axes: Axes | None, key: str) -> bool:
    """Whether the channels of an image of this shape come last.

    They are the axis of length 1 to 4; where both or none is, the one that leaves a square.
    """
    if axes is not None:
        return axes == "HWC"
    first, height, last = shape
    readings = {False: (first, (height, last)), True: (last, (first, height))}
    usual = [way for way, (channels, _) in readings.items() if channels in USUAL]
    if len(usual) != 1:
        usual = [way for way, (_, sides) in readings.items() if sides[0] == sides[1]]
    if len(usual) == 1:
        return usual[0]
    raise UserError(
        f"{key} has images of shape {tuple(shape)}, which can be read in two ways: data.axes=CHW "
        f"for {first} channels of {height}x{last}, data.axes=HWC for {last} channels of "
        f"{first}x{height}"
    )
