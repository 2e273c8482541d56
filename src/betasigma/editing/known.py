r"""Inpainting and colourisation: sampling with a part of the image known.

Controllable generation of Song et al. 2021 ("Score-based generative modeling through SDEs",
appendix I.2 and I.3). Let P be the orthogonal projection on what is known (pixels outside a hole,
or the grey value of every pixel) and y = P·x_0. The reverse process of the rest, z = (1 − P)·x_t,
given y, needs ∇_z log p_t(z | y). Their approximation (equation 54 and after) is the model's own
score at a state whose known part was replaced by a draw of its kernel,

    ∇_z log p_t(z | P·x_0 = y) ≈ ∇_z log p_t(z + x̂),    x̂ ~ P·N(α_t·y, σ_t²·I).

For grey values they change to an orthonormal basis in which grey is a coordinate of its own; noise
is isotropic, so the projection alone does the same.

:class:`Conditioned` does this around any denoiser, so that a sampler needs to know nothing of it:
each network evaluation sees a fresh x̂, and the known part of what comes back is x̂_0 = y.

What is dropped is what the noisy z says about y. The approximation is exact only as t → 0, and a
reverse process that visits each noise level once carries the error of the high levels down
(``docs/editing.md`` has a table). Steps within a level forget it: a corrector's
(``sampler=predictor_corrector``), or ``repeats`` of each step with the noise of the step put back
between, for any sampler that steps (Lugmayr et al. 2022, RePaint, algorithm 1). In the limit of
many at small noise the law of z is the exact conditional one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.denoiser import DenoiserAround, DenoiserLike, Prediction, perturb
from betasigma.editing.request import Edit, Edited, Request, drawn, last_of
from betasigma.errors import UserError
from betasigma.options import edits
from betasigma.pictures import readable_formats
from betasigma.randomness import Stream
from betasigma.samplers import CountingDenoiser, Noise, Sampler, Samples, in_batches
from betasigma.schedules import Times, transition

Projection = Callable[[Tensor], Tensor]
"""Orthogonal projection of ``(n, *sample_shape)`` on what is known, the same shape."""

APPROXIMATE = (
    "results follow Score-SDE's approximation, and {}edit.repeats=10, say, comes nearer to the "
    "exact law (docs/editing.md)"
)


def outside(hole: Tensor) -> Projection:
    """What is outside a hole is known.

    Args:
        hole: bool, true where there is something to paint; broadcasts to the sample's shape.
    """

    def project(x: Tensor) -> Tensor:
        return x * ~hole.to(x.device)

    return project


def grey(x: Tensor) -> Tensor:
    """The grey value of each pixel is known: the mean of its channels."""
    return x.mean(1, keepdim=True).expand_as(x)


class Conditioned(DenoiserAround):
    """A denoiser around a denoiser, given a part of x_0.

    Args:
        denoiser: the model.
        known: projection on what is known.
        x0: images of which ``known`` is taken, ``(n, *sample_shape)`` on the device of the model.
        rng: random numbers of these n.
    """

    def __init__(self, denoiser: DenoiserLike, known: Projection, x0: Tensor, rng: Noise) -> None:
        super().__init__(denoiser)
        self.known, self.x0, self.rng = known, x0, rng

    def forward(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        """Predict from noisy data whose known part is drawn anew.

        Args:
            x_t: shape ``(n, *sample_shape)``.
            t: time in [t_min, 1].
            y: class labels, int64 ``(n,)``, or ``None``.
        """
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        x0 = self.x0.to(x_t.dtype)
        noisy = perturb(self.schedule, x0, time, self.rng.normal(x_t.shape[1:], x_t.dtype))
        x = x_t + self.known(noisy - x_t)
        found = self.denoiser(x, t, y)
        x0_hat = found.x0 + self.known(x0 - found.x0)
        return Prediction(
            x,
            x0_hat,
            found.alpha,
            found.sigma,
            torch.zeros_like(found.alpha),
            torch.ones_like(found.alpha),
            found.interpolation,
        )


@torch.no_grad()
def complete(
    denoiser: DenoiserLike,
    sampler: Sampler,
    x0: Tensor,
    known: Projection,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    y: Tensor | None = None,
    repeats: int = 1,
    batch_size: int = edits.BATCH_SIZE,
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Draw images with a part of each known.

    Args:
        denoiser: the model.
        sampler: any; one that adds noise is what the approximation is made for.
        x0: images of which ``known`` is taken, in the value range, shape ``(n, *sample_shape)``.
        known: projection on what is known (:func:`outside`, :func:`grey`).
        indices: result j is a function of seed and ``indices[j]``; ``None`` for 0 … n−1.
        seed: of the draws.
        y: class labels, int64 ``(n,)``, or ``None``.
        repeats: how often each step of the sampler is taken, ≥ 1.
        batch_size: at most so many at once.
        progress: called with the share of the work that was done.

    Returns:
        Samples whose known part is that of ``x0``.

    Raises:
        UserError: for a sampler whose steps cannot be repeated, or that chooses them by a smooth
            slope.
    """
    edits.InpaintingOptions.check(repeats=repeats)
    edits.check_completion(sampler, sampler.name, repeats)
    device = denoiser.device
    numbers = list(range(len(x0))) if indices is None else [int(i) for i in indices]
    steps = len(sampler.reached(sampler.times(denoiser.schedule))) * len(x0)

    def part(rows: slice) -> tuple[Tensor, int]:
        own = numbers[rows]
        rng = Stream("sample", seed, indices=own, device=device)
        given = Conditioned(
            denoiser, known, x0[rows].to(device), Stream("known", seed, indices=own, device=device)
        )
        model = CountingDenoiser(given, sampler.clip, None if y is None else y[rows].to(device))
        states = with_repeats(sampler, model, sampler.begin(denoiser, rng), rng, repeats)
        x = last_of(states, len(own) / steps, progress)
        # a sampler may end with noise on it
        return x + known(x0[rows].to(x) - x), model.nfe

    return in_batches(part, len(x0), batch_size, denoiser.sample_shape)


