"""Sets of images that are no data set of a run: a folder, one file, or an array.

Arrays are what evaluators of images exchange: ``.npz`` with ``arr_0``, uint8 ``(n, H, W, C)``, and
perhaps labels in ``arr_1``; what ``scripts/sample.py`` writes; or a plain ``.npy``. Files are taken
in the order of their names, as they are unless a shape is asked for.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.data import listing
from betasigma.data.image_files import Decoder, ImageFiles, Listed
from betasigma.data.sources import InMemory, Source
from betasigma.errors import UserError

ARRAYS = (".npz", ".npy")
IMAGE_ARRAYS, LABEL_ARRAYS = ("arr_0", "samples", "images"), ("arr_1", "labels")
"""Names of arrays in an ``.npz`` file; the first that is there."""


def open_images(path: str, key: str, shape: tuple[int, ...] | None = None) -> Source:
    """Open a set of images.

    Args:
        path: of a folder, an image, or an array.
        key: of the config that names it, for messages.
        shape: ``(C, H, W)`` that every image is brought to, as those of a data set are; ``None``
            to take them as they are, which must be of one size.

    Raises:
        UserError: if it cannot be read, or has images of several sizes.
    """
    place = Path(path).expanduser()
    if place.suffix.lower() in ARRAYS:
        return _array(place, key, shape)
    if place.is_dir():
        names = listing._names(place)
    elif place.is_file():
        place, names = place.parent, [place.name]
    else:
        raise UserError(f"{key}={path} is not there: give a folder, an image, an .npz or an .npy")
    if not names:
        raise UserError(f"{key}={path} has no images ({', '.join(listing.EXTENSIONS)}) in it")
    channels, height, _ = shape or _common_shape(place, names, key)
    listed = Listed(place, tuple(names), None, 0)
    return ImageFiles(listed, Decoder(height, channels), "error", scan=False)


def _common_shape(base: Path, names: list[str], key: str) -> tuple[int, int, int]:
    sizes: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], str] = {}
    modes = set()
    for name in names:
        with Image.open(base / name) as image:
            sizes[image.size] += 1
            first.setdefault(image.size, name)
            modes.add(image.mode)
    if len(sizes) > 1:
        several = ", ".join(f"{n} of {w}×{h} ({first[w, h]})" for (w, h), n in sizes.most_common(3))
        raise UserError(f"{key}={base} has images of several sizes: {several}; resize them first")
    ((width, height),) = sizes
    return (1 if modes <= {"L", "1"} else 3), height, width


def _array(path: Path, key: str, shape: tuple[int, ...] | None) -> Source:
    try:
        found = np.load(path, allow_pickle=False)
        arrays = {"": found} if isinstance(found, np.ndarray) else found
        name = next((n for n in ("", *IMAGE_ARRAYS) if n in arrays), None)
        label = next((n for n in LABEL_ARRAYS if n in arrays), None)
        if name is None:
            raise UserError(
                f"{key}={path} has {', '.join(arrays)}; images must be under one of "
                f"{', '.join(IMAGE_ARRAYS)}"
            )
        images = arrays[name]
        labels = None if label is None else arrays[label]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{key}={path} cannot be read ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"{key}={path} has an array of {images.dtype} and shape {images.shape}; images are "
            f"uint8 of shape (n, H, W, C)"
        )
    tensor = torch.from_numpy(images)
    if images.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise UserError(f"{key}={path} has shape {images.shape}, and images have 1 or 3 channels")
    if shape is not None and tuple(tensor.shape[1:]) != shape:
        raise UserError(
            f"{key}={path} has images of shape {tuple(tensor.shape[1:])}, and the model's have "
            f"{tuple(shape)}"
        )
    return InMemory(tensor, *_labels(labels, len(tensor)))


def _labels(labels: np.ndarray | None, n: int) -> tuple[Tensor | None, int]:
    if labels is None or labels.shape != (n,) or labels.dtype.kind not in "iu":
        return None, 0
    return torch.from_numpy(labels.astype(np.int64)), int(labels.max()) + 1
