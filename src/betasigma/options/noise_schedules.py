"""Options of noise schedules, and of the nodes ``sigma`` and ``beta`` that users turn."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from betasigma.errors import UserError
from betasigma.options.base import AUTO, Auto, ComponentOptions, OpenUnit, Options, Positive, option
from betasigma.options.composition import Composition

Overlap = Annotated[float, Field(gt=0, lt=0.997)]
"""C of NCSNv2's Technique 2; two equal levels overlap by 0.9973."""

FIRST, LAST = 0.1, 20.0
"""T·beta of the first and of the last of T steps, where nothing else is said: DDPM's at 1,000, and
iDDPM's at any T, so that every T ends at the same noise."""

Levels = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of levels, which a stranger's file may give: all of them are held in memory."""

FEWEST_DIMENSIONS = 5
"""Least dimension for which NCSNv2's Technique 2 finds a number of levels: √(2D) > 3
(betasigma.ladder)."""


def check_path(levels: int, what: str) -> None:
    """Refuse what needs a path from noise to data, of a model that has none."""
    if levels < 2:
        raise UserError(
            f"{what} needs at least 2 noise levels (sigma.levels or beta.steps); this model has 1"
        )


def check_dimensions(dimensions: int) -> None:
    """Refuse to find a number of levels by NCSNv2's Technique 2 in few dimensions."""
    if dimensions < FEWEST_DIMENSIONS:
        raise UserError(
            f"sigma.levels=auto needs data of at least {FEWEST_DIMENSIONS} dimensions, not "
            f"{dimensions}: with fewer, all levels overlap, and the rule chooses none: give "
            f"sigma.levels=10, say"
        )


class ScheduleOptions(ComponentOptions):
    group: ClassVar[str] = "schedule"
    model: ClassVar[str] = ""
    """Family that takes this schedule by default, for messages."""
    geometric: ClassVar[bool] = False
    """Whether the levels have one common ratio, from which NCSNv2's rules follow."""

    @property
    def level_count(self) -> int | Auto | None:
        """Number of levels; ``None`` where only the class knows."""
        return getattr(self, "levels", getattr(self, "steps", None))

    @property
    def single(self) -> str:
        """The key and value by which it has one level, for messages."""
        return f"{self.node}.{'levels' if hasattr(self, 'levels') else 'steps'}=1"

    @property
    def unresolved(self) -> list[str]:
        """Keys that are to be found from the data."""
        return [key for key, value in self.arguments.items() if value == AUTO]


class LadderKeys(BaseModel):
    """Keys of a geometric ladder, where users turn them and where the schedule takes them."""

    levels: Levels | Auto = option(10, "number of noise levels; auto: Technique 2 of NCSNv2")
    max: Positive | Auto = option(
        1.0, "largest sigma, in the units of model.value_range; auto: Technique 1 of NCSNv2"
    )
    min: Positive = option(0.01, "smallest sigma, in the same units")


class GeometricOptions(LadderKeys, ScheduleOptions):
    targets = ("betasigma.schedules.geometric",)
    knobs = "sigma"
    model = "ncsn"
    geometric = True

    @model_validator(mode="after")
    def _falling(self) -> Self:
        only = self.levels == 1  # which is sigma.max
        if not isinstance(self.max, str) and self.min >= self.max and not only:
            raise ValueError(
                f"sigma.min={self.min:g} must be below sigma.max={self.max:g} and above 0"
            )
        return self


class LinearOptions(ScheduleOptions):
    targets = ("betasigma.schedules.linear", "betasigma.schedules.sigmoid")
    knobs = "beta"
    model = "ddpm"

    start: OpenUnit | None = option(None, f"beta of the first step; null: {FIRST:g}/steps")
    end: OpenUnit | None = option(None, f"beta of the last step; null: {LAST:g}/steps")
    steps: Levels = option(1000, "number of steps T")

    @property
    def ends(self) -> tuple[float, float]:
        """beta of the first and of the last step."""
        first = FIRST / self.steps if self.start is None else self.start
        return first, LAST / self.steps if self.end is None else self.end

    @model_validator(mode="after")
    def _rising(self) -> Self:
        first, last = self.ends
        if last >= 1:
            raise ValueError(
                f"beta.steps={self.steps} is too few for a beta.end of {LAST:g}/steps, which must "
                f"be below 1: take more than {LAST:g} steps, give beta.start and beta.end, or use "
                f"schedule=cosine"
            )
        if first > last:
            raise ValueError(f"beta.end={last:g} must be at least beta.start={first:g} and below 1")
        return self


class VPSDEOptions(ScheduleOptions):
    targets = ("betasigma.schedules.vp_sde", "betasigma.schedules.sub_vp_sde")
    knobs = "beta"
    model = "ddpm"

    start: Positive = option(0.1, "rate beta(0)")
    end: Positive = option(20.0, "rate beta(1)")
    steps: Levels = option(1000, "number of levels that samplers visit")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"beta.end={self.end:g} must be at least beta.start={self.start:g}")
        return self


class CosineOptions(ScheduleOptions):
    targets = ("betasigma.schedules.cosine",)
    knobs = "beta"
    model = "ddpm"

    steps: Levels = option(1000, "number of steps T")
    offset: OpenUnit = option(0.008, "s, which keeps beta away from 0 at the first steps")
    max_beta: OpenUnit = option(0.999, "largest beta of a step")

    turned: ClassVar[dict[str, str]] = {"max_beta": "max"}


class SigmaOptions(LadderKeys, Options):
    """The node ``sigma``, from which ``schedule=geometric`` and annealed Langevin read."""

    node = "sigma"

    overlap: Overlap | None = option(None, "C of Technique 2: how much neighbouring levels overlap")
    examples: Annotated[int, Field(ge=2)] | None = option(
        None, "examples compared with one another for sigma.max=auto; null: all"
    )
    step: OpenUnit | Auto | None = option(
        None, "of annealed Langevin, relative to sigma^2; auto: Technique 4"
    )
    found: list[Literal["levels", "max"]] | None = option(None, "keys that were auto")

    def unused(self, composition: Composition) -> dict[str, str]:
        found = {"found": ": it follows from the keys that are auto"}
        if self.levels != AUTO:
            found["overlap"] = "without sigma.levels=auto"
        if self.max != AUTO:
            found["examples"] = "without sigma.max=auto"
        if self.levels == 1:
            found["min"] = "with sigma.levels=1, whose only level is sigma.max"
        return found


class BetaOptions(Options):
    """The node ``beta``, from which the variance-preserving schedules read."""

    node = "beta"

    steps: Levels = option(1000, "number of steps T")
    start: Positive | None = option(
        None, f"beta of the first step, null: {FIRST:g}/steps; of schedule=vp_sde, a rate"
    )
    end: Positive | None = option(
        None, f"beta of the last step, null: {LAST:g}/steps; of schedule=vp_sde, a rate"
    )
    offset: OpenUnit | None = option(None, "s of schedule=cosine")
    max: OpenUnit | None = option(None, "largest beta of a step of schedule=cosine")

    def unused(self, composition: Composition) -> dict[str, str]:
        schedule = composition.schedule
        read = {schedule.turned.get(key, key) for key in type(schedule).model_fields}
        name = schedule.target.rpartition(".")[2]
        return {
            key: f"with schedule={name}, which does not have it"
            for key in set(type(self).model_fields) - read
            if not schedule.outside
        }
