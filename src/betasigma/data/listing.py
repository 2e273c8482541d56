"""Find the images of a folder or a zip archive, with their classes and splits. None is decoded.

A layout says what the folders mean:

- ``flat``: nothing. A tenth of the images is held out for testing.
- ``classes``: ``cat/…``, ``dog/…``. A tenth is held out.
- ``splits``: ``train/…`` and ``test/…`` (or ``val/…``), with folders of classes in them or not.
- ``splits_in_classes``: ``cat/train/…``, ``cat/test/…``, ``dog/train/…``, …

It is read off the names of the folders, and refused where two layouts would train on different
images. A folder that is alone at its level is passed through. A file of labels
(:mod:`betasigma.data.labels`) decides the classes in the folders' place, and may decide the splits.

An image is held out if the hash of its relative name falls in the lowest tenth. So its split
depends on its name only, and adding or removing images moves no other image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from betasigma.data.file_tree import ZIP, Files, LeftOut, printable
from betasigma.data.labels import Labels, find_labels
from betasigma.errors import UserError, few
from betasigma.options.data import DECODERS, Layout, Split

HELD_OUT = 0.1
"""Share of the images that are held out if the folder has no split of its own."""

_NAMES = {
    "train": "train|training|trn",
    "val": "val|valid|validation|dev",
    "test": "test|testing|tst|holdout|held_?out",
}
_SPLIT = re.compile(
    "|".join(f"(?P<{split}>{names})" for split, names in _NAMES.items()).join(("(?:", ")"))
    + r"(?:[ _-]?(?:set|split|data|images|imgs))?(?:[ _-]?\d{4})?",
    re.IGNORECASE,
)
"""Names of folders of a split: ``Train``, ``validation``, ``test_images``, ``train2017``."""


@dataclass(frozen=True)
class ListedSplit:
    """Images of one split by name, with labels if there are classes."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None


@dataclass(frozen=True)
class Listing:
    """Both splits of a folder or an archive.

    Attributes:
        files: opens an image by its name.
        layout: what the folders were taken for.
        train, test: the splits.
        classes: their names, by number; ``()`` for none.
        left_out: what is not used, and why.
        labels_from: the file of labels, if there is one.
        tested_on: folder of the test split; "" where images were held out.
    """

    files: Files
    layout: Layout
    train: ListedSplit
    test: ListedSplit
    classes: tuple[str, ...]
    left_out: LeftOut
    labels_from: str | None = None
    tested_on: str = ""

    def split(self, split: Split) -> ListedSplit:
        """The images of ``split``."""
        return self.train if split == "train" else self.test

    def describe(self) -> dict[str, Any]:
        """What was found, for the record of a run."""
        return {
            "layout": self.layout,
            "test_folder": self.tested_on or None,
            "labels": self.labels_from,
            "left_out": dict(self.left_out.counts),
        }

    def sentences(self) -> list[str]:
        """What was found, for the user."""
        tested = self.tested_on or "held out"
        labels = f", labels of {self.labels_from}" if self.labels_from else ""
        return [
            f"layout {self.layout}{labels}: {len(self.train.names):,} images to train on, "
            f"{len(self.test.names):,} to test ({tested})",
            *self.left_out.sentences(),
        ]


@cache
def endings() -> frozenset[str]:
    """Endings of file names that the installed Pillow reads by one of ``DECODERS``."""
    from PIL import Image  # nothing heavy, but the rest of this module does without

    return frozenset(end for end, form in Image.registered_extensions().items() if form in DECODERS)


def split_of(folder: str) -> str | None:
    """The split that a folder or an archive is named after: train, val, test or ``None``."""
    found = _SPLIT.fullmatch(folder.removesuffix(ZIP))
    return None if found is None else found.lastgroup


