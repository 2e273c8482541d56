r"""Metrics of samples against real data, each a ``torchmetrics.Metric``.

Alone, in anybody's LightningModule::

    self.fd = FrechetDistance(extractor, reset_real_features=False)
    self.fd.update(images, real=True)     # uint8 (b, 1 or 3, h, w)
    self.fd.update(samples)
    self.log("val/fd", self.fd)

or composed by :class:`betasigma.evaluation.evaluator.Evaluator`, which extracts features once for
all of them. Where several processes share the work, torchmetrics gathers their states.

A metric of one's own is a subclass of :class:`SampleMetric` that says what it ``needs`` and gives
``compute()``.

- **Fréchet distance** (:mod:`betasigma.evaluation.frechet`), from the moments of all images;
- **kernel distance** (KID, Bińkowski et al. 2018): unbiased squared MMD with the kernel
  (xᵀy/dim + 1)³, mean and standard deviation over random subsets, by torch-fidelity;
- **Inception score** (Salimans et al. 2016): exp E KL(p(y|x) ‖ p(y)), mean and standard deviation
  over 10 splits, by torch-fidelity;
- **precision and recall** (Kynkäänniemi et al. 2019): share of samples inside the data's manifold
  and the reverse, a manifold being the union of balls that reach each point's third neighbour;
- **ratio of neighbour distances** (:mod:`betasigma.evaluation.neighbours`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypedDict, Unpack, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from betasigma.data.sources import Split
from betasigma.errors import UserError, counted
from betasigma.evaluation.features import FeatureExtractor, float64_device, full_precision
from betasigma.evaluation.frechet import FeatureMoments, frechet_distance
from betasigma.evaluation.neighbours import distance_ratio, nearest
from betasigma.evaluation.reference import CAP, DataSource, Reference
from betasigma.evaluation.sharding import gather_rows
from betasigma.options.evaluation import METRICS, KernelDistanceOptions, Needs
from betasigma.options.plugins import Component

NEIGHBOUR_QUERIES = 2000
"""Number of samples, and of test images, whose nearest training neighbours are looked for."""
NEIGHBOUR_BATCH = 4096

ROWS_AT_ONCE = 1000
"""Of a matrix of distances."""

NEIGHBOURS = 5
"""k of density and coverage, the authors' choice."""

Batches = Callable[[], Iterable[Tensor]]


def metric_name(metric: str, extractor: str) -> str:
    """Name under which a metric on features is reported: ``fid`` is only ever the Fréchet distance
    on Inception's pool3, every other one carries its extractor's name."""
    return "fid" if (metric, extractor) == ("fd", "inception") else f"{metric}_{extractor}"


@dataclass(frozen=True)
class RealData:
    """What samples are compared with: a fixed random choice of ``limit`` images of a split, or all,
    and the statistics of their features, where the metric needs features.
    """

    data: DataSource
    split: Split
    limit: int | None
    statistics: Reference | None

    def images(self, most: int | None = None) -> Iterator[Tensor]:
        """Batches of the images, ``most`` in all."""
        limits = [limit for limit in (self.limit, most) if limit is not None]
        return self.data.batches(self.split, 256, min(limits, default=None))


class Synchronisation(TypedDict, total=False):
    """What ``torchmetrics.Metric`` takes, on how processes share what each has seen."""

    compute_on_cpu: bool
    compute_with_cache: bool
    dist_sync_on_step: bool
    sync_on_compute: bool
    process_group: Any
    dist_sync_fn: Any
    distributed_available_fn: Any


class Resetting(Synchronisation, total=False):
    """The same, and whether :meth:`SampleMetric.reset` forgets real examples."""

    reset_real_features: bool


