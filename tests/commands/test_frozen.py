"""Checkpoints of an earlier version load, sample and continue as they did then.

``tests/frozen`` has a small DDPM and a small NCSN checkpoint with the config of their time, and
what that version drew from them and trained them to.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import ROOT, launch

import betasigma
from betasigma.errors import UserError
from betasigma.runs.checkpoint import HEADER, save

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


def rewritten(path: Path, **changes: Any) -> Path:
    """The frozen DDPM checkpoint with another config, as another version may have written it."""
    contents = torch.load(FROZEN / "ddpm.ckpt", weights_only=True)
    config = copy.deepcopy(contents[HEADER]["config"])
    for key, value in changes.items():
        *nodes, leaf = key.split("__")
        node = config
        for name in nodes:
            node = node[name]
        node[leaf] = value
    contents[HEADER] = {**contents[HEADER], "config": config}
    save(contents, path)
    return path


def test_keys_that_are_gone_are_left_out_with_a_note(tmp_path: Path) -> None:
    changed = rewritten(
        tmp_path / "a.ckpt", network__smoothing=3, denoiser__mood="bright", data__colour="blue"
    )
    with pytest.warns(UserWarning, match=r"leaves out: (?=.*smoothing)(?=.*mood)(?=.*colour)"):
        denoiser, _ = betasigma.load(changed)
    known, _ = betasigma.load(FROZEN / "ddpm.ckpt")
    for ours, theirs in zip(denoiser.parameters(), known.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_no_model_needs_is_not_asked_about(tmp_path: Path) -> None:
    """Loggers and hardware of another time do not keep a model from being loaded."""
    changed = rewritten(
        tmp_path / "a.ckpt",
        logger={"kind": "parchment", "ink": 3},
        hardware={"abacus": True},
        cluster={"name": "herd"},
        training={"patience": "endless"},
    )
    denoiser, sampler = betasigma.load(changed)
    assert sampler.sample(denoiser, 2, seed=0).x.shape == (2, 1, 8, 8)


def test_a_value_that_a_model_cannot_have_is_refused(tmp_path: Path) -> None:
    changed = rewritten(tmp_path / "a.ckpt", network__dropout=2.0)
    with pytest.raises(UserError, match=r"network\.dropout=2\.0 must be below 1"):
        betasigma.load(changed)


def test_nothing_in_a_config_is_resolved(tmp_path: Path) -> None:
    changed = rewritten(tmp_path / "a.ckpt", tags=["${oc.env:HOME}"])
    with pytest.raises(UserError, match="it has an interpolation, and nothing in a file"):
        betasigma.load(changed)
