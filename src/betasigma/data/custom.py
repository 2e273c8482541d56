"""Data sets of the user: turn what a callable returns into examples by number.

A callable named by ``data.source._target_`` (or given to the datamodule in a notebook) returns

- a NumPy array or tensor of images, uint8 ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``, or
  of points, floating ``(N, d)``,
- the path of an ``.npy`` file with such an array, or of an ``.npz`` file with one under ``images``,
  ``x`` or ``arr_0`` and labels under ``labels``, ``y`` or ``arr_1``,
- a pair (images, labels), or
- a map-style ``torch.utils.data.Dataset`` whose items are an image, a pair (image, label) or a
  dictionary with ``image`` and ``label``; an image is a PIL picture, an array or a tensor.

Floating images become bytes: they are rounded to the 256 levels of their range, which the data set
or the callable states as ``value_range = (low, high)``. The range is never guessed. Images of
uint8 have the range (0, 255) unless another is stated.

A callable with a parameter ``split`` is called with ``"train"`` and ``"test"``. Otherwise the
examples whose content digest falls in the lowest tenth are held out for testing, so the split
depends on the examples only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from betasigma.build import make
from betasigma.data import arrays
from betasigma.data.listing import hold_out
from betasigma.data.sources import InMemory, Source, load
from betasigma.errors import UserError
from betasigma.options import DataFacts
from betasigma.options.composition import numbered
from betasigma.options.data import OPENING, Axes, Split
from betasigma.options.plugins import locate, refuse_given, takes

KEY = "data.source"


class OpenedSplits:
    """Both splits of a data set of the user, held in memory.

    Args:
        train, test: the splits.
        declared: range of points, which keep their coordinates; ``None`` for what they have.
    """

    def __init__(self, train: InMemory, test: InMemory, declared: Sequence[float] | None) -> None:
        if train.shape != test.shape:
            raise UserError(
                f"{KEY} has training examples of shape {train.shape} and test examples of shape "
                f"{test.shape}; they must agree"
            )
        if (train.labels is None) != (test.labels is None):
            raise UserError(f"{KEY} has labels in one split only; give them in both or in none")
        classes = max(train.num_classes, test.num_classes)
        self._splits: dict[Split, InMemory] = {
            "train": InMemory(train.images, train.labels, classes),
            "test": InMemory(test.images, test.labels, classes),
        }
        self._range: tuple[float, float] | None = None
        if len(train.shape) == 1:
            both = (train.images, test.images)
            low, high = declared or (min(map(torch.min, both)), max(map(torch.max, both)))
            self._range = float(low), float(high)

    def __getitem__(self, split: Split) -> InMemory:
        return self._splits[split]

    def facts(self, name: str) -> DataFacts:
        """Return the facts that other groups ask for."""
        train = self._splits["train"]
        classes = numbered(train.num_classes)
        return DataFacts(name, train.shape, lambda: classes, value_range=self._range)


_opened: dict[str, OpenedSplits] = {}


def array_splits(found: arrays.ArrayFile) -> OpenedSplits:
    """Both splits of a file of arrays."""
    name = f"data.root={found.path}"
    read = [as_examples(part, name, found.values, found.axes) for part in found.parts.values()]
    train, test = read if len(read) == 2 else held_out(read[0], name)
    return OpenedSplits(train, test, found.values)


def open_examples(
    node: Mapping[str, Any], root: str | None, seed: int, axes: Axes | None = None
) -> OpenedSplits:
    """Open the data set of a ``data.source`` node, once per node and process.

    Args:
        node: with ``_target_`` and the callable's arguments.
        root: ``data.root``, passed on if the callable has this parameter.
        seed: passed on if the callable has this parameter.
        axes: ``data.axes``.

    Raises:
        UserError: without consent to the package, or if the callable returns no data set.
    """
    key = repr((sorted(node.items(), key=str), root, seed, axes))
    if key not in _opened:
        offered = {"root": root, "seed": seed}
        target = str(node.get("_target_"))
        made = locate(target, KEY, KEY)
        refuse_given(KEY, node, KEY)
        declared = getattr(made, "value_range", None)
        name = target.rpartition(".")[2]
        if root is not None and not takes(made, "root"):
            raise UserError(f"data.root={root} has no effect: {name} has no parameter root")
        splits: list[dict[str, Any]] = [{}]
        if takes(made, "split"):
            splits = [{"split": "train"}, {"split": "test"}]
        found = [
            as_examples(make(node, KEY, KEY, offered, **split), f"{KEY}: {name}", declared, axes)
            for split in splits
        ]
        train, test = found if len(found) == 2 else held_out(found[0])
        _opened[key] = OpenedSplits(train, test, declared)
    return _opened[key]


def open_split(node: Mapping[str, Any], split: Split, seed: int) -> Source:
    """Open a split of what a ``data`` node names, without a datamodule, whose imports take seconds.
    Nothing is downloaded.
    """
    if node["source"] is not None:
        return open_examples(node["source"], node["root"], seed, node["axes"])[split]
    return load(node["name"], split=split, seed=seed, **{key: node[key] for key in OPENING})


def as_examples(
    found: Any,
    name: str,
    value_range: Sequence[float] | None = None,
    axes: Axes | None = None,
) -> InMemory:
    """Turn what a callable returned into examples in memory.

    Args:
        found: see the module's docstring.
        name: key of the config and name of the callable, for messages.
        value_range: of the images, unless the data set itself states it.
        axes: order of the axes of an image; ``None`` to read it off their lengths.

    Raises:
        UserError: if it is no data set, is empty, has values that are not finite, or its range
            is not stated.
    """
    value_range = getattr(found, "value_range", value_range)
    if isinstance(found, str | Path):
        found = arrays.read_images(Path(found), f"{name} names {found}, which")
    if isinstance(found, Dataset):
        found = _collected(found, name)
    images, labels = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(images, np.ndarray | Tensor):
        raise UserError(
            f"{name} returned {type(found).__name__}; a data set is a torch Dataset, an "
            f"array of images or points, a pair (images, labels), or the path of an .npy or .npz "
            f"file"
        )
    if not len(images):
        raise UserError(f"{name} returned a data set without examples")
    try:
        numbers = _as_tensor(images)
    except TypeError as error:
        raise UserError(f"{name} returned {error}; images and points are numbers") from None
    tensor = _bytes_or_points(numbers, name, value_range, axes)
    if labels is None:
        return InMemory(tensor)
    try:
        own = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):  # lists of several lengths, gradients
        raise UserError(f"{name} returned labels that are not integers from 0") from None
    arrays.check_labels(own, len(tensor), name)
    return InMemory(tensor, torch.from_numpy(own.astype(np.int64)), int(own.max()) + 1)


def held_out(whole: InMemory, key: str = KEY) -> tuple[InMemory, InMemory]:
    """Split into train and test by the content of the examples.

    Raises:
        UserError: if there are fewer than two.
    """
    if len(whole) < 2:
        raise UserError(f"{key} has one example only; a training and a test split need two")
    rows = whole.images.numpy()
    train, test = hold_out(range(len(whole)), lambda number: rows[number].tobytes())
    return whole.only(np.array(train)), whole.only(np.array(test))


def _collected(data: Any, name: str) -> Any:
    """Read all items of a map-style data set."""
    if not hasattr(data, "__len__"):
        raise UserError(
            f"{name} returned a data set without a length; training order needs numbered examples"
        )
    images, labels = [], []
    for number in range(len(data)):
        image, label = _parts(data[number])
        if image is None:
            raise UserError(
                f"{name} has items without an image; one must be under one of "
                f"{', '.join(arrays.IMAGE_KEYS)}"
            )
        try:
            images.append(_as_tensor(image))
        except TypeError as error:
            raise UserError(
                f"{name} has {error} in the place of image {number}; an image is a PIL "
                f"picture, an array or a tensor"
            ) from None
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise UserError(
                f"{name} has examples of shapes {tuple(images[0].shape)} and "
                f"{tuple(images[-1].shape)} (number {number}); all must have one"
            )
    stacked = torch.stack(images) if images else torch.empty(0)
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise UserError(f"{name} has {unlabelled} of {len(labels)} examples without a label")
    return stacked if unlabelled else (stacked, labels)


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return arrays.images_and_labels(item)
    if isinstance(item, tuple) and len(item) == 1:  # of TensorDataset(images)
        return item[0], None
    return (item[0], item[1]) if isinstance(item, tuple | list) and len(item) == 2 else (item, None)


def _as_tensor(values: Any) -> Tensor:
    """Numbers as a tensor.

    Raises:
        TypeError: for what are no real numbers, saying what they are.
    """
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"a tensor of {values.dtype}")
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"a {type(values).__name__} of {array.dtype}")
    kind = array.dtype.newbyteorder("=")
    if array.dtype.kind == "u" and array.itemsize > 1:  # of which PyTorch computes no minimum
        kind = np.dtype(np.int64)
    # PyTorch takes neither another order of bytes nor an axis that runs backwards
    as_it_is = kind == array.dtype and array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if as_it_is else array.astype(kind, order="C"))


def _bytes_or_points(
    x: Tensor, name: str, value_range: Sequence[float] | None, axes: Axes | None
) -> Tensor:
    if x.is_floating_point() and not x.isfinite().all():
        raise UserError(f"{name} has values that are not finite (NaN or infinite)")
    if x.ndim == 2 and x.is_floating_point():
        return x.float()
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        x = x.permute(0, 3, 1, 2) if arrays.channels_last(x.shape[1:], axes, name) else x
    else:
        raise UserError(
            f"{name} has examples of shape {tuple(x.shape[1:])} and type {x.dtype}; images "
            f"are (H, W), (H, W, C) or (C, H, W), points floating (d,)"
        )
    if value_range is None and x.dtype == torch.uint8:
        return x
    if value_range is None:
        raise UserError(
            f"{name} has images of {str(x.dtype).removeprefix('torch.')}; state the range "
            f"of their values, e.g. {name.rpartition(' ')[2]}.value_range = (0, 1), or return uint8"
        )
    low, high = (float(end) for end in value_range)
    if not low < high:
        raise UserError(f"{name} states value_range=({low:g}, {high:g}), which is empty")
    least, most = float(x.min()), float(x.max())
    if least < low or most > high:
        raise UserError(
            f"{name} states value_range=({low:g}, {high:g}), and has values from {least:g} "
            f"to {most:g}"
        )
    return ((x.double() - low) * (255 / (high - low))).round().to(torch.uint8)