class SampleMetric(Component, Metric):
    """Compares samples with real data, or looks at samples alone.

    A subclass sets the attributes and gives ``compute() -> Tensor``, one number, from
    ``self.rows()``; it may set ``self.std`` there. Arguments of its own come before these in its
    constructor, all with defaults or named in the config.

    Args:
        extractor: the features, where ``update`` is given images. It is no part of the module that
            the metric is part of: neither checkpoints nor averaged copies hold it, but ``to`` moves
            it. With ``None``, ``update`` is given what ``needs`` says.
        reset_real_features: whether ``reset`` forgets the real data too.
        kwargs: of ``torchmetrics.Metric``.

    Attributes:
        name: under which it is reported; on features, followed by the extractor's name.
        needs: ``images``, ``features`` or ``logits``.
        least: fewest samples, and fewest real examples, for which it is defined.
        most: number of samples, and of real examples, that are kept: the first ones of each
            process; ``None`` for all.
        splits: of the real data, each of which is compared with; empty where none is.
        looks_at_test: whether it looks at the test split besides.
        keeps_real: whether ``update`` takes in real examples, or leaves them aside.
        state: what the states hold, a part of their names: a ``MetricCollection`` may let metrics
            whose states have the same names share them.
        std: standard deviation of the last value over subsets or splits, where there is one.

    Raises:
        UserError: if it needs class logits that the extractor has not.
    """

    config_group = "metric"

    name: ClassVar[str]
    needs: ClassVar[Needs]
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = CAP
    splits: ClassVar[Sequence[Split]] = ("train",)
    looks_at_test: ClassVar[bool] = False
    keeps_real: ClassVar[bool] = True
    state: ClassVar[str]

    is_differentiable = False
    full_state_update = True  # forward() of a batch leaves what is known of the real data alone

    extractor: FeatureExtractor | None

    def __init_subclass__(cls, known: str | None = None, **kwargs: Any) -> None:
        """Take from the options what they say of a metric that has the name ``known`` there."""
        super().__init_subclass__(**kwargs)
        if known is not None:
            facts = METRICS[known]
            cls.name = cls.__dict__.get("name", known)
            cls.needs, cls.least = facts.needs, facts.least
            cls.higher_is_better = facts.higher_is_better
        needs = getattr(cls, "needs", None)
        if isinstance(needs, str) and needs not in get_args(Needs):
            raise UserError(
                f"{cls.__name__}.needs={needs} must be one of {', '.join(get_args(Needs))}"
            )

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        reset_real_features: bool = True,
        **kwargs: Unpack[Synchronisation],
    ) -> None:
        super().__init__(**{"dist_sync_fn": gather_rows} | kwargs)
        if extractor is not None and self.needs == "logits" and not extractor.classes:
            raise UserError(
                f"{type(self).__name__} needs class logits, and the extractor {extractor.name} has "
                "none"
            )
        object.__setattr__(self, "extractor", extractor)  # not a submodule
        self.reset_real_features = reset_real_features
        self.std: float | None = None
        state = getattr(self, "state", self.needs)
        self._samples, self._real = f"samples_{state}", f"real_{state}"
        for name in (self._samples, self._real)[: 1 + self.keeps_real]:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor, real: bool = False) -> None:
        """Take in samples or real examples.

        Args:
            x: with an extractor, uint8 images ``(b, 1 or 3, h, w)``; without one, features
                ``(b, dim)``, logits ``(b, classes)`` or images ``(b, …)``, as ``needs`` says.
            real: whether they are real.
        """
        if real and not self.keeps_real:
            return
        kept = self.kept(real)
        room = len(x) if self.most is None else self.most - sum(map(len, kept))
        if room > 0:
            kept.append(self._rows_of(x[:room]))

    def compute(self) -> Tensor:
        """The number."""
        raise NotImplementedError

    def rows(self, real: bool = False) -> Tensor:
        """The first ``most`` samples (real examples) of all processes, ``(n, …)``.

        Raises:
            UserError: if they are fewer than ``least``.
        """
        kept = self.kept(real)
        rows = dim_zero_cat(kept)[: self.most] if len(kept) else torch.empty(0)
        self._check_enough(len(rows), real)
        return rows

    def kept(self, real: bool) -> list[Tensor]:
        """The state of samples, or of real examples: parts that are one tensor when put together,
        or that tensor where processes have met."""
        found: list[Tensor] = getattr(self, self._real if real else self._samples)
        return found

    def refer_to(self, real: RealData) -> int:
        """Take in the data to compare with; returns the number of examples."""
        if self.needs == "features":
            assert real.statistics is not None
            self.update(real.statistics.features, real=True)
        else:
            for images in real.images(self.most):
                self.update(images, real=True)
        return sum(map(len, self.kept(real=True)))

    def reset(self) -> None:
        """Forget the samples, and the real data unless they are to stay."""
        stays = self.keeps_real and not self.reset_real_features
        real = list(self.kept(real=True)) if stays else []
        super().reset()
        self.std = None
        if stays:
            setattr(self, self._real, real)

    def _rows_of(self, x: Tensor) -> Tensor:
        if self.extractor is not None and self.needs != "images":
            features, logits = self.extractor.extract(x)
            x = features if self.needs == "features" or logits is None else logits
        return x.detach().to(self.device)

    def _check_enough(self, n: int, real: bool) -> None:
        if n < self.least:
            raise UserError(
                f"{type(self).__name__} has seen "
                f"{counted(n, 'real example' if real else 'sample')}; it needs at least "
                f"{self.least}: call update(…, real={real}) before compute()"
            )

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=float64_device(self.device))

    def _mean_and_std(self, found: Mapping[str, float], name: str) -> Tensor:
        """What torch-fidelity has found."""
        self.std = float(found[f"{name}_std"])
        return self._number(found[f"{name}_mean"])

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> SampleMetric:
        super()._apply(fn, exclude_state)
        if self.extractor is not None:
            self.extractor.to(self.device)
        return self


