"""Evaluate samples: draw them, extract features, compute metrics.

Every value is a :class:`Measurement`, which also has what the value depends on: number of samples,
network evaluations, sampler, seed, split, extractor. Samples are drawn batch by batch. Features are
extracted once and passed to each metric (:mod:`betasigma.evaluation.metrics`).

Fréchet distances are taken to the training split, as papers report them, and to the test split. A
model that memorises its training data is near the training split only. The splits differ in size,
and with it in bias, so compare distances to the same split. Kernel distance, precision and recall
are taken to the training split.

The distance between two finite sets of images from one distribution is above zero and depends on n.
:meth:`Evaluator.floor` measures it, test against training images. A score below the floor is a
warning, not an achievement.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from torch import Tensor

from betasigma.build import make
from betasigma.errors import UserError
from betasigma.evaluation import reference
from betasigma.evaluation.features import FeatureExtractor
from betasigma.evaluation.frechet import frechet_distance
from betasigma.evaluation.metrics import FrechetDistance, RealData, SampleMetric, metric_name
from betasigma.evaluation.sharding import (
    broadcast,
    gather,
    gather_rows,
    own_share,
    rank_and_world_size,
)
from betasigma.options.evaluation import (
    Entry,
    EvaluationOptions,
    Needs,
    check_least,
    no_logits,
    node_of,
)
from betasigma.options.plugins import Component
from betasigma.samplers import Sampler, count_not_finite

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Measurement:
    """One number and what it depends on.

    Attributes:
        name: e.g. ``fid``, ``fd_efficientnet_lite0``, ``kid_inception``, ``nn_distance_ratio``.
        value: the number.
        n: number of samples that entered it.
        nfe: network evaluations per sample; ``None`` without a model.
        sampler: name of the sampler, or of where the images came from.
        seed: of the samples; ``None`` without one.
        split: what they were compared with; ``None`` if with nothing.
        extractor: name of the features; ``pixels`` (``points``) for distances between the data
            themselves.
        std: standard deviation over subsets or splits, if the metric has one.
        n_reference: number of images of the split that they were compared with; ``None`` if with
            none.
        higher_is_better: ``None`` where neither is, or nobody says.
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
    higher_is_better: bool | None = None


