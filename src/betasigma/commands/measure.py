"""Measure samples, likelihood and denoising error of a model; log, draw and print the values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pytorch_lightning.loggers import Logger

from betasigma.build import Config, make
from betasigma.data.datamodule import SPLITS, ImageDataModule
from betasigma.denoiser import Denoiser, DenoiserLike, guided
from betasigma.display import Display, warn
from betasigma.errors import UserError, counted
from betasigma.evaluation.choice import choose
from betasigma.evaluation.evaluator import Evaluator, Measurement
from betasigma.evaluation.features import build
from betasigma.evaluation.likelihood import LikelihoodMeter, error_curve
from betasigma.evaluation.reference import DataSource
from betasigma.evaluation.sharding import made_by_first_rank_first, rank_and_world_size
from betasigma.options.data import Split
from betasigma.options.evaluation import REFERENCE, most_measured, references
from betasigma.options.likelihoods import MEASURED
from betasigma.options.training import AT_LOG_SNR, DENOISING_ERROR, NFE, Best
from betasigma.oracles import ExactDenoiser
from betasigma.report.plots import ErrorCurve, draw_error_curves, draw_levels
from betasigma.runs.record import format_settings
from betasigma.samplers import Sampler, labels_in_turn
from betasigma.training.compiling import compile_for_sampling
from betasigma.training.tracking import log_together, log_values
from betasigma.training.trainer import Affordable

COLUMNS = ["metric", "value", "n", "NFE"]

BEST: Mapping[bool | None, Best | None] = {True: "max", False: "min", None: None}
"""Which value of a metric is its best, by ``higher_is_better``."""

ESTIMATOR = ("name", "settings", "fitted_to", "terms")
"""What a likelihood has, of whatever class it is."""


class Result(NamedTuple):
    """A line of the table of measurements."""

    metric: str
    value: float
    n: int | None = None
    nfe: int | None = None
    std: float | None = None
    """Its standard error, where the table shows it."""

    @property
    def cells(self) -> list[str]:
        """As the table shows it."""
        value = f"{self.value:.4g}"
        if self.std is not None:
            value = f"{self.value:.4f} ± {self.std:.4f}"
        return [self.metric, value, *("" if x is None else str(x) for x in (self.n, self.nfe))]

    @property
    def numbers(self) -> list[str | float | None]:
        """As a file keeps it: metric, value (``None`` where it is not finite), n, NFE."""
        return [self.metric, self.value if math.isfinite(self.value) else None, self.n, self.nfe]


def results(found: Sequence[Measurement]) -> list[Result]:
    """Measurements of samples as lines of the table."""
    return [Result(label(m), m.value, m.n, m.nfe) for m in found]


class Meter:
    """Measures a model by its samples, its likelihood and its denoising error, and logs the values.
    All ranks call its methods together. The extractor is built at the first measurement.

    Args:
        config: ``evaluation``, ``likelihood``, ``seed`` and ``hardware`` are read of it.
        loggers: take the values; of the first rank alone.
        labels: the classes to draw; ``None`` for all.
    """

    def __init__(
        self,
        config: Config,
        data: ImageDataModule,
        sampler: Sampler,
        loggers: list[Logger],
        display: Display,
        guidance: float,
        labels: Sequence[int] | None = None,
    ) -> None:
        self._config, self._settings, self._seed = config, config["evaluation"], config["seed"]
        self.data, self.sampler, self.loggers, self.display = data, sampler, loggers, display
        self._guidance, self._labels = float(guidance), labels  # 2 and 2.0 are recorded alike
        self._evaluator: Evaluator | None = None

    def measure(self, denoiser: DenoiserLike, n: int) -> list[Measurement]:
        """Measure samples 0 … n−1, and the floor: what real images score at the same n."""
        if n == 0 or not self._settings["metrics"]:
            return []
        evaluator = made_by_first_rank_first(lambda: self._open(denoiser))
        size, share = self._settings["batch_size"], -(-n // rank_and_world_size()[1])
        hardware = self._config["hardware"]
        compile_for_sampling(
            denoiser, hardware, self.sampler, share, size, self.display, self._guidance
        )
        with self.display.share(f"evaluating {counted(n, 'sample')}") as progress:
            found = evaluator.evaluate(
                guided(denoiser, self._guidance),
                self.sampler,
                n,
                seed=self._seed,
                y=labels_in_turn(denoiser.num_classes, n, self._labels),
                progress=progress,
            )
        if evaluator.measures_frechet:
            found.append(evaluator.floor(n))
        return found

    def log(self, found: list[Measurement], step: int, prefix: str = "val") -> None:
        """Send measurements to the loggers under ``<prefix>/<name>``."""
        drawn = {"guidance": self._guidance, "settings": format_settings(self.sampler.settings)}
        more = {}
        if found and found[0].nfe is not None:
            more = {NFE: float(found[0].nfe), "sample/n": float(found[0].n)}
        log_measurements(self.loggers, found, step, prefix, drawn, more)

    def likelihood(
        self, denoiser: Denoiser | ExactDenoiser, step: int, out: Path, prefix: str = "val"
    ) -> list[Result]:
        """Measure what the ``likelihood`` node names, log it under ``<prefix>/<name>``, and draw
        what a discrete bound costs by level into ``out``.

        Returns:
            Lines of the table, with standard errors. Empty without a node.
        """
        node = self._config.get("likelihood")
        if node is None:
            return []
        settings = {key: node[key] for key in MEASURED}
        estimator = make_estimator(node, self._seed)
        meter = LikelihoodMeter(estimator, self.data, **settings, seed=self._seed)
        n = min(settings["n"], self.data.size(settings["split"]))
        with self.display.share(f"likelihood of {counted(n, 'example')}") as progress:
            found = meter.measure(denoiser, progress)
        own = node.keys() - {"_target_", "n", "split", "batch_size"}
        # a run that is continued has its keys in another order
        context = {"settings": format_settings({key: node[key] for key in sorted(own)})}
        log_measurements(self.loggers, found.measurements, step, prefix, context)
        if len(found.per_level) and self.loggers:
            path = out / "bits_per_level.png"
            draw_levels(found.per_level.tolist(), found.measurements[0].n, path)
            self.display.line(f"bits/dim by level {path}")
        if estimator.name == "flow":
            ratio = denoiser.schedule.ratio(denoiser.schedule.t_min).item()
            self.display.line(
                f"flow: likelihood of data with the smallest noise on them, sigma/alpha = "
                f"{ratio:.3g}; not a bound on that of clean data"
            )
        return [Result(label(m), m.value, m.n, m.nfe, m.std) for m in found.measurements]

    def error_curve(
        self,
        denoiser: Denoiser | ExactDenoiser,
        n: int,
        step: int,
        out: Path,
        name: str,
        family: str,
    ) -> None:
        """Log the denoising error of n test examples at every whole log-SNR, and draw it into
        ``out`` as that of a model of this name and family.
        """
        n = min(n, self.data.size("test"))
        with self.display.share(f"denoising error of {counted(n, 'example')}") as progress:
            curve = error_curve(denoiser, self.data, n, progress=progress)
        if not self.loggers:
            return
        values = {f"eval{AT_LOG_SNR}{at:+.0f}": error for at, error in curve.items()}
        context = {"n": n, "nfe": len(curve), "split": "test"}
        log_values(self.loggers, values, step, context)
        curves = [ErrorCurve(name, family, [curve], f"n={n} test examples")]
        path = draw_error_curves(curves, out / f"{DENOISING_ERROR}.png")
        self.display.line(f"denoising error by log-SNR {path}")

    def _open(self, denoiser: DenoiserLike) -> Evaluator:
        if self._evaluator is None:
            data, n = self.data, most_measured(self._settings)
            where = (data.sample_shape, denoiser.device, self.display)
            self._evaluator = make_evaluator(self._settings, n, data, data_as_typed(data), *where)
        return self._evaluator


def with_measured(affordable: Affordable) -> Config:
    """The config of a training run with the number of samples that are measured at its end."""
    content = affordable.content
    return {**content, "evaluation": {**content["evaluation"], "n": affordable.measured}}


def data_as_typed(data: ImageDataModule) -> str:
    """What messages call the data: ``data=mnist``."""
    return f"data={data.data_name}"


def check_splits(data: DataSource, against: str, splits: Sequence[Split] = SPLITS) -> None:
    """Refuse to compare samples with splits that are too small for it.

    Raises:
        UserError: naming ``against``, the split and its number of examples.
    """
    for split in splits:
        if data.size(split) < 2:
            which = f"{split} " if len(splits) > 1 else ""
            raise UserError(
                f"{against} has {data.size(split)} {which}example, and metrics compare with at "
                f"least 2: give more, or evaluation=none"
            )


def make_evaluator(
    settings: Mapping[str, Any],
    n: int,
    data: DataSource,
    against: str,
    shape: tuple[int, ...],
    device: torch.device,
    display: Display,
    splits: Sequence[Split] = SPLITS,
) -> Evaluator:
    """Make what measures ``n`` images of this shape, as an ``evaluation`` node says.

    Raises:
        UserError: for a split that is too small to be compared with; ``against`` is what the data
            are called.
    """
    check_splits(data, against, splits)
    choice = choose(
        settings["extractor"],
        settings["inception_weights"],
        settings["download"],
        shape,
        settings["dinov2_weights"],
    )
    return Evaluator(
        build(choice, shape).to(device),
        data,
        settings["metrics"],
        settings["cache"],
        settings["batch_size"],
        references(settings["n_reference"], n),
        display.work,
        splits,
    )


def log_measurements(
    loggers: list[Logger],
    found: list[Measurement],
    step: int,
    prefix: str,
    of_model: Mapping[str, Any],
    more: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Send measurements to the loggers under ``<prefix>/<name>``, with what they depend on.

    ``of_model`` is added to measurements in which a model took part, ``more`` to the values.
    """
    groups: list[tuple[Mapping[str, float], Mapping[str, Any]]] = []
    for m in found:
        context = {
            "n": m.n,
            "nfe": m.nfe,
            "sampler": m.sampler,
            "seed": m.seed,
            "split": m.split,
            "extractor": m.extractor,
            "std": m.std,
            "n_reference": m.n_reference,
            "best": BEST[m.higher_is_better],
            **(of_model if m.nfe is not None else {}),
        }
        groups.append(({f"{prefix}/{label(m)}": m.value}, context))
    log_together(loggers, [*groups, (more, {})], step)


def say_not_finite(bad: int, n: int) -> None:
    """Warn that so many of n samples are not finite, if any are."""
    if bad:
        warn(f"{bad} of {n} samples {'is' if bad == 1 else 'are'} not finite")


def label(m: Measurement) -> str:
    """Name of a measurement on the dashboard. It ends in the split, except the training split, and
    other images in its place.
    """
    return m.name if m.split in (None, "train", REFERENCE) else f"{m.name}_{m.split}"


def make_estimator(node: Config, seed: int) -> Any:
    """Make the bound or flow that a ``likelihood`` node names.

    Raises:
        UserError: if it is none.
    """
    own = {key: value for key, value in node.items() if key not in MEASURED}
    made = make(own, "likelihood", offered={"seed": seed})
    if lacking := [name for name in ESTIMATOR if not hasattr(made, name)]:
        raise UserError(
            f"likelihood._target_={node['_target_']} gives {type(made).__name__}, which has no "
            f"{' and no '.join(lacking)}: a likelihood has {', '.join(ESTIMATOR)}"
        )
    return made
