"""Options of samplers, and what they ask of the model."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from betasigma.errors import UserError
from betasigma.options.base import (
    AUTO,
    Auto,
    ComponentOptions,
    Count,
    Index,
    NonNegative,
    OpenUnit,
    Positive,
    UnitInterval,
    option,
)
from betasigma.options.composition import Composition

DRAWN_AT_ONCE = 256
"""Samples that are drawn at once, where nothing else is said."""

Grid = Literal["levels", "uniform_t", "uniform_log_snr", "karras"]
Start = Literal["prior", "uniform", "moments"]
Dtype = Literal["float32", "float64"]
Variance = Literal["beta", "posterior", "learned"]
Predictor = Literal["reverse_diffusion", "euler_maruyama", "ancestral"]


class SamplerOptions(ComponentOptions):
    """Options of a sampler."""

    group: ClassVar[str] = "sampler"

    start: Start = option(
        "prior",
        "where sampling begins: N(0, prior_std^2), uniform on the value range, or the Gaussian "
        "with the moments of the noisiest data",
    )
    clip: bool = option(False, "clip every predicted x_0 to the value range")
    dtype: Dtype = option("float32", "of the state; the network computes in its own")


class GridOptions(SamplerOptions):
    """Options of a sampler that steps along a grid of times."""

    steps: Count | None = option(None, "times on the grid; null: every level of the model")
    grid: Grid = option("levels", "how the times are spaced")
    rho: Positive = option(7.0, "of grid=karras")


class AncestralOptions(GridOptions):
    targets = ("betasigma.samplers.Ancestral",)

    clip: bool = option(True, "clip every predicted x_0 to the value range")
    variance: Variance = option("beta", "of a step: beta, the posterior's, or the model's own")

    def check_with(self, composition: Composition) -> None:
        if self.variance == "learned" and not composition.learns_variance:
            raise UserError(
                "sampler.variance=learned needs a model that has learned one: train it with "
                "objective=hybrid, or take sampler.variance=beta or posterior"
            )


class DDIMOptions(GridOptions):
    targets = ("betasigma.samplers.DDIM",)

    steps: Count | None = option(50, "times on the grid; null: every level of the model")
    clip: bool = option(True, "clip every predicted x_0 to the value range")
    eta: UnitInterval = option(0.0, "0: deterministic, 1: ancestral")


class AnnealedLangevinOptions(GridOptions):
    targets = ("betasigma.samplers.AnnealedLangevin",)

    inner_steps: Count = option(100, "T, steps at each noise level")
    step: OpenUnit | Auto = option(
        0.2, "step_i / sigma_i^2; 0.2 is NCSN's, 0.062 NCSNv2's for CIFAR-10; auto: Technique 4"
    )
    denoise: bool = option(False, "NCSNv2's last step to the mean of x_0")

    def check_with(self, composition: Composition) -> None:
        if self.step == AUTO and not composition.schedule.geometric:
            raise UserError(
                f"sampler.step=auto follows from the ratio of a geometric ladder (model=ncsn); "
                f"{composition.schedule.target.rpartition('.')[2]} has none: give "
                f"sampler.step=0.2, say"
            )


class PredictorCorrectorOptions(GridOptions):
    targets = ("betasigma.samplers.PredictorCorrector",)

    predictor: Predictor = option("reverse_diffusion", "step of the reverse SDE")
    snr: Positive = option(0.16, "size of a corrector's step")
    corrector_steps: Index = option(1, "Langevin steps before each step of the predictor")


class EulerOptions(GridOptions):
    targets = ("betasigma.samplers.Euler",)

    steps: Count | None = option(100, "times on the grid; null: every level of the model")


class HeunOptions(GridOptions):
    targets = ("betasigma.samplers.Heun",)

    steps: Count | None = option(18, "2 evaluations each, the last one 1")
    s_churn: NonNegative = option(0.0, "noise added on the way; 0: the sampler is deterministic")
    s_min: NonNegative = option(0.0, "least sigma/alpha at which it is added")
    s_max: Positive | None = option(None, "greatest sigma/alpha at which it is added; null: any")
    s_noise: Positive = option(1.0, "its standard deviation")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.s_max is not None and self.s_min > self.s_max:
            raise ValueError(
                f"sampler.s_min={self.s_min:g} must be at most sampler.s_max={self.s_max:g}"
            )
        return self


class DPMSolverOptions(GridOptions):
    targets = ("betasigma.samplers.DPMSolver",)

    steps: Count | None = option(20, "times on the grid; null: every level of the model")
    eta: UnitInterval = option(0.0, "0: the ODE, 1: the SDE")


class AdaptiveODEOptions(SamplerOptions):
    targets = ("betasigma.samplers.AdaptiveODE",)

    rtol: Positive = option(1e-5, "relative tolerance of the solver")
    atol: Positive = option(1e-5, "absolute tolerance of the solver")
