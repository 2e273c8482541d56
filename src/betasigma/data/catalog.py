"""Facts about every data set before it is read: shapes, classes, sizes, files.

The config check reads them first, so that a missing folder or an impossible option ends in one
sentence before PyTorch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from betasigma.errors import UserError, did_you_mean
from betasigma.options import DataOptions
from betasigma.options.base import typed
from betasigma.options.composition import numbered
from betasigma.options.data import OF_OUR_SETS, height_and_width

CHANNELS = (1, 2, 3, 4)
"""Channels that image files can be converted to."""

MIXTURE_RANGE = (-1.0, 1.0)
"""Range of the points of a mixture. Points are not rescaled."""


@dataclass(frozen=True)
class DataSet:
    """Facts about a data set that do not depend on its files.

    Attributes:
        channels: image channels; ``None`` if ``data.channels`` chooses.
        size: native height and width; ``None`` if ``data.image_size`` must choose.
        classes: number of class labels, 0 for none; ``None`` if the files decide.
        train, test: number of examples of each split; ``None`` if the files decide.
        in_memory: held as one tensor; ``None`` if ``data.in_memory`` chooses.
        files: required files, relative to ``data.root``.
        downloadable: whether ``data.download=true`` can fetch it.
        hint: more advice for a user without the files.
        class_names: of the classes, where they are not numbers.
        takes: keys that only some data sets have, and this one does.
    """

    channels: int | None = None
    size: int | None = None
    classes: int | None = None
    train: int | None = None
    test: int | None = None
    in_memory: bool | None = True
    files: tuple[str, ...] = ()
    downloadable: bool = False
    hint: str = ""
    class_names: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()


OF_FILES = frozenset({"crop", "in_memory"})
"""Keys of data sets of image files."""

OF_VALUES = frozenset({"background", "bits", "window", "max_pixels"})
"""Keys of what becomes of the values of image files."""

OF_IMAGES = OF_FILES | OF_VALUES
"""Keys of images that a user brings."""


def _idx_files(folder: str) -> tuple[str, ...]:
    return tuple(
        f"{folder}/raw/{split}-{what}-ubyte"
        for split in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    )


_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

_MNIST = DataSet(
    channels=1,
    size=28,
    classes=10,
    train=60_000,
    test=10_000,
    files=_idx_files("MNIST"),
    downloadable=True,
)

DATA_SETS = {
    "digits": DataSet(channels=1, size=8, classes=10, train=1437, test=360),
    "mnist": _MNIST,
    "fashion_mnist": replace(
        _MNIST,
        files=_idx_files("FashionMNIST"),
        class_names=(
            *("t-shirt", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
    "cifar10": DataSet(
        channels=3,
        size=32,
        classes=10,
        train=50_000,
        test=10_000,
        files=tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10),
        downloadable=True,
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
    "celeba": DataSet(
        channels=3,
        size=64,
        classes=0,
        train=162_770,
        test=19_962,
        in_memory=None,
        files=("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        downloadable=True,
        hint=" (needs `pip install gdown`; Google often refuses, then unpack img_align_celeba.zip)",
        takes=OF_FILES,
    ),
    "image_folder": DataSet(in_memory=None, takes=OF_IMAGES | {"layout", "labels"}),
    "hub": DataSet(in_memory=None, takes=OF_IMAGES | {"columns"}),
    "array": DataSet(takes=frozenset({"values", "axes"})),
    "mixture": DataSet(train=50_000, test=10_000, takes=frozenset({"mixture"})),
}
NAMES = tuple(DATA_SETS)

SPECIAL = frozenset().union(*(known.takes for known in DATA_SETS.values()))
"""Keys that only some data sets have."""


def describe(name: str) -> DataSet:
    """Return the facts about the data set ``name``."""
    if name not in DATA_SETS:
        hint = did_you_mean(name, NAMES) or f"choose one of {', '.join(NAMES)}"
        raise UserError(
            f"data.name={name} is not a data set; {hint}, or name one of your own (data.source)"
        )
    return DATA_SETS[name]


def sample_shape(
    name: str, image_size: int | Sequence[int] | None = None, channels: int | None = None
) -> tuple[int, ...]:
    """Shape of one example: ``(C, H, W)``, or ``(2,)`` for ``mixture``.

    Args:
        image_size: height and width to resize to, one number or two; ``None`` for the native size.
        channels: of ``image_folder``, 3 by default; elsewhere ``None`` or what the data set has.
    """
    facts = describe(name)
    if name == "mixture":
        return (2,)
    size = facts.size if image_size is None else image_size
    if size is None:
        raise UserError(f"data.image_size must be given for data={name}, e.g. data.image_size=64")
    DataOptions.check(image_size=size)
    allowed = CHANNELS if facts.channels is None else (facts.channels,)
    chosen = (facts.channels or 3) if channels is None else channels
    if chosen not in allowed:
        raise UserError(
            f"data.channels={chosen} is not possible for data={name}, which has "
            f"{' or '.join(map(str, allowed))}"
        )
    return chosen, *height_and_width(size)


def class_names(name: str, mixture: str = DataOptions.DEFAULTS["mixture"]) -> tuple[str, ...]:
    """Names of the classes by number, ``()`` for none, where the files do not decide."""
    facts = describe(name)
    if name == "mixture":
        from betasigma.data import toy  # imports NumPy

        return numbered(len(toy.mixture(mixture).weights))
    return facts.class_names or numbered(facts.classes or 0)


def refuse_what_does_not_apply(name: str, node: Mapping[str, Any]) -> None:
    """Refuse keys of other data sets."""
    for key in sorted(SPECIAL - describe(name).takes):
        default = DataOptions.DEFAULTS[key]
        if node.get(key, default) != default:
            raise UserError(
                f"data.{key}={typed(node[key])} does not apply to data={name}: remove it"
            )


def refuse_pixels(name: str, flip: bool, dequantize: bool) -> None:
    """Refuse what is done to pixels, of points."""
    if flip or dequantize:
        raise UserError(f"data={name} has no pixels: data.flip and data.dequantize must be off")


def unused(node: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a ``data`` node that have no effect on its data set, and why
    (:meth:`betasigma.options.base.Options.unused`).
    """
    name = node["name"]
    if node.get("source") is not None:
        why = "on a data set of one's own (data.source)"
        return dict.fromkeys(("workers", *OF_OUR_SETS), f"{why}, which is held in memory")
    facts = DATA_SETS.get(name)
    if facts is None:  # that of a model which others have trained
        return {}
    found = dict.fromkeys(SPECIAL - facts.takes, f"on data={name}")
    if name == "mixture":
        found |= dict.fromkeys(("image_size", "channels"), f"on data={name}: points have no pixels")
    if facts.channels is not None:
        found["channels"] = f"on data={name}, which has {facts.channels}"
    if facts.in_memory or node.get("in_memory"):
        found["workers"] = "on images that are held in memory"
    if not facts.takes & OF_FILES:
        found["on_corrupt"] = f"on data={name}, whose images are no files"
    if not facts.downloadable and name != "hub":
        found["download"] = f"on data={name}, which cannot be fetched"
    if not facts.files and name not in OF_THE_USER:
        found["root"] = f"on data={name}, which has no files"
    return found


