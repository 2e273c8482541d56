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
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from betasigma.data.file_tree import ZIP, Files, LeftOut, printable
from betasigma.data.labels import Labels, find_labels
from betasigma.errors import UserError, counted, few
from betasigma.options.data import DECODERS, Layout, Split

if TYPE_CHECKING:
    from betasigma.data.hub import HubTable

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
class Listed:
    """Images of one split by name, with labels if there are classes, before any is decoded.

    Attributes:
        container: where they are: a folder, an archive, a table.
    """

    container: Files | HubTable
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    num_classes: int = 0

    def only(self, keep: Sequence[int]) -> Listed:
        """The images of the numbers ``keep``."""
        if not keep:
            where = os.path.dirname(self.container.where(self.names[0]))
            raise UserError(f"data.root has no image in {where} that can be decoded")
        labels = self.labels and tuple(self.labels[i] for i in keep)
        return replace(self, names=tuple(self.names[i] for i in keep), labels=labels)


@dataclass(frozen=True)
class Listing:
    """Both splits of a folder or an archive.

    Attributes:
        layout: what the folders were taken for.
        train, test: the splits.
        classes: their names, by number; ``()`` for none.
        left_out: what is not used, and why.
        labels_from: the file of labels, if there is one.
        tested_on: folder of the test split; "" where images were held out.
    """

    layout: Layout
    train: Listed
    test: Listed
    classes: tuple[str, ...]
    left_out: LeftOut
    labels_from: str | None = None
    tested_on: str = ""

    def split(self, split: Split) -> Listed:
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


@cache
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
    for name, why in reading.left_out:
        left_out.add(why, name)
    parts = reading.parts
    if told is not None and told.numbers:
        parts = _keep_labelled(told, tree.prefix, parts, left_out)
    kept = once([name for part in parts.values() for name in part], found.targets, left_out)
    parts = {split: [name for name in part if name in kept] for split, part in parts.items()}
    train = parts.get("whole", parts.get("train", []))
    test = parts.get("test", parts.get("val"))
    whole = test is None
    if test is None:
        train, test = hold_out(train, lambda name: os.fsencode(name.removeprefix(reading.base)))
    for what, images in (("train", train), ("test", test)):
        if not images:
            raise UserError(
                f"data.root={root} leaves no image to {what} on: there must be at least "
                f"{2 if whole else 1} (it has {len(train) + len(test) if whole else 0})"
            )
    classes, label = _classes(told, tree.prefix, reading, train, test)

    def listed(part: list[str]) -> Listed:
        labels = tuple(map(label, part)) if classes else None
        return Listed(files, tuple(part), labels, len(classes))

    return Listing(
        reading.layout,
        listed(train),
        listed(test),
        classes,
        left_out,
        told.source if told is not None else None,
        reading.tested_on,
    )


# ---------------------------------------------------------------- layouts


_CLASS = {"classes": 0, "splits": 1, "splits_in_classes": 0}
_SPLIT_IN = {"splits": 0, "splits_in_classes": 1}
"""Which folder of a name is its class and its split, from where the images begin."""


