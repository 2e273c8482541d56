r"""Image to image: add noise up to an intermediate level, and sample from there.

Meng et al. 2022 (SDEdit, algorithm 1). At time t the image is x_t = α_t·x_0 + σ_t·ε, and the
sampler takes the rest of its way. The more noise, the less of the image is left: what comes out is
a draw of x_0 given x_t, the model's own posterior, so at any level it looks like the data as far as
the model does, and details smaller than σ_t/α_t are new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike, perturb
from betasigma.editing.request import Edit, Edited, Request, drawn, last_of
from betasigma.errors import UserError
from betasigma.options.edits import BATCH_SIZE, VariationOptions, check_time
from betasigma.randomness import Stream
from betasigma.samplers import CountingDenoiser, Sampler, Samples, in_batches


@torch.no_grad()
def vary(
    denoiser: DenoiserLike,
    sampler: Sampler,
    x0: Tensor,
    t: float,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    y: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Draw images that share with each given one what noise at t leaves of it.

    Args:
        denoiser: the model.
        sampler: takes the part of its grid below t.
        x0: images in the value range, shape ``(n, *sample_shape)``.
        t: time in [t_min, 1] up to which noise is added.
        indices: result j is a function of seed and ``indices[j]``; ``None`` for 0 … n−1.
        seed: of noise and draws.
        y: class labels, int64 ``(n,)``, or ``None``.
        batch_size: at most so many at once.
        progress: called with the share of the work that was done.

    Raises:
        UserError: for another time, or a sampler with a grid of its own that does not begin at t.
    """
    schedule, device = denoiser.schedule, denoiser.device
    check_time(t, schedule.levels)
    later = sampler.begun_at(t)
    if later.times(schedule)[0] != t:
        raise UserError(
            f"sampler={sampler.name} makes its own times and cannot begin at t={t:g}: its times() "
            f"must return self.from_first(…)"
        )
    numbers = list(range(len(x0))) if indices is None else [int(i) for i in indices]
    steps = len(later.reached(later.times(schedule))) * len(x0)

    def part(rows: slice) -> tuple[Tensor, int]:
        rng = Stream("sample", seed, indices=numbers[rows], device=device)
        noise = rng.normal(denoiser.sample_shape, sampler.dtype)
        x = perturb(schedule, x0[rows].to(noise), torch.tensor(t, dtype=torch.float64), noise)
        model = CountingDenoiser(denoiser, sampler.clip, None if y is None else y[rows].to(device))
        states = later.trajectory(model, x, rng)
        return last_of(states, len(numbers[rows]) / steps, progress), model.nfe

    return in_batches(part, len(x0), batch_size, denoiser.sample_shape)


@dataclass(frozen=True)
class Variation(Edit):
    """Image to image.

    Args:
        t: time in (0, 1] up to which noise is added: step/levels.
    """

    t: float = 0.5

    def __post_init__(self) -> None:
        VariationOptions.check(t=self.t)

    def apply(self, request: Request) -> Edited:
        """Columns: the image, and the results.

        Raises:
            UserError: for a time below the schedule's first level.
        """
        return drawn(request, partial(vary, t=self.t), [request.given], [request.kind])
