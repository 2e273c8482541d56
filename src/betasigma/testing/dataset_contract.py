"""The contract of a data set: example i is always the same, and the order is a function of the
step.

A run that is resumed, or shared among devices, sees the batches of the run that was never stopped.
That holds if the data answer by number and nothing else: augmentation and dequantisation are the
datamodule's, which addresses them by (seed, step, index).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from betasigma.data import arrays
from betasigma.data.datamodule import ImageDataModule
from betasigma.testing.contract import kind_of, require, shape

KINDS = (Dataset, np.ndarray, Tensor, tuple)
Examples = Dataset | np.ndarray | Tensor
Data = Examples | tuple[Any, Any] | Callable[..., Any]


def check_dataset(
    data: Data | ImageDataModule,
    test: Data | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    num_classes: int = 0,
    most: int = 512,
) -> None:
    """Assert the contract of a data set.

    Args:
        data: a ``torch.utils.data.Dataset`` whose items are ``x``, ``(x, label)`` or a dictionary
            of ``image`` and ``label``; an array or tensor of all of them, or a pair of one and all
            labels; or a function that returns one of these or the path of an .npy or .npz file, of
            both splits where it has a parameter ``split``. ``x`` is a picture, an image
            ``(C, H, W)``, ``(H, W, C)`` or ``(H, W)``, or a point ``(d,)``. Or a datamodule, which
            has both splits.
        test: the other split.
        value_range: least and greatest value of clean data, where they are no bytes; by default
            what ``data.value_range`` says.
        num_classes: of labels.
        most: examples of each split that are read, evenly spaced.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    if isinstance(data, ImageDataModule):
        _check_datamodule(data, most)
        return
    value_range = getattr(data, "value_range", None) if value_range is None else value_range
    if _opens(data) and "split" in inspect.signature(data).parameters:
        data, test = partial(data, split="train"), partial(data, split="test")
    splits = [data] if test is None else [data, test]
    digests, shapes = [], []
    for split in splits:
        opened = _opened(split)
        chosen = _check_length(opened, most)
        first = _check_examples(opened, chosen, value_range, num_classes)
        shapes.append(tuple(first.shape))
        digests.append(_check_repeats(opened, chosen))
        if _opens(split):
            again = [_digest(_opened(split), i) for i in chosen]
            require(
                again == digests[-1],
                "dataset.content",
                "the same examples from a second call of the function that opens the data",
                f"{sum(a != b for a, b in zip(again, digests[-1], strict=True))} of {len(again)} "
                f"differ",
            )
    if test is not None:
        require(
            shapes[0] == shapes[1],
            "dataset.shape",
            "one shape in both splits",
            f"they are {shapes[0]} and {shapes[1]}",
        )
        _check_disjoint(*digests)


