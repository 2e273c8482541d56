"""Options of objectives, and what they ask of data, network and hardware."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from betasigma.errors import UserError
from betasigma.options.base import ComponentOptions, Count, Positive, Probability, option
from betasigma.options.composition import Composition

TrainedOn = Literal["levels", "continuous", "log_normal"]
Weighting = Literal["sigma_power", "vlb", "likelihood", "min_snr", "edm"]
Reduction = Literal["mean", "half_sum"]

TRACE_LIMIT = 256
"""Largest number of dimensions for which the exact trace of a Jacobian is taken."""


class ObjectiveOptions(ComponentOptions):
    group: ClassVar[str] = "objective"
    learns_variance: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False
    """Whether the loss holds a derivative of the network, so that training differentiates twice."""

    times: TrainedOn = option("levels", "which noise levels training draws")
    label_dropout: Probability = option(0.0, "share of labels hidden, for classifier-free guidance")

    def check_with(self, composition: Composition) -> None:
        network, compiled = composition.network, composition.hardware.compile
        if compiled not in (False, "auto") and (network.differentiates or self.differentiates):
            raise UserError(
                f"hardware.compile={str(compiled).lower()} cannot differentiate twice, as an "
                "energy network and implicit and sliced score matching must: leave it at false"
            )
        if self.label_dropout and not network.num_classes:
            raise UserError(
                f"objective.label_dropout={self.label_dropout} needs labels to drop: give "
                f"network.num_classes too"
            )


class WeightedOptions(ObjectiveOptions):
    """Options that our objectives share."""

    weighting: Weighting = option("sigma_power", "weight of each noise level")
    sigma_power: Annotated[float, Field(ge=-4, le=8)] = option(
        2.0, "lambda(sigma) = sigma^p of weighting=sigma_power; 2 weighs every level alike in eps"
    )
    gamma: Positive = option(5.0, "of weighting=min_snr, for data in [-1, 1]")
    sigma_data: Positive = option(0.5, "of weighting=edm: standard deviation of the data")
    log_mean: float = option(-1.2, "of times=log_normal: mean of log sigma/alpha")
    log_std: Positive = option(1.2, "of times=log_normal: standard deviation of log sigma/alpha")
    reduction: Reduction = option("mean", "over dimensions: their mean, or half of their sum")

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.weighting != "sigma_power" and self.sigma_power != 2:
            raise ValueError(
                f"objective.sigma_power={self.sigma_power:g} is the knob of "
                f"objective.weighting=sigma_power and has no part in weighting={self.weighting}; "
                f"leave it at 2"
            )
        if self.weighting == "vlb" and self.times != "levels":
            raise ValueError(
                f"objective.weighting=vlb weighs the model's own levels; "
                f"objective.times={self.times} must be levels"
            )
        return self

    def unused(self, composition: Composition) -> dict[str, str]:
        wanted = {
            "sigma_power": ("weighting", "sigma_power"),
            "gamma": ("weighting", "min_snr"),
            "sigma_data": ("weighting", "edm"),
            "log_mean": ("times", "log_normal"),
            "log_std": ("times", "log_normal"),
        }
        found = {
            key: f"without objective.{knob}={value}"
            for key, (knob, value) in wanted.items()
            if getattr(self, knob) != value
        }
        if composition.data.dimensions == 2:
            found["reduction"] = "in 2 dimensions, where half of the sum is the mean"
        return found

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if self.weighting == "likelihood" and composition.one_level:
            raise UserError(
                f"objective.weighting=likelihood is the slope of log-SNR, and with "
                f"{composition.schedule.single} there is none: give more levels"
            )


class DenoisingOptions(WeightedOptions):
    targets = ("betasigma.objectives.Denoising",)


class ScoreMatchingOptions(WeightedOptions):
    """Options of score matching, whose equations are half of a sum."""

    reduction: Reduction = option("half_sum", "over dimensions: their mean, or half of their sum")


class ExplicitOptions(ScoreMatchingOptions):
    targets = ("betasigma.objectives.ExplicitScoreMatching",)

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if not composition.data.has_density:
            raise UserError(
                f"objective=explicit needs the true score, which data={composition.data.name} does "
                f"not have: use data=mixture, or objective=denoising, which has the same minimiser"
            )
        if composition.network.num_classes:
            raise UserError(
                f"objective=explicit fits the score without labels: network.num_classes="
                f"{composition.network.num_classes} must be 0"
            )


class ImplicitOptions(ScoreMatchingOptions):
    targets = ("betasigma.objectives.ImplicitScoreMatching",)
    differentiates = True

    def check_with(self, composition: Composition) -> None:
        check_trace(composition.data.dimensions)
        super().check_with(composition)


class SlicedOptions(ScoreMatchingOptions):
    targets = ("betasigma.objectives.SlicedScoreMatching",)
    differentiates = True

    projections: Count = option(1, "random directions per example")
    variance_reduced: bool = option(
        False, "the square of the whole score instead of its part along the direction"
    )


class HybridOptions(WeightedOptions):
    targets = ("betasigma.objectives.Hybrid",)
    learns_variance = True

    vlb_weight: Positive = option(
        0.001, "of the variational bound, which trains the variance alone"
    )

    @model_validator(mode="after")
    def _own_bound(self) -> Self:
        if self.times != "levels":
            raise ValueError(
                f"objective=hybrid has a bound over the model's own levels; "
                f"objective.times={self.times} must be levels"
            )
        if self.weighting == "vlb":
            raise ValueError(
                "objective.weighting=vlb does not fit objective=hybrid, which adds the bound "
                "itself: choose sigma_power or min_snr for its simple part"
            )
        return self

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if not composition.network.can_learn_variance:
            raise UserError(
                f"{composition.network.target} has no output for a variance, which "
                f"objective=hybrid learns: choose network=mlp or a U-Net"
            )
        if composition.one_level:
            single = composition.schedule.single
            raise UserError(f"{single} leaves objective=hybrid no step to learn the variance of")


def check_trace(
    dimensions: int,
    what: str = "implicit score matching",
    times: str = "a step",
    instead: str = "objective=sliced_vr or denoising",
) -> None:
    """Refuse the exact trace of a Jacobian in many dimensions, with what it would cost: as many
    backward passes, so many ``times``.
    """
    if dimensions > TRACE_LIMIT:
        raise UserError(
            f"{what} in {dimensions} dimensions would take {dimensions} backward passes {times}; "
            f"it is meant for at most {TRACE_LIMIT}: use {instead}"
        )
