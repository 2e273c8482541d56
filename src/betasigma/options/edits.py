"""Options of edits, and what they ask of the model and of the sampler."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from betasigma.errors import UserError
from betasigma.options.base import ComponentOptions, Count, Positive, option
from betasigma.options.composition import Composition
from betasigma.options.noise_schedules import check_path
from betasigma.options.samplers import SamplerOptions

BATCH_SIZE = 64
"""Images that are edited at once, at most."""

Frames = Annotated[int, Field(ge=2, le=10_000)]
Time = Annotated[float, Field(gt=0, le=1)]


class EditOptions(ComponentOptions):
    group: ClassVar[str] = "edit"
    needs_images: ClassVar[bool] = True
    """Whether there is nothing to do without images."""
    draws: ClassVar[bool] = True
    """Whether results are drawn by the sampler; else they follow the probability flow."""
    starts_from_noise: ClassVar[bool] = True
    """Whether the sampler begins where it would without images."""

    def check_sampler(self, sampler: SamplerOptions) -> None:
        """Refuse a sampler that cannot do it."""


class LatentOptions(EditOptions):
    """Options of an edit that follows the probability flow."""

    draws = False

    tolerance: Positive = option(1e-5, "of the adaptive solver, relative and absolute")

    def check_with(self, composition: Composition) -> None:
        levels = composition.schedule.level_count
        if isinstance(levels, int):
            check_path(levels, "the probability flow")
        composition.refuse_between_levels("an edit along the probability flow")


class InterpolationOptions(LatentOptions):
    targets = ("betasigma.editing.Interpolation",)
    needs_images = False

    frames: Frames = option(9, "points on a path, its ends included")


class InversionOptions(LatentOptions):
    targets = ("betasigma.editing.Inversion",)


class CompletionOptions(EditOptions):
    """Options of an edit that knows a part of the image."""

    repeats: Count = option(
        1, "how often each step is taken, its noise put back between: nearer to the exact law"
    )

    def check_sampler(self, sampler: SamplerOptions) -> None:
        check_completion(sampler, sampler.target.rpartition(".")[2], self.repeats)


class InpaintingOptions(CompletionOptions):
    targets = ("betasigma.editing.Inpainting",)

    hole: str = option(
        "center",
        "what is painted: left, right, top, bottom, center, or a picture, white where to paint",
    )

    def check_with(self, composition: Composition) -> None:
        check_pixels(composition.data.shape)


class ColourisationOptions(CompletionOptions):
    targets = ("betasigma.editing.Colourisation",)

    def check_with(self, composition: Composition) -> None:
        check_colours(composition.data.shape)


class VariationOptions(EditOptions):
    targets = ("betasigma.editing.Variation",)
    starts_from_noise = False

    t: Time = option(0.5, "time = step/levels up to which noise is added; 1: nothing is kept")

    def check_with(self, composition: Composition) -> None:
        levels = composition.schedule.level_count
        if isinstance(levels, int):
            check_time(self.t, levels)
            on_a_level = abs(self.t * levels - round(self.t * levels)) < 1e-9 * levels
            if not on_a_level and composition.refuses_between_levels:
                raise UserError(
                    f"edit.t={self.t:g} is between two of the model's {levels} noise levels, and "
                    f"denoiser.off_levels=refuse: give edit.t={round(self.t * levels) / levels:g}"
                )


def check_ends(given: int) -> None:
    """Refuse a path of fewer than two ends."""
    if given < 2:
        raise UserError(
            f"edit=interpolate needs at least 2 seeds or images, not {given}: give seeds=[0,1], or "
            f"images=… with at least 2"
        )


def check_pixels(shape: tuple[int, ...]) -> None:
    """Refuse to paint a hole into points."""
    if len(shape) != 3:
        raise UserError(f"edit=inpaint needs a model of images; this one's data are {shape[0]}-d")


def check_colours(shape: tuple[int, ...]) -> None:
    """Refuse to colour what has one channel."""
    if len(shape) != 3 or shape[0] < 2:
        raise UserError(
            f"edit=colourise needs a model of colour images; this one's data have shape "
            f"{'×'.join(map(str, shape))}"
        )


def check_time(t: float, levels: int) -> None:
    """Refuse a time with less noise than the first level has."""
    if not 1 / levels <= t <= 1:
        raise UserError(
            f"edit.t={t:g} is not a time with noise: t is step/levels, here in [1/{levels}, 1]"
        )


def check_completion(sampler: Any, name: str, repeats: int) -> None:
    """Refuse an adaptive solver, which expects a smooth slope, and repeated steps of a sampler that
    cannot take a step again.

    Args:
        sampler: or its options.
    """
    if sampler.adaptive:
        raise UserError(
            f"sampler={name} chooses its steps by how smooth the model is, and the known part of "
            f"an image is drawn anew at each: use sampler=predictor_corrector or ancestral, say"
        )
    if repeats > 1 and not sampler.repeatable:
        raise UserError(
            f"edit.repeats={repeats} does not go with sampler={name}, whose steps depend on more "
            f"than the state: use edit.repeats=1, or sampler=predictor_corrector or ancestral, say"
        )