@dataclass(frozen=True)
class _Reading:
    """Images by what a layout makes of them.

    Attributes:
        layout: which.
        parts: names that are used, by split (:func:`used_parts`).
        depth: which part of a name is the folder of its class; ``None`` for no classes.
        base: what names begin with that are held out by the rest of their names.
        trained_on, tested_on: folders of the splits.
        left_out: names, and why.
    """

    layout: Layout
    parts: dict[str, list[str]]
    depth: int | None
    base: str
    trained_on: str
    tested_on: str
    left_out: list[tuple[str, str]]

    def class_of(self, name: str) -> str | None:
        """Folder of the class of an image; ``None`` if it is in none."""
        parts = name.split("/")
        if self.depth is None or len(parts) <= self.depth + 1:
            return None
        return parts[self.depth]

    def __str__(self) -> str:
        train, *test = self.parts.values()
        tested = sum(map(len, test))
        without = f" and leaves out {len(self.left_out)}" if self.left_out else ""
        if self.layout == "flat":
            return f"takes all {len(train)} images, without classes"
        if self.layout == "splits":
            folder = f"tests on {self.tested_on}" if self.tested_on else "tests on a tenth of them"
            return (
                f"trains on {self.trained_on} ({counted(len(train), 'image')}), {folder}{without}"
            )
        folders = _few(sorted({str(self.class_of(name)) for name in train}))
        if self.layout == "classes":
            return f"takes {folders} for classes ({len(train)} images){without}"
        return (
            f"takes {folders} for classes, trains on {counted(len(train), 'image')} in their "
            f"folders of training images and tests on {tested}{without}"
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
        depth = self.prefix.count("/")
        at = _SPLIT_IN.get(layout)
        found: dict[str, list[str]] = {}
        out = []
        for name in self.names:
            folders = name.split("/")[depth:-1]
            split = "whole" if at is None else split_of(folders[at]) if len(folders) > at else None
            if split is None:
                out.append((name, "in no folder of a split"))
            elif layout == "classes" and not folders:
                out.append((name, "beside the folders of classes"))
            else:
                found.setdefault(split, []).append(name)
        self._check(layout, found)
        parts, unused = used_parts(found)
        out += [(name, f"of the split {split}") for split in unused for name in unused[split]]
        trained_on = tested_on = ""
        if at is not None:
            of = {split: folder for folder, split in self._splits.items()} if at == 0 else {}
            trained_on, tested_on = (of.get(s, s) if s in parts else "" for s in _used(parts))
        return _Reading(
            layout,
            parts,
            depth + _CLASS[layout] if layout in _CLASS else None,
            f"{self.prefix}{trained_on}/" if layout == "splits" else self.top,
            trained_on,
            tested_on,
            out,
        )

    def _check(self, layout: Layout, found: Mapping[str, list[str]]) -> None:
        if layout == "classes" and not found:
            raise UserError(f"data.layout=classes finds no folders in data.root={self.root}")
        if layout not in _SPLIT_IN:
            return
        if "train" not in found:
            what = "folder of training images (train)" if layout == "splits" else "<class>/train"
            raise UserError(
                f"data.layout={layout} finds no {what} in data.root={self.root}: it has "
                f"{_few(sorted(set(self.folders) - {''})) or 'none'}"
            )
        for split in found if layout == "splits" else ():
            folders = [folder for folder, named in self._splits.items() if named == split]
            if len(folders) > 1:
                raise UserError(
                    f"data.root={self.root} has {_few(folders)}, each named as the {split} split: "
                    f"rename all but one"
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


def _keep_labelled(
    told: Labels, prefix: str, parts: Mapping[str, list[str]], left_out: LeftOut
) -> dict[str, list[str]]:
    """Keep the images that the file of labels has, in the splits that it says."""
    of = {name: _in_file(name, prefix, told.numbers) for part in parts.values() for name in part}
    if not any(of.values()):
        raise UserError(
            f"{told.source} has labels of {next(iter(told.numbers))} and others, and of no image "
            f"that is there, like {next(iter(of))}: names are relative to data.root"
        )
    for name in sorted(set(told.numbers) - set(of.values())):
        left_out.add(f"named in {told.source} and not there", name)
    for name, known in of.items():
        if known is None:
            left_out.add(f"without a label in {told.source}", name)
    if not told.splits:
        return {split: [name for name in part if of[name]] for split, part in parts.items()}
    found: dict[str, list[str]] = {}
    for name in sorted(name for name in of if of[name]):
        word = told.splits.get(str(of[name]), "")
        split = split_of(word)
        if split is None:
            raise UserError(f"{told.source} has {name} in split {word!r}: train, val or test")
        found.setdefault(split, []).append(name)
    used, unused = used_parts(found)
    for split, names in unused.items():
        left_out.add(f"of the split {split}", names[0], len(names))
    return used


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


def used_parts(found: Mapping[str, Part]) -> tuple[dict[str, Part], dict[str, Part]]:
    """Parts of a data set by split: those that are used, and the others.

    ``whole`` is used alone; otherwise ``train`` and ``test``, or ``val`` in its place.
    """
    used = {split: found[split] for split in _used(found) if split in found}
    return used, {split: part for split, part in found.items() if split not in used}


def _used(found: Mapping[str, object]) -> tuple[str, ...]:
    return ("whole",) if "whole" in found else ("train", "test" if "test" in found else "val")


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
