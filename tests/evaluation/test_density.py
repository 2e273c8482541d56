"""Density and coverage, written out from Naeem et al. (2020, equations 4 and 5) with scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from betasigma.errors import UserError
from betasigma.evaluation import metrics


def written_out(real: np.ndarray, samples: np.ndarray, k: int = 5) -> tuple[float, float]:
    """(1/kM)·Σ_j Σ_i 1(y_j ∈ B(x_i, NND_k(x_i))), (1/N)·Σ_i 1(∃ j: y_j ∈ B(x_i, NND_k(x_i)))."""
    among = np.sort(distance.cdist(real, real), axis=1)[:, k]  # 0 is itself
    within = distance.cdist(real, samples) < among[:, None]
    return within.sum() / (k * len(samples)), within.any(1).mean()


def measured(metric, real: torch.Tensor, samples: torch.Tensor) -> float:
    for batch in real.split(17):
        metric.update(batch, real=True)
    for batch in samples.split(23):
        metric.update(batch)
    return metric.compute().item()


@pytest.mark.parametrize(("n", "m", "shift"), [(300, 200, 0.0), (80, 400, 0.5), (50, 60, 3.0)])
def test_they_are_those_of_the_paper(monkeypatch, n: int, m: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(n)
    real = torch.randn(n, 6, generator=generator)
    samples = torch.randn(m, 6, generator=generator) + shift
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 64)
    density, coverage = written_out(real.double().numpy(), samples.double().numpy())
    assert measured(metrics.Density(), real, samples) == pytest.approx(density, rel=1e-6)
    assert measured(metrics.Coverage(), real, samples) == pytest.approx(coverage, rel=1e-6)


def test_real_data_score_one() -> None:
    """The paper's section 4: density and coverage of one law with itself are 1 and 1 − 2⁻ᵏ."""
    generator = torch.Generator().manual_seed(0)
    real, samples = torch.randn(2, 3000, 16, generator=generator)
    assert measured(metrics.Density(), real, samples) == pytest.approx(1, abs=0.05)
    assert measured(metrics.Coverage(), real, samples) == pytest.approx(1 - 2**-5, abs=0.01)


def test_they_need_neighbours() -> None:
    with pytest.raises(UserError, match="Density has seen 5 samples; it needs at least 6"):
        measured(metrics.Density(), torch.rand(10, 2), torch.rand(5, 2))
