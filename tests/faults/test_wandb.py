"""Weights & Biases' own client against a server on this machine that does every wrong thing.

Whatever it does, training goes on, metrics.csv is complete, and nobody waits long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import TINY, Outcome, launch
from loopback import Server, Temper, serving
from pytorch_lightning.loggers import WandbLogger

from betasigma.runs.record import Record
from betasigma.runs.status import read_status
from betasigma.training.progress import Metrics

START, STEP, END = 20.0, 1.0, 25.0
"""Seconds that W&B may cost at the start, a step, and at the end."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as made:
        yield made


def train(*words: str) -> tuple[Outcome, float]:
    """A run, and the seconds that making its loggers took."""
    from betasigma.commands import train as command

    took: list[float] = []
    original = command.tracking.make_loggers

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        made = original(*args, **kwargs)
        took.append(time.monotonic() - began)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.tracking, "make_loggers", timed)
        patch.delenv("WANDB_MODE", raising=False)
        outcome = launch("train", *TINY, "logger=wandb", *words)
    return outcome, took[0]


def assert_complete(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.err
    assert read_status(outcome.run)["status"] == "finished"
    assert Record.of(outcome.run).curve("train/objective")[0] == [2, 4, 6]


def never(request: int) -> None:
    """A server that accepts a connection and says nothing."""


START_CASES: dict[str, Temper] = {
    "hangs": never,
    "fails": lambda request: 500,
    "refuses the key": lambda request: 401,
    "hangs after the first answer": lambda request: 200 if request == 1 else None,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", START_CASES)
def test_a_server_that_is_no_use_at_the_start(here: Path, server: Server, case: str) -> None:
    server.temper = START_CASES[case]
    outcome, seconds = train()
    assert_complete(outcome)
    assert seconds < START
    if "after" not in case:
        assert "Weights & Biases did not answer" in outcome.err
        assert "logging offline" in outcome.err
        assert list(outcome.run.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "notaurl"])
def test_an_address_where_nobody_is(
    here: Path, server: Server, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", address)
    outcome, seconds = train("logger.timeout=2")
    assert_complete(outcome)
    assert seconds < START
    assert "logging offline" in outcome.err
    assert os.environ["WANDB_BASE_URL"] == address


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 500, 401], ids=["hangs", "fails", "refuses the key"])
def test_a_server_that_dies_in_the_middle(
    here: Path, server: Server, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    longest = [0.0]
    original, on_step = WandbLogger.log_metrics, Metrics.on_step

    def timed(self: WandbLogger, *args: Any, **kwargs: Any) -> None:
        began = time.monotonic()
        original(self, *args, **kwargs)
        longest[0] = max(longest[0], time.monotonic() - began)

    def die(self: Metrics, trainer: Any, module: Any, step: int) -> None:
        if step == 3:
            server.temper = lambda request: status
        on_step(self, trainer, module, step)

    monkeypatch.setattr(WandbLogger, "log_metrics", timed)
    monkeypatch.setattr(Metrics, "on_step", die)
    began = time.monotonic()
    outcome, seconds = train()
    assert_complete(outcome)
    assert "logging offline" not in outcome.err
    assert seconds < START
    assert longest[0] < STEP
    assert time.monotonic() - began < START + END + 40  # the training itself, on a busy machine
    assert list(outcome.run.glob("wandb/run-*/*.wandb"))  # all of it, to be uploaded later


def test_its_files_cannot_be_written(
    here: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", full)
    outcome, _ = train()
    assert_complete(outcome)
    assert "Weights & Biases cannot write ([Errno 28] No space left on device)" in outcome.err