class FrechetDistance(SampleMetric, known="fd"):
    """Squared Fréchet distance between Gaussians with the moments of all images; on Inception's
    pool3, FID. Memory does not grow with their number."""

    most = None
    splits = ("train", "test")
    state = "moments"

    def update(self, x: Tensor, real: bool = False) -> None:
        """Take in samples or real images, or their features ``(b, dim)``."""
        features = self._rows_of(x)
        self._moments(real, features.shape[1]).update(features)

    def compute(self) -> Tensor:
        """d² ≥ 0 up to rounding."""
        found = [_merged(self.kept(real)) for real in (False, True)]
        for moments, real in zip(found, (False, True), strict=True):
            self._check_enough(moments.count, real)
        return self._number(frechet_distance(*found))

    def refer_to(self, real: RealData) -> int:
        """Take in the moments of all images of the split."""
        assert real.statistics is not None
        moments = real.statistics.moments
        self._moments(True, len(moments.mean)).merge(moments)
        return moments.count

    def _moments(self, real: bool, dim: int) -> FeatureMoments:
        """The moments that are changed in place: the only entry of their state."""
        state = self.kept(real)
        if not state:
            state.append(FeatureMoments(dim, float64_device(self.device)).packed[None])
        elif state[0].is_inference() and not torch.is_inference_mode_enabled():
            state[0] = state[0].clone()
        return FeatureMoments(dim, packed=state[0][0])


