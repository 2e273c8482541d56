"""What an evaluation may be asked for: the metrics and the features that have a name here, and how
one's own are named.

An entry of ``evaluation.metrics`` is a name of ``METRICS``, a class (``mylab.metrics.Sliced``) or
a class with its arguments (``{_target_: mylab.metrics.Sliced, projections: 64}``).
``evaluation.extractor`` is a name of ``EXTRACTORS``, ``auto``, or a class in one of these ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from betasigma.errors import UserError
from betasigma.options.base import (
    AUTO,
    Auto,
    ComponentOptions,
    Count,
    Options,
    option,
    parse_component,
)
from betasigma.options.composition import Composition, DataFacts
from betasigma.options.samplers import DRAWN_AT_ONCE, MOST

Needs = Literal["images", "features", "logits"]
"""What a metric is computed on."""

Entry = str | Mapping[str, Any]
"""A name, a class, or a class with its arguments."""


@dataclass(frozen=True)
class KnownMetric:
    """A metric that has a name.

    Attributes:
        target: its class.
        needs: what it is computed on.
        least: fewest samples for which it is defined.
        higher_is_better: ``None`` where neither is.
    """

    target: str
    needs: Needs
    least: int
    higher_is_better: bool | None


@dataclass(frozen=True)
class KnownExtractor:
    """Features that have a name.

    Attributes:
        images: whether it reads nothing but images.
        classes: number of class logits it gives too; 0 for none.
    """

    images: bool
    classes: int


_CLASSES = "betasigma.evaluation.metrics"

METRICS = {
    "fd": KnownMetric(f"{_CLASSES}.FrechetDistance", "features", 2, False),
    "kid": KnownMetric(f"{_CLASSES}.KernelDistance", "features", 2, False),
    "is": KnownMetric(f"{_CLASSES}.InceptionScore", "logits", 10, True),
    "precision": KnownMetric(f"{_CLASSES}.Precision", "features", 4, True),
    "recall": KnownMetric(f"{_CLASSES}.Recall", "features", 4, True),
    "density": KnownMetric(f"{_CLASSES}.Density", "features", 6, True),
    "coverage": KnownMetric(f"{_CLASSES}.Coverage", "features", 6, True),
    "neighbours": KnownMetric(f"{_CLASSES}.NeighbourRatio", "images", 1, None),
}

EXTRACTORS = {
    "inception": KnownExtractor(images=True, classes=1008),
    "efficientnet_lite0": KnownExtractor(images=True, classes=1000),
    "dinov2": KnownExtractor(images=True, classes=0),
    "identity": KnownExtractor(images=False, classes=0),
}

REFERENCE = "reference"
"""Instead of the name of a split: images to compare with that are no split of a data set."""

INCEPTION_FILES: tuple[str, ...] = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
)
"""One file under two names: as torch-fidelity and as pytorch-fid publish it (6726825d begins its
SHA-256)."""


DINOV2_FILE = "dinov2_vitl14_pretrain.pth"
"""Weights of DINOv2's ViT-L/14 without registers, as its authors publish them."""


class MetricOptions(ComponentOptions):
    """A metric: its class and its arguments."""

    group: ClassVar[str] = "metric"
    targets = tuple(metric.target for metric in METRICS.values())


class KernelDistanceOptions(MetricOptions):
    targets = (METRICS["kid"].target,)

    subset_size: Annotated[int, Field(ge=2)] = option(
        1000, "examples in each random subset; fewer where there are fewer"
    )


SAMPLES, FEWEST_SAMPLES = 500, 50
"""Samples that are measured where nothing else is said, and the fewest that are worth it."""


def most_samples(n: int | None) -> int:
    """Samples that are measured at the end where training is long enough."""
    return SAMPLES if n is None else n


def most_measured(evaluation: Mapping[str, Any]) -> int:
    """Samples of the largest evaluation of a run with these settings."""
    return max(most_samples(evaluation["n"]), evaluation["n_during"] if evaluation["every"] else 0)


def measures(evaluation: Mapping[str, Any]) -> bool:
    """Whether these settings have samples measured, at the end or during training."""
    return bool(evaluation["metrics"] and (evaluation["n"] != 0 or evaluation["every"]))


FEWEST_REFERENCES, REFERENCES, PER_SAMPLE, ALL_FROM = 1500, 5000, 5, 10_000
"""Images of each split that few samples are compared with: at least, at most, and for each sample;
and the number of samples from which all are taken. They cost more than the samples' own features.
"""


def references(n_reference: int | str | None, n: int) -> int | None:
    """Images of each split that ``n`` samples are compared with; ``None`` for all."""
    if n_reference != AUTO:
        return int(n_reference) if n_reference is not None else None
    return None if n >= ALL_FROM else max(FEWEST_REFERENCES, min(REFERENCES, PER_SAMPLE * n))


