"""Checkpoints of an earlier version load, sample and continue as they did then.

``tests/frozen`` has a small DDPM and a small NCSN checkpoint with the config of their time, and
what that version drew from them and trained them to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch

import betasigma

FROZEN = ROOT / "tests" / "frozen"
EXPECTED = np.load(FROZEN / "expected.npz")
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["ddpm", "ncsn"])
def test_it_draws_the_same_samples(family: str) -> None:
    denoiser, sampler = betasigma.load(FROZEN / f"{family}.ckpt")
    y = torch.arange(4) if denoiser.num_classes else None
    drawn = sampler.sample(denoiser, 4, seed=0, y=y).x.numpy()
    np.testing.assert_allclose(drawn, EXPECTED[f"{family}_samples"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["ddpm", "ncsn"])
def test_it_continues_to_the_same_weights(here: Path, family: str) -> None:
    outcome = launch("train", f"resume={FROZEN / family}.ckpt", "steps=9")
    assert outcome.status == 0, outcome.err
    denoiser, _ = betasigma.load(outcome.run)
    weights = torch.cat([p.flatten()[:16] for p in denoiser.parameters()]).numpy()
    np.testing.assert_allclose(weights, EXPECTED[f"{family}_resumed"], rtol=0, atol=TOLERANCE)
