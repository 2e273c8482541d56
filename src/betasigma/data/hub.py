"""Data sets of Hugging Face's ``datasets``: what ``save_to_disk`` wrote, Parquet files, or a name
on the hub (``owner/name``, ``owner/name:config``).

Encoded images are taken as they are in the table and decoded as files are
(:mod:`betasigma.data.image_files`). No code comes with a data set. Where there is no test split, a
tenth of the images is held out by the digest of its bytes.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from betasigma.data.file_tree import LeftOut, printable
from betasigma.data.labels import MOST_CLASSES
from betasigma.data.listing import Listed, hold_out, split_of, used_parts
from betasigma.errors import UserError, first_line
from betasigma.options.composition import numbered
from betasigma.options.data import Split

_IMAGES, _LABELS = ("image", "img", "images", "picture"), ("label", "labels", "class", "target")
"""Names of columns, where their types do not say what they are."""


@dataclass
class HubTable:
    """A table with a column of images.

    Attributes:
        root: where it is.
        parts: rows by split; under ``whole`` where there are none.
        image, label: names of the columns; ``None`` for no labels.
        caches: where the library keeps the files of images that it has fetched; none for a table
            that was not fetched.
        left_out: splits that are not used.
    """

    root: str
    parts: dict[str, Any]
    image: str
    label: str | None
    caches: tuple[Path, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; ``()`` for none.

        Raises:
            UserError: where a label is none.
        """
        if self.label is None:
            return ()
        features = next(iter(self.parts.values())).features
        names = getattr(features[self.label], "names", None)
        values = {value for part in self.parts.values() for value in part.unique(self.label)}
        if names is None and all(isinstance(value, str) for value in values):
            return tuple(sorted(map(printable, values)))
        most = MOST_CLASSES if names is None else len(names)
        # a bool is an integer, 0 or 1
        others = {v for v in values if not (isinstance(v, int) and 0 <= v < most)}
        if not others:
            return numbered(int(max(values)) + 1) if names is None else tuple(map(printable, names))
        odd = min(others, key=lambda value: isinstance(value, str))  # of names, one that is none
        raise UserError(
            f"data.root={self.root} has a column {self.label} of labels like {odd!r}; labels are "
            f"integers from 0 to {most - 1}{', or names' if names is None else ''}: "
            f"data.columns=[{self.image}] leaves them out"
        )

    def split(self, split: Split) -> Listed:
        """The images of ``split``. Row 17 is called ``train/17``."""
        return self._splits[0 if split == "train" else 1]

    def open(self, name: str, most: int) -> BinaryIO:
        """An image as an open file.

        Raises:
            ValueError: if it has more than ``most`` bytes, or none.
        """
        cell = self._cell(name)
        if cell.get("bytes") is not None:
            if len(cell["bytes"]) > most:
                raise ValueError(f"it has {len(cell['bytes']):,} bytes")
            return io.BytesIO(cell["bytes"])
        path = self._cached(str(cell.get("path") or ""))
        if path is None:
            raise ValueError("the cell holds no image; a path of a file there is not followed")
        return path.open("rb")

    def stamp(self, name: str) -> str:
        """Digest of the encoded image."""
        return _digest(self._cell(name))

    def where(self, name: str) -> str:
        """The place of an image, for messages."""
        return f"{self.root}:{name}"

    def is_there(self) -> bool:
        """Whether the images can still be reached: they are in memory, or mapped."""
        return True

    def describe(self) -> dict[str, Any]:
        """What was found, for the record of a run."""
        return {
            "columns": [self.image, *([self.label] if self.label else [])],
            "splits": list(self.parts),
            "left_out": dict(self.left_out.counts),
        }

    def sentences(self) -> list[str]:
        """What was found, for the user."""
        labels = f", labels in {self.label}" if self.label else ", no labels"
        held_out = " (test images held out)" if len(self.parts) == 1 else ""
        found = f"{', '.join(self.parts)}{held_out}: images in column {self.image}{labels}"
        return [found, *self.left_out.sentences()]

    def _cached(self, path: str) -> Path | None:
        """A file that the library has fetched; no other, since the table may name any."""
        real = Path(path).resolve()
        inside = any(real.is_relative_to(folder.resolve()) for folder in self.caches)
        return real if inside and real.is_file() else None

    def _cell(self, name: str) -> dict[str, Any]:
        part, _, row = name.rpartition("/")
        return _as_cell(self.parts[part][int(row)][self.image])

    @cached_property
    def _splits(self) -> tuple[Listed, Listed]:
        names = {part: [f"{part}/{i}" for i in range(len(self.parts[part]))] for part in self.parts}
        labels = dict(self._labels())
        if len(names) == 2:
            train, test = names.values()
        else:
            ((part, whole),) = names.items()
            cells = (row[self.image] for row in self.parts[part])
            digests = {name: _digest(_as_cell(c)) for name, c in zip(whole, cells, strict=True)}
            train, test = hold_out(whole, lambda name: digests[name].encode())
        if not train or not test:
            raise UserError(
                f"data.root={self.root} has {len(train)} images to train on and {len(test)} to "
                f"test; there must be one at least of each"
            )
        count = len(self.classes)
        return tuple(  # type: ignore[return-value]
            Listed(self, tuple(part), tuple(labels[n] for n in part) if count else None, count)
            for part in (train, test)
        )

    def _labels(self) -> Iterator[tuple[str, int]]:
        if self.label is None:
            return
        number = {name: i for i, name in enumerate(self.classes)}
        for part, rows in self.parts.items():
            for i, value in enumerate(rows[self.label]):
                found = number[printable(value)] if isinstance(value, str) else int(value)
                yield f"{part}/{i}", found


