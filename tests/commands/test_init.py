"""``python train.py init=RUN``: fine-tuning, and what is said of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import TINY, Launch, launch

import betasigma


def weights(run: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Weights of a run's last checkpoint whose names begin so."""
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}


UNMOVED = ("optimizer.lr=1e-12", "steps=1", "seed=5", "ema.decay=0.5")
"""One step that moves nothing, from another initialisation."""


def test_training_starts_from_the_averaged_weights(train: Launch, ddpm_run: Path) -> None:
    ends = ("beta.start=0.0001", "beta.end=0.02")  # what null stands for there
    outcome = train(f"init={ddpm_run}", *UNMOVED, *ends)
    assert "init: schedule" not in outcome.out
    given = weights(ddpm_run, "average.")
    own, average = weights(outcome.run, "denoiser."), weights(outcome.run, "average.")
    assert given.keys() == own.keys()
    for name, value in given.items():
        torch.testing.assert_close(own[name], value, atol=1e-9, rtol=0)
        torch.testing.assert_close(average[name], value, atol=1e-9, rtol=0)
    total = sum(value.numel() for value in given.values())
    assert (
        f"init: {len(given)} of {len(given)} weights ({total:,} of {total:,} numbers) from "
        f"{ddpm_run} at step 6\n" in outcome.out
    )
    assert "init: not loaded" not in outcome.out
    told = json.loads((outcome.run / "init.json").read_text())
    assert (told["step"], told["fresh"], told["unused"]) == (6, [], [])
    fresh = weights(train(*UNMOVED).run, "denoiser.")
    assert any(not torch.allclose(fresh[name], own[name]) for name in own)


def test_anything_else_may_differ_and_is_told(
    train: Launch, ddpm_run: Path, ncsn_run: Path
) -> None:
    """From DDPM's weights to a model with classes of the other family, by a checkpoint's path."""
    words = (*UNMOVED, "network.num_classes=10", "model=ncsn", "init.skip=[*label*]")
    words = (*words, "network.norm_eps=1e-5")  # the same shapes, another function
    outcome = train(f"init={ddpm_run}/checkpoints/last.ckpt", *words)
    given, own = weights(ddpm_run, "average."), weights(outcome.run, "denoiser.")
    fresh = sorted(own.keys() - given.keys())
    assert fresh
    assert all("label" in name for name in fresh)
    assert f"init: not loaded, as initialised: {', '.join(fresh)}\n" in outcome.out
    for name, value in given.items():
        torch.testing.assert_close(own[name], value, atol=1e-9, rtol=0)
    assert "init: model.value_range=[0.0, 1.0] here, [-1.0, 1.0] there" in outcome.out
    assert "init: preconditioning.conditioning=log_sigma here, timestep there" in outcome.out
    assert "init: network.num_classes=10 here, 0 there" in outcome.out
    assert "init: network.norm_eps=1e-05 here, 1e-06 there" in outcome.out
    # and back, where the labels' weights are too many
    back = train(f"init={outcome.run}", *UNMOVED, "init.skip=[*label*]")
    assert f"init: left out of {outcome.run}: {', '.join(fresh)}\n" in back.out


@pytest.mark.slow
def test_a_weight_of_another_shape_is_skipped_by_name(train: Launch, ddpm_run: Path) -> None:
    first = next(n for n, v in weights(ddpm_run, "average.").items() if v.ndim == 4)
    outcome = train(f"init={ddpm_run}", *UNMOVED, f"init.skip=[{first}]")
    assert f"init: not loaded, as initialised: {first}\n" in outcome.out
    assert f"init: left out of {ddpm_run}: {first}\n" in outcome.out
    given, own = weights(ddpm_run, "average."), weights(outcome.run, "denoiser.")
    assert not torch.allclose(own[first], given[first])


@pytest.mark.slow
def test_a_resumed_run_is_not_begun_again(train: Launch, ddpm_run: Path) -> None:
    run = train(f"init={ddpm_run}").run
    resumed = train(f"resume={run}", "steps=8")
    assert "init:" not in resumed.out
    assert "init" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_a_notebook_starts_from_a_run_too(here: Path, ddpm_run: Path, capsys) -> None:
    betasigma.train(f"init={ddpm_run}", *TINY, *UNMOVED)
    assert f"from {ddpm_run} at step 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["init=nowhere"], "init=nowhere does not exist"),
        (["init.skip=[a]"], "init.skip=['a'] leaves out weights of init=RUN: give that too"),
        (["init=HERE", "network.channels=16"], "has weights that do not fit this model (other sh"),
        (["init=HERE", "network.channels=16"], "); network.channels=8 is its network; init.skip="),
        (["init=HERE", "network.num_classes=10"], "has weights that do not fit this model (not t"),
        (["init=HERE", "init.skip=[nothing*]"], "init.skip=[nothing*] names no weight: they are"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    here: Path, ddpm_run: Path, words: list[str], sentence: str
) -> None:
    outcome = launch("train", *TINY, *(word.replace("HERE", str(ddpm_run)) for word in words))
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_where_the_data_differ_no_key_is_said_to_help(here: Path, ddpm_run: Path) -> None:
    np.savez("rgb.npz", images=np.zeros((40, 3, 8, 8), np.uint8), labels=np.arange(40) % 2)
    words = ("data=array", "data.root=rgb.npz", "network.num_classes=2", "init.skip=[*label*]")
    outcome = launch("train", *TINY, f"init={ddpm_run}", *words)
    told = "; its data have the shape (1, 8, 8), and these (3, 8, 8); init.skip=[…] names, with *,"
    assert told in outcome.err
    assert "num_classes" not in outcome.err


def test_an_oracle_has_no_weights(here: Path, ddpm_run: Path) -> None:
    outcome = launch("train", f"init={ddpm_run}", "model=oracle")
    assert outcome.err == (
        f"error: init.run={ddpm_run} does not fit model=oracle, which trains nothing\n"
    )
