"""Sets of images that are no data set of a run: a folder, a zip archive, one file, or an array.

Arrays are what evaluators of images exchange: ``.npz`` with ``arr_0``, uint8 ``(n, H, W, C)``, and
perhaps labels in ``arr_1``; or a plain ``.npy``. Files are taken in the order of their names, as
they are unless a shape is asked for, and one that cannot be decoded is refused: a set of which some
are left out is another set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from betasigma.data.arrays import channels_last, read_images
from betasigma.data.file_tree import Files, LeftOut
from betasigma.data.image_files import (
    Decoder,
    ImageFiles,
    Undecodable,
    read_all,
    upright_size,
)
from betasigma.data.listing import Listed, endings, images_among, once
from betasigma.data.order import subset
from betasigma.data.sources import InMemory, Source
from betasigma.errors import UserError
from betasigma.options.data import Split
from betasigma.runs.directory import DRAWN

ARRAYS = (".npz", ".npy")


def open_images(
    path: str | Path, key: str, shape: tuple[int, ...] | None = None, channels: int | None = None
) -> Source:
    """Open a set of images.

    Args:
        path: of a folder, a zip archive, an image or an array.
        key: of the config that names it, for messages.
        shape: ``(C, H, W)`` that files are brought to, as those of a data set are; ``None`` to take
            them as they are, which must be of one size.
        channels: of files that are taken as they are, 1 or 3; ``None``: 1 where all are greyscale.

    Raises:
        UserError: if it cannot be read, or has no images, or images of several sizes.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() in ARRAYS:
        return _array(file, key, shape)
    if not file.exists():
        raise UserError(
            f"{key}={path} is not there: give a folder, a zip archive, an image, an .npz or an .npy"
        )
    single = file.is_file() and file.suffix.lower() in endings()
    files, left_out = _files(file.parent if single else file, key), LeftOut()
    names = [file.name] if single else _images(files, left_out)
    if not names:
        beside = f" (it has {left_out})" if left_out.counts else ""
        raise UserError(f"{key}={path} has no images in it{beside}")
    if left_out.counts:
        warnings.warn(f"{key}={path}: left out {left_out}", stacklevel=2)
    if shape is None:
        shape = _common_shape(files, names, key, channels)
    depth, height, width = shape
    listed = Listed(files, tuple(names))
    opened = ImageFiles(listed, Decoder((height, width), depth), "error", scan=False)
    opened.warn_of_losses(keys=False)
    return opened


def _files(root: Path, key: str) -> Files:
    try:
        return Files(root)
    except UserError as error:
        raise UserError(str(error).replace("data.root", key)) from None


def _images(files: Files, left_out: LeftOut) -> list[str]:
    found = files.list(lambda name: False, left_out)
    names = images_among([name for name in found.names if name != DRAWN], left_out)
    known = set(names)  # images elsewhere may be linked twice: a sample with replacement
    links = {link: target for link, target in found.targets.items() if target in known}
    return sorted(once(names, links, left_out))


def _common_shape(
    files: Files, names: Sequence[str], key: str, channels: int | None
) -> tuple[int, int, int]:
    """The shape that all images have, from their headers."""
    decoder = Decoder((1, 1), 3)

    def header(file: BinaryIO) -> tuple[tuple[int, int], bool]:
        with decoder.open(file) as image:
            return upright_size(image), image.mode in ("1", "L", "I;16")

    found = read_all(files, names, decoder, header)
    sizes: dict[tuple[int, int], list[str]] = {}
    grey = True
    for name, seen in zip(names, found, strict=True):
        if isinstance(seen, Undecodable):
            raise UserError(f"{key}={files.root} has {name}, which cannot be decoded ({seen})")
        sizes.setdefault(seen[0], []).append(name)
        grey = grey and seen[1]
    if len(sizes) > 1:
        of_each = sorted(sizes.items(), key=lambda item: -len(item[1]))
        several = ", ".join(f"{len(n)} of {w}×{h} ({n[0]})" for (w, h), n in of_each[:3])
        raise UserError(f"{key}={files.root} has images of several sizes, {several}: resize them")
    ((width, height),) = sizes
    return channels or (1 if grey else 3), height, width


def _array(path: Path, key: str, shape: tuple[int, ...] | None) -> InMemory:
    images, labels = read_images(path, f"{key}={path}")
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"{key}={path} has an array of {images.dtype} and shape {images.shape}; images are "
            f"uint8 of shape (n, H, W, C)"
        )
    last = channels_last(images.shape[1:], None, f"{key}={path}")
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2) if last else images)
    if shape is not None and tuple(tensor.shape[1:]) != tuple(shape):
        raise UserError(
            f"{key}={path} has images of shape {tuple(tensor.shape[1:])}, and the model's have "
            f"{tuple(shape)}"
        )
    if labels is None or labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        return InMemory(tensor)
    numbers = torch.from_numpy(labels.astype(np.int64))
    return InMemory(tensor, numbers, int(numbers.max()) + 1)


class ReferenceImages:
    """A set of images in the place of a data set's training split, which is its only one."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def size(self, split: Split) -> int:
        """Number of images."""
        return len(self.source)

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        """``limit`` images, always the same ones (all by default), uint8 ``(b, C, H, W)``."""
        chosen = subset(len(self.source), limit)
        for first in range(0, len(chosen), batch_size):
            yield self.source.take(chosen[first : first + batch_size])["image"]

    def content_key(self, split: Split) -> str:
        """Hex digest that changes when the images do."""
        return self.source.content_key()

    def to_uint8(self, x: Tensor) -> Tensor:
        """Bytes stay as they are."""
        return x
