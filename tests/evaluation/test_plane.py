"""Scores in the plane, against closed forms; and what plain and annealed Langevin dynamics make of
two modes far apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from betasigma.data import toy
from betasigma.evaluation import plane
from betasigma.samplers import AnnealedLangevin
from betasigma.schedules import geometric, linear

TWO = toy.two()
SPREAD = 0.1
"""Standard deviation of both modes."""


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.25])
def test_total_variation_of_separate_round_modes(sigma: float) -> None:
    """Of N(0, a²I) and N(0, b²I) in the plane: ‖x‖² is exponential under both, and the densities
    cross at r² = 2·log(b²/a²)/(1/a² − 1/b²)."""
    a, b = SPREAD**2, SPREAD**2 + sigma**2
    r = 2 * np.log(b / a) / (1 / a - 1 / b)
    expected = np.exp(-r / (2 * b)) - np.exp(-r / (2 * a))
    assert plane.total_variation(TWO, sigma) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("schedule", [geometric(3, 0.5, 0.05), linear(steps=20)])
def test_score_error_of_a_displaced_mixture(schedule) -> None:
    """At a mode far from the other the score of N(αμ, C) is −(x − αμ)/C, C = α²a² + σ²."""
    shift = np.array([0.03, -0.04])
    displaced = plane.truth(replace(TWO, means=TWO.means + shift), schedule)
    t = schedule.t_min
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    expected = sigma * alpha * 0.05 / (alpha**2 * SPREAD**2 + sigma**2)
    found = plane.score_errors(displaced, TWO, torch.from_numpy(TWO.means), t)
    torch.testing.assert_close(found, torch.full((2,), expected).double(), rtol=1e-6, atol=0)
    exact = plane.truth(TWO, schedule)
    assert plane.score_error(exact, TWO, plane.square_grid(9), t) < 1e-12


def test_places_are_where_data_are_and_where_none_are() -> None:
    means = torch.from_numpy(TWO.means)
    inside, between = plane.at_the_modes(TWO, 2000, 0), plane.between_the_modes(2000, 0)
    away = torch.cdist(inside, means).amin(1)
    assert away.square().mean().item() == pytest.approx(2 * SPREAD**2, rel=0.1)
    assert torch.cdist(between, means).amin() > 5 * SPREAD
    assert between.norm(dim=1).max() <= plane.GAP
    assert between.square().sum(1).mean().item() == pytest.approx(plane.GAP**2 / 2, rel=0.1)


def test_shares_and_their_interval() -> None:
    x = torch.tensor([[-0.4, -0.6]] * 10 + [[0.5, 0.5]] * 89 + [[0.9, -0.8]])
    few, many = plane.shares(x, TWO)
    assert (few.count, many.count, few.n) == (10, 90, 100)
    # Wilson (1927): (p + z²/2n ± z·√(p(1−p)/n + z²/4n²))/(1 + z²/n)
    p, n, z = 0.1, 100, 1.959964
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    assert few.low == pytest.approx((middle - reach) / scale, abs=1e-6)
    assert few.high == pytest.approx((middle + reach) / scale, abs=1e-6)
    assert plane.astray(x, TWO) == 1


def lesser_weight(levels: int, steps: int) -> plane.Share:
    schedule = geometric(levels, 0.05 if levels == 1 else 1.0, 0.05)
    sampler = AnnealedLangevin(inner_steps=steps, step=0.2)
    *_, x = plane.langevin(sampler, plane.truth(TWO, schedule), 480, seed=0)
    assert plane.astray(x, TWO) == 0
    return plane.shares(x, TWO)[0]


def test_plain_langevin_cannot_tell_the_weights_and_annealed_can() -> None:
    """Song & Ermon 2019, sections 3.2.2 and 4.3: from a symmetric start plain dynamics falls where
    it began, whatever the weights (1/5 and 4/5)."""
    plain = lesser_weight(1, 200)
    assert plain.low < 0.5 < plain.high
    assert plain.low > 0.4
    annealed = lesser_weight(10, 100)
    assert annealed.low < 0.2 < annealed.high
    assert annealed.high < 0.3


def test_langevin_starts_uniformly_and_every_model_at_the_same_points() -> None:
    sampler = AnnealedLangevin(inner_steps=1)
    explodes, preserves = geometric(2), linear(steps=5)
    first = next(plane.langevin(sampler, plane.truth(TWO, explodes), 4000, seed=0))
    other = next(plane.langevin(sampler, plane.truth(TWO, preserves), 4000, seed=0))
    assert first.abs().max() <= 0.8
    torch.testing.assert_close(first.var(0), torch.full((2,), 1.6**2 / 12), rtol=0.05, atol=0)
    torch.testing.assert_close(other / preserves.alpha(1.0).item(), first)
