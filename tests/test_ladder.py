"""NCSNv2's rules reproduce the ladders that the paper publishes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from betasigma.errors import UserError
from betasigma.ladder import (
    count_levels,
    langevin_step,
    largest_distance,
    level_ratio,
    overlap,
    own_ratio,
    variance_ratio,
)

REPRODUCES = 0.567
"""C of Technique 2 that the published ladders follow from."""

PUBLISHED = [
    pytest.param(3 * 32 * 32, 50.0, 232, 6.2e-6, id="CIFAR-10"),
    pytest.param(3 * 64 * 64, 90.0, 500, 3.3e-6, id="CelebA-64"),
]


@pytest.mark.parametrize(("dim", "sigma_max", "levels", "step"), PUBLISHED)
def test_published_settings_follow(dim: int, sigma_max: float, levels: int, step: float) -> None:
    found = count_levels(level_ratio(dim, REPRODUCES), sigma_max, 0.01)
    assert abs(found - levels) <= 1
    own = langevin_step(own_ratio(found, sigma_max, 0.01), inner_steps=5)
    assert float(f"{own * 0.01**2:.1e}") == step


@pytest.mark.parametrize(("dim", "sigma_max", "levels"), [(3072, 50.0, 219), (12288, 90.0, 472)])
def test_the_printed_constant_gives_other_ladders(dim: int, sigma_max: float, levels: int) -> None:
    assert count_levels(level_ratio(dim, 0.5), sigma_max, 0.01) == levels


def test_ratio_solves_the_overlap_equation() -> None:
    for dim in (5, 784, 3072):
        assert overlap(level_ratio(dim, 0.4), dim) == pytest.approx(0.4, abs=1e-9)


def test_overlap_is_the_share_of_noise_in_the_shell_of_the_level_above() -> None:
    """Radii of the level below, N(0, I), within √D·γ ± 3·γ/√2 (Technique 2)."""
    dim, n = 3072, 40_000
    ratio = level_ratio(dim, REPRODUCES)
    radius = np.sqrt(np.random.default_rng(0).chisquare(dim, n))
    share = (np.abs(radius - math.sqrt(dim) * ratio) < 3 * ratio / math.sqrt(2)).mean()
    assert share == pytest.approx(REPRODUCES, abs=4 * 0.5 / math.sqrt(n) + 0.003)


def test_variance_ratio_is_that_of_the_langevin_recursion() -> None:
    # for N(0, σ_i²) the score is −x/σ_i², so a step maps variance v to (1 − x)²·v + 2x·σ_i²
    step, ratio, sigma = 0.062, 1.0376, 0.7
    variance = (ratio * sigma) ** 2
    for _ in range(5):
        variance = (1 - step) ** 2 * variance + 2 * step * sigma**2
    assert variance_ratio(step, ratio, 5) == pytest.approx(variance / sigma**2, rel=1e-12)


def test_step_is_the_best_of_a_fine_grid() -> None:
    ratio = 1.0376
    steps = np.linspace(1e-4, 0.5, 20_000)
    best = steps[np.argmin([abs(variance_ratio(s, ratio, 5) - 1) for s in steps])]
    assert langevin_step(ratio, 5) == pytest.approx(best, abs=1e-4)


def test_largest_distance_does_not_depend_on_the_chunks() -> None:
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = max(math.dist(a.tolist(), b.tolist()) for a in x.flatten(1) for b in x.flatten(1))
    assert largest_distance(x, chunk=7) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("shape", ["cloud", "shell", "lines"])
def test_largest_distance_skips_nothing_that_matters(shape: str) -> None:
    """Where few pairs can be skipped, where none can, and where nearly all can."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 20))
    if shape == "shell":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    if shape == "lines":
        x[:, 0] *= 100
    pixels = np.clip(128 + 30 * x, 0, 255).astype(np.uint8)
    assert largest_distance(torch.from_numpy(pixels), chunk=16) == pytest.approx(
        pdist(pixels.astype(float)).max(), rel=1e-12
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match=r"sigma\.overlap=1\.5"):
        level_ratio(3072, 1.5)
    with pytest.raises(UserError, match="at least 5 dimensions, not 2"):
        level_ratio(2, REPRODUCES)