def with_repeats(
    sampler: Sampler, model: CountingDenoiser, x: Tensor, rng: Noise, repeats: int
) -> Iterator[Tensor]:
    """The sampler's states, each step taken ``repeats`` times with its noise put back between."""
    if repeats == 1:
        yield from sampler.trajectory(model, x, rng)
        return
    schedule = model.schedule
    for t, s in pairwise([*sampler.times(schedule), 0.0]):
        for left in range(repeats if s > 0 else 1, 0, -1):
            below = sampler.step(model, x, t, s, rng)
            if left > 1:
                ratio, variance = (c.item() for c in transition(schedule, t, s))
                x = ratio * below + variance**0.5 * rng.normal(x.shape[1:], x.dtype)
        x = below
        yield x


@dataclass(frozen=True)
class Inpainting(Edit):
    """Paint a hole in each image anew.

    Args:
        hole: ``left``, ``right``, ``top``, ``bottom`` (that half), ``center`` (half the height
            and half the width, in the middle), or the path of a picture of the images' size, white
            where to paint.
        repeats: how often each step of the sampler is taken.
    """

    hole: str = "center"
    repeats: int = 1

    def __post_init__(self) -> None:
        edits.InpaintingOptions.check(hole=self.hole, repeats=self.repeats)

    def apply(self, request: Request) -> Edited:
        """Columns: the image, what is known of it, and the results.

        Raises:
            UserError: for a hole that does not fit, or a sampler whose steps cannot be repeated.
        """
        hole = hole_of(self.hole, request.denoiser.sample_shape)
        low, _ = request.denoiser.value_range
        known = outside(hole)
        shown = torch.where(hole, low, request.given.cpu())
        return _completed(request, known, self.repeats, [request.given, shown])


@dataclass(frozen=True)
class Colourisation(Edit):
    """Give the grey values of each image colours.

    Args:
        repeats: how often each step of the sampler is taken.
    """

    repeats: int = 1

    def __post_init__(self) -> None:
        edits.ColourisationOptions.check(repeats=self.repeats)

    def apply(self, request: Request) -> Edited:
        """Columns: the image, its grey values, and the results.

        Raises:
            UserError: for a model without colours, or a sampler whose steps cannot be repeated.
        """
        edits.check_colours(request.denoiser.sample_shape)
        return _completed(request, grey, self.repeats, [request.given, grey(request.given)])


def _completed(request: Request, known: Projection, repeats: int, first: list[Tensor]) -> Edited:
    other = "" if request.sampler.repeatable else "sampler=predictor_corrector with "
    note = "" if repeats > 1 else APPROXIMATE.format(other)
    draw = partial(complete, known=known, repeats=repeats)
    return drawn(request, draw, first, ["image", "known"], note)


def hole_of(name: str, sample_shape: tuple[int, ...]) -> Tensor:
    """Where to paint, bool ``(1, H, W)``.

    Args:
        name: ``left``, ``right``, ``top``, ``bottom``, ``center`` or the path of a picture, white
            where to paint.
        sample_shape: of an image, ``(C, H, W)``.

    Raises:
        UserError: for points, or a picture that cannot be read, has another size, or is all of one
            value.
    """
    edits.check_pixels(sample_shape)
    _, height, width = sample_shape
    top, left = height // 2, width // 2
    named = {
        "top": (slice(top), slice(width)),
        "bottom": (slice(top, height), slice(width)),
        "left": (slice(height), slice(left)),
        "right": (slice(height), slice(left, width)),
        "center": (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)),
    }
    if name not in named:
        return _of_picture(name, height, width)
    hole = torch.zeros(1, height, width, dtype=torch.bool)
    hole[:, *named[name]] = True
    return hole


def _of_picture(path: str, height: int, width: int) -> Tensor:
    try:
        with Image.open(path, formats=readable_formats()) as image:  # which reads no pixel yet
            if image.size != (width, height):
                raise UserError(
                    f"edit.hole={path} is {image.width}×{image.height}, and the model's images are "
                    f"{width}×{height}"
                )
            values = np.asarray(image.convert("L"))
    except UserError:
        raise
    except Exception as error:  # what a broken file raises depends on its format
        raise UserError(
            f"edit.hole={path} is neither left, right, top, bottom or center nor a picture that "
            f"can be read ({error})"
        ) from None
    hole = torch.from_numpy(values > 127)[None]
    if bool(hole.all()) or not bool(hole.any()):
        raise UserError(
            f"edit.hole={path} is {'all' if bool(hole.all()) else 'nowhere'} white: white is "
            f"painted anew, and the rest is known"
        )
    return hole