class EvaluationOptions(Options):
    node = "evaluation"

    extractor: str | dict[str, Any] = option(
        "auto", f"features that are compared: auto, {', '.join(EXTRACTORS)}, or a class"
    )
    inception_weights: str | None = option(
        None, f"path of {INCEPTION_FILES[0]}, as torch-fidelity publishes it"
    )
    dinov2_weights: str | None = option(
        None, f"path of {DINOV2_FILE}, as DINOv2's authors publish it"
    )
    download: bool = option(False, "fetch the weights of the extractor")
    metrics: list[str | dict[str, Any]] = option(
        ["fd", "kid", "precision", "recall", "neighbours"],
        f"what is measured: {', '.join(METRICS)}, or classes",
    )
    every: Count | None = option(
        None, "steps between evaluations during training; null: at the end only"
    )
    n: Annotated[int, Field(ge=0, le=MOST)] | None = option(
        None,
        f"samples at the end; null: {SAMPLES}, or what so short a training allows (none below "
        f"{FEWEST_SAMPLES})",
    )
    n_during: Annotated[int, Field(ge=2, le=MOST)] = option(
        200, "samples of an evaluation during training"
    )
    n_reference: Annotated[int, Field(ge=2)] | Auto | None = option(
        AUTO,
        f"images of each split to compare with, a fixed random choice; null: all; auto: "
        f"{PER_SAMPLE} for each sample, {FEWEST_REFERENCES} to {REFERENCES}, or all where "
        f"{ALL_FROM} samples or more are measured",
    )
    batch_size: Count = option(DRAWN_AT_ONCE, "drawn at once; halved where a GPU's memory ends")
    cache: str = option("~/.cache/betasigma", "folder of the data set's statistics")

    def unused(self, composition: Composition) -> dict[str, str]:
        found = self.unused_features(composition.data)
        if self.every is None:
            found["n_during"] = "without evaluation.every"
        wanted = "evaluation.metrics"
        if self.metrics:
            wanted = "evaluation.n or evaluation.every"
        if not self.metrics or (self.n == 0 and not self.every):
            keys = set(type(self).model_fields) - {"cache", "every" if self.metrics else "metrics"}
            keys -= {"n"} if self.n == 0 else set()
            found |= dict.fromkeys(keys, f"without {wanted}")
        return found

    def unused_features(self, data: DataFacts) -> dict[str, str]:
        """Keys of the features that have no effect on these data, and why (:meth:`unused`)."""
        if data.points:
            keys = ("inception_weights", "dinov2_weights", "download")
            return dict.fromkeys(keys, f"on data={data.name}: the points are the features")
        found = {}
        if self.extractor not in ("auto", "inception"):
            found["inception_weights"] = "without evaluation.extractor=inception"
        if self.extractor != "dinov2":
            found["dinov2_weights"] = "without evaluation.extractor=dinov2"
        if self.extractor not in ("auto", "inception", "dinov2"):
            found["download"] = (
                f"with evaluation.extractor={self.extractor}, which needs no weights to be fetched"
            )
        return found

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.n == 1:
            raise ValueError(
                "evaluation.n=1 is too few: the covariance of a Fréchet distance needs at least 2 "
                "samples, and a steady value thousands (0 turns the evaluation off)"
            )
        return self


def node_of(entry: Entry) -> dict[str, Any]:
    """The class that an entry of ``evaluation.metrics`` names, under ``_target_``, and its
    arguments.

    Raises:
        UserError: if it is neither a name nor a class.
    """
    if isinstance(entry, str) and entry in METRICS:
        return {"_target_": METRICS[entry].target}
    if entry == "fid":
        raise UserError(
            "evaluation.metrics holds fid, which is what fd is called on Inception's features: "
            "write fd, and evaluation.extractor=inception with its weights"
        )
    node = class_node(entry)
    if node is None:
        raise UserError(
            f"evaluation.metrics holds {entry}, which is unknown; choose from "
            f"{', '.join(METRICS)}, or name a class (mylab.metrics.Sliced, or "
            "{_target_: mylab.metrics.Sliced, projections: 64})"
        )
    return node


def class_node(entry: Entry) -> dict[str, Any] | None:
    """``entry`` as a node with ``_target_``, ``None`` where it names no class."""
    node = {"_target_": entry} if isinstance(entry, str) else dict(entry)
    parts = str(node.get("_target_")).split(".")
    return node if len(parts) > 1 and all(part.isidentifier() for part in parts) else None


def check_metrics(metrics: Iterable[Entry], extractor: Entry) -> None:
    """Check that ``evaluation.metrics`` can be measured on these features, as far as names say, and
    the classes that are named for either, with their arguments.
    """
    known = EXTRACTORS.get(extractor) if isinstance(extractor, str) else None
    for number, metric in enumerate(metrics):
        facts = METRICS.get(metric) if isinstance(metric, str) else None
        if facts is None:
            parse_component("metric", node_of(metric), f"evaluation.metrics[{number}]")
        elif known and facts.needs == "logits" and not known.classes:
            raise UserError(no_logits(str(metric), str(extractor)))
    node = class_node(extractor)
    if node is not None:
        parse_component("extractor", node, "evaluation.extractor")


def no_logits(metric: str, extractor: str) -> str:
    """The sentence for a metric that needs class logits where there are none."""
    return (
        f"evaluation.metrics holds {metric}, which needs class logits, and "
        f"evaluation.extractor={extractor} has none; leave it out"
    )


def check_n(n: int, metrics: Iterable[Entry]) -> None:
    """Check that ``n`` samples are enough for the metrics that have a name."""
    for metric in metrics:
        if isinstance(metric, str) and metric in METRICS:
            check_least(n, metric, METRICS[metric].least)


def check_least(n: int, metric: str, least: int) -> None:
    """Check that ``n`` samples are enough for a metric that is defined from ``least`` on."""
    if n < least:
        raise UserError(f"n={n} is too few samples for {metric}, which needs at least {least}")