def _splits_in(folder: str) -> set[str]:
    """Splits that words of a name mean: those of ``trainA`` or ``DIV2K_train_HR``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", folder)
    return {split for split in map(split_of, words) if split}


def list_folder(root: Path, layout: Layout | None = None, labels: str | None = None) -> Listing:
    """Find the images of a folder or a zip archive, in the order of their names.

    Raises:
        UserError: if there are too few for a train and a test split, or the folders can be read in
            two ways.
    """
    files, left_out = Files(root), LeftOut()
    found = files.list(lambda name: split_of(name) is not None, left_out)
    names = images_among(found.names, left_out)
    if not names:
        shown = f" (it has {left_out})" if left_out.counts else ""
        raise UserError(
            f"data.root={root} has no images in it or below{shown}: give the path of a folder or a "
            f"zip archive that has"
        )
    told = find_labels(files, labels, own=layout in (None, "flat", "splits"))
    tree = _Tree(root, names, packed=not root.is_dir())
    reading = tree.read(layout or tree.choose(told))
    train, test = reading.train, reading.test
    for name, why in reading.left_out:
        left_out.add(why, name)
    if told is not None:
        train, test = _told(told, tree.prefix, train, test, left_out)
    kept = once([*train, *(test or ())], found.targets, left_out)
    train = [name for name in train if name in kept]
    if test is None:
        train, test = hold_out(train, lambda name: os.fsencode(name.removeprefix(reading.base)))
    else:
        test = [name for name in test if name in kept]
    _check_enough(root, reading, train, test)
    classes, label = _classes(told, tree.prefix, reading, train, test)
    return Listing(
        files,
        reading.layout,
        ListedSplit(tuple(train), tuple(map(label, train)) if classes else None),
        ListedSplit(tuple(test), tuple(map(label, test)) if classes else None),
        classes,
        left_out,
        told.source if told is not None else None,
        reading.tested_on,
    )


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class _Reading:
    """Images by what a layout makes of them.

    Attributes:
        layout: which.
        train: names.
        test: names; ``None`` to hold out some of ``train``.
        depth: which part of a name is the folder of its class; ``None`` for no classes.
        base: what names begin with that are held out by the rest of their names.
        trained_on, tested_on: folders of the splits.
        left_out: names, and why.
    """

    layout: Layout
    train: list[str]
    test: list[str] | None = None
    depth: int | None = None
    base: str = ""
    trained_on: str = ""
    tested_on: str = ""
    left_out: tuple[tuple[str, str], ...] = ()

    def class_of(self, name: str) -> str | None:
        """Folder of the class of an image; ``None`` if it is in none."""
        parts = name.split("/")
        if self.depth is None or len(parts) <= self.depth + 1:
            return None
        return parts[self.depth]

    def __str__(self) -> str:
        count = len(self.train) + len(self.test or ())
        without = f" and leaves out {len(self.left_out)}" if self.left_out else ""
        if self.layout == "flat":
            return f"takes all {count} images, without classes"
        if self.layout == "splits":
            tested = f"tests on {self.tested_on}" if self.tested_on else "tests on a tenth of them"
            return f"trains on {self.trained_on} ({len(self.train)} images), {tested}{without}"
        folders = _few(sorted({str(self.class_of(name)) for name in self.train}))
        if self.layout == "classes":
            return f"takes {folders} for classes ({count} images){without}"
        return (
            f"takes {folders} for classes, trains on {len(self.train)} images in their folders of "
            f"training images and tests on {len(self.test or ())}{without}"
        )


class _Tree:
    """Images by the folders that they are in.

    Args:
        root: for messages.
        names: of the images.
        packed: whether they are in an archive.

    Attributes:
        top: the one folder at the top of an archive, which its packing has put there: the split of
            an image does not depend on it. ``""`` for none.
    """

    def __init__(self, root: Path, names: Sequence[str], packed: bool) -> None:
        self.root, self.names = root, list(names)
        self.prefix = ""
        self.folders = _by_folder(self.names, "")
        while (
            len(self.folders) == 1
            and not self._loose
            and split_of(next(iter(self.folders))) is None
        ):
            self.prefix += f"{next(iter(self.folders))}/"
            self.folders = _by_folder(self.names, self.prefix)
        folder, slash, _ = self.prefix.partition("/")
        self.top = folder + slash if packed else ""

    @property
    def _loose(self) -> list[str]:
        """Images beside the folders."""
        return self.folders.get("", [])

    @cached_property
    def _splits(self) -> dict[str, str]:
        """Folders that are named after a split, with it."""
        named = {folder: split_of(folder) for folder in self.folders}
        return {folder: split for folder, split in named.items() if split}

    def choose(self, told: Labels | None) -> Layout:
        """Read the layout off the names of the folders.

        Raises:
            UserError: if they can be read in two ways.
        """
        plain: Layout = "flat" if self._loose or len(self.folders) < 2 or told else "classes"
        if told is not None and told.splits:
            return "flat"
        if not self._splits:
            return plain if told else self._choose_within(self._without_near_splits(plain))
        if "train" not in self._splits.values():
            raise UserError(
                f"data.root={self.root} has {_few(list(self._splits))} and no folder of training "
                f"images: put them into a folder train, or add data.layout={plain}, which "
                f"{self.read(plain)}"
            )
        if len(self._splits) < len(self.folders):
            raise self._two_ways(plain, "splits")
        return "splits"

    def _without_near_splits(self, plain: Layout) -> Layout:
        """``plain``, unless folders are named like splits: ``trainA`` and ``testA``, say.

        Raises:
            UserError: if they are.
        """
        like = {folder: _splits_in(folder) for folder in self.folders}
        named = set().union(*like.values())
        if "train" not in named or len(named) < 2:
            return plain
        raise UserError(
            f"data.root={self.root} has {_few([f for f, splits in like.items() if splits])}, which "
            f"are named like splits but not train, val or test: rename one of each, or add "
            f"data.layout={plain}, which {self.read(plain)}"
        )

    def _choose_within(self, plain: Layout) -> Layout:
        """Look for splits within folders of classes."""
        if plain == "flat":
            return plain
        second = {
            folder: set(_by_folder(names, f"{self.prefix}{folder}/"))
            for folder, names in self.folders.items()
        }
        splits = {folder: {split_of(name) for name in inner} for folder, inner in second.items()}
        if not any("train" in found and found & {"test", "val"} for found in splits.values()):
            return plain
        if all("train" in found and None not in found for found in splits.values()):
            return "splits_in_classes"
        raise self._two_ways(plain, "splits_in_classes")

    def _two_ways(self, one: Layout, other: Layout) -> UserError:
        return UserError(
            f"data.root={self.root} can be read in two ways: data.layout={one} {self.read(one)}; "
            f"data.layout={other} {self.read(other)}. Add the one that is meant"
        )

    def read(self, layout: Layout) -> _Reading:
        """Read the images in a layout."""
        if layout == "flat":
            return _Reading("flat", self.names, base=self.top)
        depth = self.prefix.count("/")
        if layout == "classes":
            if not set(self.folders) - {""}:
                raise UserError(f"data.layout=classes finds no folders in data.root={self.root}")
            train = [n for folder, names in self.folders.items() if folder for n in names]
            out = tuple((name, "beside the folders of classes") for name in self._loose)
            return _Reading("classes", sorted(train), depth=depth, base=self.top, left_out=out)
        if layout == "splits":
            return self._read_splits(depth + 1)
        return self._read_splits_in_classes(depth)

    def _read_splits(self, depth: int) -> _Reading:
        found = {split: [f for f, s in self._splits.items() if s == split] for split in _NAMES}
        for split, folders in found.items():
            if len(folders) > 1:
                raise UserError(
                    f"data.root={self.root} has {_few(folders)}, each named as the {split} split: "
                    f"rename all but one"
                )
        if not found["train"]:
            raise UserError(
                f"data.layout=splits finds no folder of training images (train) in "
                f"data.root={self.root}: it has {_few(sorted(set(self.folders) - {''})) or 'none'}"
            )
        (train,), test = found["train"], next(iter(found["test"] + found["val"]), "")
        out = [
            (name, "of the split val" if folder in self._splits else "in no folder of a split")
            for folder, names in self.folders.items()
            if folder not in (train, test) or not folder
            for name in names
        ]
        return _Reading(
            "splits",
            self.folders[train],
            self.folders[test] if test else None,
            depth,
            f"{self.prefix}{train}/",
            train,
            test,
            tuple(out),
        )

    def _read_splits_in_classes(self, depth: int) -> _Reading:
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": [], "": []}
        for name in self.names:
            folders = name.split("/")[depth:-1]
            parts[(split_of(folders[1]) if len(folders) > 1 else None) or ""].append(name)
        if not parts["train"]:
            raise UserError(
                f"data.layout=splits_in_classes finds no <class>/train in data.root={self.root}"
            )
        tested_on = "test" if parts["test"] else "val"
        unused = parts["val"] if parts["test"] else []
        out = [(name, "in no folder of a split") for name in parts[""]]
        out += [(name, "of the split val") for name in unused]
        return _Reading(
            "splits_in_classes",
            parts["train"],
            parts[tested_on] or None,
            depth,
            self.top,
            trained_on="train",
            tested_on=tested_on,
            left_out=tuple(out),
        )


def _by_folder(names: Sequence[str], prefix: str) -> dict[str, list[str]]:
    """Names below ``prefix`` by their next folder; under "" those that are in none."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(prefix):
            folder, slash, _ = name[len(prefix) :].partition("/")
            found.setdefault(folder if slash else "", []).append(name)
    return found