class _Paired(Dataset):
    """Images and labels as a data set of pairs."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.labels[i]


def _opens(data: Data) -> TypeGuard[Callable[..., Any]]:
    """Whether it is a function that returns the data."""
    return callable(data) and not isinstance(data, KINDS)


def _opened(data: Data) -> Any:
    found = data() if _opens(data) else data
    if isinstance(found, str | Path):
        images, labels = arrays.read_images(Path(found), f"{found}")
        found = images if labels is None else (images, labels)
    require(
        isinstance(found, KINDS),
        "dataset.type",
        "a torch Dataset, an array or tensor, a pair (images, labels), or the path of a file",
        f"it is {kind_of(found)}",
    )
    if not isinstance(found, tuple):
        return found
    examples, known = map(len, found)
    require(
        examples == known,
        "dataset.length",
        "as many labels as examples",
        f"there are {examples} examples and {known} labels",
    )
    return _Paired(*found)


def _check_length(data: Examples, most: int) -> list[int]:
    length = len(data) if hasattr(data, "__len__") else None
    require(
        isinstance(length, int) and length >= 1,
        "dataset.length",
        "a data set with a length of at least 1, so that its order can be drawn",
        f"{type(data).__name__} has {'none' if length is None else length}",
    )
    assert length is not None
    return np.unique(np.linspace(0, length - 1, min(most, length)).round()).astype(int).tolist()


def _example(data: Any, i: int) -> tuple[Tensor, Any]:
    item: Any = data[i]
    if isinstance(item, Mapping):
        item = item.get("image"), item.get("label")
    if isinstance(item, tuple) and len(item) == 1:  # of TensorDataset(images)
        item = item[0]
    x, label = item if isinstance(item, tuple | list) else (item, None)
    pixels = x if isinstance(x, Tensor) else np.array(x)
    require(
        isinstance(pixels, Tensor) or pixels.dtype.kind in "uif",
        "dataset.type",
        "examples that are pictures, tensors or arrays, alone or with a label",
        f"example {i} is {kind_of(x)}",
    )
    return torch.as_tensor(pixels), label


def _check_examples(
    data: Examples, chosen: list[int], value_range: tuple[float, float] | None, num_classes: int
) -> Tensor:
    first, _ = _example(data, chosen[0])
    require(
        first.ndim in (2, 3) or (first.ndim == 1 and first.is_floating_point()),
        "dataset.shape",
        "images (C, H, W), (H, W, C) or (H, W), or floating-point points (d,)",
        f"example {chosen[0]} is {shape(first)}",
    )
    for i in chosen:
        x, label = _example(data, i)
        require(
            x.shape == first.shape and x.dtype == first.dtype,
            "dataset.shape",
            f"every example to be {shape(first)}, as example {chosen[0]} is",
            f"example {i} is {shape(x)}",
        )
        _check_values(x, i, value_range)
        _check_label(label, i, num_classes)
    return first


def _check_values(x: Tensor, i: int, value_range: tuple[float, float] | None) -> None:
    if x.dtype == torch.uint8:
        return
    require(
        bool(x.isfinite().all()),
        "dataset.values",
        "finite values",
        f"example {i} has {int((~x.isfinite()).sum())} others",
    )
    if x.ndim == 1 and value_range is None:  # points keep their coordinates
        return
    require(
        x.dtype.is_floating_point and value_range is not None,
        "dataset.values",
        "bytes (uint8), or floating-point numbers with a value_range that is said",
        f"example {i} is {shape(x)} and value_range={value_range}",
    )
    assert value_range is not None
    low, high = value_range
    require(
        bool(((x >= low) & (x <= high)).all()),
        "dataset.values",
        f"values in value_range=[{low:g}, {high:g}]",
        f"those of example {i} reach from {x.min():g} to {x.max():g}",
    )


def _check_label(label: Any, i: int, num_classes: int) -> None:
    if label is None and num_classes == 0:
        return
    whole = isinstance(label, int | np.integer) or (
        isinstance(label, Tensor) and label.ndim == 0 and not label.dtype.is_floating_point
    )
    require(
        whole and 0 <= int(label) < (num_classes or math.inf),
        "dataset.labels",
        f"labels that are integers from 0 to {num_classes - 1} (num_classes={num_classes})"
        if num_classes
        else "labels that are integers from 0",
        f"that of example {i} is {label!r}",
    )


def _digest(data: Examples, i: int) -> str:
    x, label = _example(data, i)
    label = None if label is None else int(label)
    return blake2b(x.contiguous().numpy().tobytes(), digest_size=16).hexdigest() + f" {label}"


def _check_repeats(data: Examples, chosen: list[int]) -> list[str]:
    held = _example(data, chosen[0])[0]
    before = held.clone()
    digests = [_digest(data, i) for i in chosen]
    require(
        torch.equal(held, before),
        "dataset.deterministic",
        "an example to stay as it is when others are read: a batch holds several",
        f"example {chosen[0]} became another, in memory that all of them share",
    )
    torch.rand(1)
    again = [_digest(data, i) for i in reversed(chosen)][::-1]
    changed = [i for i, a, b in zip(chosen, digests, again, strict=True) if a != b]
    require(
        not changed,
        "dataset.deterministic",
        "example i to be the same whenever it is asked for, and in whatever order",
        f"{len(changed)} of {len(chosen)} changed, example {changed[0] if changed else 0} first",
    )
    return digests


def _check_disjoint(train: list[str], test: list[str]) -> None:
    shared = {d.split()[0] for d in train} & {d.split()[0] for d in test}
    require(
        not shared,
        "dataset.disjoint",
        "no example of the test split among those of the training split",
        f"{len(shared)} of the {len(test)} that were read are",
    )


class _Split(Dataset):
    """One split of a datamodule as a data set."""

    def __init__(self, data: ImageDataModule, split: Any) -> None:
        self.source = data.source(split)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor | None]:
        taken = self.source.take(np.array([i]))
        label = taken.get("label")
        return taken["image"][0], None if label is None else label[0]


def _check_datamodule(data: ImageDataModule, most: int) -> None:
    train, test = (_Split(data, split) for split in ("train", "test"))
    value_range = None if data.has_pixels else (-np.inf, np.inf)
    check_dataset(train, test, value_range=value_range, num_classes=data.num_classes, most=most)
    kept = data.trainer
    try:
        _check_order(data)
    finally:
        data.trainer = kept


def _batches(data: ImageDataModule, step: int, accumulate: int = 1) -> Iterator[dict[str, Any]]:
    """Training batches as they come to a device, from a step on."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step,
        accumulate_grad_batches=accumulate,
        world_size=1,
        global_rank=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    for batch in data.train_dataloader():
        yield data.prepare_batch(batch)


def _check_order(data: ImageDataModule) -> None:
    whole = [batch for batch, _ in zip(_batches(data, 0), range(4), strict=False)]
    low, high = data.value_range
    for batch in whole:
        x = batch["x"]
        require(
            x.dtype == torch.float32 and tuple(x.shape[1:]) == tuple(data.sample_shape),
            "dataset.batch",
            f"x in float32 of shape (b, {', '.join(map(str, data.sample_shape))})",
            f"it is {shape(x)}",
        )
        slack = 0.01 * (high - low) if data.has_pixels else np.inf
        require(
            bool((x >= low - slack).all() and (x <= high + slack).all()),
            "dataset.batch",
            f"x in value_range=[{low:g}, {high:g}]",
            f"it reaches from {x.min():g} to {x.max():g}",
        )
    later = [batch for batch, _ in zip(_batches(data, 2), range(2), strict=False)]
    pairs = list(zip(whole[2:], later, strict=True))
    require(
        all(a["step"] == b["step"] and torch.equal(a["x"], b["x"]) for a, b in pairs),
        "dataset.order",
        "the batches of a run that starts at step 2 to be those of one that came there",
        "they differ",
    )
    if data.batch_size % 2:
        return
    halves = [batch["x"] for batch, _ in zip(_batches(data, 0, 2), range(2), strict=False)]
    require(
        torch.equal(torch.cat(halves), whole[0]["x"]),
        "dataset.shares",
        "a step's batch to be the same however it is divided into micro-batches",
        "two halves are not the whole",
    )
