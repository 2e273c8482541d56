"""One evaluation: samples in, measurements out.

Every number is a :class:`Measurement` that carries what it depends on: how many samples, network
evaluations, sampler, seed, split, extractor. Samples pass through once, batch by batch; what is
kept of them is their features' moments (for the Fréchet distance, over all of them), the class
logits (for the Inception score, over all of them) and the features and images of the first
``CAP`` (for the metrics that compare samples one by one). So memory does not grow with n but for
the logits.

Fréchet distances are taken to the training split, as the papers report them, and to the test split:
a model that learns its training data by heart is near the one and not the other. (The splits
differ in size and with it in bias; compare each with its own kind.) Kernel distance, precision and
recall are taken to the training split.

The distance between two finite sets of images of one distribution is not zero and depends on n:
:meth:`Evaluator.floor` measures it, test against training images. A score below it is no
achievement but a warning.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.evaluation.choice import check_metrics, check_n
from betasigma.evaluation.features import FeatureExtractor
from betasigma.evaluation.frechet import FeatureMoments, frechet_distance
from betasigma.evaluation.metrics import inception_score, kid, metric_name, precision_recall
from betasigma.evaluation.neighbours import Neighbours, distance_ratio, nearest
from betasigma.evaluation.reference import (
    CAP,
    DataSource,
    Reference,
    ReferenceStatistics,
    Split,
    Work,
    unseen,
)
from betasigma.evaluation.sharding import broadcast, gather, shard

NEIGHBOUR_QUERIES = 2000
"""Number of samples, and of test images, whose nearest training neighbours are looked for."""
NEIGHBOUR_BATCH = 4096

Progress = Callable[[float], None]
MakeMeasurement = Callable[..., "Measurement"]


class SamplerLike(Protocol):
    """What the evaluation needs of a sampler."""

    name: str

    def sample(
        self,
        denoiser: Any,
        *,
        indices: Sequence[int],
        seed: int,
        y: Tensor | None,
        batch_size: int,
        progress: Progress | None,
    ) -> Any: ...


@dataclass(frozen=True)
class Measurement:
    """One number and what it depends on.

    Attributes:
        name: e.g. ``fid``, ``fd_efficientnet_lite0``, ``kid_inception``, ``nn_distance_ratio``.
        value: the number.
        n: number of samples that entered it.
        nfe: network evaluations per sample; ``None`` where there was no model.
        sampler: name of the sampler, or of where the images came from.
        seed: of the samples; ``None`` where there was none.
        split: what they were compared with; ``None`` where with nothing.
        extractor: name of the features; ``pixels`` (``points``) for distances between the data
            themselves.
        std: standard deviation over subsets or splits, where the metric has one.
        n_reference: number of images of the split that they were compared with; ``None`` where
            with none.
    """

    name: str
    value: float
    n: int
    nfe: int | None
    sampler: str
    seed: int | None
    split: str | None
    extractor: str
    std: float | None = None
    n_reference: int | None = None


@dataclass
class Collected:
    """What is kept of a range of samples; ranges that follow one another add up.

    Attributes:
        moments: of the features of all samples.
        features: float32 ``(k, dim)`` of the first ones, in order.
        logits: float32 ``(n, classes)`` of all, in order.
        images: the first ones themselves.
        nfe: network evaluations per sample.
    """

    moments: FeatureMoments
    features: Tensor
    logits: Tensor
    images: Tensor
    nfe: int | None

    def __add__(self, later: Collected) -> Collected:
        return Collected(
            self.moments + later.moments,
            torch.cat([self.features, later.features])[:CAP],
            torch.cat([self.logits, later.logits]),
            _cat([self.images, later.images])[:NEIGHBOUR_QUERIES],
            self.nfe if self.nfe is not None else later.nfe,
        )


class Evaluator:
    """Measures samples against a datamodule's images.

    Args:
        extractor: the features; on the device where it should run.
        datamodule: the images (see ``DataSource``).
        metrics: any of ``fd``, ``kid``, ``is``, ``precision``, ``recall``, ``neighbours``.
        cache_dir: where reference statistics are kept; by default ``$BETASIGMA_CACHE`` or
            ``~/.cache/betasigma``.
        batch_size: number of samples drawn, and of images read, at once; of samples fewer where the
            sampler finds no memory for so many.
        n_reference: number of images of a split, a fixed random choice, that statistics are taken
            of; ``None`` for all.

    Raises:
        UserError: where a metric is unknown or needs class logits that the extractor has not.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        datamodule: DataSource,
        metrics: Sequence[str] = ("fd", "neighbours"),
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 256,
        n_reference: int | None = None,
        work: Work = unseen,
    ) -> None:
        check_metrics(metrics, extractor.name)
        self.metrics = frozenset(metrics)
        if batch_size < 1:
            raise UserError(f"evaluation.batch_size={batch_size} must be at least 1")
        if n_reference is not None and n_reference < 2:
            raise UserError(f"evaluation.n_reference={n_reference} must be at least 2, or null")
        self.extractor = extractor
        self.datamodule = datamodule
        self.batch_size = batch_size
        self.n_reference = n_reference
        self.statistics = ReferenceStatistics(extractor, datamodule, cache_dir, batch_size, work)
        self._held_out: Tensor | None = None

    def evaluate(
        self,
        denoiser: Any,
        sampler: SamplerLike,
        n: int,
        seed: int = 0,
        y: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress | None = None,
    ) -> list[Measurement]:
        """Draw samples 0 … n−1 of a seed and measure them.

        Args:
            denoiser: the model.
            sampler: turns noise into samples of it.
            n: number of samples.
            seed: of the samples.
            y: class label of each sample, ``(n,)``, or ``None``.
            rank, world_size: where several processes call this together (``torch.distributed`` is
                up), each draws its share of the samples, and all return the same list.
            progress: called with the share of this process's sampling that each step was.

        Raises:
            UserError: where n is too small for a metric, or is not the number of labels.
        """
        self._check_n(n, warn=rank == 0)
        if y is not None and len(y) != n:
            raise UserError(f"n={n} samples need as many class labels, not {len(y)}")
        drawn = self._draw(denoiser, sampler, shard(n, rank, world_size), seed, y, progress)
        part = self._collect(drawn)
        parts = gather(part, rank, world_size)
        whole = None if parts is None else reduce(Collected.__add__, parts)
        return self._measure(whole, sampler.name, seed, rank, world_size)

    def evaluate_images(
        self,
        images: Tensor | Iterable[Tensor],
        *,
        sampler: str = "images",
        nfe: int | None = None,
        seed: int | None = None,
    ) -> list[Measurement]:
        """Measure images that exist already.

        Args:
            images: uint8 ``(n, C, H, W)`` (points: float ``(n, d)``), or batches of them.
            sampler, nfe, seed: how they were made, for the record.

        Raises:
            UserError: where there are too few for a metric.
        """
        batches = images.split(self.batch_size) if isinstance(images, Tensor) else images
        collected = self._collect((batch, nfe) for batch in batches if len(batch))
        self._check_n(collected.moments.count, warn=True)
        return self._measure(collected, sampler, seed, rank=0, world_size=1)

    def floor(self, n: int, rank: int = 0, world_size: int = 1) -> Measurement:
        """Fréchet distance between n test images and the training images: what samples as good as
        data would score.

        Returns:
            ``fid_floor`` or ``fd_<extractor>_floor``; its n is the number of test images there
            were, where that is less.

        Raises:
            UserError: where n < 2.
        """
        check_n(n, ("fd",))
        test = self.statistics.get("test", n, rank, world_size)
        train = self.statistics.get("train", self.n_reference, rank, world_size)
        found = None
        if test is not None and train is not None:
            found = Measurement(
                name=f"{self._name('fd')}_floor",
                value=frechet_distance(test.moments, train.moments),
                n=test.moments.count,
                nfe=None,
                sampler="test images",
                seed=None,
                split="train",
                extractor=self.extractor.name,
                n_reference=train.moments.count,
            )
        known = broadcast(found, world_size)
        assert known is not None, "rank 0 has both references"
        return known

    def neighbours(self, images: Tensor, k: int = 1) -> Neighbours:
        """The k nearest training examples of images (or points), in pixel space."""
        train = self.datamodule.batches("train", NEIGHBOUR_BATCH)
        return nearest(images, train, k, self.extractor.float64_device)

    def _draw(
        self,
        denoiser: Any,
        sampler: SamplerLike,
        indices: range,
        seed: int,
        y: Tensor | None,
        progress: Progress | None,
    ) -> Iterator[tuple[Tensor, int]]:
        """Batches of samples as images, and the network evaluations that each sample took."""
        first, batch_size = 0, self.batch_size
        while first < len(indices):
            chunk = indices[first : first + batch_size]
            samples = sampler.sample(
                denoiser,
                indices=chunk,
                seed=seed,
                y=None if y is None else y[chunk.start : chunk.stop],
                batch_size=batch_size,
                progress=_scaled(progress, len(chunk) / len(indices)),
            )
            first, batch_size = first + len(chunk), samples.batch_size
            yield self.datamodule.to_uint8(samples.x), samples.nfe

    def _collect(self, batches: Iterable[tuple[Tensor, int | None]]) -> Collected:
        wants = self.metrics
        moments = FeatureMoments(self.extractor.dim, self.extractor.float64_device)
        features, logits, images = [], [], []
        kept, seen, nfe = 0, 0, None
        for batch, nfe in batches:  # noqa: B007 - the last one counts
            found, scores = self.extractor.extract(batch)
            moments.update(found)
            if kept < CAP and wants & {"kid", "precision", "recall"}:
                features.append(found[: CAP - kept].cpu())
                kept += len(found)
            if "is" in wants and scores is not None:
                logits.append(scores.cpu())
            if seen < NEIGHBOUR_QUERIES and "neighbours" in wants:
                images.append(batch[: NEIGHBOUR_QUERIES - seen].cpu())
                seen += len(batch)
        return Collected(
            moments.to("cpu"),
            torch.cat([torch.empty(0, self.extractor.dim), *features]),
            torch.cat([torch.empty(0, self.extractor.classes), *logits]),
            _cat(images),
            nfe,
        )

    def _measure(
        self,
        collected: Collected | None,
        sampler: str,
        seed: int | None,
        rank: int,
        world_size: int,
    ) -> list[Measurement]:
        """All measurements of what rank 0 has collected, on every rank."""
        references = self._references(rank, world_size)
        found: list[Measurement] = []
        if collected is not None:
            record = partial(Measurement, nfe=collected.nfe, sampler=sampler, seed=seed)
            found += self._frechet(collected, references, record)
            found += self._one_by_one(collected, references.get("train"), record)
            found += self._scored(collected, record)
            found += self._memorised(collected, record)
        return broadcast(found, world_size)

    def _references(self, rank: int, world_size: int) -> dict[Split, Reference]:
        """Statistics of the splits that the metrics need; empty on ranks other than 0."""
        splits: list[Split] = []
        if self.metrics & {"fd", "kid", "precision", "recall"}:
            splits.append("train")
        if "fd" in self.metrics:
            splits.append("test")
        found = {}
        for split in splits:
            reference = self.statistics.get(split, self.n_reference, rank, world_size)
            if reference is not None:
                found[split] = reference
        return found

    def _frechet(
        self, collected: Collected, references: dict[Split, Reference], record: MakeMeasurement
    ) -> Iterator[Measurement]:
        if "fd" not in self.metrics:
            return
        for split, reference in references.items():
            yield record(
                name=self._name("fd"),
                value=frechet_distance(collected.moments, reference.moments),
                n=collected.moments.count,
                split=split,
                extractor=self.extractor.name,
                n_reference=reference.moments.count,
            )

    def _one_by_one(
        self, collected: Collected, reference: Reference | None, record: MakeMeasurement
    ) -> Iterator[Measurement]:
        if reference is None:
            return
        features, extractor = collected.features, self.extractor.name
        about = partial(
            record,
            n=len(features),
            split="train",
            extractor=extractor,
            n_reference=len(reference.features),
        )
        if "kid" in self.metrics:
            value, std = kid(features, reference.features)
            yield about(name=self._name("kid"), value=value, std=std)
        if self.metrics & {"precision", "recall"}:
            both = zip(
                ("precision", "recall"),
                precision_recall(features, reference.features),
                strict=True,
            )
            for name, value in both:
                if name in self.metrics:
                    yield about(name=self._name(name), value=value)

    def _scored(self, collected: Collected, record: MakeMeasurement) -> Iterator[Measurement]:
        if "is" not in self.metrics:
            return
        value, std = inception_score(collected.logits)
        yield record(
            name=self._name("is"),
            value=value,
            n=len(collected.logits),
            split=None,
            extractor=self.extractor.name,
            std=std,
        )

    def _memorised(self, collected: Collected, record: MakeMeasurement) -> Iterator[Measurement]:
        if "neighbours" not in self.metrics:
            return
        if self._held_out is None:
            test = self.datamodule.batches("test", NEIGHBOUR_BATCH, NEIGHBOUR_QUERIES)
            self._held_out = self.neighbours(torch.cat(list(test))).distances
        distances = self.neighbours(collected.images).distances
        yield record(
            name="nn_distance_ratio",
            value=distance_ratio(distances, self._held_out),
            n=len(distances),
            split="train",
            extractor="pixels" if collected.images.ndim == 4 else "points",
            n_reference=self.datamodule.size("train"),
        )

    def _name(self, metric: str) -> str:
        return metric_name(metric, self.extractor.name)

    def _check_n(self, n: int, warn: bool) -> None:
        check_n(n, self.metrics)
        dim = self.extractor.dim
        if warn and "fd" in self.metrics and n < dim:
            warnings.warn(
                f"{self._name('fd')} of n={n} samples is biased upwards, since n is below the "
                f"feature dimension {dim}; compare it only with values at the same n",
                stacklevel=3,
            )


def _scaled(progress: Progress | None, share: float) -> Progress | None:
    """``progress`` of one part that is ``share`` of the whole."""
    return None if progress is None else lambda done: progress(done * share)


def _cat(parts: list[Tensor]) -> Tensor:
    """Parts joined; an empty share has no shape of its own and drops out."""
    parts = [part for part in parts if len(part)]
    return torch.cat(parts) if parts else torch.empty(0)
