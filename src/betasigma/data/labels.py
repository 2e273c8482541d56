"""Labels of images from a file: CSV, JSON, or the ``dataset.json`` of archives made for EDM.

CSV has a line of names of columns: the image's (``file_name``, ``file``, ``image``, ``path``), its
label's (``label``, ``class``) and perhaps its split's (``split``: train, val or test). JSON is
``{"labels": [[name, label], …]}``, ``{name: label, …}``, or a list of objects with the keys of the
columns. Labels are integers from 0 (also written as ``1.0``), or names of classes, which are
numbered in their order.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from betasigma.data.file_tree import Files, printable
from betasigma.errors import UserError

OWN = "dataset.json"
"""File of labels in an archive."""

MOST_BYTES = 2**28
"""Largest file of labels."""

MOST_CLASSES = 100_000
"""Largest number of classes: more are taken for something else than labels."""

_IMAGE = ("file_name", "filename", "file", "image", "path", "name", "image_id", "id")
_LABEL = ("label", "class", "class_name", "category", "target", "labels")
_SPLIT = ("split", "subset", "partition")


@dataclass(frozen=True)
class Labels:
    """What a file says of images.

    Attributes:
        source: the file, for messages.
        numbers: label by name of the image; empty where the file gives none.
        classes: name of each number.
        splits: word for the split by name of the image, where the file says it.
    """

    source: str
    numbers: dict[str, int]
    classes: tuple[str, ...]
    splits: dict[str, str]


def find_labels(files: Files, path: str | None, own: bool) -> Labels | None:
    """Read the labels of ``files``.

    Args:
        path: of the file, relative to the folder or archive, or to where the user is; ``None`` for
            ``dataset.json``, if there is one with labels.
        own: whether that is wanted.
    """
    if path is None:
        return _own(files) if own and files.has(OWN) else None
    key = f"data.labels={path}"
    content = _read(files, path, key)
    return _labels(_rows(content, Path(path).suffix.lower(), key), path, key)


def _own(files: Files) -> Labels | None:
    """Labels of ``dataset.json``; none of a file that has another purpose."""
    key = f"{files.where(OWN)}"
    aside = f"{key} (data.layout=classes or flat leaves it aside)"
    content = _json(_read(files, OWN, aside), aside)
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if content["labels"] is None:
        return Labels(OWN, {}, (), {})
    return _labels(_json_rows(content, key), OWN, key)


def _read(files: Files, name: str, key: str) -> bytes:
    try:
        own = files.has(name)
        with files.open(name, MOST_BYTES) if own else Path(name).expanduser().open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"{key} cannot be read ({why}): give a CSV or JSON file, relative to data.root or to "
            f"where you are"
        ) from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{key} has more than {MOST_BYTES:,} bytes, too many for labels")
    return content


Row = tuple[Any, Any, Any]
"""Image, label, split or ``None``."""


def _rows(content: bytes, ending: str, key: str) -> list[Row]:
    if ending == ".json":
        return _json_rows(_json(content, key), key)
    if ending in (".csv", ".tsv", ".txt"):
        return _csv_rows(content, key)
    raise UserError(f"{key} must be a CSV or JSON file (.csv, .tsv, .txt, .json)")


def _json(content: bytes, key: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key} is no JSON that can be read ({error})") from None


def _json_rows(content: Any, key: str) -> list[Row]:
    entries = content.get("labels", content) if isinstance(content, dict) else content
    if isinstance(entries, dict):
        return [(name, label, None) for name, label in entries.items()]
    if isinstance(entries, list) and entries:
        if all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            return [(name, label, None) for name, label in entries]
        if all(isinstance(entry, dict) for entry in entries):
            return _picked(entries, list(entries[0]), key)
    raise UserError(
        f'{key} gives no labels: it should be {{"labels": [[name, label], …]}}, {{name: label}} or '
        f"a list of objects with the keys file_name and label"
    )


def _csv_rows(content: bytes, key: str) -> list[Row]:
    try:
        text = content.decode("utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval="")
        return _picked(list(table), [name or "" for name in table.fieldnames or ()], key)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key} is no CSV file that can be read ({error})") from None


def _picked(entries: Sequence[Mapping[str, Any]], columns: Sequence[str], key: str) -> list[Row]:
    """Take image, label and split out of rows with named columns."""
    image, label = _column(columns, _IMAGE), _column(columns, _LABEL)
    if image is None or label is None:
        what = "images" if image is None else "labels"
        known = ", ".join((_IMAGE if image is None else _LABEL)[:5])
        raise UserError(
            f"{key} has the columns {', '.join(columns)}, and none of them is of {what}: name one "
            f"{known}"
        )
    split = _column(columns, _SPLIT)
    return [(row.get(image), row.get(label), row.get(split) if split else None) for row in entries]


def _column(columns: Sequence[str], known: Sequence[str]) -> str | None:
    by_name = {column.strip().lower(): column for column in columns}
    return next((by_name[name] for name in known if name in by_name), None)


def _labels(rows: list[Row], source: str, key: str) -> Labels:
    labels, splits = dict[str, int | str](), dict[str, str]()
    for image, label, split in rows:
        if not isinstance(image, str) or not image:
            raise UserError(f"{key} has a row without the name of an image")
        name = image.removeprefix("./")
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise UserError(
                f"{key} gives {name} the label {label!r}: a label is an integer from 0, or the "
                f"name of a class"
            )
        if labels.get(name, label) != label:
            raise UserError(f"{key} gives {name} two labels, {labels[name]} and {label}")
        labels[name] = label
        if split is not None:
            splits[name] = str(split)
    return Labels(source, *_numbered(labels, key), splits)


_WHOLE = re.compile(r"\s*(\d+)(\.0*)?\s*")
"""A number, as tables have it in which some label was once missing: ``3.0``."""


def _whole(label: int | str) -> int | None:
    """The number of a label; ``None`` of a name."""
    if isinstance(label, int):
        return label
    found = _WHOLE.fullmatch(label)
    # Python converts no more than some thousand digits, and fewer are too many for a class
    return None if found is None else int(found[1].lstrip("0")[:9] or 0)


def _numbered(labels: Mapping[str, int | str], key: str) -> tuple[dict[str, int], tuple[str, ...]]:
    if not labels:
        raise UserError(f"{key} gives no labels: it names no image")
    read = {name: _whole(label) for name, label in labels.items()}
    numbers = {name: number for name, number in read.items() if number is not None}
    if len(numbers) == len(read):
        if not 0 <= min(numbers.values()) <= max(numbers.values()) < MOST_CLASSES:
            raise UserError(
                f"{key} has a label that is below 0 or above {MOST_CLASSES - 1}; labels are "
                f"integers from 0 to {MOST_CLASSES - 1}, or names"
            )
        return numbers, tuple(map(str, range(max(numbers.values()) + 1)))
    named = {name: printable(str(label)) for name, label in labels.items()}
    classes = tuple(sorted(set(named.values())))
    number = {name: i for i, name in enumerate(classes)}
    return {name: number[label] for name, label in named.items()}, classes