# ---------------------------------------------------------------- splits and classes


def images_among(names: Sequence[str], left_out: LeftOut) -> list[str]:
    """Those names that have the ending of an image."""
    images: list[str] = []
    known = endings() if names else frozenset()  # an empty folder needs no Pillow to be refused
    for name in names:
        end = os.path.splitext(name)[1].lower()
        if end in known:
            images.append(name)
        else:
            left_out.add(end or "without an ending", name)
    return images


def _told(
    told: Labels, prefix: str, train: list[str], test: list[str] | None, left_out: LeftOut
) -> tuple[list[str], list[str] | None]:
    """Keep the images that the file of labels has, in the splits that it says."""
    if not told.numbers:
        return train, test
    of = {name: _in_file(name, prefix, told.numbers) for name in [*train, *(test or ())]}
    if not any(of.values()):
        raise UserError(
            f"{told.source} has labels of {next(iter(told.numbers))} and others, and of no image "
            f"that is there, like {next(iter(of))}: names are relative to data.root"
        )
    for name in set(told.numbers) - set(of.values()):
        left_out.add(f"named in {told.source} and not there", name)
    for name, known in of.items():
        if known is None:
            left_out.add(f"without a label in {told.source}", name)
    train = [name for name in train if of[name]]
    test = None if test is None else [name for name in test if of[name]]
    if not told.splits:
        return train, test
    parts: dict[str, list[str]] = {split: [] for split in _NAMES}
    for name in sorted([*train, *(test or ())]):
        word = told.splits.get(str(of[name]), "")
        split = split_of(word)
        if split is None:
            raise UserError(f"{told.source} has {name} in split {word!r}: train, val or test")
        parts[split].append(name)
    if parts["test"]:
        for name in parts["val"]:
            left_out.add("of the split val", name)
    return parts["train"], parts["test"] or parts["val"] or None


