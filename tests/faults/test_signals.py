"""Preemption and time limits: a signal, a cluster, or a clock of one's own ends a run early."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from launching import TINY, forked, launch, status_of

from betasigma.errors import Stopped
from betasigma.modules import DiffusionModule
from betasigma.runs.checkpoint import read
from betasigma.runs.record import Record
from betasigma.runs.status import INTERRUPTED, read_status
from betasigma.training.checkpoints import Checkpoints
from hydra_plugins.betasigma_sweeps import SlurmJobs


def step(run: Path) -> int:
    return int(read(run / "checkpoints" / "last.ckpt")["global_step"])


def rows(run: Path) -> list[tuple[str, str, str]]:
    """Every row except what a clock enters."""
    return [
        (row["step"], row["metric"], row["value"])
        for row in Record.of(run).rows()
        if row["metric"] != "train/images_per_second"
    ]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for SLURM's command, and what it was told. (test_slurm.py has a real one.)"""
    asked = tmp_path / "asked.txt"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" != requeue ] || echo "$@" >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return asked


def stopped(number: int, *words: str, at: int = 4) -> Any:
    """A run that receives a signal in the middle of a step."""
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: dict[str, Any], batch_idx: int) -> Any:
        if batch["step"] == at - 1:
            signal.raise_signal(number)
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", training_step)
        return launch("train", *TINY, *words)


EIGHT = ("steps=8", "training.log_every=3")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of these, which receives no signal."""
    run: Path = tmp_path_factory.mktemp("eight") / "run"
    assert launch("train", *TINY, *EIGHT, f"hydra.run.dir={run}").status == 0
    return run


@pytest.mark.parametrize(
    ("number", "again"),
    [
        (signal.SIGUSR1, True),
        pytest.param(signal.SIGUSR2, True, marks=pytest.mark.slow),
        (signal.SIGTERM, False),
    ],
)
def test_a_warning_of_slurm_queues_the_job_again_and_it_continues(
    here: Path, eight: Path, scontrol: Path, number: signal.Signals, again: bool
) -> None:
    outcome = stopped(number, *EIGHT, "hydra.run.dir=run", at=4)
    assert outcome.status == 128 + number
    assert "Traceback" not in outcome.err
    assert scontrol.exists() == again
    if again:
        assert scontrol.read_text() == "requeue 77\n"
    run = here / "run"
    assert step(run) == 4
    status = read_status(run)
    assert (status["status"], status["error"]) == (INTERRUPTED, number.name)
    # the same command, as SLURM gives it
    assert launch("train", *TINY, *EIGHT, "hydra.run.dir=run").status == 0
    assert rows(run) == rows(eight)


def test_a_job_that_never_takes_a_step_is_not_queued_for_ever(
    here: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "betasigma.commands.assemble.make_data", lambda content: signal.raise_signal(signal.SIGUSR2)
    )
    assert launch("train", *TINY).status == 128 + signal.SIGUSR2
    assert scontrol.read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    outcome = launch("train", *TINY)
    assert "not queued again: it has not taken a step" in outcome.err
    assert scontrol.read_text() == "requeue 77\n"


@pytest.mark.parametrize("app", ["train", "evaluate"])
def test_a_signal_before_pytorch_is_imported(
    here: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, app: str
) -> None:
    """It comes while the command line is read. Only what trains goes on when it is repeated."""
    monkeypatch.setattr(
        "betasigma.launch.app.fetch_named", lambda line: signal.raise_signal(signal.SIGUSR2)
    )
    signals = signal.getsignal(signal.SIGUSR2)
    outcome = launch(app)
    said = "" if app == "train" else "stopped by SIGUSR2\n"
    assert (outcome.status, outcome.out, outcome.err) == (128 + signal.SIGUSR2, "", said)
    assert scontrol.exists() == (app == "train")
    assert signal.getsignal(signal.SIGUSR2) == signals


def test_a_signal_before_a_job_of_a_sweep_imports_pytorch(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's own handlers, which stand then, would start it again by a way of their own."""
    submitit_s = SlurmJobs.__base__  # Hydra imports its launchers anew where it looks for plugins
    monkeypatch.setattr(submitit_s, "__call__", lambda *_: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(Stopped, match="SIGUSR1"):
        SlurmJobs()()
    assert scontrol.read_text() == "requeue 77\n"


def test_a_budget_of_time_ends_a_run_as_its_last_step_would(here: Path) -> None:
    budget = ("hydra.run.dir=run", "steps=100000", "training.log_every=100000")
    began = time.monotonic()
    outcome = launch("train", *TINY, *budget, "stop.minutes=0.02")
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - began < 100
    assert "the time budget (stop.minutes, stop.hours) ends at step" in outcome.out
    run = here / "run"
    done = step(run)
    assert json.loads((run / "summary.json").read_text())["step"] == done
    assert Record.of(run).curve("train/objective")[0] == [done]  # the last window is not lost
    refused = launch("train", "resume=run", "stop.minutes=0.02")
    assert "has trained for as long as stop.minutes" in refused.err
    again = launch("train", *TINY, *budget, "stop.minutes=0.02")
    assert f"has ended after {done} steps: nothing to do" in again.out
    more = launch("train", "resume=run", f"steps={done + 2}", "stop.minutes=10")
    assert more.status == 0, more.err
    assert step(run) == done + 2


def test_two_budgets_are_refused(here: Path) -> None:
    refused = launch("train", *TINY, "stop.minutes=1", "stop.hours=1")
    assert "stop.minutes=1 and stop.hours=1 say the same" in refused.err
    assert not (here / "outputs").exists()


def test_a_step_longer_than_the_grace_period_loses_only_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Any, trainer: Any, module: Any, now: int) -> None:
        if now == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr("betasigma.training.progress.Metrics.on_step", die)
    words = ("hydra.run.dir=run", "training.checkpoint_every=100")
    assert launch("train", *TINY, *words, "stop.grace=0.0001").status == 1
    assert step(here / "run") == 4


ALONE = (*TINY, "hydra.run.dir=run", "steps=60", "training.log_every=7")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that command, which receives no signal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        done = launch("train", *ALONE)
        assert done.status == 0, done.err
        return done.run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_process_of_its_own(
    here: Path, undisturbed: Path, number: signal.Signals
) -> None:
    """From outside, at no chosen moment; the same command goes on."""
    process = forked("train", *ALONE, said=here / "said.txt")
    while not rows(here / "run") and not os.waitpid(process, os.WNOHANG)[0]:
        time.sleep(0.02)
    os.kill(process, number)
    assert status_of(process) == 128 + number, (here / "said.txt").read_text()
    assert launch("train", *ALONE).status == 0
    found = rows(here / "run")
    assert len({row[:2] for row in found}) == len(found)
    assert found == rows(undisturbed)


def test_a_signal_between_a_batch_and_its_step_moves_no_validation(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning has counted the batch, by which it validates; its step comes after the resume."""
    original = Checkpoints.on_train_batch_start

    def interrupted(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *rest)

    words = ("hydra.run.dir=run", "steps=8", "training.validate_every=4")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_start", interrupted)
        assert launch("train", *TINY, *words).status == 128 + signal.SIGTERM
    run = here / "run"
    assert step(run) == 3
    assert launch("train", *TINY, *words).status == 0
    assert Record.of(run).curve("val/objective")[0] == [4, 8]
