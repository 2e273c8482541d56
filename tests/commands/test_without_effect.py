"""A key that has no effect is refused, with what would give it one."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import TINY, launch

REFUSED = {
    "objective.gamma=3": "objective.weighting=min_snr",
    "sampler=heun sampler.grid=levels sampler.rho=3": "sampler.grid=karras",
    "sampler=heun sampler.s_noise=1.01": "sampler.s_churn above 0",
    "sampler=predictor_corrector sampler.corrector_steps=0 sampler.snr=0.1": (
        "sampler.corrector_steps above 0"
    ),
    "network.heads=2": "network.attention with a resolution",
    "+cluster.partition=gpu": "cluster=slurm, and the run would be on this machine",
    "+cluster._target_=os.system": "cluster=slurm, and the run would be on this machine",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_key_without_effect_is_refused(here: Path, words: str) -> None:
    refused = launch("train", *TINY[:-4], "evaluation=none", *words.split())
    assert refused.status == 1
    assert f"has no effect without {REFUSED[words]}" in refused.err
    assert refused.err.count("\n") == 1
    assert not (here / "outputs").exists()