def _in_file(name: str, prefix: str, known: Mapping[str, object]) -> str | None:
    """The name under which a file of labels has an image: from the root, or from where the images
    begin.
    """
    return next((n for n in (name, name.removeprefix(prefix)) if n in known), None)


def once(names: Sequence[str], targets: Mapping[str, str], left_out: LeftOut) -> set[str]:
    """The names without links to images that are among them already."""
    if not targets:
        return set(names)
    kept: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name in targets):
        target = targets.get(name, name)
        if target in kept:
            left_out.add("linking to an image that is there already", name)
        else:
            kept[target] = name
    return set(kept.values())


Item = TypeVar("Item", int, str)


def hold_out(
    items: Sequence[Item], content: Callable[[Item], bytes]
) -> tuple[list[Item], list[Item]]:
    """Items to train on and to test, by the hash of their content. Each has at least one where
    there are two items or more.
    """
    ranks = {
        item: int.from_bytes(blake2b(content(item), digest_size=8).digest(), "little")
        for item in items
    }
    count = sum(rank < HELD_OUT * 2**64 for rank in ranks.values())
    count = max(0, min(max(count, 1), len(items) - 1))
    held_out = set(sorted(items, key=ranks.__getitem__)[:count])
    return [item for item in items if item not in held_out], sorted(held_out)


Part = TypeVar("Part")


def used_parts(
    found: Mapping[str, Part], left_out: LeftOut, size: Callable[[Part], int]
) -> dict[str, Part]:
    """The parts of a data set that are used, by split: ``whole``, or ``train`` and ``test`` (else
    ``val``). The others are counted.
    """
    tested = "test" if "test" in found else "val"
    used = ("whole",) if "whole" in found else ("train", tested)
    for split, part in found.items():
        if split not in used:
            left_out.add(f"of the split {split}", split, size(part))
    return {split: found[split] for split in used if split in found}


def _check_enough(root: Path, reading: _Reading, train: list[str], test: list[str]) -> None:
    whole = reading.test is None
    for what, found in (("train", train), ("test", test)):
        if not found:
            raise UserError(
                f"data.root={root} leaves no image to {what} on: there must be at least "
                f"{2 if whole else 1} (it has {len(train) + len(test) if whole else 0})"
            )


def _classes(
    told: Labels | None, prefix: str, reading: _Reading, train: list[str], test: list[str]
) -> tuple[tuple[str, ...], Callable[[str], int]]:
    """Names of the classes, and what gives an image its number."""
    if told is not None:
        numbers = told.numbers
        return told.classes, lambda name: numbers[str(_in_file(name, prefix, numbers))]
    folders = [reading.class_of(name) for name in [*train, *test]]
    named = sorted({folder for folder in folders if folder is not None})
    if None in folders or len(named) < 2:
        return (), lambda name: 0
    number = {folder: i for i, folder in enumerate(named)}
    return tuple(map(printable, named)), lambda name: number[str(reading.class_of(name))]


def _few(names: Sequence[str]) -> str:
    return few([printable(name) for name in names])
