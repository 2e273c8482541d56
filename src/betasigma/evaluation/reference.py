"""Compute statistics of the real data once, and cache them.

Features of 60,000 images take minutes, and every job of a sweep needs them. The name of the cache
file is a hash of everything they depend on: the content of the split, how much of it was taken, the
extractor's weights and preprocessing. If one of these changes, the file has another name, so a
cached file is never out of date.

Moments are exact over all images. For the metrics that need the features themselves, those of a
fixed random choice of ``CAP`` images are kept.

What has been computed is kept beside the cache file every ``KEEP_SECONDS``, so that a command that
was stopped begins where it was.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from betasigma.data.order import subset
from betasigma.data.sources import Split
from betasigma.evaluation.features import FeatureExtractor
from betasigma.evaluation.frechet import FeatureMoments
from betasigma.evaluation.sharding import broadcast, gather, rank_and_world_size
from betasigma.options.evaluation import EvaluationOptions
from betasigma.runs.directory import cache_folder
from betasigma.runs.files import replace_file

FORMAT = 4
"""Of the files, and of the choice of images where not all are taken."""
CAP = 10_000
"""Number of feature vectors kept for the metrics that need them."""

KEEP_SECONDS = 20.0
"""Seconds between two writes of an unfinished part."""

Work = Callable[[str, int, int], AbstractContextManager[Callable[[int, str], None]]]
"""Shows work of so many units, some of them done; yields ``update(done, note)``."""


def unseen(what: str, total: int, done: int) -> AbstractContextManager[Callable[[int, str], None]]:
    """Show nothing."""
    return nullcontext(lambda done, note: None)


class DataSource(Protocol):
    """What the evaluation needs of a datamodule."""

    def size(self, split: Split) -> int: ...

    def batches(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        """All examples of a split, or a fixed choice of ``limit``."""
        ...

    def content_key(self, split: Split) -> str: ...

    def to_uint8(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Reference:
    """Statistics of one split.

    Attributes:
        moments: count, mean and scatter of the features of all images.
        features: float32 ``(min(count, CAP), dim)``, a random subset of them in the split's order.
    """

    moments: FeatureMoments
    features: Tensor


class Part:
    """Statistics of the first batches of a split, of which every ``world_size``-th is this rank's;
    float64 sums are kept on ``device``.

    Args:
        total: images of the split that are taken.
    """

    def __init__(self, dim: int, total: int, device: torch.device) -> None:
        self.moments = FeatureMoments(dim, device)
        self.batches, self.images = 0, 0
        self._places, self._rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dim)]
        self._is_kept = torch.zeros(total, dtype=torch.bool)
        self._is_kept[subset(total, CAP)] = True

    def add(self, count: int, features: Tensor | None) -> None:
        """Count a batch of ``count`` images; ``None`` for the features of another rank's."""
        if features is not None:
            self.moments.update(features)
            kept = self._is_kept[self.images : self.images + count].nonzero()[:, 0]
            self._places.append(self.images + kept)
            self._rows.append(features[kept.to(features.device)].float().cpu())
        self.batches, self.images = self.batches + 1, self.images + count

    def kept(self) -> tuple[Tensor, Tensor]:
        """Places in the split of the features that are kept, and these."""
        return torch.cat(self._places), torch.cat(self._rows)

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers, from which :meth:`restored` goes on to the same bits."""
        places, rows = self.kept()
        known = {"packed": self.moments.packed.cpu(), "places": places, "rows": rows}
        return {**known, "batches": self.batches, "images": self.images}

    def restored(self, state: dict[str, Any], key: str) -> Self:
        """Itself where a state of this key was taken; as it is, where it is of another."""
        if state["key"] == key:
            self.moments.packed.copy_(state["packed"])
            self._places, self._rows = [state["places"]], [state["rows"]]
            self.batches, self.images = int(state["batches"]), int(state["images"])
        return self


class ReferenceStatistics:
    """Feature statistics of a datamodule's splits, cached on disk by content.

    Args:
        cache_dir: by default ``$BETASIGMA_CACHE`` or ``~/.cache/betasigma``.
        batch_size: number of images read at once.
        work: shows the progress of what is not in the cache.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        datamodule: DataSource,
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = EvaluationOptions.DEFAULTS["batch_size"],
        work: Work = unseen,
    ) -> None:
        self.extractor = extractor
        self.datamodule = datamodule
        self.batch_size = batch_size
        self.work = work
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder()

    def get(self, split: Split, limit: int | None = None) -> Reference | None:
        """Return the statistics of a split, from the cache or from its images. All ranks call this
        together, and each takes a share of the work.

        Args:
            split: ``train`` or ``test``.
            limit: number of images to take; ``None`` for all.

        Returns:
            The statistics on rank 0, ``None`` on other ranks.
        """
        key = self._key(split, limit)
        path = self.path(split, limit)
        first = rank_and_world_size()[0] == 0
        known = _read(path, lambda content: self._restored(content, key)) if first else None
        if broadcast(known is not None):
            return known
        parts = gather(self._compute(split, limit))
        if parts is None:
            return None
        reference = _join(parts)
        content = {"packed": reference.moments.packed, "features": reference.features}
        _write(path, {"key": key, **content})
        return reference

    def path(self, split: Split, limit: int | None = None) -> Path:
        """Return the path of the cache file for a split."""
        name = hashlib.sha256(self._key(split, limit).encode()).hexdigest()[:32]
        return self.cache_dir / "references" / f"{self.extractor.name}-{split}-{name}.pt"

    def _key(self, split: Split, limit: int | None) -> str:
        content = self.datamodule.content_key(split)
        everything = limit is None or limit >= self.datamodule.size(split)
        taken = None if everything else limit
        return repr((FORMAT, content, split, taken, self.extractor.fingerprint, CAP))

    def _compute(self, split: Split, limit: int | None) -> Part:
        rank, world_size = rank_and_world_size()
        size = self.datamodule.size(split)
        total = size if limit is None else min(limit, size)
        key = repr((self._key(split, limit), self.batch_size, rank, world_size))
        path = self.path(split, limit).with_suffix(f".part{rank}of{world_size}")

        def new() -> Part:
            return Part(self.extractor.dim, total, self.extractor.float64_device)

        part = _read(path, lambda state: new().restored(state, key)) or new()
        written = time.monotonic()
        what = f"features of {total} {split} images, to be kept"
        with self.work(what, total, part.images) as update:
            batches = self.datamodule.batches(split, self.batch_size, limit)
            for images in islice(batches, part.batches, None):
                own = part.batches % world_size == rank
                part.add(len(images), self.extractor.extract(images)[0] if own else None)
                update(part.images, "")
                if part.images < total and time.monotonic() - written >= KEEP_SECONDS:
                    _write(path, {"key": key, **part.state()})
                    written = time.monotonic()
        with suppress(OSError):  # there may be none, on a disk that takes none
            path.unlink()
        part.moments = part.moments.to("cpu")
        return part

    def _restored(self, content: Any, key: str) -> Reference:
        dim = self.extractor.dim
        if not isinstance(content, dict) or content.get("key") != key:
            raise ValueError("it describes other data")
        moments = FeatureMoments(dim, packed=content["packed"])
        shapes = content["packed"].shape, content["features"].shape
        if shapes != ((dim + 1, dim + 1), (min(moments.count, CAP), dim)):
            raise ValueError("it has other shapes")
        return Reference(moments, content["features"])


Found = TypeVar("Found")


def _read(path: Path, use: Callable[[Any], Found]) -> Found | None:
    """What ``use`` makes of a file; ``None`` without one and, with a warning, of a damaged one."""
    if not path.exists():
        return None
    try:
        return use(torch.load(path, weights_only=True))
    except Exception as error:  # what a broken file raises depends on where it is broken
        warnings.warn(
            f"{path} is damaged ({type(error).__name__}); it is computed again", stacklevel=4
        )
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file. A cache that cannot be written is a warning, not an error."""
    try:
        with replace_file(path) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"{path} could not be written ({error})", stacklevel=4)


def _join(parts: list[Part]) -> Reference:
    first, *others = parts
    for other in others:
        first.moments.merge(other.moments)
    places, rows = map(torch.cat, zip(*(part.kept() for part in parts), strict=True))
    return Reference(first.moments, rows[places.argsort()])
