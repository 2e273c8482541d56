"""Options of the training loop, the averaged weights and the denoiser around the network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from betasigma.errors import UserError
from betasigma.options.base import Count, Index, NonNegative, Options, Positive, Probability, option
from betasigma.options.composition import Composition

PREFIXES = ("train", "val", "eval")
"""What names of metrics begin with: of training, its validations, and evaluations afterwards."""

DENOISING_ERROR = "denoising_error"
AT_LOG_SNR = f"/{DENOISING_ERROR}/log_snr_"
TRAIN_ERROR, VALIDATION_ERROR = f"train/{DENOISING_ERROR}", f"val/{DENOISING_ERROR}"
TRAIN_OBJECTIVE, VALIDATION_OBJECTIVE = "train/objective", "val/objective"
SPEED, SKIPPED = "train/images_per_second", "train/skipped_steps"
GRADIENT_NORM, NFE = "train/gradient_norm", "sample/nfe"
LEARNING_RATE = "train/learning_rate"
"""Names of metrics. The denoising error is the mean of ‖ε − ε̂‖²/d over log-SNR, the same for every
family; ``…/denoising_error/log_snr_+3`` and its like are the parts, :data:`AT_LOG_SNR` what their
names have between ``train``, ``val`` or ``eval`` and the number. The objective is what a family
minimises, in units of its own. The gradient's norm is the mean of what it was before clipping.
"""

LOGGED = (
    *(VALIDATION_ERROR, VALIDATION_OBJECTIVE, TRAIN_ERROR, TRAIN_OBJECTIVE),
    *(GRADIENT_NORM, LEARNING_RATE, SPEED, SKIPPED),
)
"""What every run may log of its training and validations, beside :data:`ERROR_BY_NOISE`."""

ERROR_BY_NOISE = rf"(train|val)/{DENOISING_ERROR}/(mean_)?log_snr_[+-]\d+(_to_[+-]\d+)?"
"""Names of the denoising error at one log-SNR, and over a part of them."""

Best = Literal["min", "max"]
"""Which value of a metric is its best."""

LEAST = (
    *(TRAIN_ERROR, VALIDATION_ERROR, TRAIN_OBJECTIVE, VALIDATION_OBJECTIVE),
    *(f"{error}/mean_log_snr_*" for error in (TRAIN_ERROR, VALIDATION_ERROR)),
)
"""Metrics of training whose least value counts too, beside the last."""

OffLevels = Literal["snap", "interpolate", "refuse"]


class DenoiserOptions(Options):
    node = "denoiser"

    off_levels: OffLevels = option(
        "interpolate", "what a network trained on levels is told between them"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        if composition.objective.times != "levels":
            return {"off_levels": "without objective.times=levels"}
        if composition.one_level:
            return {"off_levels": "on a model of one noise level"}
        conditional = getattr(composition.network, "conditional", True)
        told = conditional and composition.preconditioning.conditioning != "none"
        if not told and self.off_levels != "refuse":
            return {"off_levels": "on a network that is not told the noise level"}
        return {}


class InitOptions(Options):
    """Options of the weights that training starts from."""

    node = "init"

    run: str | None = option(
        None, "init=RUN: a run, checkpoint or published model to start from; null: random weights"
    )
    skip: list[str] = option([], "names of weights, with *, that stay as they are initialised")

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.skip and self.run is None:
            raise ValueError(f"init.skip={self.skip} leaves out weights of init=RUN: give that too")
        return self


class BatchOptions(Options):
    batch_size: Count = option(
        128, "examples per optimizer step, over all devices and micro-batches"
    )


def check_division(batch_size: int, accumulate: int, devices: int) -> None:
    """Check that a batch can be divided into micro-batches, and each of these among the devices."""
    if batch_size % (accumulate * devices):
        among = f" on each of {devices} devices" if devices > 1 else ""
        raise UserError(
            f"batch_size={batch_size} cannot be divided into training.accumulate={accumulate} "
            f"equal micro-batches{among}; make it a multiple of {accumulate * devices}"
        )


class GuidedOptions(Options):
    """Options of sampling with classifier-free guidance."""

    guidance: NonNegative = option(1.0, "classifier-free guidance weight when sampling; 1: none")


class TrainingOptions(GuidedOptions):
    node = "training"

    warmup: Index = option(100, "steps over which the learning rate rises to optimizer.lr")
    clip: Positive | None = option(1.0, "largest norm of the gradient; null: no clipping")
    accumulate: Count = option(1, "micro-batches per optimizer step")
    skip_limit: Count = option(
        20, "steps in a row that may be skipped, as loss or gradient is not finite"
    )
    log_every: Count = option(50, "steps between two values of the loss")
    validate_every: Count = option(1000, "steps between two validations")
    sample_every: Count = option(500, "steps between two sample grids")
    checkpoint_every: Count = option(500, "steps between two checkpoints")
    wait_for_space: NonNegative = option(600.0, "seconds to wait where the disk is full")
    num_samples: Annotated[int, Field(ge=1, le=10_000)] | None = option(
        None,
        "samples in a grid; null: 64, or what so short a training allows, and before the last one "
        "what a tenth of the training does (at least 4)",
    )


class StopOptions(Options):
    """When a run ends before its last step."""

    node = "stop"

    minutes: Positive | None = option(
        None, "training time of the whole run, over all its starts; null: no limit"
    )
    hours: Positive | None = option(None, "the same in hours")
    grace: Positive = option(
        30.0, "seconds that a signal leaves; a step that takes longer is saved when it has ended"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.minutes is not None and self.hours is not None:
            raise ValueError(
                f"stop.minutes={self.minutes:g} and stop.hours={self.hours:g} say the same: leave "
                f"one out"
            )
        return self

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        if self.hours is not None:
            return 3600 * self.hours
        return None if self.minutes is None else 60 * self.minutes


class AveragingOptions(Options):
    node = "ema"

    decay: Probability = option(0.9999, "of the averaged weights; 0: no averaging")


class StudyOptions(Options):
    """Which point of a study a run is, for tables and plots."""

    node = "study"

    name: str = option("", "of the study")
    point: Index = option(0, "position in the study, from 0")
    label: str = option("", "what the tables call it")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            raise ValueError("study.name has no value; give study.name=…")
        return self