class Evaluator(Component):
    """Measures samples against a datamodule's images.

    Args:
        extractor: on the device where it should run.
        metrics: each a name (``fd``, ``kid``, ``is``, ``precision``, ``recall``, ``neighbours``), a
            class, a class with its arguments (``{_target_: mylab.metrics.Sliced, projections:
            64}``), or a ``SampleMetric`` that was made without an extractor.
        cache_dir: where reference statistics are kept; by default ``$BETASIGMA_CACHE`` or
            ``~/.cache/betasigma``.
        batch_size: number of samples drawn, and of images read, at once; of samples fewer where the
            sampler finds no memory for so many.
        n_reference: number of images of a split, a fixed random choice, that statistics are taken
            of; ``None`` for all.
        work: shows the progress of reference statistics.
        splits: of the data that there are. Metrics compare with these, and one that looks at
            another is left out.

    Raises:
        UserError: if a metric is unknown, is none, is there twice or needs class logits that the
            extractor has not.
    """

    config_group = "evaluation"

    def __init__(
        self,
        extractor: FeatureExtractor,
        datamodule: reference.DataSource,
        metrics: Sequence[Entry | SampleMetric] = EvaluationOptions.DEFAULTS["metrics"],
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = EvaluationOptions.DEFAULTS["batch_size"],
        n_reference: int | None = None,
        work: reference.Work = reference.unseen,
        splits: Sequence[reference.Split] = ("train", "test"),
    ) -> None:
        EvaluationOptions.check(batch_size=batch_size, n_reference=n_reference)
        self.extractor = extractor
        self.datamodule = datamodule
        self.batch_size = batch_size
        self.n_reference = n_reference
        self.statistics = reference.ReferenceStatistics(
            extractor, datamodule, cache_dir, batch_size, work
        )
        made = [make_metric(entry, extractor) for entry in metrics]
        for name in (metric.name for metric in made):
            if [metric.name for metric in made].count(name) > 1:
                raise UserError(f"evaluation.metrics measures {name} twice; leave one out")
        self.left_out = [m.name for m in made if m.looks_at_test and "test" not in splits]
        """Names of metrics that look at a split that there is not."""
        made = [metric for metric in made if metric.name not in self.left_out]
        self._splits = splits
        self._pixels = False
        self._not_finite = 0
        self._columns = [column for metric in made for column in self._columns_of(metric)]
        self.measures_frechet = any(isinstance(metric, FrechetDistance) for metric in made)

    def evaluate(
        self,
        denoiser: Any,
        sampler: Sampler,
        n: int,
        seed: int = 0,
        y: Tensor | None = None,
        progress: Progress | None = None,
    ) -> list[Measurement]:
        """Draw samples 0 … n−1 of a seed and measure them. All ranks of ``torch.distributed`` call
        this together; each draws its share of the samples, and all return the same list.

        Args:
            y: class label of each sample, ``(n,)``, or ``None``.
            progress: called with the share of this process's sampling that each step was.

        Returns:
            The measurements; where samples are not finite only their number,
            ``not_finite_samples``.

        Raises:
            UserError: if n is too small for a metric, or is not the number of labels.
        """
        self._check_n(n)
        if y is not None and len(y) != n:
            raise UserError(f"n={n} samples need as many class labels, not {len(y)}")
        self._not_finite = 0
        drawn = self._draw(denoiser, sampler, own_share(n), seed, y, progress)
        _, nfe = self._take_in(drawn)
        not_finite = broadcast(sum(gather(self._not_finite) or []))
        if not_finite:
            if rank_and_world_size()[0] == 0:
                warnings.warn(
                    f"not finite: {not_finite} of {n} samples by {sampler.name}; nothing is "
                    "measured of them or of the others",
                    stacklevel=2,
                )
            name, space = "not_finite_samples", self.extractor.name
            return [Measurement(name, not_finite, n, nfe, sampler.name, seed, None, space)]
        return self._measure(n, nfe, sampler.name, seed)

    def evaluate_images(
        self,
        images: Tensor | Iterable[Tensor],
        *,
        sampler: str = "images",
        nfe: int | None = None,
        seed: int | None = None,
    ) -> list[Measurement]:
        """Measure images that exist already. All ranks of ``torch.distributed`` call this together;
        each is given its share of the images, and all return the same list.

        Args:
            images: uint8 ``(n, C, H, W)`` (points: float ``(n, d)``), or batches of them.
            sampler, nfe, seed: how they were made, for the record.

        Raises:
            UserError: if there are too few for a metric.
        """
        batches = images.split(self.batch_size) if isinstance(images, Tensor) else images
        own, _ = self._take_in((batch, nfe) for batch in batches if len(batch))
        n = broadcast(sum(gather(own) or []))
        self._check_n(n)
        return self._measure(n, nfe, sampler, seed)

    def floor(self, n: int) -> Measurement:
        """Measure the Fréchet distance between n test images and the training images.

        Samples as good as real data would score this.

        Returns:
            ``fid_floor`` or ``fd_<extractor>_floor``. Its n is the number of test
            images, if that is smaller.

        Raises:
            UserError: if n < 2.
        """
        check_least(n, "fd", FrechetDistance.least)
        test = self.statistics.get("test", n)
        train = self.statistics.get("train", self.n_reference)
        found = None
        if test is not None and train is not None:
            found = Measurement(
                name=f"{metric_name('fd', self.extractor.name)}_floor",
                value=frechet_distance(test.moments, train.moments),
                n=test.moments.count,
                nfe=None,
                sampler="test images",
                seed=None,
                split="train",
                extractor=self.extractor.name,
                n_reference=train.moments.count,
            )
        known = broadcast(found)
        assert known is not None, "rank 0 has both references"
        return known

    def _draw(
        self,
        denoiser: Any,
        sampler: Sampler,
        indices: range,
        seed: int,
        y: Tensor | None,
        progress: Progress | None,
    ) -> Iterator[tuple[Tensor, int]]:
        """Yield batches of samples as images, and their network evaluations per sample."""
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
            self._not_finite += count_not_finite(samples.x)
            yield self.datamodule.to_uint8(samples.x), samples.nfe

    def _columns_of(self, metric: SampleMetric) -> Iterator[Column]:
        """The metric, once for each split that it compares with."""
        splits = [split for split in metric.splits if split in self._splits]
        for split in splits if metric.splits else (None,):
            copy = deepcopy(metric).to(self.extractor.float64_device)
            copy.reset_real_features = True  # the data are handed over at each evaluation
            yield Column(copy, split)

    def _take_in(self, batches: Iterable[tuple[Tensor, int | None]]) -> tuple[int, int | None]:
        """Pass samples to every metric. Return their number and their network evaluations."""
        n, nfe = 0, None
        for column in self._columns:
            column.metric.reset()
        for images, nfe in batches:  # noqa: B007 - the last one counts
            n, self._pixels = n + len(images), images.ndim == 4
            given: dict[str, Any] = {"images": images}
            if any(column.metric.needs != "images" for column in self._columns):
                given["features"], given["logits"] = self.extractor.extract(images)
            for column in self._columns:
                column.metric.update(given[column.metric.needs])
        return n, nfe

    def _measure(
        self, n: int, nfe: int | None, sampler: str, seed: int | None
    ) -> list[Measurement]:
        """Compute all measurements on rank 0 and return them on every rank."""
        rank, world_size = rank_and_world_size()
        found: list[Measurement] = []
        statistics: dict[reference.Split, reference.Reference | None] = {}
        for metric, split in self._columns:
            if metric.needs == "features" and split is not None and split not in statistics:
                statistics[split] = self.statistics.get(split, self.n_reference)
            n_reference = None
            if split is not None and rank == 0:
                known = statistics.get(split)
                real = RealData(self.datamodule, split, self.n_reference, known)
                n_reference = metric.refer_to(real)
            with metric.sync_context(gather_rows, should_sync=world_size > 1):
                if rank == 0:
                    found.append(
                        Measurement(
                            name=self._name(metric),
                            value=_number(metric),
                            n=n if metric.most is None else min(n, metric.most),
                            nfe=nfe,
                            sampler=sampler,
                            seed=seed,
                            split=split,
                            extractor=self._space(metric),
                            std=metric.std,
                            n_reference=n_reference,
                            higher_is_better=metric.higher_is_better,
                        )
                    )
            metric.reset()
        return broadcast(found)

    def _name(self, metric: SampleMetric) -> str:
        on_pixels = metric.needs == "images"
        return metric.name if on_pixels else metric_name(metric.name, self.extractor.name)

    def _space(self, metric: SampleMetric) -> str:
        """Name the space of the distances: an extractor, ``pixels`` or ``points``."""
        if metric.needs != "images":
            return self.extractor.name
        return "pixels" if self._pixels else "points"

    def _check_n(self, n: int) -> None:
        for metric, _ in self._columns:
            check_least(n, metric.name, metric.least)
        dim = self.extractor.dim
        if self.measures_frechet and n < dim and rank_and_world_size()[0] == 0:
            warnings.warn(
                f"{metric_name('fd', self.extractor.name)} of n={n} samples is biased upwards, "
                f"since n is below the feature dimension {dim}; compare it only with values at the "
                "same n",
                stacklevel=3,
            )


