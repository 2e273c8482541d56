"""Options of the learning rate's schedule, which begins where the warm-up ends."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from betasigma.options.base import (
    ComponentOptions,
    Count,
    NonNegative,
    OpenUnit,
    UnitInterval,
    option,
)

TORCH = "torch.optim.lr_scheduler."

PositiveUnit = Annotated[float, Field(gt=0, le=1)]


class LearningRateOptions(ComponentOptions):
    """Options of a schedule: those of ``torch.optim.lr_scheduler``, or a function of an optimizer
    that returns one. One that takes ``warmup`` (a number of steps) does its own warm-up.
    """

    group: ClassVar[str] = "lr_schedule"
    length: ClassVar[str | None] = None
    """Key that says over how many steps the rate changes; null there: to the end of the run."""
    turns_back: ClassVar[bool] = False
    """Whether the rate rises again after that many steps."""
    begins_late: ClassVar[bool] = True
    """Whether it begins where the warm-up ends."""
    own_warmup: ClassVar[bool] = False
    """Whether it has a warm-up of its own, so that there can be none before it."""

    @property
    def ends_with_the_run(self) -> bool:
        """Whether the rate of a step depends on how many steps the run has."""
        return self.length is not None and getattr(self, self.length) is None

    def length_in(self, steps: int, warmup: int) -> dict[str, int]:
        """The length as an argument, where it follows from the run's number of steps."""
        return {str(self.length): max(1, steps - warmup)} if self.ends_with_the_run else {}

    def check_run(self, steps: int, warmup: int) -> None:
        """Refuse a schedule that does not fit the length of the run.

        Raises:
            ValueError: naming the key, its value and what would be accepted.
        """
        name = self.target.rpartition(".")[2]
        if self.own_warmup and warmup:
            raise ValueError(
                f"training.warmup={warmup} does not fit lr_schedule._target_={self.target}, which "
                f"raises the learning rate by itself: give training.warmup=0"
            )
        if self.begins_late and 0 < steps <= warmup:
            raise ValueError(
                f"lr_schedule._target_={self.target} has no effect: training.warmup={warmup} is "
                f"not below steps={steps}"
            )
        given = getattr(self, self.length) if self.length is not None else None
        if self.turns_back and given is not None and given < steps - warmup:
            raise ValueError(
                f"lr_schedule.{self.length}={given} ends before the run (steps={steps} after "
                f"training.warmup={warmup}), and {name} would then raise the learning rate again: "
                f"give at least {steps - warmup}, or null for the end of the run"
            )


class ConstantRateOptions(LearningRateOptions):
    targets = ("betasigma.modules.learning_rate.constant",)
    begins_late = False

    @classmethod
    def default(cls) -> Self:
        """What earlier configs, which have no such node, mean."""
        return cls.parse({"_target_": cls.targets[0]})


class CosineRateOptions(LearningRateOptions):
    targets = (f"{TORCH}CosineAnnealingLR",)
    length = "T_max"
    turns_back = True

    T_max: Count | None = option(None, "steps from the full rate to eta_min; null: to the end")
    eta_min: NonNegative = option(0.0, "learning rate at the end")


class LinearRateOptions(LearningRateOptions):
    targets = (f"{TORCH}LinearLR",)
    length = "total_iters"

    start_factor: PositiveUnit = option(1.0, "of optimizer.lr, at the start")
    end_factor: UnitInterval = option(0.0, "of optimizer.lr, at the end and after it")
    total_iters: Count | None = option(None, "steps from one to the other; null: to the end")


class StepRateOptions(LearningRateOptions):
    targets = (f"{TORCH}StepLR",)

    step_size: Count = option(1000, "steps between two reductions")
    gamma: PositiveUnit = option(0.1, "factor of each reduction")


class ExponentialRateOptions(LearningRateOptions):
    targets = (f"{TORCH}ExponentialLR",)

    gamma: OpenUnit = option(0.999, "factor of each step")


class CyclicRateOptions(LearningRateOptions):
    """Schedules that set the optimizer's rate to one of their own."""

    model_config = ConfigDict(extra="allow")
    targets = (f"{TORCH}OneCycleLR", f"{TORCH}CyclicLR")
    begins_late = False
    own_warmup = True


NEEDS_FUNCTION = (
    "needs a function, which a config cannot hold: name your own function that returns the "
    "schedule (mylab.rates.mine)"
)
JOINS = (
    "joins other schedules; the warm-up is training.warmup, and more is a function of your own "
    "that returns it (mylab.rates.mine)"
)
REFUSED = {
    "ReduceLROnPlateau": (
        "waits for a metric to stall, and here the learning rate is a function of the step alone, "
        "so that a resumed run equals one that was never stopped"
    ),
    **dict.fromkeys(("LambdaLR", "MultiplicativeLR"), NEEDS_FUNCTION),
    **dict.fromkeys(("SequentialLR", "ChainedScheduler"), JOINS),
}
"""Schedules of PyTorch that cannot be named in a config, with the reason."""


class RefusedRateOptions(LearningRateOptions):
    model_config = ConfigDict(extra="allow")
    targets = tuple(f"{TORCH}{name}" for name in REFUSED)

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        raise ValueError(
            f"lr_schedule._target_={self.target} {REFUSED[self.target.removeprefix(TORCH)]}"
        )
