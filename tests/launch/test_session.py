"""``betasigma.train`` in a notebook's place: this process."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest
from launching import TINY, launch

import betasigma
from betasigma.errors import UserError
from betasigma.runs.checkpoint import read
from betasigma.runs.status import FAILED, read_status


def test_a_run_is_returned_and_equals_the_command_s(here: Path) -> None:
    shown, level = warnings.formatwarning, logging.getLogger("betasigma").level
    run = betasigma.train(*TINY, "model=ncsn", "sigma.levels=5")
    assert (warnings.formatwarning, logging.getLogger("betasigma").level) == (shown, level)
    left = {path.name for path in run.directory.iterdir()}
    assert {"log.txt", "status.json", "config.yaml", "environment.json", "checkpoints"} <= left
    assert "run directory" in (run.directory / "log.txt").read_text()
    assert run.summary["step"] == 6
    assert run.metrics["val/denoising_error"] > 0
    assert run.denoiser.schedule.levels == 5
    assert run.sampler.sample(run.denoiser, 2, seed=0).x.shape == (2, 1, 8, 8)
    outcome = launch("train", *TINY, "model=ncsn", "sigma.levels=5")
    states = [
        read(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (run.directory, outcome.run)
    ]
    assert all(weight.equal(states[1][name]) for name, weight in states[0].items())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sigma.levels=3"], r"sigma\.levels=3 does not fit the schedule.*model=ncsn"),
        (["optimizer.lr=-1"], r"optimizer\.lr=-1 must be above 0"),
        (["-m", "seed=1,2"], "--multirun is for the command line"),
        (["hardware=ddp"], r"hardware\.devices=2 needs processes of its own"),
        ([["steps=3"]], r"\['steps=3'\] is no text: betasigma\.train takes key=value"),
        (["seed=1,2"], "seed=1,2 names several values: call betasigma.train for a run of each"),
        (["search=optuna_lr"], "search=optuna_lr is a sweep of many runs"),
    ],
)
def test_bad_input_is_one_error_before_a_directory_exists(
    here: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        betasigma.train(*words)
    assert not list(here.iterdir())


def test_what_fails_inside_a_run_is_raised_and_recorded(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_optimizers(self: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("betasigma.modules.DDPM.configure_optimizers", configure_optimizers)
    with pytest.raises(ZeroDivisionError, match="inside"):
        betasigma.train(*TINY)
    (run,) = here.glob("outputs/*")
    assert "ZeroDivisionError" in (run / "error.txt").read_text()


def test_what_fails_before_pytorch_is_there_is_recorded_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "betasigma.commands.train", None)
    with pytest.raises(ImportError):
        betasigma.train(*TINY)
    (run,) = here.glob("outputs/*")
    assert read_status(run)["status"] == FAILED