def open_table(root: str, columns: Sequence[str] | None, download: bool) -> HubTable:
    """Open a data set of Hugging Face.

    Args:
        root: a folder, a Parquet file, or a name on the hub.
        columns: of the images, and of the labels; ``None`` to know them by their types.
        download: whether it may be fetched.
    """
    try:
        datasets: Any = importlib.import_module("datasets")  # of the extra [hub]
    except ImportError:
        raise UserError(
            "data=hub needs Hugging Face's datasets, which the extra [hub] brings: pip install "
            "datasets"
        ) from None
    try:
        with _calm(datasets, download):
            found = _load(datasets, root)
    except Exception as error:  # ours, pyarrow's, the hub's and the network's
        if isinstance(error, UserError):
            raise
        first = first_line(error.__cause__ or error)
        remedy = "" if download else "; data.download=true fetches a data set of the hub"
        raise UserError(f"data.root={root} cannot be opened ({first}){remedy}") from None
    parts, left_out = _parts(found, root)
    features = next(iter(parts.values())).features
    image, label = _columns(features, columns, root, datasets)
    _check_kinds(features, image, label, root, datasets)
    kept = [image] if label is None else [image, label]  # the library would decode the others
    chosen = {split: rows.select_columns(kept) for split, rows in parts.items()}
    encoded = {
        split: rows.cast_column(image, datasets.Image(decode=False))
        if isinstance(features[image], datasets.Image)
        else rows
        for split, rows in chosen.items()
    }
    hub: Any = importlib.import_module("huggingface_hub.constants")
    caches = (datasets.config.HF_DATASETS_CACHE, hub.HF_HUB_CACHE)
    fetched = not Path(root).expanduser().exists()
    table = HubTable(root, encoded, image, label, tuple(map(Path, caches)) * fetched, left_out)
    _ = table.classes  # a label that is none is refused before anything is made of the others
    return table


