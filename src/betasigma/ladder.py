r"""NCSNv2's rules for a σ-ladder (Song & Ermon 2020, "Improved techniques for training score-based
models").

*Technique 1.* σ_max is the largest Euclidean distance between two training examples: at that noise
Langevin dynamics moves between any of them.

*Technique 2.* In D dimensions a sample of N(0, σ²I) has radius r ≈ N(√D·σ, σ²/2). Two levels
overlap when samples of the larger, σ_{i−1} = γ·σ_i, fall within three standard deviations of the
smaller's radius; that share is

    C(γ) = Φ(√(2D)·(γ − 1) + 3γ) − Φ(√(2D)·(γ − 1) − 3γ),

and γ solves C(γ) = C. The paper prints C ≈ 0.5, which gives 219 levels for its CIFAR-10 setting and
472 for CelebA; the settings it publishes, 232 and 500, follow from C ≈ 0.567, the default here.

*Technique 4.* T Langevin steps x ← x + ε·score + √(2ε)·z at level σ_i, started from the level
above, leave for a Gaussian the variance ratio (with x = ε/σ_L² and a = 2/(2 − x))

    s_T²/σ_i² = (1 − x)^{2T}·(γ² − a) + a,

and the relative step x is the one whose ratio is nearest 1. It is free of units: ``sampler.step``
of ``AnnealedLangevin``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from torch import Tensor

from betasigma.errors import UserError

OVERLAP = 0.567
"""C of Technique 2 that reproduces the published ladders."""

FEWEST = 5
"""Dimensions from which on C(γ) falls to 0: √(2D) > 3."""


@dataclass(frozen=True)
class Ladder:
    """A ladder that the rules give.

    Attributes:
        max, min: σ_max and σ_min, in the units of the data.
        levels: number L of levels.
        ratio: γ that C(γ) = C asks for; the ladder's own is (max/min)^(1/(L−1)).
        step: relative Langevin step ε/σ_min².
    """

    max: float
    min: float
    levels: int
    ratio: float
    step: float


def overlap(ratio: float, dim: int) -> float:
    """C(γ): share of a level's samples within three standard deviations of the next one's
    radius.
    """
    shift = math.sqrt(2 * dim) * (ratio - 1)
    return float(norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio))


def level_ratio(dim: int, constant: float = OVERLAP) -> float:
    """γ with C(γ) = ``constant`` in ``dim`` dimensions (Technique 2).

    Raises:
        UserError: where ``constant`` is not between 0 and C(1) ≈ 0.997, or in fewer than 5
        dimensions,
            where √(2D) ≤ 3 and all levels overlap, however far apart.
    """
    if dim < FEWEST:
        raise UserError(
            f"schedule=geometric_auto needs data of at least {FEWEST} dimensions, not {dim}: with "
            f"fewer, all levels overlap and the rule chooses none"
        )
    if not 0 < constant < overlap(1.0, dim):
        raise UserError(
            f"sigma.overlap={constant} must lie between 0 and {overlap(1.0, dim):.3f} (0.5 is "
            f"printed in the paper, {OVERLAP} reproduces its ladders)"
        )
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
    found = minimize_scalar(
        lambda log_step: abs(variance_ratio(math.exp(log_step), ratio, inner_steps) - 1),
        bounds=(math.log(1e-6), math.log(0.999)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(math.exp(found.x))


def design(dim: int, max: float, min: float, inner_steps: int, constant: float = OVERLAP) -> Ladder:
    """Levels and step for data of ``dim`` dimensions (Techniques 2 and 4).

    Args:
        dim: number D of dimensions.
        max: σ_max, for instance :func:`largest_distance`.
        min: σ_min.
        inner_steps: T, Langevin steps at each level.
        constant: C of Technique 2.

    Raises:
        UserError: where not 0 < min < max.
    """
    if not 0 < min < max:
        raise UserError(f"sigma.min={min} must be above 0 and below sigma.max={max:g}")
    ratio = level_ratio(dim, constant)
    levels = 1 + round(math.log(max / min) / math.log(ratio))
    own = (max / min) ** (1 / (levels - 1)) if levels > 1 else ratio
    return Ladder(max, min, levels, ratio, langevin_step(own, inner_steps))


def largest_distance(x: Tensor, chunk: int = 2048) -> float:
    """Largest Euclidean distance between two rows (Technique 1).

    Args:
        x: examples in the model's value range, shape ``(n, …)``, n ≥ 2.
        chunk: rows compared at once; n²·D operations in all.
    """
    rows = x.flatten(1).float()
    largest = 0.0
    for first in range(0, len(rows), chunk):
        for second in range(first, len(rows), chunk):
            pair = torch.cdist(rows[first : first + chunk], rows[second : second + chunk])
            largest = float(pair.max().clamp(min=largest))
    return largest