class KernelDistance(SampleMetric, known="kid"):
    """Kernel distance between features (KID), mean over random subsets.

    Args:
        subset_size: examples in each; fewer where there are fewer.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        subset_size: int = 1000,
        **kwargs: Unpack[Resetting],
    ) -> None:
        super().__init__(extractor, **kwargs)
        KernelDistanceOptions.check(subset_size=subset_size)
        self.subset_size = subset_size

    def compute(self) -> Tensor:
        """Mean of the unbiased squared MMD; ``std`` is its standard deviation."""
        from torch_fidelity.metric_kid import kid_features_to_metric

        samples, real = self.rows().cpu(), self.rows(real=True).cpu()
        size = min(self.subset_size, len(samples), len(real))
        found = kid_features_to_metric(samples, real, kid_subset_size=size, verbose=False)
        return self._mean_and_std(found, "kernel_inception_distance")


class InceptionScore(SampleMetric, known="is"):
    """Inception score of class logits, mean over 10 splits; real images are not looked at."""

    most = None
    splits = ()
    keeps_real = False

    def compute(self) -> Tensor:
        """The score, from 1 up; ``std`` is its standard deviation."""
        from torch_fidelity.metric_isc import isc_features_to_metric

        found = isc_features_to_metric(self.rows().cpu())
        return self._mean_and_std(found, "inception_score")


class Precision(SampleMetric, known="precision"):
    """Share of samples inside the manifold of the real data."""

    def compute(self) -> Tensor:
        """In [0, 1]."""
        return self._number(share_inside(self.rows(), self.rows(real=True)))


class Recall(SampleMetric, known="recall"):
    """Share of real data inside the manifold of the samples."""

    def compute(self) -> Tensor:
        """In [0, 1]."""
        return self._number(share_inside(self.rows(real=True), self.rows()))


class Density(SampleMetric, known="density"):
    """How many real examples have a sample in their neighbourhood, relative to the neighbours that
    it is made of (Naeem et al. 2020, equation 4): Σ_j Σ_i 1(y_j ∈ B(x_i))/(k·M), where B(x_i)
    reaches the k-th nearest of the real examples.

    An outlier with a large neighbourhood counts for one of k here, where it makes all of
    :class:`Precision`.
    """

    def compute(self) -> Tensor:
        """1 for samples like real data; above it where they crowd."""
        samples, real = self.rows(), self.rows(real=True)
        within = sum(int(inside.sum()) for inside in neighbourhoods(samples, real))
        return self._number(within / (NEIGHBOURS * len(samples)))


class Coverage(SampleMetric, known="coverage"):
    """Share of real examples with a sample in their neighbourhood (Naeem et al. 2020, equation
    5).
    """

    def compute(self) -> Tensor:
        """In [0, 1]."""
        samples, real = self.rows(), self.rows(real=True)
        covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        for inside in neighbourhoods(samples, real):
            covered |= inside.any(0)
        return self._number(covered.double().mean().item())


class NeighbourRatio(SampleMetric, known="neighbours"):
    """Distance of samples to their nearest training image, relative to that of held-out images.

    Real images are those of the constructor; ``update(…, real=True)`` leaves them as they are.

    Args:
        train: gives batches of the training images, the same each time, as large as fit in memory.
        held_out: gives batches of images that were not trained on.
    """

    name = "nn_distance_ratio"
    most = NEIGHBOUR_QUERIES
    looks_at_test = True
    keeps_real = False

    def __init__(
        self,
        train: Batches | None = None,
        held_out: Batches | None = None,
        **kwargs: Unpack[Resetting],
    ) -> None:
        super().__init__(**kwargs)
        self.train_images, self.held_out_images = train, held_out
        self._of_held_out: Tensor | None = None

    def compute(self) -> Tensor:
        """1 for samples as new as held-out images, 0 for copies of training images; NaN where the
        held-out images are training images.

        Raises:
            UserError: if it was given neither ``train`` nor ``held_out``.
        """
        if self.train_images is None or self.held_out_images is None:
            raise UserError(
                "NeighbourRatio looks for samples among training images: give it train=… and "
                "held_out=…, functions that return batches of images"
            )
        if self._of_held_out is None:
            held_out = torch.cat(list(self.held_out_images()))[: self.most]
            self._of_held_out = nearest(held_out, self.train_images(), self.device)
        found = nearest(self.rows(), self.train_images(), self.device)
        return self._number(distance_ratio(found, self._of_held_out))

    def refer_to(self, real: RealData) -> int:
        """Search all training images, whatever the limit; read them when they are needed."""
        data = real.data
        self.train_images = partial(data.batches, "train", NEIGHBOUR_BATCH)
        self.held_out_images = partial(data.batches, "test", NEIGHBOUR_BATCH, NEIGHBOUR_QUERIES)
        return data.size("train")


def share_inside(points: Tensor, manifold: Tensor) -> float:
    """Share of points ``(n, dim)`` in a ball around one of ``manifold``, ``(m, dim)``, that reaches
    its third neighbour."""
    with full_precision(points.device):
        radii = _radii(manifold, 3)
        inside = [
            (torch.cdist(rows, manifold) <= radii).any(1) for rows in points.split(ROWS_AT_ONCE)
        ]
    return float(torch.cat(inside).double().mean())


def neighbourhoods(points: Tensor, real: Tensor) -> Iterator[Tensor]:
    """Whether points ``(n, dim)`` are nearer to each of ``real``, ``(m, dim)``, than its fifth
    neighbour, as the authors of density and coverage count it; ``(some of n, m)`` at a time.
    """
    with full_precision(points.device):
        radii = _radii(real, NEIGHBOURS)
        for rows in points.split(ROWS_AT_ONCE):
            yield torch.cdist(rows, real) < radii


def _radii(points: Tensor, neighbour: int) -> Tensor:
    """Distance of each point to this neighbour among the others, ``(n,)``."""
    return torch.cat(
        [
            torch.cdist(rows, points).kthvalue(neighbour + 1).values
            for rows in points.split(ROWS_AT_ONCE)
        ]
    )


def _merged(packed: list[Tensor] | Tensor) -> FeatureMoments:
    """The moments of all processes together."""
    if not len(packed):
        return FeatureMoments(0)
    parts = dim_zero_cat(packed)
    merged = FeatureMoments(parts.shape[1] - 1, parts.device)
    for part in parts:
        merged.merge(FeatureMoments(parts.shape[1] - 1, packed=part))
    return merged
