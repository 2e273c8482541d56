"""The datamodule: batches of bytes in an exact order, made into numbers on the device.

A training batch is a function of (seed, optimizer step): :mod:`betasigma.data.order` says which
examples, and flips and dequantisation are drawn by the example's position in the step's batch. So
it is the same batch in a run that was resumed, on however many devices and micro-batches.

Bytes travel to the device and become float32 there (:mod:`betasigma.data.pixels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from betasigma.data import catalog, pixels, sources
from betasigma.data.arrays import ArrayFile
from betasigma.data.custom import open_examples
from betasigma.data.facts import described_facts, find_files
from betasigma.data.hub import HubTable
from betasigma.data.listing import Listing
from betasigma.data.loading import Batch, Batches, SizedBatches
from betasigma.data.order import (
    DataOrder,
    Division,
    MicroBatch,
    OneBatch,
    fixed_order,
    subset,
    training_order,
)
from betasigma.data.sources import InMemory, Source
from betasigma.errors import UserError
from betasigma.options import DataFacts
from betasigma.options.data import OPENING, Axes, DataOptions, Layout, OnCorrupt, Split
from betasigma.options.plugins import Component
from betasigma.options.training import BatchOptions
from betasigma.prior import DataMoments
from betasigma.randomness import Stream

SPLITS: tuple[Split, ...] = get_args(Split)

VALIDATION_EXAMPLES = 1000
"""Test examples of a validation, unless told otherwise."""

MOMENT_EXAMPLES = 4096
"""Training examples from which moments are taken: enough for a Gaussian, quick to decode."""


class ImageDataModule(Component, LightningDataModule):
    """A data set as the model sees it.

    Batches are dictionaries:

    - ``image``: bytes, uint8 ``(b, C, H, W)``; for ``mixture`` the points, float32 ``(b, 2)``;
    - ``x``: the same in ``value_range``, float32, flipped and dequantised where asked; added by
      ``on_after_batch_transfer``;
    - ``label``: int64 ``(b,)``, where the data set has classes;
    - ``index``: int64 ``(b,)``, always on the CPU: position in the optimizer step's batch when
      training, number of the example in the data set in validation;
    - ``step``: optimizer step, from 0; 0 in validation;
    - ``augment``: whether this is a training batch.

    Args:
        name: data set, one of ``catalog.NAMES``; with ``source``, any name.
        root: folder of its files; ``None`` for a data set without files.
        batch_size: examples per optimizer step, over all devices and micro-batches.
        value_range: what bytes 0 and 255 become. A ``mixture`` keeps its own coordinates, in
            [−1, 1].
        seed: of order, flips and dequantisation, and of a mixture's points.
        val_dequantize: spread the bytes of validation images uniformly too
            (:mod:`betasigma.data.pixels`), always with the same numbers.
        val_size: number of test images used for validation, a fixed random choice of them; ``None``
            for ``VALIDATION_EXAMPLES``.
        source: a data set of the user, as a config names it: ``{"_target_": …, argument: …}``
            (:mod:`betasigma.data.custom`).

    The other arguments are those of :class:`~betasigma.options.DataOptions`. NCSN, NCSNv2 and
    score_sde use ``crop="center_140"`` on CelebA.

    Attributes:
        data_name: name of the data set.
        facts: what other groups ask of the data.
        sample_shape: ``(C, H, W)``, or ``(2,)``.
        value_range: least and greatest value of clean data.

    Raises:
        UserError: for an option out of range or one that does not apply to this data set.
    """

    config_group = "data"

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        *,
        batch_size: int = BatchOptions.DEFAULTS["batch_size"],
        image_size: int | Sequence[int] | None = None,
        layout: Layout | None = None,
        labels: str | None = None,
        channels: int | None = None,
        crop: str | None = None,
        background: str | Sequence[int] = "white",
        bits: int | None = None,
        window: tuple[float, float] | None = None,
        max_pixels: int = 100_000_000,
        values: tuple[float, float] | None = None,
        columns: Sequence[str] | None = None,
        axes: Axes | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        flip: bool = False,
        dequantize: bool = False,
        val_dequantize: bool = False,
        seed: int = 0,
        workers: int = 2,
        val_size: int | None = None,
        download: bool = False,
        on_corrupt: OnCorrupt = "warn",
        in_memory: bool | None = None,
        mixture: str = "ring",
        one_batch: bool = False,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        given = {**locals(), "root": _text(root), "source": source and dict(source)}
        super().__init__()
        self.data_name = name
        DataOptions.check_own(given)
        self._custom = None if source is None else open_examples(source, _text(root), seed, axes)
        self._node = {"name": name, **{key: given[key] for key in OPENING}}
        self.facts: DataFacts = (
            described_facts(self._node) if self._custom is None else self._custom.facts(name)
        )
        self.sample_shape = self.facts.shape
        self.value_range = self._checked_range(value_range)
        self.root = root
        self.batch_size = batch_size
        self.flip = flip
        self.dequantize = dequantize
        self.val_dequantize = val_dequantize
        self.seed = seed
        self.workers = workers
        self.val_size = VALIDATION_EXAMPLES if val_size is None else val_size
        self.download = download
        self.one_batch = one_batch
        Division(batch_size)  # which refuses what is below 1
        if not self.has_pixels:
            catalog.refuse_pixels(name, flip, dequantize or self.val_dequantize)
        self._sources: dict[Split, Source] = {}

    # ------------------------------------------------------------------ the data set

    @property
    def has_pixels(self) -> bool:
        """Whether examples are images, not points."""
        return not self.facts.points

    @cached_property
    def files(self) -> Listing | HubTable | ArrayFile | None:
        """The files that a user brings, found once; ``None`` of another data set.

        Raises:
            UserError: if there are none, or they can be read in two ways.
        """
        return None if self._custom is not None else find_files(self._node)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class label, ``()`` for none."""
        return self.facts.classes if self.files is None else self.files.classes

    @property
    def num_classes(self) -> int:
        """Number of class labels, 0 for none."""
        return len(self.class_names)

    def source(self, split: Split) -> Source:
        """Return the examples of ``split``. It is opened at the first call.

        Raises:
            UserError: if files are missing or unreadable.
        """
        if split not in self._sources:
            self._sources[split] = (
                sources.load(split=split, found=self.files, seed=self.seed, **self._node)
                if self._custom is None
                else self._custom[split]
            )
        return self._sources[split]

    def keep_classes(self, labels: Sequence[int]) -> None:
        """Leave out the examples of other classes, of both splits.

        Raises:
            UserError: if a split has none of these.
        """
        for split in SPLITS:
            source = self.source(split)
            known = source.labels
            found = np.empty(0, np.int64) if known is None else np.isin(known.numpy(), labels)
            numbers = np.flatnonzero(found)
            if not len(numbers):
                named = ", ".join(self.class_names[label] for label in labels)
                raise UserError(f"data={self.data_name} has no {split} example of class {named}")
            self._sources[split] = source.only(numbers)

    def size(self, split: Split) -> int:
        """Number of examples of ``split``."""
        return len(self.source(split))

    @property
    def validated(self) -> int:
        """Number of test images that a validation is of."""
        return min(self.val_size, self.size("test"))

    def tensor(self, split: Split) -> Tensor:
        """Return all of ``split`` as one tensor, not to be modified: uint8 ``(N, C, H, W)``,
        or float32 ``(N, 2)`` for a ``mixture``.

        Raises:
            UserError: if it is not held in memory.
        """
        source = self.source(split)
        if not isinstance(source, InMemory):
            raise UserError(
                f"the {split} images of data.root={self.root} are not held in memory: "
                f"data.in_memory=true would"
            )
        return source.images

    def labels(self, split: Split) -> Tensor | None:
        """Class of each example, int64 ``(N,)``, or ``None``."""
        return self.source(split).labels

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        """``limit`` examples of ``split``, always the same ones
        (:func:`~betasigma.data.order.subset`; all by default), in the order of :meth:`tensor`, in
        batches of ``batch_size`` and a last one of what remains.
        """
        chosen = subset(self.size(split), limit)
        for batch in self.examples(split, chosen, batch_size):
            yield batch["image"]

    def examples(self, split: Split, numbers: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """These examples of ``split`` in order, with ``label`` where there are classes and their
        numbers as ``index``, in batches of ``batch_size`` and a last one of what remains.
        """
        starts = range(0, len(numbers), batch_size)
        plan = [MicroBatch.of(numbers[i : i + batch_size]) for i in starts]
        source = self.source(split)
        yield from Batches(source, lambda: plan, augment=False, workers=self.workers)

    def moments(self) -> DataMoments:
        """Mean and variance of each dimension of the training data in ``value_range``, from at most
        ``MOMENT_EXAMPLES`` examples.
        """
        batches = self.batches("train", 256, MOMENT_EXAMPLES)
        return DataMoments.of(self.from_uint8(batch) for batch in batches)

    def content_key(self, split: Split) -> str:
        """Hex digest that changes when the images do.

        In memory, it is a digest of every pixel. For files that are decoded later, it is a digest
        of names, sizes, times of change, crop and image size.
        """
        return self.source(split).content_key()

    def describe(self) -> dict[str, Any]:
        """What the data were found to be, in plain containers: number of examples of each split
        and a digest of their order, classes with their numbers and examples, layout, what was left
        out.
        """
        counts = {split: self._class_counts(split) for split in SPLITS}
        return {
            "name": self.data_name,
            "shape": list(self.sample_shape),
            **{
                split: {"examples": self.size(split), "order": self.source(split).order_key()}
                for split in SPLITS
            },
            "classes": [
                {"number": i, "name": name, **{split: counts[split][i] for split in SPLITS}}
                for i, name in enumerate(self.class_names)
            ],
            **({} if self.files is None else self.files.describe()),
        }

    def _class_counts(self, split: Split) -> list[int]:
        labels = self.labels(split)
        return [] if labels is None else torch.bincount(labels, minlength=self.num_classes).tolist()

    # ------------------------------------------------------------------ values

    def from_uint8(self, image: Tensor) -> Tensor:
        """Map bytes to float32 in ``value_range``. Points stay as they are."""
        return pixels.from_uint8(image, self.value_range) if self.has_pixels else image

    def to_uint8(self, x: Tensor) -> Tensor:
        """Map values to the nearest bytes, clamped: the inverse of :meth:`from_uint8`."""
        return pixels.to_uint8(x, self.value_range) if self.has_pixels else x

    def prepare_batch(self, batch: Batch) -> Batch:
        """Add ``x``, clean data in the value range, on the device of ``image``."""
        image = batch["image"]
        if not self.has_pixels:
            return batch | {"x": image}
        if batch["augment"] and self.flip:
            image = self._flipped(image, batch)
        if self.dequantize if batch["augment"] else self.val_dequantize:
            return batch | {"x": self._dequantized(image, batch)}
        return batch | {"x": self.from_uint8(image)}

    def _flipped(self, image: Tensor, batch: Batch) -> Tensor:
        draw = Stream("flip", self.seed, batch["step"], indices=batch["index"])
        flip = (draw.uniform() < 0.5).to(image.device, non_blocking=True)
        return torch.where(flip[:, None, None, None], image.flip(-1), image)

    def _dequantized(self, image: Tensor, batch: Batch) -> Tensor:
        what = "dequantize" if batch["augment"] else "dequantize-validation"
        draw = Stream(
            what, self.seed, batch["step"], indices=batch["index"], device=image.device
        ).uniform(image.shape[1:], torch.float32)
        return pixels.dequantize(image, draw, self.value_range)

    # ------------------------------------------------------------------ Lightning's hooks

    def prepare_data(self) -> None:
        """Check that the data exist. Download them if ``data.download`` says so."""
        if self._custom is not None:
            return
        catalog.check(self.data_name, self.root, self.download)
        if self.download and self.root is not None and catalog.describe(self.data_name).files:
            sources.download(self.data_name, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Open both splits.

        Raises:
            UserError: if files are missing or unreadable, or ``batch_size`` cannot be divided.
        """
        self.division()
        self.source("train")
        self.source("test")

    def division(self) -> Division:
        """Return how the Trainer divides an optimizer step; one device without a Trainer."""
        trainer = self.trainer
        if trainer is None:
            return Division(self.batch_size)
        return Division(
            self.batch_size,
            trainer.accumulate_grad_batches,
            trainer.world_size,
            trainer.global_rank,
        )

    def train_dataloader(self) -> Batches:
        """Return endless micro-batches, starting at the Trainer's optimizer step."""
        source = self.source("train")
        order, division = self._order(), self.division()
        return Batches(
            source,
            lambda: training_order(order, division, self._step()),
            augment=True,
            workers=self.workers,
            pin=self._pin(),
        )

    def training_examples(self, step: int, index: Sequence[int]) -> list[int]:
        """Return the numbers, in the data set, of the training examples at these positions of the
        batch of optimizer step ``step``, from 0.
        """
        counter = step * self.batch_size
        batch = self._order().examples(counter, counter + self.batch_size)
        return [int(batch[position]) for position in index]

    def _order(self) -> DataOrder:
        size = len(self.source("train"))
        if self.one_batch:
            return OneBatch(size, self.seed, self.batch_size)
        return DataOrder(size, self.seed)

    def val_dataloader(self) -> SizedBatches:
        """Return this rank's share of ``val_size`` test images, always the same ones."""
        source, division = self.source("test"), self.division()
        examples = subset(len(source), self.val_size)
        plan = fixed_order(examples, division.micro_batch_size, division.world_size, division.rank)
        return SizedBatches(
            source, lambda: plan, False, self.workers, self._pin(), length=len(plan)
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Map bytes to values, on the device."""
        return self.prepare_batch(batch)

    def _step(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def _pin(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    # ------------------------------------------------------------------ options

    def _checked_range(self, value_range: tuple[float, float]) -> tuple[float, float]:
        low, high = (float(end) for end in value_range)
        if not low < high:
            raise UserError(f"value_range=[{low}, {high}] must have its lesser end first")
        return self.facts.value_range or (low, high)


def _text(root: str | Path | None) -> str | None:
    return None if root is None else str(root)
