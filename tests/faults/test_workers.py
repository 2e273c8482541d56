"""Worker processes that die or hang: a sentence, within a minute."""

from __future__ import annotations

import multiprocessing
import multiprocessing.reduction
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import ROOT, TINY, launch
from PIL import Image

from betasigma.data import loading
from betasigma.data.loading import WORKER_SECONDS
from betasigma.training.progress import Metrics


@pytest.fixture
def words(here: Path) -> tuple[str, ...]:
    """Training on files that a worker decodes."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        (here / "images" / split).mkdir(parents=True)
        for n in range(40):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "images" / split / f"{n}.png")
    place = ("data=image_folder", f"data.root={here / 'images'}", "data.image_size=16")
    return (*TINY, *place, "data.in_memory=false", "data.workers=1", "steps=1000")


def test_a_worker_that_is_killed(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Metrics.on_step

    def kill(self: Metrics, trainer: Any, module: Any, step: int) -> None:
        if step == 3:
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
        original(self, trainer, module, step)

    monkeypatch.setattr(Metrics, "on_step", kill)
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert "a worker process of the data has ended" in outcome.err
    assert re.search(r"killed by signal|exited unexpectedly", outcome.err)
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "stays"])
def test_a_worker_that_goes_while_it_hands_over_a_batch(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """The connection ends before this process can see that the worker has."""

    def send_handle(connection: Any, *_: Any) -> None:
        connection.close()
        if dies:
            time.sleep(0.3)  # PyTorch raises its own error this long after that of the connection
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(multiprocessing.reduction, "send_handle", send_handle)  # for forks of this
    monkeypatch.setattr(loading, "END_SECONDS", 5.0 if dies else 0.0)
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert "a worker process of the data has ended" in outcome.err
    how = "exited unexpectedly while it handed over a batch"
    # one that dies before PyTorch watches it, on a busy machine, is told of as the other
    assert re.search(f"killed by signal|{how}" if dies else how, outcome.err)
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_a_file_that_hangs(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of a network drive does that is gone: reading it never ends."""
    original = loading.collect

    def collect(source: Any, micro_batch: Any) -> Any:
        if micro_batch.step == 5 and multiprocessing.parent_process() is not None:
            time.sleep(1000)
        return original(source, micro_batch)

    assert WORKER_SECONDS < 60
    monkeypatch.setattr(loading, "collect", collect)
    monkeypatch.setattr(loading, "WORKER_SECONDS", 3.0)
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert "has read for 3 s without a batch" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "evaluation.metrics=[]", "error_curve=8"),
        pytest.param(
            ("edit", "edit=vary", "sampler=ddim", "sampler.steps=2"), marks=pytest.mark.slow
        ),
    ],
    ids=["evaluate", "edit"],
)
def test_a_worker_that_dies_while_another_command_reads(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    run = launch("train", *words, "steps=1").run
    original = loading.collect

    def collect(source: Any, micro_batch: Any) -> Any:
        if multiprocessing.parent_process() is not None:
            time.sleep(0.5)  # one that dies before PyTorch watches it is missed for LOOK_SECONDS
            os.kill(os.getpid(), signal.SIGKILL)
        return original(source, micro_batch)

    monkeypatch.setattr(loading, "collect", collect)
    app, *own = command
    outcome = launch(app, f"run={run}", *own)
    assert outcome.status == 1
    assert "a worker process of the data has ended" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_a_worker_that_dies_before_it_is_watched_is_found_soon(
    here: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(*_: Any) -> Any:
        os._exit(1)

    watching = torch.utils.data._utils.signal_handling
    watch = watching._set_worker_pids
    monkeypatch.setattr(watching, "_set_worker_pids", lambda loader, pids: watch(loader, ()))
    monkeypatch.setattr(loading, "collect", collect)
    monkeypatch.setattr(loading, "LOOK_SECONDS", 1.0)
    began = time.monotonic()
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert "a worker process of the data has ended" in outcome.err
    assert "exited unexpectedly" in outcome.err
    assert time.monotonic() - began < WORKER_SECONDS / 2


@pytest.mark.slow
def test_shared_memory_that_is_too_small(here: Path, words: tuple[str, ...]) -> None:
    """/dev/shm in which one batch finds room, of this process alone."""
    command = [sys.executable, str(ROOT / "train.py"), *words, "data.image_size=32"]
    mount = 'mount -t tmpfs -o size=96k tmpfs /dev/shm && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no /dev/shm of our own can be mounted here (needs root)")
    began = time.monotonic()
    done = subprocess.run(
        [*alone, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "a worker process of the data has ended" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert time.monotonic() - began < 60 + WORKER_SECONDS
