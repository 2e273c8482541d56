"""Options of a dashboard, which is described once and rendered in several places.

A dashboard is a title, what runs are grouped by, which runs are shown, and panels by name, in their
order. A panel names metrics as they are in metrics.csv, by patterns: ``*`` stands for anything.
Every rendering reads this and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from betasigma.errors import UserError, did_you_mean
from betasigma.options.base import Count, Options, Probability, option, written
from betasigma.options.evaluation import EXTRACTORS, METRICS
from betasigma.options.training import (
    AT_LOG_SNR,
    PREFIXES,
    SPEED,
    TRAIN_ERROR,
    TRAIN_OBJECTIVE,
    VALIDATION_ERROR,
    VALIDATION_OBJECTIVE,
)

Axis = Literal["step", "images", "time"]
"""Optimizer steps, images seen (steps times batch size), hours since the start."""


def _flattened(node: Any, prefix: str = "") -> Any:
    """Values by dotted key; a command line gives nodes within nodes."""
    if not isinstance(node, Mapping):
        return {prefix.rstrip("."): node} if prefix else node
    return {k: v for key in node for k, v in _flattened(node[key], f"{prefix}{key}.").items()}


Pattern = Annotated[str, written(r"\S(.*\S)?", "be the name of a metric, or a pattern with *")]
Patterns = Annotated[list[Pattern], Field(min_length=1)]
Value = str | bool | int | float | None
Filters = Annotated[dict[str, Value | list[Value]], BeforeValidator(_flattened)]
"""Values that the runs' configs have, by dotted key: one, several, or text with ``*``."""


class PanelOptions(Options):
    """What every panel says."""

    title: str = option("", "above the panel; empty: its name")
    about: str = option("", "one line below the title")
    filters: Filters = option({}, "values of the config, by dotted key, of the runs that it shows")

    @property
    def patterns(self) -> list[str]:
        """The metrics that the panel shows."""
        return getattr(self, "metrics", [])


class RunTableOptions(PanelOptions):
    """One line a run, or a group of seeds: how it stands, what tells it from others, figures."""

    kind: Literal["runs"] = "runs"
    metrics: Patterns = Field(description="whose best and last values are shown")


class CurvesOptions(PanelOptions):
    """Metrics over training, a line a run, or the mean with the spread over seeds."""

    kind: Literal["curves"] = "curves"
    metrics: Patterns = Field(description="one chart each")
    x: Axis = option("step", "axis that is shown first")
    log: bool = option(True, "whether values are on a logarithmic axis")
    smoothing: Probability = option(0.0, "weight of the past in an exponential average")
    comparable: bool = option(True, "whether both families have it in one unit")


class NoiseOptions(PanelOptions):
    """A metric that is measured at several log-SNR, whose numbers end its name."""

    kind: Literal["noise"] = "noise"
    metrics: Patterns = Field(description="of which a run's first is taken")
    log: bool = option(True, "whether values are on a logarithmic axis")


class QualityOptions(PanelOptions):
    """What samples score against network evaluations, by sampler, beside what real images score."""

    kind: Literal["quality"] = "quality"
    metrics: Patterns = Field(description="against NFE; one chart each")


class PrecisionRecallOptions(PanelOptions):
    """One metric of samples against another."""

    kind: Literal["precision_recall"] = "precision_recall"
    x: Pattern = Field(description="along")
    y: Pattern = Field(description="up")

    @property
    def patterns(self) -> list[str]:
        return [self.x, self.y]


class BitsOptions(PanelOptions):
    """A likelihood in bits per dimension, split into its terms."""

    kind: Literal["bits"] = "bits"
    metrics: Patterns = Field(description="the total and its terms, whose names end the metric's")


class SamplesOptions(PanelOptions):
    """Sample grids of runs side by side, over training, with real images beside them."""

    kind: Literal["samples"] = "samples"
    most: Count = option(16, "samples of each grid")
    steps: Count = option(6, "grids of each run, evenly over training and the last")
    neighbours: bool = option(True, "the nearest training image of each of the last samples")


class SweepOptions(PanelOptions):
    """What was swept against an objective: parallel coordinates, two keys, rank correlation."""

    kind: Literal["sweep"] = "sweep"
    objective: Pattern = Field(description="the metric whose least value counts")
    keys: list[str] = option([], "of the config; empty: those that differ")

    @property
    def patterns(self) -> list[str]:
        return [self.objective]


class RunPageOptions(PanelOptions):
    """All of one run: config, differences, command, versions, log, error."""

    kind: Literal["run"] = "run"
    lines: Count = option(40, "of the end of its log")


class HealthOptions(PanelOptions):
    """Where time went, what was not finite, which jobs are missing."""

    kind: Literal["health"] = "health"
    stalled: Annotated[float, Field(gt=0)] = option(
        15.0, "minutes without a sign of life after which a run that has not ended is stalled"
    )


Panel = Annotated[
    RunTableOptions
    | CurvesOptions
    | NoiseOptions
    | QualityOptions
    | PrecisionRecallOptions
    | BitsOptions
    | SamplesOptions
    | SweepOptions
    | RunPageOptions
    | HealthOptions,
    Field(discriminator="kind"),
]


def _shown(panels: Any) -> Any:
    """The panels that are not null, which leaves one out."""
    known = isinstance(panels, Mapping)
    return {str(k): v for k, v in panels.items() if v is not None} if known else panels


Panels = Annotated[dict[str, Panel], BeforeValidator(_shown), Field(min_length=1)]


class DashboardOptions(Options):
    node: ClassVar[str] = "dashboard"

    title: str = option("betasigma", "of the page")
    group_by: list[str] = option(
        ["model.family"], "keys of the config whose values have a colour each"
    )
    spread_over: list[str] = option(
        ["seed"], "keys in which runs of one mean differ, whose spread is a band"
    )
    filters: Filters = option({}, "values of the config, by dotted key, of the runs that are shown")
    panels: Panels = option({}, "by name, in their order; null leaves one out")

    def check_metrics(self, recorded: Iterable[str]) -> None:
        """Refuse a metric that is not among the ``recorded`` ones of the runs and that betasigma
        does not know. A pattern may fit none, which the panel says.
        """
        there = sorted(set(recorded))
        known = {*there, *known_metrics()}
        for name, panel in self.panels.items():
            for pattern in panel.patterns:
                if "*" in pattern or pattern in known:
                    continue
                listed = f"they have {', '.join(there)}"
                hint = did_you_mean(pattern, known, 3) or listed
                raise UserError(f"dashboard.panels.{name}: no run has a metric {pattern}; {hint}")


def known_metrics() -> list[str]:
    """Names of metrics that training and evaluation log, for runs that have none yet."""
    of_features = [name for name, metric in METRICS.items() if metric.needs != "images"]
    measured = [
        "fid",
        *(f"{metric}_{features}" for metric in of_features for features in EXTRACTORS),
        "bits_per_dim/flow/total",
    ]
    return [
        *(TRAIN_OBJECTIVE, VALIDATION_OBJECTIVE, SPEED, TRAIN_ERROR, VALIDATION_ERROR),
        *(f"{prefix}{AT_LOG_SNR}+0" for prefix in PREFIXES),
        *(f"{prefix}/{name}" for prefix in ("val", "eval") for name in measured),
    ]
