r"""Images as latents: the probability flow there and back, and paths between two of them.

The flow (Song et al. 2021, equation 13) is a one-to-one map between clean data, taken as x_t/α_t at
t_min, and *latents*, the states at t = 1, which are distributed as the noise that sampling starts
from. It has no randomness, so a latent is the image in other coordinates: :func:`encode` and
:func:`decode` are inverse to one another up to the solver's tolerance, for any model, trained by
whatever objective.

Between latents a straight line would leave the sphere where Gaussian noise is. Spherical
interpolation (Shoemake 1985; Ho et al. 2020 and Song, Meng & Ermon 2021, D.5, use it) stays on it:
with θ the angle between a and b,

    slerp(a, b, u) = (sin((1 − u)·θ)·a + sin(u·θ)·b) / sin θ.

Two latents of high dimension are nearly orthogonal, the squares of the weights add up to 1, and
the point between has their distribution. That holds for deviations from the mean of q(x_1), α_1
times the data's: nothing in DDPM, but half of the value range on a σ-ladder over [0, 1]. So
:func:`interpolate` takes angles about that mean, where the model knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike, Prediction
from betasigma.editing.request import Edit, Edited, Request, beside, rms
from betasigma.options.edits import InterpolationOptions, InversionOptions, check_ends
from betasigma.options.noise_schedules import check_path
from betasigma.prior import GaussianPrior
from betasigma.randomness import Stream
from betasigma.samplers import in_batches
from betasigma.samplers.probability_flow import follow_flow


class Followed(NamedTuple):
    """Where the flow leads, and what that cost."""

    x: Tensor
    """The shape, device and dtype of what was followed."""
    nfe: int
    """Network evaluations, the same for all that were followed together."""


def encode(
    denoiser: DenoiserLike, x: Tensor, y: Tensor | None = None, tolerance: float = 1e-5
) -> Followed:
    """Latents of images: the states at t = 1 that the flow takes them to.

    Args:
        denoiser: the model.
        x: images in its value range, shape ``(n, *sample_shape)``.
        y: class labels, int64 ``(n,)``, or ``None``.
        tolerance: of the solver, relative and absolute on x_t/α_t, > 0. Its step is chosen for all
            n together.

    Raises:
        UserError: for a model of one noise level, which has no path.
    """
    schedule = denoiser.schedule
    return _follow(
        denoiser, x * schedule.alpha(schedule.t_min).item(), y, schedule.t_min, 1.0, tolerance
    )


def decode(
    denoiser: DenoiserLike, latent: Tensor, y: Tensor | None = None, tolerance: float = 1e-5
) -> Followed:
    """Images of latents, unclipped: the inverse of :func:`encode`, with its arguments.

    Raises:
        UserError: for a model of one noise level, which has no path.
    """
    schedule = denoiser.schedule
    end, nfe = _follow(denoiser, latent, y, 1.0, schedule.t_min, tolerance)
    return Followed(end / schedule.alpha(schedule.t_min).item(), nfe)


@torch.no_grad()
def _follow(
    denoiser: DenoiserLike, x: Tensor, y: Tensor | None, t: float, s: float, tolerance: float
) -> Followed:
    check_path(denoiser.schedule.levels, "the probability flow")
    nfe = 0

    def model(state: Tensor, time: float) -> Prediction:
        nonlocal nfe
        nfe += denoiser.evaluations_per_call
        return denoiser(state, time, y)

    end = follow_flow(model, denoiser.schedule, x, t, s, tolerance, tolerance)
    return Followed(end, nfe)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Point of the great circle from a (share 0) to b (share 1).

    Args:
        a, b: shape ``(n, …)``; each of the n pairs has its own angle. Lengths are interpolated
            with the points, and a straight line is taken between parallel ones.
        share: of the way.
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.cosine_similarity(flat_a, flat_b)
    angle = torch.arccos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    parallel = sine < 1e-6
    divisor = torch.where(parallel, 1.0, sine)
    of_a = torch.where(parallel, 1 - share, torch.sin((1 - share) * angle) / divisor)
    of_b = torch.where(parallel, share, torch.sin(share * angle) / divisor)
    return (of_a[:, None] * flat_a + of_b[:, None] * flat_b).to(a.dtype).reshape(a.shape)


def interpolate(
    denoiser: DenoiserLike,
    a: Tensor,
    b: Tensor,
    shares: Sequence[float],
    y: Tensor | None = None,
    tolerance: float = 1e-5,
) -> Followed:
    """Images on the way from latents a to latents b.

    Args:
        denoiser: the model.
        a, b: latents, shape ``(n, *sample_shape)``.
        shares: of the way; 0 is a and 1 is b.
        y: class label of each path, int64 ``(n,)``, or ``None``.
        tolerance: as for :func:`encode`.

    Returns:
        Shape ``(n, len(shares), *sample_shape)``, and network evaluations.
    """
    centre = 0.0 * a[:1]
    if denoiser.moments is not None:
        centre = denoiser.schedule.alpha(1.0).item() * denoiser.moments.mean.to(a)
    points = torch.stack([centre + slerp(a - centre, b - centre, share) for share in shares], dim=1)
    labels = None if y is None else y.repeat_interleave(len(shares))
    end, nfe = decode(denoiser, points.flatten(0, 1), labels, tolerance)
    return Followed(end.reshape(points.shape), nfe)


@dataclass(frozen=True)
class Inversion(Edit):
    """Image → latent → image, with the distance between the two images.

    Args:
        tolerance: of the solver.
    """

    tolerance: float = 1e-5
    draws = InversionOptions.draws

    def __post_init__(self) -> None:
        InversionOptions.check(tolerance=self.tolerance)

    def apply(self, request: Request) -> Edited:
        images, latents = request.given, list[Tensor]()

        def part(rows: slice) -> tuple[Tensor, int]:
            y = request.labels(rows)
            latent, there = encode(request.denoiser, images[rows], y, self.tolerance)
            found, back = decode(request.denoiser, latent, y, self.tolerance)
            latents.append(latent.float().cpu())
            return found.float().cpu(), there + back

        back, nfe, _ = in_batches(part, len(images), request.batch_size, images.shape[1:])
        of_latent = f"{request.kind} of its latent"
        error = rms(images.cpu(), back, request.denoiser.value_range)
        return Edited(
            beside([images], back[:, None]),
            [request.kind, of_latent],
            nfe,
            {f"{request.kind} and {of_latent}": error},
            torch.cat(latents),
        )


@dataclass(frozen=True)
class Interpolation(Edit):
    """Paths from one to the next: of images, whose latents are found first, or of latents drawn
    from seeds.

    Args:
        frames: points on a path, its ends included, ≥ 2.
        tolerance: of the solver.
    """

    frames: int = 9
    tolerance: float = 1e-5
    needs_images = InterpolationOptions.needs_images
    draws = InterpolationOptions.draws

    def __post_init__(self) -> None:
        InterpolationOptions.check(frames=self.frames, tolerance=self.tolerance)

    def apply(self, request: Request) -> Edited:
        """Rows are paths, columns their frames. A path has the label of what it begins at.

        Raises:
            UserError: for fewer than two images or seeds, or a model of one noise level.
        """
        denoiser, images = request.denoiser, request.images
        given = len(request.seeds) if images is None else len(images)
        check_ends(given)
        shares = torch.linspace(0, 1, self.frames, dtype=torch.float64).tolist()
        ends: list[Tensor] = []

        def part(rows: slice) -> tuple[Tensor, int]:
            y, after = request.labels(rows), slice(rows.start + 1, rows.stop + 1)
            if images is None:
                a, b = (_drawn(request, request.seeds[which]) for which in (rows, after))
                there = 0
            else:
                both = torch.cat([images[rows], images[after]]).to(denoiser.device)
                labels = None if y is None else torch.cat([y, y])
                latents, there = encode(denoiser, both, labels, self.tolerance)
                a, b = latents.chunk(2)
            found = interpolate(denoiser, a, b, shares, y, self.tolerance)
            ends.append(torch.stack([a, b], dim=1).float().cpu())
            return found.x.float().cpu(), there + found.nfe

        paths = max(1, request.batch_size // self.frames)
        shape = (self.frames, *denoiser.sample_shape)
        x, nfe, _ = in_batches(part, given - 1, paths, shape)
        errors = {}
        if images is not None:
            wanted = torch.stack([images[:-1], images[1:]], dim=1).cpu()
            error = rms(wanted, x[:, [0, -1]], denoiser.value_range)
            errors[f"{request.kind}s and the ends of their paths"] = error
        columns = [f"{share:.0%}" for share in shares]
        return Edited(x, columns, nfe, errors, torch.cat(ends))


def _drawn(request: Request, seeds: Sequence[int]) -> Tensor:
    """Latents by the random numbers of sample 0 of each seed: from the Gaussian with the moments of
    q(x_1), where the model knows them.
    """
    denoiser = request.denoiser
    schedule, moments = denoiser.schedule, denoiser.moments
    streams = [Stream("sample", seed, indices=[0], device=denoiser.device) for seed in seeds]
    noise = torch.cat([stream.normal(denoiser.sample_shape) for stream in streams])
    if moments is None:
        return GaussianPrior.standard(schedule).draw(noise)
    return GaussianPrior.matched(schedule, moments).draw(noise)