def check(name: str, root: str | Path | None, download: bool = False) -> None:
    """Check that the files exist or can be downloaded."""
    facts = describe(name)
    if name in OF_THE_USER:
        data_path(name, root)
        return
    if not facts.files or (download and facts.downloadable and root is not None):
        return
    remedy = f"add data.download=true to download it{facts.hint}"
    if root is None:
        raise UserError(
            f"data.root is not set: data={name} needs the folder that holds {facts.files[0]}; give "
            f"data.root=…, and {remedy} there"
        )
    lacking = missing(name, root)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"data.root={root} has no {lacking[0]}{more}: give the folder that has it, or {remedy}"
        )


def missing(name: str, root: str | Path) -> list[str]:
    """Return the files of the data set that are missing below ``root``, relative to it."""
    base = Path(root).expanduser()  # whose name may be too long for Path.exists
    return [file for file in describe(name).files if not os.path.exists(base / file)]


OF_THE_USER = {
    "image_folder": "/path/to/images, a folder or a zip archive",
    "array": "/path/to/images.npy, or an .npz file",
    "hub": "owner/name, or a folder of save_to_disk or of Parquet files, or one of these",
}
"""Data sets whose files a user brings, and what ``data.root`` is."""


def data_path(name: str, root: str | Path | None) -> Path:
    """Return where the files of a data set of ``OF_THE_USER`` are; of ``hub`` it may be a name."""
    if root is None:
        raise UserError(f"data.root is not set: data={name} needs data.root={OF_THE_USER[name]}")
    path = Path(root).expanduser()
    if name == "hub":
        return path
    if name == "array" and path.is_dir():
        raise UserError(f"data.root={root} is a folder: data=image_folder reads those of images")
    if name == "image_folder" and path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        raise UserError(f"data.root={root} is an array: data=array reads it")
    if not path.exists():
        what = "a file" if name == "array" else "a folder or a file"
        raise UserError(f"data.root={root} is not {what}: give {OF_THE_USER[name]}")
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise UserError(f"data.root={root} cannot be read: `chmod -R u+rX {root}` would allow it")
    return path
