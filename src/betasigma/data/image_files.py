"""Decode images from files: any folder of images, and CelebA.

An image is turned upright (EXIF), converted to RGB or greyscale, cropped to a centred square of
``crop`` pixels where asked, resized so that its shorter side is ``size`` (bilinear, antialiased:
Pillow's, as in the published NCSN and NCSNv2 pipelines), and its centre ``size`` × ``size`` kept.

A warning names files that cannot be decoded. Files with a broken header are left out when the data
set is opened. A file whose body is found broken later is replaced by the next image, because the
number of examples, and with it the data order, must not change during a run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from betasigma.data import listing
from betasigma.errors import UserError
from betasigma.options.data import OnCorrupt, Split

_READERS = 8
_SUBSTITUTES = 16
_CELEBA_PARTITION = {"train": "0", "test": "2"}


class Undecodable(Exception):
    """A file that is not a usable image. The message says why."""


@dataclass(frozen=True)
class Decoder:
    """File → image.

    Args:
        size: height and width of the result.
        channels: 3 for RGB, 1 for greyscale.
        crop: side of the centred square that is cut out first; ``None`` for no cut.
    """

    size: int
    channels: int
    crop: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return self.channels, self.size, self.size

    def __call__(self, path: Path) -> Tensor:
        """Decode ``path`` to uint8 of shape ``(C, H, W)``.

        Raises:
            Undecodable: where it is not an image, or smaller than the crop.
            UserError: if the file cannot be read at all.
        """
        image = _open(path).convert("L" if self.channels == 1 else "RGB")
        if self.crop is not None:
            if min(image.size) < self.crop:
                width, height = image.size
                raise Undecodable(f"{width}×{height} is smaller than crop=center_{self.crop}")
            image = functional.center_crop(image, [self.crop, self.crop])
        image = functional.resize(image, [self.size], InterpolationMode.BILINEAR)
        return functional.pil_to_tensor(functional.center_crop(image, [self.size, self.size]))


def _open(path: Path) -> Image.Image:
    with _pillow(), Image.open(path) as image:
        return _eight_bit(ImageOps.exif_transpose(image))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Take the high byte of 16-bit greyscale, which Pillow would clip at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Undecodable(f"its pixels are numbers (mode {image.mode}), not bytes")
    image.load()
    return image


def _broken_header(path: Path) -> Undecodable | None:
    """Return why ``path`` does not begin like an image; ``None`` if it does."""
    try:
        with _pillow():
            Image.open(path).close()
    except Undecodable as error:
        return error
    return None


@contextmanager
def _pillow() -> Iterator[None]:
    """Translate Pillow's errors: broken files, and files that cannot be read.

    Raises:
        Undecodable: for a broken file.
        UserError: if the operating system refuses.
    """
    try:
        yield
    except (Undecodable, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise Undecodable("not an image") from error
    except Exception as error:  # what a broken file raises depends on its format
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"data.root has an image that cannot be read: {error}") from error
        raise Undecodable(str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class Listed:
    """Image files with their labels, before anything is decoded."""

    base: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    num_classes: int

    def path(self, number: int) -> Path:
        """Path of image ``number``."""
        return self.base / self.names[number]

    def only(self, keep: Sequence[int]) -> Listed:
        """The images of the numbers ``keep``.

        Raises:
            UserError: if none is left.
        """
        if not keep:
            raise UserError(f"data.root has no image in {self.base} that can be decoded")
        labels = self.labels and tuple(self.labels[i] for i in keep)
        return replace(self, names=tuple(self.names[i] for i in keep), labels=labels)


def folder(root: Path, split: Split) -> Listed:
    """Images below ``root`` (:mod:`betasigma.data.listing`)."""
    found = listing.list_folder(root)
    part = found.train if split == "train" else found.test
    return Listed(part.base, part.names, part.labels, len(found.classes))


def celeba(root: Path, split: Split) -> Listed:
    """Aligned CelebA faces: ``root/celeba/img_align_celeba`` by ``list_eval_partition.txt``."""
    partition = root / "celeba" / "list_eval_partition.txt"
    try:
        rows = np.loadtxt(partition, dtype=str, ndmin=2)
        names = tuple(str(n) for n in rows[rows[:, 1] == _CELEBA_PARTITION[split], 0])
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"data.root={root} has a {partition.name} that cannot be read ({error}): it should "
            f"have an image name and 0, 1 or 2 on each line"
        ) from error
    if not names:
        raise UserError(f"data.root={root} has a {partition.name} without {split} images")
    return Listed(root / "celeba" / "img_align_celeba", names, None, 0)


def decode_all(
    listed: Listed, decoder: Decoder, on_corrupt: OnCorrupt
) -> tuple[Tensor, Tensor | None]:
    """All images that can be decoded, uint8 ``(N, C, H, W)``, and their labels, int64 ``(N,)``."""
    paths = [listed.path(i) for i in range(len(listed.names))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(lambda path: _attempt(decoder, path), paths))
    found = zip(paths, decoded, strict=True)
    _report({path: d for path, d in found if isinstance(d, Undecodable)}, on_corrupt)
    kept = listed.only([i for i, d in enumerate(decoded) if isinstance(d, Tensor)])
    images = torch.stack([d for d in decoded if isinstance(d, Tensor)])
    return images, None if kept.labels is None else torch.tensor(kept.labels)


def _attempt(decoder: Decoder, path: Path) -> Tensor | Undecodable:
    try:
        return decoder(path)
    except Undecodable as error:
        return error


class ImageFiles:
    """Examples that are decoded each time they are asked for.

    Args:
        listed: the files.
        decoder: file → image.
        on_corrupt: ``warn`` names and skips files that cannot be decoded, ``error`` refuses them.
        scan: read the header of every file now, and leave out broken ones.

    Raises:
        UserError: if no file is left, or ``on_corrupt=error`` and one is broken.
    """

    def __init__(
        self, listed: Listed, decoder: Decoder, on_corrupt: OnCorrupt, scan: bool = True
    ) -> None:
        self._listed = _with_headers(listed, on_corrupt) if scan else listed
        self._decoder = decoder
        self._on_corrupt: OnCorrupt = on_corrupt
        self._broken: set[int] = set()
        self._key: str | None = None
        self.shape: tuple[int, ...] = decoder.shape
        self.num_classes = listed.num_classes

    def __len__(self) -> int:
        return len(self._listed.names)

    def take(self, examples: np.ndarray) -> dict[str, Tensor]:
        """As :meth:`betasigma.data.sources.Source.take`; a broken image is replaced by the next."""
        found = [self._decode(int(number)) for number in examples]
        taken = {"image": torch.stack([image for image, _ in found])}
        if self._listed.labels is not None:
            taken["label"] = torch.tensor([self._listed.labels[number] for _, number in found])
        return taken

    def content_key(self) -> str:
        """Digest of the files' names, sizes and times of change, and of how they are decoded."""
        if self._key is None:
            digest = blake2b(repr(self._decoder).encode(), digest_size=16)
            for number, name in enumerate(self._listed.names):
                status = _status(self._listed.path(number))
                digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            self._key = digest.hexdigest()
        return self._key

    def _decode(self, number: int) -> tuple[Tensor, int]:
        """Return image ``number``, or the next that can be decoded, and its number."""
        for ahead in range(min(_SUBSTITUTES, len(self))):
            candidate = (number + ahead) % len(self)
            if candidate in self._broken:
                continue
            image = _attempt(self._decoder, self._listed.path(candidate))
            if isinstance(image, Tensor):
                return image, candidate
            self._broken.add(candidate)
            _report({self._listed.path(candidate): image}, self._on_corrupt)
        raise UserError(
            f"data.root has {_SUBSTITUTES} images in a row that cannot be decoded, from "
            f"{self._listed.path(number)} on: remove them, or check the disk"
        )


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"data.root lacks an image that it should have: {error}") from error


def _with_headers(listed: Listed, on_corrupt: OnCorrupt) -> Listed:
    paths = [listed.path(i) for i in range(len(listed.names))]
    with ThreadPoolExecutor(_READERS) as pool:
        errors = list(pool.map(_broken_header, paths))
    _report({p: e for p, e in zip(paths, errors, strict=True) if e is not None}, on_corrupt)
    return listed.only([i for i, error in enumerate(errors) if error is None])


def _report(broken: dict[Path, Undecodable], on_corrupt: OnCorrupt) -> None:
    """Name the ``broken`` files in a warning, or refuse them."""
    if not broken:
        return
    named = _enumerated([f"{path} ({error})" for path, error in broken.items()])
    if on_corrupt == "error":
        raise UserError(
            f"data.on_corrupt=error and {named} cannot be decoded: remove what is broken, or set "
            f"data.on_corrupt=warn to skip it"
        )
    warnings.warn(f"skipped, because it cannot be decoded: {named}", stacklevel=3)


def _enumerated(items: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
