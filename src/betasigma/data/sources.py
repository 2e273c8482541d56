"""Data sets that return examples by number.

A source is either one tensor (:class:`InMemory`: a batch is a copy of some of its rows) or a list
of image files (:class:`~betasigma.data.image_files.ImageFiles`: a batch is decoded when asked for).
Images are bytes, ``(C, H, W)``; the points of a ``mixture`` are float32 of shape ``(2,)``.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from betasigma.data import catalog, image_files, toy
from betasigma.data.arrays import ArrayFile
from betasigma.data.facts import described_facts, find_files
from betasigma.data.hub import HubTable
from betasigma.data.listing import Listing
from betasigma.errors import UserError, first_line
from betasigma.options.data import DataOptions, Split
from betasigma.randomness import philox

IN_MEMORY_BYTES = 2**28
"""Image folders up to this size, decoded, are held in memory by default."""

_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_PARSERS_RAISE = (
    *(OSError, RuntimeError, ValueError, TypeError, AssertionError, LookupError, EOFError),
    pickle.UnpicklingError,
)


class Source(Protocol):
    """Examples by number.

    Attributes:
        shape: of one example.
        num_classes: number of class labels, 0 for none.
        labels: class of each example, int64 ``(N,)``, or ``None``.
    """

    shape: tuple[int, ...]
    num_classes: int

    @property
    def labels(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def take(self, examples: np.ndarray) -> dict[str, Tensor]:
        """``image``: ``(b, *shape)``, and ``label``: int64 ``(b,)`` where there are classes."""

    def only(self, numbers: np.ndarray) -> Source:
        """Some of the examples, in this order."""

    def content_key(self) -> str:
        """Hex digest that changes when the data change."""

    def order_key(self) -> str:
        """Hex digest that changes when an example gets another number. Nothing is decoded."""


class InMemory:
    """All examples as one tensor.

    Args:
        images: uint8 ``(N, C, H, W)``, or float32 ``(N, D)`` for points.
        labels: int64 ``(N,)``; ``None`` for no classes.
        num_classes: 0 for no classes.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        self.images = images.contiguous()
        self.labels = labels if num_classes else None
        self.num_classes = num_classes
        self.shape = tuple(images.shape[1:])
        self._key: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, examples: np.ndarray) -> dict[str, Tensor]:
        """As :meth:`Source.take`."""
        # numpy copies rows several times faster than torch.index_select at the size of a batch,
        # and without waking a thread pool that the training step is using
        taken = {"image": torch.from_numpy(self.images.numpy().take(examples, axis=0))}
        if self.labels is not None:
            taken["label"] = torch.from_numpy(self.labels.numpy().take(examples))
        return taken

    def only(self, numbers: np.ndarray) -> InMemory:
        """Some of the examples, in this order."""
        chosen = torch.from_numpy(numbers)
        labels = None if self.labels is None else self.labels[chosen]
        return InMemory(self.images[chosen], labels, self.num_classes)

    def content_key(self) -> str:
        """Digest of shape, dtype and every value of ``images``."""
        if self._key is None:
            values = self.images.numpy()
            digest = blake2b(f"{values.dtype}{values.shape}".encode(), digest_size=16)
            digest.update(values.data)
            self._key = digest.hexdigest()
        return self._key

    def order_key(self) -> str:
        """The same."""
        return self.content_key()


def load(
    name: str,
    root: str | Path | None,
    split: Split,
    image_size: int | Sequence[int] | None = None,
    *,
    found: Listing | HubTable | ArrayFile | None = None,
    seed: int = 0,
    **options: Any,
) -> Source:
    """Open one split of a data set.

    Args:
        name: one of ``catalog.NAMES``.
        root: folder of the files, in torchvision's layout where torchvision has the data set.
        found: the files that a user brings; ``None`` to look for them.
        seed: from which the points of a ``mixture`` are drawn.
        options: others of ``OPENING`` (:class:`~betasigma.options.DataOptions`). Without
            ``in_memory``, at most ``IN_MEMORY_BYTES`` are held.

    Raises:
        UserError: if files are missing or unreadable, or an option does not apply.
    """
    DataOptions.check(**options)
    node = {**DataOptions.DEFAULTS, "name": name, "root": root, "image_size": image_size, **options}
    catalog.refuse_what_does_not_apply(name, node)
    found = found or find_files(node)
    shape = described_facts(node, found).shape
    catalog.check(name, root)
    if name == "mixture":
        return _mixture(node["mixture"], split, seed)
    if name == "digits":
        return _resized(_digits(split), shape)
    if isinstance(found, ArrayFile):
        from betasigma.data.custom import array_splits  # is built on this module

        source = array_splits(found)[split]
        return source if len(shape) == 1 else _resized(source, shape)
    assert root is not None  # catalog.check refuses it
    base = Path(root).expanduser()
    if name in _TORCHVISION:
        return _resized(_torchvision(name, base, split), shape)
    channels, height, width = shape
    side = None if node["crop"] is None else int(node["crop"].removeprefix("center_"))
    of_values = {key: node[key] for key in catalog.OF_VALUES}
    decoder = image_files.Decoder((height, width), channels, side, **of_values)
    images = image_files.celeba(base, split) if found is None else found.split(split)
    size = len(images.names) * int(np.prod(shape))
    if size <= IN_MEMORY_BYTES if node["in_memory"] is None else node["in_memory"]:
        decoded = image_files.decode_all(images, decoder, node["on_corrupt"])
        return InMemory(*decoded, images.num_classes)
    return image_files.ImageFiles(images, decoder, node["on_corrupt"], scan=name != "celeba")