def _load(datasets: Any, root: str) -> Any:
    path = Path(root).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise UserError(
                f"data.root={root} has neither Parquet files nor what save_to_disk writes; for a "
                f"folder of images use data=image_folder"
            )
        return datasets.load_dataset("parquet", data_files=_by_split(files))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files={"whole": str(path)})
    name, _, config = root.partition(":")
    return datasets.load_dataset(name, config or None)


def _by_split(files: Sequence[Path]) -> dict[str, list[str]]:
    """Parquet files by the split in their names: ``train-00000-of-00002.parquet``."""
    found: dict[str, list[str]] = {}
    for file in files:
        split = split_of(file.name.partition("-")[0].removesuffix(".parquet"))
        found.setdefault(split or split_of(file.parent.name) or "whole", []).append(str(file))
    return found


def _parts(found: Any, root: str) -> tuple[dict[str, Any], LeftOut]:
    """Rows to train on and to test; the others are counted."""
    left_out = LeftOut()
    if not isinstance(found, dict):
        return {"whole": found}, left_out
    by_split = {split_of(name) or name: rows for name, rows in found.items()}
    if len(by_split) < len(found) or ("train" not in by_split and len(by_split) > 1):
        raise UserError(
            f"data.root={root} has the splits {', '.join(found)}; there must be one called train, "
            f"and no two of one kind"
        )
    if "train" not in by_split:
        return {"whole": next(iter(by_split.values()))}, left_out
    used, unused = used_parts(by_split)
    for split, rows in unused.items():
        left_out.add(f"of the split {split}", split, len(rows))
    return used, left_out


def _columns(
    features: Any, columns: Sequence[str] | None, root: str, datasets: Any
) -> tuple[str, str | None]:
    """The columns of images and of labels."""
    if columns is not None:
        missing = [column for column in columns if column not in features]
        if missing:
            raise UserError(
                f"data.columns={list(columns)}: data.root={root} has no column {missing[0]}; it "
                f"has {', '.join(features)}"
            )
        return columns[0], columns[1] if len(columns) > 1 else None
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [name for name in features if name.lower() in _IMAGES]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in features if name.lower() in _LABELS]
    if len(images) != 1 or len(labels) > 1:
        raise UserError(
            f"data.root={root} has the columns {', '.join(features)}, of which "
            f"{' and '.join(images) or 'none'} could be the images and "
            f"{' and '.join(labels) or 'none'} the labels: data.columns=[image,label] says which"
        )
    return images[0], labels[0] if labels else None


def _check_kinds(features: Any, image: str, label: str | None, root: str, datasets: Any) -> None:
    """Refuse columns whose type no image or no label has."""
    kind = features[image]
    encoded = isinstance(kind, datasets.Value) and kind.dtype.endswith(("string", "binary"))
    if not (encoded or isinstance(kind, datasets.Image | dict)):
        raise UserError(
            f"data.root={root} has no images in its column {image}, which is of type {kind}: "
            f"data.columns=[image,label] says which has; numbers are read by data=array from an "
            f".npy or .npz file"
        )
    if label is None:
        return
    kind = features[label]
    if label == image or not isinstance(kind, datasets.ClassLabel | datasets.Value):
        raise UserError(
            f"data.root={root} has no labels in its column {label}, which is of type {kind}; they "
            f"are integers or names, one a row: data.columns=[{image}] leaves them out"
        )


def _as_cell(value: Any) -> dict[str, Any]:
    """Bytes or a path of an image, as the library has both."""
    if isinstance(value, dict):
        return value
    return {"bytes": value} if isinstance(value, bytes) else {"path": value}


def _digest(cell: dict[str, Any]) -> str:
    content = cell.get("bytes") or str(cell.get("path")).encode()
    return blake2b(content, digest_size=16).hexdigest()


@contextmanager
def _calm(datasets: Any, download: bool) -> Iterator[None]:
    """Without the library's progress bars, and without the network unless it is asked for."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    shown, offline = not datasets.are_progress_bars_disabled(), constants.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline or not download
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
        if shown:
            datasets.enable_progress_bars()
