"""Decode images: those of a folder, of a zip archive or of a table, and CelebA.

An image is turned upright (EXIF), its transparent parts are filled with ``background``, it is
converted to the wanted channels, cropped to a centred square of ``crop`` pixels where asked,
resized to cover ``size`` (bilinear, antialiased: Pillow's, as in the published NCSN and NCSNv2
pipelines), and its centre kept. Of several frames the first is taken.

Greyscale of 16 bits becomes its upper byte, or the byte of ``bits`` or ``window``.

A warning names files that cannot be decoded. Files that are missing or have a broken header are
left out when the data set is opened. A file whose body is found broken later is replaced by the
next image, because the number of examples, and with it the data order, must not change during a
run. A file that the operating system cannot read although it is there ends the run: a disk may be
failing.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from betasigma.cpus import cpus_of_a_process
from betasigma.data.file_tree import Files, printable
from betasigma.data.hub import HubTable
from betasigma.data.listing import Listed
from betasigma.errors import UserError, few
from betasigma.options.data import COLOURS, DataOptions, OnCorrupt, Split
from betasigma.pictures import readable_formats

# Pillow's own limit is one of the whole process, and is met before its size is known here
Image.MAX_IMAGE_PIXELS = None

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of images of so many channels."""

_READERS = 8
_SUBSTITUTES = 16
_PROBED = 64
_HARDLY = 1 / 8
"""Share of the range of 16 bits below which a warning is due: at least 3 of 8 bits are lost."""

_TURNED = (5, 6, 7, 8)
"""EXIF's orientations that swap height and width."""
_FRAMED = ("GIF", "TIFF", "WEBP", "PNG", "AVIF", "DCX")
_CELEBA_PARTITION = {"train": "0", "test": "2"}


class Undecodable(Exception):
    """A file that is not a usable image. The message says why."""


class Decoded(NamedTuple):
    """An image, and what was found in the file.

    Attributes:
        image: uint8 ``(C, H, W)``.
        transparent: whether parts of it were transparent and are filled.
        deepest: largest value of 16-bit pixels; ``None`` for images of 8 bits.
        colour: whether those were of several channels.
        frames: number of frames, of which the first was taken.
    """

    image: Tensor
    transparent: bool
    deepest: int | None
    colour: bool
    frames: int


