"""Options of samplers, and what they ask of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from betasigma.errors import UserError, counted
from betasigma.options.base import (
    AUTO,
    Auto,
    ComponentOptions,
    NonNegative,
    OpenUnit,
    Positive,
    UnitInterval,
    option,
    typed,
)
from betasigma.options.composition import Composition

MOST = 10_000_000
"""Samples of one command."""

MOST_STEPS = 1_000_000
"""Times on a grid and evaluations between two of them, and both together: all times are held in
memory."""

DRAWN_AT_ONCE = 256
"""Samples that are drawn at once, where nothing else is said."""

Grid = Literal["levels", "strided", "uniform_t", "uniform_log_snr", "karras"]
FewSteps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Steps = FewSteps | list[FewSteps] | None
Start = Literal["prior", "uniform", "moments"]
Dtype = Literal["float32", "float64"]
Variance = Literal["beta", "posterior", "learned"]
Predictor = Literal["reverse_diffusion", "euler_maruyama", "ancestral"]

TIMES = (
    "times on the grid, between the levels where they are more; null: every level; a list: levels "
    "of as many equal sections of the ladder, the cleanest first"
)
ONE_LEVEL = "on a model of one noise level, which a sampler visits once"

FEW_STEPS = 10
"""Times with fewer than 10 steps between them, for which ``lower_order_final`` was made."""

SPACING = "how the times are spaced; strided: DDIM's levels 1, 1+k, 1+2k, …"


class SamplerOptions(ComponentOptions):
    group: ClassVar[str] = "sampler"
    repeatable: ClassVar[bool] = True
    """Whether a step depends on the state alone, so that it can be taken again."""
    adaptive: ClassVar[bool] = False
    """Whether steps are chosen by how smooth the model is along them."""

    start: Start = option(
        "prior",
        "where sampling begins: N(0, prior_std^2), uniform on the value range, or the Gaussian "
        "with the moments of the noisiest data",
    )
    ratio_max: Positive | None = option(
        None,
        "sigma/alpha where sampling begins, at the Gaussian of that noise; null: the schedule's "
        "largest, but on grids even in noise at most 164 of a variance-preserving one",
    )
    clip: bool = option(False, "clip every predicted x_0 to the value range")
    dtype: Dtype = option("float32", "of the state; the network computes in its own")

    def unused(self, composition: Composition) -> dict[str, str]:
        return {"ratio_max": ONE_LEVEL} if composition.one_level else {}


def only_levels(levels: int | str | None) -> str:
    """What a model says that refuses times between its levels."""
    return (
        f"denoiser.off_levels=refuse: use sampler.grid=levels with at most sampler.steps={levels}, "
        f"or off_levels=snap or interpolate"
    )


class GridOptions(SamplerOptions):
    """Options of a sampler that steps along a grid of times."""

    steps: Steps = option(None, TIMES)
    grid: Grid = option("levels", SPACING)
    rho: Positive = option(7.0, "of grid=karras")

    between: ClassVar[tuple[str, ...]] = ()
    """Keys of the steps between two times, of which there are none on a single noise level."""

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if self.grid != "karras":
            found["rho"] = "without sampler.grid=karras"
        elif self.steps in (1, 2):
            found["rho"] = f"with sampler.steps={self.steps}: it spaces the times between the ends"
        if composition.one_level:
            found |= dict.fromkeys(("grid", "rho", *self.between), ONE_LEVEL)
            if self.steps not in (None, 1):
                found["steps"] = ONE_LEVEL
        return found

    def times_in(self, levels: int | str | None) -> int | None:
        """Number of times on the grid; ``None`` where the levels are not known."""
        if isinstance(self.steps, list):
            return sum(self.steps)
        count = levels if self.steps is None or levels == 1 else self.steps
        return count if isinstance(count, int) else None

    @model_validator(mode="after")
    def _sections_of_levels(self) -> Self:
        if isinstance(self.steps, list):
            if self.grid != "levels":
                raise ValueError(
                    f"sampler.steps={self.steps} counts the levels of sections and needs "
                    f"sampler.grid=levels, not {self.grid}"
                )
            if not self.steps:
                raise ValueError("sampler.steps=[] must count the levels of at least one section")
        return self

    def check_with(self, composition: Composition) -> None:
        levels = composition.schedule.level_count
        if levels == 1:
            return
        between = self.grid not in ("levels", "strided")
        if isinstance(levels, int):
            check_levels_taken(self.steps, self.grid, levels)
            between |= isinstance(self.steps, int) and self.steps > levels
        if between and composition.refuses_between_levels:
            raise UserError(
                f"sampler.grid={self.grid} with sampler.steps={typed(self.steps)} visits times "
                f"between the model's {levels} noise levels, and {only_levels(levels)}"
            )


class AncestralOptions(GridOptions):
    targets = ("betasigma.samplers.Ancestral",)
    between = ("variance",)

    clip: bool = option(True, "clip every predicted x_0 to the value range")
    variance: Variance = option("beta", "of a step: beta, the posterior's, or the model's own")

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if self.variance == "learned" and not composition.learns_variance:
            raise UserError(
                "sampler.variance=learned needs a model that has learned one: train it with "
                "objective=hybrid, or take sampler.variance=beta or posterior"
            )


class DDIMOptions(GridOptions):
    targets = ("betasigma.samplers.DDIM",)
    between = ("eta",)

    steps: Steps = option(50, TIMES)
    clip: bool = option(True, "clip every predicted x_0 to the value range")
    eta: UnitInterval = option(0.0, "0: deterministic, 1: ancestral with the posterior's variance")


class AnnealedLangevinOptions(GridOptions):
    targets = ("betasigma.samplers.AnnealedLangevin",)
    repeatable = False

    inner_steps: FewSteps = option(100, "T, steps at each noise level")
    step: OpenUnit | Auto = option(
        0.2, "step_i / sigma_i^2; 0.2 is NCSN's, 0.062 NCSNv2's for CIFAR-10; auto: Technique 4"
    )
    denoise: bool = option(False, "NCSNv2's last step to the mean of x_0")

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        times = self.times_in(composition.schedule.level_count) or 1
        if times * self.inner_steps > MOST_STEPS:
            raise UserError(
                f"sampler.inner_steps={self.inner_steps} at each of {times} noise levels are more "
                f"than {MOST_STEPS:,} steps: give sampler.inner_steps={MOST_STEPS // times} or "
                f"fewer"
            )
        if self.step == AUTO and not composition.schedule.geometric:
            raise UserError(
                f"sampler.step=auto follows from the ratio of a geometric ladder (model=ncsn); "
                f"{composition.schedule.target.rpartition('.')[2]} has none: give "
                f"sampler.step=0.2, say"
            )


class PredictorCorrectorOptions(GridOptions):
    targets = ("betasigma.samplers.PredictorCorrector",)
    between = ("predictor",)

    predictor: Predictor = option("reverse_diffusion", "step of the reverse SDE")
    snr: Positive = option(0.16, "size of a corrector's step")
    corrector_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = option(
        1, "Langevin steps before each step of the predictor; 0: no corrector"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if not self.corrector_steps:
            found["snr"] = "without sampler.corrector_steps above 0"
        return found


class EulerOptions(GridOptions):
    targets = ("betasigma.samplers.Euler",)

    steps: Steps = option(100, TIMES)


class HeunOptions(GridOptions):
    targets = ("betasigma.samplers.Heun",)
    between = ("s_churn", "s_min", "s_max", "s_noise")

    steps: Steps = option(18, f"{TIMES}; 2 evaluations each, the last one 1")
    grid: Grid = option("karras", SPACING)
    s_churn: NonNegative = option(0.0, "noise added on the way; 0: the sampler is deterministic")
    s_min: NonNegative = option(0.0, "least sigma/alpha at which it is added")
    s_max: Positive | None = option(None, "greatest sigma/alpha at which it is added; null: any")
    s_noise: Positive = option(1.0, "its standard deviation")

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if self.s_churn:
            what = f"sampler.s_churn={self.s_churn:g}"
            composition.refuse_between_levels(what, "give sampler.s_churn=0, or ")

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if not self.s_churn:
            why = "without sampler.s_churn above 0"
            found |= dict.fromkeys(("s_min", "s_max", "s_noise"), why)
        return found

    @property
    def bounds_churn(self) -> bool:
        """Whether noise is added on a part of the way only."""
        return bool(self.s_churn and (self.s_min or self.s_max is not None))

    def check_churn(self, ratios: Sequence[float]) -> None:
        """Refuse bounds that leave none of the falling sigma/alpha where it steps."""
        upper = math.inf if self.s_max is None else self.s_max
        if not any(self.s_min <= ratio <= upper for ratio in ratios):
            raise UserError(
                f"sampler.s_churn={self.s_churn:g} has no effect with sampler.s_min={self.s_min:g} "
                f"and sampler.s_max={typed(self.s_max)}: no step is from a sigma/alpha between "
                f"them; the {len(ratios)} fall from {ratios[0]:.4g} to {ratios[-1]:.4g}"
            )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.s_max is not None and self.s_min > self.s_max:
            raise ValueError(
                f"sampler.s_min={self.s_min:g} must be at most sampler.s_max={self.s_max:g}"
            )
        return self


class DPMSolverOptions(GridOptions):
    targets = ("betasigma.samplers.DPMSolver",)
    between = ("eta",)
    repeatable = False

    steps: Steps = option(20, TIMES)
    grid: Grid = option("uniform_log_snr", SPACING)
    eta: UnitInterval = option(0.0, "0: the ODE, 1: the SDE (SDE-DPM-Solver++)")
    lower_order_final: bool = option(
        True, "a step of order 1 to the smallest noise where there are fewer than 10 steps"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        times = self.times_in(composition.schedule.level_count)
        if times is not None and not 2 < times <= FEW_STEPS:
            found["lower_order_final"] = f"on {times} times: it is for 3 to {FEW_STEPS}"
        return found


class AdaptiveODEOptions(SamplerOptions):
    targets = ("betasigma.samplers.AdaptiveODE",)
    repeatable = False
    adaptive = True

    rtol: Positive = option(1e-5, "relative tolerance of the solver")
    atol: Positive = option(1e-5, "absolute tolerance of the solver")

    def check_with(self, composition: Composition) -> None:
        composition.refuse_between_levels("sampler=adaptive_ode", "use another sampler, or ")

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        return (
            found | dict.fromkeys(("rtol", "atol"), ONE_LEVEL) if composition.one_level else found
        )


def check_levels_taken(steps: Steps, grid: Grid, levels: int) -> None:
    """Refuse a choice of levels that a ladder of this many does not have."""
    if isinstance(steps, list):
        for size, count in zip(sections(levels, len(steps)), steps, strict=True):
            if count > size:
                raise UserError(
                    f"sampler.steps={steps} takes {counted(count, 'level')} of a section of "
                    f"{size}: the model has {levels} in all"
                )
    elif grid == "strided" and steps is not None:
        stride_of(steps, levels)


def sections(levels: int, count: int) -> list[int]:
    """Sizes of ``count`` sections of a ladder, as equal as can be, the larger ones first."""
    size, extra = divmod(levels, count)
    return [size + (i < extra) for i in range(count)]


def stride_of(steps: int, levels: int) -> int:
    """The least k for which levels 1, 1+k, 1+2k, … of a ladder are ``steps`` in number.

    Raises:
        UserError: if there is none.
    """
    counts = {-(-levels // stride): stride for stride in range(levels, 0, -1)}
    if steps not in counts:
        nearest = sorted(sorted(counts, key=lambda count: abs(count - steps))[:2])
        raise UserError(
            f"sampler.steps={steps} of grid=strided has no whole stride over {levels} levels; "
            f"the nearest numbers that have are {' and '.join(map(str, nearest))}"
        )
    return counts[steps]