def download(name: str, root: str | Path) -> None:
    """Download the missing files of a torchvision data set to ``root``.

    Files are moved there when all are complete. So an interrupted download, or one that several
    jobs start at once, leaves no incomplete file.

    Raises:
        UserError: if it cannot be downloaded or written.
    """
    base = Path(root).expanduser()
    if not catalog.missing(name, base):
        return
    try:
        base.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=base, prefix=".download-") as temporary:
            _torchvision_class((_TORCHVISION | {"celeba": "CelebA"})[name])(
                temporary, download=True
            )
            _move_files(Path(temporary), base)
    except (OSError, RuntimeError, ImportError) as error:
        lacking = ", ".join(catalog.missing(name, base))
        raise UserError(
            f"data={name} could not be downloaded to data.root={root} ({first_line(error)}): put "
            f"{lacking} there yourself, or try again"
        ) from error


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        destination = target / path.relative_to(source)
        if path.is_dir():
            destination.mkdir(exist_ok=True)
        elif path.suffix not in (".gz", ".zip"):
            os.replace(path, destination)


def _digits(split: Split) -> InMemory:
    """scikit-learn's digits; of each class every fifth image is for testing: 1437 and 360."""
    table = _table_of_digits()
    images, target = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    pixels = np.rint(images * (255 / 16)).astype(np.uint8)[:, None]
    by_class = np.argsort(target, kind="stable")
    tested = np.zeros(len(by_class), dtype=bool)
    tested[by_class[1::5]] = True
    chosen = tested if split == "test" else ~tested
    labels = target[chosen].astype(np.int64)
    return InMemory(torch.from_numpy(pixels[chosen]), torch.from_numpy(labels), 10)


@cache
def _table_of_digits() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Pixels and label of every digit, read from scikit-learn's file as ``load_digits`` does: the
    package takes a second to import.
    """
    (package,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    return np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets  # a second, which few data need

    return getattr(datasets, name)


def _torchvision(name: str, root: Path, split: Split) -> InMemory:
    try:
        data = _torchvision_class(_TORCHVISION[name])(root, train=split == "train")
    except _PARSERS_RAISE as error:
        raise _unreadable(name, root, error) from error
    pixels, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets, dtype=torch.int64)
    images = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if len(images) != len(labels) or images.shape[1:] != catalog.sample_shape(name):
        found = f"{tuple(images.shape)} images, {len(labels)} labels"
        raise _unreadable(name, root, ValueError(found))
    return InMemory(images, labels, 10)


def _unreadable(name: str, root: Path, error: Exception) -> UserError:
    return UserError(
        f"data.root={root} has files of data={name} that cannot be read ({first_line(error)}): "
        f"delete them and run again with data.download=true"
    )


def _mixture(name: str, split: Split, seed: int) -> InMemory:
    facts = catalog.describe("mixture")
    size = facts.train if split == "train" else facts.test
    assert size is not None
    distribution = toy.mixture(name)
    points, component = toy.sample(distribution, size, philox("mixture", seed, name, split))
    labels = torch.from_numpy(component)
    return InMemory(torch.from_numpy(points).float(), labels, len(distribution.weights))


def _resized(source: InMemory, shape: tuple[int, ...]) -> InMemory:
    if source.shape == shape:
        return source
    from torchvision.transforms.v2 import functional

    _, height, width = shape
    cover = image_files.covering((source.shape[1], source.shape[2]), (height, width))
    images = functional.resize(source.images, cover, antialias=True)
    images = functional.center_crop(images, [height, width])
    return InMemory(images, source.labels, source.num_classes)