@dataclass(frozen=True)
class Decoder:
    """File → image.

    Args:
        size: height and width of the result.
        channels: 1 for greyscale, 3 for RGB; 2 and 4 for the same with transparency as a channel.
        crop: side of the centred square that is cut out first; ``None`` for no cut.
        background: what shows through transparent parts.
        bits: of 16-bit greyscale, if fewer are used: 2^bits − 1 becomes 255.
        window: values of greyscale that become 0 and 255; others are clipped.
        max_pixels: largest image that is decoded.
    """

    size: tuple[int, int]
    channels: int
    crop: int | None = None
    background: str | Sequence[int] = DataOptions.DEFAULTS["background"]
    bits: int | None = None
    window: tuple[float, float] | None = None
    max_pixels: int = DataOptions.DEFAULTS["max_pixels"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return self.channels, *self.size

    @property
    def most_bytes(self) -> int:
        """Largest file that is unpacked: four channels of 16 bits, uncompressed."""
        return 8 * self.max_pixels + 2**20

    def decode(self, file: Path | BinaryIO) -> Decoded:
        """Decode a file.

        Raises:
            Undecodable: where it is not an image, or smaller than the crop.
            UserError: if the file is there and cannot be read.
        """
        from torchvision.transforms.v2 import InterpolationMode, functional

        with _pillow(), self.open(file) as image:
            frames = getattr(image, "n_frames", 1) if image.format in _FRAMED else 1
            colour = _is_deep_colour(image)
            if colour and not self.bits == self.window is None:
                raise Undecodable("its colours have 16 bits, of which Pillow reads the upper 8")
            scaled_already = image.format == "PPM"
            upright = ImageOps.exif_transpose(image)
            eight, deepest = (
                (_upper_byte(upright), None) if scaled_already else self._eight_bit(upright)
            )
            filled, transparent = self._without_transparency(eight)
            if colour:
                deepest = 257 * max(high for _, high in _extrema(filled))
        if self.crop is not None:
            if min(filled.size) < self.crop:
                width, height = filled.size
                raise Undecodable(f"{width}×{height} is smaller than crop=center_{self.crop}")
            filled = functional.center_crop(filled, [self.crop, self.crop])
        cover = covering((filled.height, filled.width), self.size)
        resized = functional.resize(filled, cover, InterpolationMode.BILINEAR)
        pixels = functional.pil_to_tensor(functional.center_crop(resized, list(self.size)))
        return Decoded(pixels, transparent, deepest, colour, frames)

    def open(self, file: Path | BinaryIO) -> Image.Image:
        """Read the header of an image.

        Raises:
            Undecodable: if it is too large.
        """
        image = Image.open(file, formats=readable_formats())
        width, height = image.size
        if width * height > self.max_pixels:
            image.close()
            raise Undecodable(
                f"{width}×{height} are {width * height:,} pixels; data.max_pixels={width * height} "
                f"allows them"
            )
        return image

    def _eight_bit(self, image: Image.Image) -> tuple[Image.Image, int | None]:
        """Bring numbers of greyscale to bytes; and their largest value where they have 16 bits."""
        deep = image.mode.startswith("I;16")
        if not deep and image.mode not in ("I", "F"):
            image.load()
            return image, None
        if "transparency" in image.info:
            raise Undecodable("one of its 16-bit values is transparent")
        values = np.asarray(image)
        if self.window is not None:
            if not np.isfinite(values).all():
                raise Undecodable("it has values that are not finite")
            low, high = self.window
            scaled = (values.astype(np.float64) - low) * (255 / (high - low))
            return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)), None
        if not deep:
            raise Undecodable(
                f"its pixels are numbers (mode {image.mode}), not bytes: data.window=[low,high] "
                f"says which become black and white"
            )
        bits, deepest = self.bits or 16, int(values.max())
        if deepest >= 2**bits:
            raise Undecodable(f"it has values up to {deepest:,}, and data.bits={bits} ends before")
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)), deepest

    def _without_transparency(self, image: Image.Image) -> tuple[Image.Image, bool]:
        """Convert to the wanted channels, on the background; and whether it shows anywhere."""
        mode = MODES[self.channels]
        if self.channels in (2, 4) or not image.has_transparency_data:
            return image.convert(mode), False
        layer = image.convert("RGBA")
        low, _ = _extrema(layer)[3]
        if low == 255:
            return layer.convert(mode), False
        known = self.background
        colour = COLOURS[known] if isinstance(known, str) else tuple(known)
        ground = Image.new("RGBA", layer.size, (*colour, 255))
        ground.alpha_composite(layer)
        return ground.convert("RGB").convert(mode), True


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as it is decoded, without decoding it: EXIF may turn it."""
    width, height = image.size
    # the size of a TIFF is that of the turned image already, and a PNG without EXIF before its
    # pixels would be decoded to look behind them
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return width, height
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (height, width) if turned else (width, height)


def covering(size: tuple[int, int], wanted: tuple[int, int]) -> list[int]:
    """Height and width of an image that is scaled until it just covers ``wanted``."""
    (height, width), (tall, wide) = size, wanted
    if width * tall >= wide * height:
        return [tall, max(wide, int(tall * width / height))]
    return [max(tall, int(wide * height / width)), wide]


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Least and greatest byte of each channel."""
    return [channel.getextrema() for channel in image.split()]  # type: ignore[misc]


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether several channels have 16 bits, which Pillow would not say."""
    tiles = getattr(image, "tile", [])[:1]
    several = len(image.getbands()) > 1
    return several and any(re.search(r";16[BLN]\b", str(tile.args)) for tile in tiles)


def _upper_byte(image: Image.Image) -> Image.Image:
    """PGM says how far its values go, and Pillow has scaled them to 16 bits."""
    if image.mode != "I":
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@contextmanager
def _pillow() -> Iterator[None]:
    """Translate Pillow's errors: broken files, files that are missing, a disk that fails.

    Raises:
        Undecodable: for a broken or missing file.
        UserError: if the operating system refuses one that is there.
    """
    try:
        yield
    except (Undecodable, UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise Undecodable("not an image") from error
    except Exception as error:  # what a broken file raises depends on its format
        code = getattr(error, "errno", None) if isinstance(error, OSError) else None
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise Undecodable("missing") from error
        if code is not None:
            raise UserError(f"there is an image that cannot be read: {error}") from error
        raise Undecodable(str(error) or type(error).__name__) from error


Container = Files | HubTable
"""Where images are: a folder, an archive, a table."""


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
    return Listed(Files(root / "celeba" / "img_align_celeba"), names)


def decode_all(
    images: Listed, decoder: Decoder, on_corrupt: OnCorrupt
) -> tuple[Tensor, Tensor | None]:
    """All images that can be decoded, uint8 ``(N, C, H, W)``, and their labels, int64 ``(N,)``."""
    decoded = read_all(images.container, images.names, decoder, decoder.decode)
    kept = _without_broken(images, decoded, on_corrupt)
    whole = [d for d in decoded if isinstance(d, Decoded)]
    _remark(whole, decoder, len(whole))
    tensor = torch.stack([d.image for d in whole])
    return tensor, None if kept.labels is None else torch.tensor(kept.labels)


Read = TypeVar("Read")


def read_all(
    container: Container,
    names: Sequence[str],
    decoder: Decoder,
    read: Callable[[BinaryIO], Read],
    threads: int | None = None,
) -> list[Read | Undecodable]:
    """What ``read`` makes of each file, or why it is not an image; by one thread per CPU."""
    with ThreadPoolExecutor(threads or cpus_of_a_process(1)) as pool:
        return list(pool.map(lambda name: _attempt(container, name, decoder, read), names))


def _attempt(
    container: Container, name: str, decoder: Decoder, read: Callable[[BinaryIO], Read]
) -> Read | Undecodable:
    try:
        with _pillow(), container.open(name, decoder.most_bytes) as file:
            return read(file)
    except Undecodable as error:
        return error


class ImageFiles:
    """Examples that are decoded each time they are asked for.

    Args:
        images: where they are.
        decoder: file → image.
        on_corrupt: ``warn`` names and skips files that cannot be decoded, ``error`` refuses them.
        scan: read the header of every file now, leave out broken ones, and look at some of them.

    Raises:
        UserError: if no file is left, or ``on_corrupt=error`` and one is broken.
    """

    def __init__(
        self, images: Listed, decoder: Decoder, on_corrupt: OnCorrupt, scan: bool = True
    ) -> None:
        self._images = _with_headers(images, decoder, on_corrupt) if scan else images
        self._decoder = decoder
        self._on_corrupt: OnCorrupt = on_corrupt
        self._broken: set[int] = set()
        self._key: str | None = None
        self.shape: tuple[int, ...] = decoder.shape
        self.num_classes = images.num_classes
        if scan:
            self.warn_of_losses()

    def __len__(self) -> int:
        return len(self._images.names)

    def take(self, examples: np.ndarray) -> dict[str, Tensor]:
        """As :meth:`betasigma.data.sources.Source.take`; a broken image is replaced by the next."""
        found = [self._decode(int(number)) for number in examples]
        taken = {"image": torch.stack([image for image, _ in found])}
        if self._images.labels is not None:
            taken["label"] = torch.tensor([self._images.labels[number] for _, number in found])
        return taken

    def only(self, numbers: np.ndarray) -> ImageFiles:
        """Some of the examples, in this order."""
        chosen = copy(self)
        chosen._images = self._images.only(numbers.tolist())
        chosen._broken, chosen._key = set(), None
        return chosen

    @property
    def labels(self) -> Tensor | None:
        """Class of each example, int64 ``(N,)``, or ``None``."""
        return None if self._images.labels is None else torch.tensor(self._images.labels)

    def order_key(self) -> str:
        """Digest of the images' names and labels."""
        content = repr((self._images.names, self._images.labels))
        return blake2b(content.encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def content_key(self) -> str:
        """Digest of the images' names and stamps (:meth:`Files.stamp`), and of how they are
        decoded.
        """
        if self._key is None:
            digest = blake2b(repr(self._decoder).encode(), digest_size=16)
            for name in self._images.names:
                digest.update(f"{name}\0{self._stamp(name)}\n".encode(errors="surrogateescape"))
            self._key = digest.hexdigest()
        return self._key

    def _stamp(self, name: str) -> str:
        try:
            return self._images.container.stamp(name)
        except OSError as error:
            raise UserError(f"data.root lacks an image that it should have: {error}") from error

    def _decode(self, number: int) -> tuple[Tensor, int]:
        """Return image ``number``, or the next that can be decoded, and its number."""
        container = self._images.container
        for ahead in range(min(_SUBSTITUTES, len(self))):
            candidate = (number + ahead) % len(self)
            if candidate in self._broken:
                continue
            name = self._images.names[candidate]
            found = _attempt(container, name, self._decoder, self._decoder.decode)
            if isinstance(found, Decoded):
                return found.image, candidate
            if not container.is_there():
                raise UserError(f"{container.where('')} can no longer be read: check the disk")
            self._broken.add(candidate)
            _report(container, {name: found}, self._on_corrupt)
        raise UserError(
            f"data.root has {_SUBSTITUTES} images in a row that cannot be decoded, from "
            f"{container.where(self._images.names[number])} on: remove them, or check the disk"
        )

    def warn_of_losses(self, keys: bool = True) -> None:
        """Look at some images for what a user should know of all."""
        count = len(self)
        numbers = np.unique(np.linspace(0, count - 1, min(count, _PROBED)).round().astype(int))
        names = [self._images.names[number] for number in numbers]
        decoder = self._decoder
        found = read_all(self._images.container, names, decoder, decoder.decode)
        _remark([d for d in found if isinstance(d, Decoded)], decoder, count, keys)


def _with_headers(images: Listed, decoder: Decoder, on_corrupt: OnCorrupt) -> Listed:
    headers = read_all(
        images.container, images.names, decoder, lambda file: decoder.open(file).close(), _READERS
    )
    return _without_broken(images, headers, on_corrupt)


def _without_broken(images: Listed, found: Sequence[object], on_corrupt: OnCorrupt) -> Listed:
    """Leave out, or refuse, the images of which what was ``found`` is an error."""
    named = zip(images.names, found, strict=True)
    broken = {name: error for name, error in named if isinstance(error, Undecodable)}
    _report(images.container, broken, on_corrupt)
    return images.only([i for i, name in enumerate(images.names) if name not in broken])


def _report(container: Container, broken: dict[str, Undecodable], on_corrupt: OnCorrupt) -> None:
    """Name the ``broken`` files in a warning, or refuse them."""
    if not broken:
        return
    named = few([f"{printable(container.where(name))} ({error})" for name, error in broken.items()])
    if on_corrupt == "error":
        raise UserError(
            f"data.on_corrupt=error and {named} cannot be decoded: remove what is broken, or set "
            f"data.on_corrupt=warn to skip it"
        )
    count = f"{len(broken):,} images" if len(broken) > 1 else "an image"
    warnings.warn(f"skipped {count} that cannot be decoded: {named}", stacklevel=3)


def _remark(found: Sequence[Decoded], decoder: Decoder, total: int, keys: bool = True) -> None:
    """Warn of what decoding has changed or lost; ``keys`` names what would change that."""
    looked = "" if len(found) == total else f" looked at ({total:,})"
    of = f"of {len(found):,} image{'s' * (len(found) != 1)}{looked}"
    transparent = sum(d.transparent for d in found)
    if transparent:
        warnings.warn(
            f"transparent parts of {transparent:,} {of} show "
            f"{'data.background=' * keys}{decoder.background}",
            stacklevel=3,
        )
    several = sum(d.frames > 1 for d in found)
    if several:
        warnings.warn(f"several frames in {several:,} {of}; the first is taken", stacklevel=3)
    deep = [d for d in found if d.deepest is not None]
    if not deep:
        return
    most, bits = max(int(d.deepest or 0) for d in deep), decoder.bits or 16
    if most < _HARDLY * 2**bits:
        remedy = f"data.bits={max(most.bit_length(), 9)} spreads them"
        if any(d.colour for d in deep):
            remedy = "Pillow reads no more of colours: spread them over their range first"
        elif not keys:
            remedy = "spread them over their range first"
        warnings.warn(
            f"{bits} bits in {len(deep):,} {of}, and values up to {most:,} of {2**bits - 1:,}, "
            f"which become {most >> (bits - 8)} of 255: {remedy}",
            stacklevel=3,
        )
