r"""NCSNv2's rules for a σ-ladder (Song & Ermon 2020, "Improved techniques for training score-based
models").

*Technique 1.* σ_max is the largest Euclidean distance between two training examples: at that noise
Langevin dynamics moves between any of them. No pair is further apart than the sum of its distances
from the centre, which spares comparing most of them.

*Technique 2.* In D dimensions a sample of N(0, σ²I) has radius r ≈ N(√D·σ, σ²/2). Two levels
overlap when samples of the smaller, σ_i, fall within three standard deviations of the radius of the
larger, σ_{i−1} = γ·σ_i; that share is

    C(γ) = Φ(√(2D)·(γ − 1) + 3γ) − Φ(√(2D)·(γ − 1) − 3γ),

and γ solves C(γ) = C. The paper prints C ≈ 0.5, which gives 219 levels for its CIFAR-10 setting and
472 for CelebA; the settings it publishes, 232 and 500, follow from C ≈ 0.567, which
``schedule=geometric_auto`` takes.

*Technique 4.* T Langevin steps x ← x + ε·score + √(2ε)·z at level σ_i, started from the level
above, leave for a Gaussian the variance ratio (with x = ε/σ_L² and a = 2/(2 − x))

    s_T²/σ_i² = (1 − x)^{2T}·(γ² − a) + a,

and the relative step x is the one whose ratio is nearest 1. It is free of units: ``sampler.step``
of ``AnnealedLangevin``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import ndtr
from torch import Tensor

from betasigma.options.noise_schedules import SigmaOptions, check_dimensions


def overlap(ratio: float, dim: int) -> float:
    """C(γ): share of a level's samples within three standard deviations of the radius of the
    level above.
    """
    shift = math.sqrt(2 * dim) * (ratio - 1)
    return float(ndtr(shift + 3 * ratio) - ndtr(shift - 3 * ratio))


def level_ratio(dim: int, constant: float) -> float:
    """γ with C(γ) = ``constant`` in ``dim`` dimensions (Technique 2).

    Raises:
        UserError: where ``constant`` is not between 0 and C(1) ≈ 0.997, or in fewer than 5
            dimensions, where √(2D) ≤ 3 and all levels overlap, however far apart.
    """
    from scipy.optimize import brentq  # takes long, and few runs leave their ladder to be found

    check_dimensions(dim)
    SigmaOptions.check(overlap=constant)
    high = 2.0
    while overlap(high, dim) > constant:
        high = 1 + 2 * (high - 1)
    return float(brentq(lambda ratio: overlap(ratio, dim) - constant, 1.0, high, xtol=1e-12))


def variance_ratio(step: float, ratio: float, inner_steps: int) -> float:
    """s_T²/σ_i² after T Langevin steps from the level above, for a Gaussian (Technique 4)."""
    settled = 2 / (2 - step)
    return (1 - step) ** (2 * inner_steps) * (ratio**2 - settled) + settled


def langevin_step(ratio: float, inner_steps: int) -> float:
    """Relative step ε/σ_min² whose variance ratio is nearest 1 (Technique 4)."""
    from scipy.optimize import minimize_scalar  # as above

    found = minimize_scalar(
        lambda log_step: abs(variance_ratio(math.exp(log_step), ratio, inner_steps) - 1),
        bounds=(math.log(1e-6), math.log(0.999)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(math.exp(found.x))


def count_levels(ratio: float, max: float, min: float) -> int:
    """Number of levels from ``max`` to ``min`` whose ratio is nearest ``ratio`` (Technique 2)."""
    return 1 + round(math.log(max / min) / math.log(ratio))


def own_ratio(levels: int, max: float, min: float) -> float:
    """γ of the geometric ladder with this many levels, at least 2."""
    return (max / min) ** (1 / (levels - 1))


def largest_distance(
    x: Tensor, chunk: int = 2048, progress: Callable[[float], None] = lambda share: None
) -> float:
    """Largest Euclidean distance between two rows (Technique 1).

    Args:
        x: examples, shape ``(n, …)``, n ≥ 2, of any dtype. Those furthest from the centre are
            compared first, and those too near it to be an end of the largest distance not at all.
        chunk: rows compared at once.
        progress: is told each share of the work that was done.

    Returns:
        The distance in the units of ``x``; of whole numbers, exact to the rounding of its root.
    """
    rows = x.flatten(1)
    radius = _radii(rows, chunk)
    order = radius.argsort(descending=True)
    blocks = order.split(chunk)
    largest = 0.0
    for number, outer in enumerate(blocks):
        for inner in blocks[number:]:  # radii fall, so the first that is too near ends the search
            if radius[outer[0]] + radius[inner[0]] < largest:
                break
            distances = torch.cdist(rows[outer].float(), rows[inner].float())
            best = int(distances.argmax())
            one, other = outer[best // len(inner)], inner[best % len(inner)]
            exact = (rows[one].double() - rows[other].double()).norm()
            largest = max(largest, float(exact))
        progress(1 / len(blocks))
    return largest


def _radii(rows: Tensor, chunk: int) -> Tensor:
    """Distance of each row from the mean row, float64 ``(n,)``."""
    parts = rows.split(chunk)
    centre = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(rows)
    return torch.cat([(part.double() - centre).norm(dim=1) for part in parts])