def _number(metric: SampleMetric) -> float:
    value = type(metric).compute(metric)  # of the class: the object's own gathers once more
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UserError(
            f"evaluation.metrics holds {metric.name}, whose compute returned a tensor of shape "
            f"{tuple(value.shape)}; it must return one number"
        )
    return float(value)


class Column(NamedTuple):
    """A metric and the split that it compares with, if any."""

    metric: SampleMetric
    split: reference.Split | None


def make_metric(entry: Entry | SampleMetric, extractor: FeatureExtractor) -> SampleMetric:
    """Make the metric that an entry of ``evaluation.metrics`` names.

    Raises:
        UserError: if it is unknown, or needs class logits and the extractor has none.
    """
    if isinstance(entry, SampleMetric):
        metric = entry
    else:
        node = node_of(entry)
        metric = make(node, "metric", "evaluation.metrics")
        if not isinstance(metric, SampleMetric):
            raise UserError(
                f"evaluation.metrics holds {node['_target_']}, which is a "
                f"{type(metric).__name__} and not a subclass of "
                "betasigma.evaluation.metrics.SampleMetric"
            )
    if not getattr(metric, "name", "") or getattr(metric, "needs", None) not in get_args(Needs):
        raise UserError(
            f"evaluation.metrics holds {type(metric).__name__}, which must set name to a string "
            f"and needs to one of {', '.join(get_args(Needs))}"
        )
    if metric.needs == "logits" and metric.splits:
        raise UserError(
            f"evaluation.metrics holds {metric.name}, which compares logits with those of the "
            f"splits {', '.join(metric.splits)}: these are not kept; set splits to () or needs to "
            "features"
        )
    if metric.needs == "logits" and not extractor.classes:
        raise UserError(no_logits(metric.name, extractor.name))
    return metric


def _scaled(progress: Progress | None, share: float) -> Progress | None:
    return None if progress is None else lambda done: progress(done * share)
