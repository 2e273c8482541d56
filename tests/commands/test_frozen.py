"""Checkpoints of an earlier version load, sample and continue as they did then.

``tests/frozen`` has a small DDPM and a small NCSN checkpoint with the config of their time, and
what that version drew from them and trained them to. ``run`` is a run directory of version 0.2
before its metrics were renamed, killed in the middle of a window of the log; the file beside its
metrics is of the same run without the accident.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import ROOT, launch
from omegaconf import OmegaConf

import betasigma
from betasigma.commands.config import complete, saved_header
from betasigma.commands.resume import continue_in
from betasigma.errors import UserError
from betasigma.runs.checkpoint import HEADER, save
from betasigma.runs.record import Record

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
    saved = complete(saved_header(FROZEN / f"{family}.ckpt")["config"])
    assert OmegaConf.load(outcome.run / "config.yaml")["sampler"] == saved["sampler"]


@pytest.mark.parametrize("later", [[], ["resume=run"]])
@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["model=ddpm", "steps=9"], True),
        (["model=ddpm", "steps=12", "name=more"], True),
        (["model=ddpm", "sampler=ddim"], False),
    ],
)
def test_a_command_that_is_repeated_measures_by_what_the_run_did(
    tmp_path: Path, words: list[str], kept: bool, later: list[str]
) -> None:
    """Whatever the defaults have become since, and whoever has continued it."""
    run = Path(shutil.copytree(FROZEN / "run", tmp_path / "run"))
    environment: dict[str, Any] = {"overrides": ["model=ddpm", "steps=9"]}
    if later:
        environment = {"overrides": later, "resumed_after": [environment]}
    (run / "environment.json").write_text(json.dumps(environment))
    saved = complete(saved_header(run)["config"])
    other = {"_target_": "betasigma.samplers.Heun", "steps": 7}
    config = OmegaConf.create({**saved, "steps": 12, "sampler": other})
    continue_in(config, words, run)
    assert config.steps == 12
    assert config.sampler == (saved["sampler"] if kept else other)


def test_a_run_directory_is_continued_under_the_names_of_today(here: Path) -> None:
    """Early stopping watched ``val/loss``, which is what the search was given."""
    run = Path(shutil.copytree(FROZEN / "run", here / "run"))
    outcome = launch("train", f"resume={run}")
    assert outcome.status == 0, outcome.err
    continued, whole = Record.of(run), Record(run / "uninterrupted.csv")
    for metric in ("train/objective", "val/objective", "val/denoising_error"):
        (steps, values), (known_steps, known) = continued.curve(metric), whole.curve(metric)
        assert steps == known_steps
        np.testing.assert_allclose(values, known, rtol=1e-4)
    assert "/loss," not in continued.path.read_text()
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (stopping,) = [state for name, state in saved["callbacks"].items() if "EarlyStop" in name]
    assert stopping["best_score"].item() == pytest.approx(min(whole.curve("val/objective")[1]))

    old = "metrics=[train/loss,val/loss]"
    drawn = launch("compare", f"runs=[{run},{FROZEN / 'run'}]", old, "formats=[png]")
    assert drawn.status == 0, drawn.err
    assert "train/objective" in drawn.out
    assert "val/objective" in drawn.out


@pytest.mark.slow
def test_a_run_of_then_is_compared_alone(here: Path) -> None:
    assert launch("compare", f"runs=[{FROZEN / 'run'}]", "formats=[png]").status == 0


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
    """Loggers, hardware and studies of another time do not keep a model from being loaded."""
    changed = rewritten(
        tmp_path / "a.ckpt",
        logger={"kind": "parchment", "ink": 3},
        hardware={"abacus": True},
        cluster={"name": "herd"},
        training={"patience": "endless"},
        bridge={"point": 3, "change": "noise conditioning"},
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
