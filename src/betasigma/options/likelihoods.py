"""Options of likelihoods, and what they ask of the model."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from betasigma.errors import UserError
from betasigma.options.base import ComponentOptions, Count, Positive, option
from betasigma.options.composition import Composition
from betasigma.options.data import Split
from betasigma.options.noise_schedules import check_path
from betasigma.options.objectives import check_trace
from betasigma.options.samplers import Variance

Prior = Literal["standard", "moments"]
DecoderStd = Literal["kernel", "posterior", "fitted", "learned"]
Trace = Literal["hutchinson", "exact"]

FITTED = 256
"""Training images, a fixed random choice, that a bound's ``fitted`` decoder is fitted on."""

MEASURED = ("prior", "n", "split", "batch_size")
"""Keys of the node that say what is measured; the others are the estimator's own."""

LEAST_BITS = ("*bits_per_dim/*/total", "*bits_per_dim/*/total_test")
"""Metrics of a likelihood whose least value is the best; of its terms neither is."""

PRIOR = "N(0, prior_std^2), or the Gaussian with the moments of the noisiest data"


class LikelihoodOptions(ComponentOptions):
    group: ClassVar[str] = "likelihood"
    between_levels: ClassVar[bool] = False
    """Whether it visits times between the noise levels."""

    prior: Prior = option("moments", PRIOR)
    n: Annotated[int, Field(ge=2)] = option(64, "examples")
    split: Split = option("test", "of the data")
    batch_size: Count = option(64, "examples measured at once")

    def check_with(self, composition: Composition) -> None:
        levels = composition.schedule.level_count
        if isinstance(levels, int):
            check_path(levels, "a likelihood")
        if self.between_levels:
            composition.refuse_between_levels(f"likelihood={self.target.rpartition('.')[2]}")


class BoundOptions(LikelihoodOptions):
    """Options of a variational bound, which is of bytes."""

    clip: bool = option(False, "clip every predicted x_0 to the value range, as in DDPM's code")

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if composition.data.points:
            raise UserError(
                f"a variational bound is of bytes, its decoder integrates over 256 grey levels, "
                f"and data={composition.data.name} has points: use likelihood=flow"
            )
        asked = (getattr(self, "variance", None), getattr(self, "decoder_std", None))
        if "learned" in asked and not composition.learns_variance:
            raise UserError(
                "likelihood.variance=learned and likelihood.decoder_std=learned need a model that "
                "has learned a variance: train it with objective=hybrid"
            )


class DiscreteBoundOptions(BoundOptions):
    targets = ("betasigma.likelihood.DiscreteBound",)

    prior: Prior = option("standard", PRIOR)

    variance: Variance = option("beta", "of the reverse steps")
    decoder_std: DecoderStd = option(
        "kernel",
        "of the decoder: sigma/alpha at the smallest noise, the posterior's there as in DDPM's "
        f"code, the denoiser's error there on {FITTED} training images, or the network's own",
    )


class ContinuousBoundOptions(BoundOptions):
    targets = ("betasigma.likelihood.ContinuousBound",)
    between_levels = True

    n: Annotated[int, Field(ge=2)] = option(256, "examples")
    batch_size: Count = option(256, "examples measured at once")

    draws: Count = option(
        32, "noise levels of each image, one in each of as many equal parts of log-SNR"
    )
    decoder_std: Literal["kernel", "fitted"] = option(
        "fitted",
        "of the decoder: sigma/alpha at the smallest noise, or the denoiser's error there on "
        f"{FITTED} training images",
    )


class FlowOptions(LikelihoodOptions):
    targets = ("betasigma.likelihood.FlowLikelihood",)
    between_levels = True

    trace: Trace = option("hutchinson", "an unbiased estimate, or a backward pass per dimension")
    tolerance: Positive = option(1e-5, "of the adaptive solver")

    def check_with(self, composition: Composition) -> None:
        super().check_with(composition)
        if self.trace == "exact":
            check_flow_trace(composition.data.dimensions)


check_flow_trace = partial(
    check_trace,
    what="likelihood.trace=exact",
    times="at each of some hundred evaluations",
    instead="likelihood.trace=hutchinson",
)
"""Refuse the exact trace of a flow in many dimensions."""
