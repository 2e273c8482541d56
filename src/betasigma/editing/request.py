"""What every edit is: a request in, rows of pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike
from betasigma.options.data import kind_of
from betasigma.options.edits import BATCH_SIZE, EditOptions
from betasigma.options.plugins import Component
from betasigma.samplers import Sampler, Samples


@dataclass(frozen=True)
class Request:
    """What is to be edited, and by what.

    Attributes:
        denoiser: the model, guided or not.
        sampler: draws where an edit draws.
        images: ``(n, *sample_shape)`` in the model's value range; ``None`` for none.
        seeds: of latents that are drawn.
        variants: how many results an image gets, where they are drawn.
        seed: of these draws: result i is a function of seed and i.
        y: label of each image (of each path, between images or seeds), int64 ``(n,)``; ``None``
            for no label.
        batch_size: at most so many at once.
        progress: called with the share of the work that was done.
    """

    denoiser: DenoiserLike
    sampler: Sampler
    images: Tensor | None = None
    seeds: tuple[int, ...] = ()
    variants: int = 1
    seed: int = 0
    y: Tensor | None = None
    batch_size: int = BATCH_SIZE
    progress: Callable[[float], None] | None = None

    @property
    def given(self) -> Tensor:
        """The images, on the device of the model."""
        assert self.images is not None, "the command gives images to edits that need them"
        return self.images.to(self.denoiser.device)

    @property
    def kind(self) -> str:
        """What each of them is: ``image``, or ``point`` where the data are vectors."""
        return kind_of(self.denoiser.sample_shape)

    def labels(self, rows: slice) -> Tensor | None:
        """Labels of these rows, on the device of the model."""
        return None if self.y is None else self.y[rows].to(self.denoiser.device)


@dataclass(frozen=True)
class Edited:
    """Rows of pictures: what was given and what came of it.

    Attributes:
        x: float32 ``(rows, len(columns), *sample_shape)`` in the value range, on the CPU.
        columns: what each column is.
        nfe: network evaluations that each result took, at most.
        errors: distances that tell how exact the edit is, by what they are between: root mean
            squares in units of the value range.
        latents: of the images, ``(rows, *sample_shape)``, or of both ends of each path,
            ``(rows, 2, *sample_shape)``; float32 on the CPU, ``None`` where none were found.
        note: what a user should know of the result; ``""`` for nothing.
    """

    x: Tensor
    columns: list[str]
    nfe: int
    errors: dict[str, float] = field(default_factory=dict)
    latents: Tensor | None = None
    note: str = ""


class Edit(Component):
    """What ``scripts/edit.py`` does to images. A subclass defines :meth:`apply`."""

    config_group = "edit"

    needs_images = EditOptions.needs_images
    draws = EditOptions.draws

    def apply(self, request: Request) -> Edited:
        """Do it.

        Raises:
            UserError: for an image or a model that it cannot be done to.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply(request)")


def rms(a: Tensor, b: Tensor, value_range: tuple[float, float]) -> float:
    """Root mean square of the differences, in units of the value range."""
    low, high = value_range
    return (a.double() - b.double()).square().mean().sqrt().item() / (high - low)


def beside(first: list[Tensor], results: Tensor) -> Tensor:
    """One row an image: columns ``first``, each ``(n, …)``, then results ``(n, columns, …)``; on
    the CPU.
    """
    given = torch.stack([column.float().cpu() for column in first], dim=1)
    return torch.cat([given, results], dim=1)


def last_of(
    states: Iterable[Tensor], share: float, progress: Callable[[float], None] | None
) -> Tensor:
    """The last of a trajectory's states, float32 on the CPU; ``share`` of the work is each."""
    for state in states:  # noqa: B007 - the last one counts
        if progress is not None:
            progress(share)
    return state.float().cpu()


def drawn(
    request: Request,
    draw: Callable[..., Samples],
    first: list[Tensor],
    columns: list[str],
    note: str = "",
) -> Edited:
    """Rows of ``first``, called ``columns``, and of the results that ``draw`` makes of each image.

    Args:
        draw: as :func:`~betasigma.editing.vary` and :func:`~betasigma.editing.complete`.
    """
    images, variants = request.given, request.variants
    found = draw(
        request.denoiser,
        request.sampler,
        images.repeat_interleave(variants, 0),
        seed=request.seed,
        y=None if request.y is None else request.y.repeat_interleave(variants),
        batch_size=request.batch_size,
        progress=request.progress,
    )
    results = found.x.unflatten(0, (len(images), variants))
    columns = [*columns, *(f"result {number}" for number in range(variants))]
    return Edited(beside(first, results), columns, found.nfe, note=note)
