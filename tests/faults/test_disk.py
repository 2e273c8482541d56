"""Disks that are full, read-only or gone: a sentence, the last checkpoint, a true status."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, TINY, Outcome, launch, quick

from betasigma.runs.checkpoint import read
from betasigma.runs.record import Record
from betasigma.runs.status import read_status
from betasigma.training.progress import Metrics

WORDS = (*TINY, "steps=8", "training.checkpoint_every=2", "hydra.run.dir=run")
SOON = "training.wait_for_space=10"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 16 MB, where we stand."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk of our own can be mounted here (needs root)")
    monkeypatch.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            pass


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something after an optimizer step, before it is logged or saved."""
    original = Metrics.on_step

    def on_step(self: Metrics, trainer: Any, module: Any, now: int) -> None:
        if now == step:
            act()
        original(self, trainer, module, now)

    patch.setattr(Metrics, "on_step", on_step)


def assert_one_sentence(outcome: Outcome, told: str) -> None:
    assert outcome.status == 1
    assert told in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.err
    assert "Logging error" not in outcome.err


@pytest.mark.parametrize("step", [4, 5], ids=["while a row is written", "while saving"])
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(
    disk: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: fill(disk))
        outcome = launch("train", *WORDS, "training.log_every=4", "training.wait_for_space=0")
    assert_one_sentence(outcome, "cannot be written: No space left on device")
    run, kept = disk / "run", 2 if step == 4 else 4
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == kept
    assert f"the last checkpoint is of step {kept}" in outcome.out
    status = read_status(run)
    assert status["status"] == "failed"
    assert "No space left on device" in status["error"]
    assert not (run / "error.txt").exists() or (run / "error.txt").stat().st_size
    assert not list(run.rglob("*.partial"))
    (disk / "filler").unlink()
    assert launch("train", *WORDS, "training.log_every=4", SOON).status == 0
    assert Record.of(run).curve("train/objective")[0] == [4, 8]


def test_a_run_waits_for_space_and_goes_on(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_for_a_while() -> None:
        fill(disk)
        threading.Timer(1.0, (disk / "filler").unlink).start()

    at_step(monkeypatch, 4, fill_for_a_while)
    began = time.monotonic()
    with pytest.warns(UserWarning, match="No space left on device; waiting 100 s for space"):
        outcome = launch("train", *WORDS, "training.log_every=4", "training.wait_for_space=100")
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - began < 60
    assert Record.of(disk / "run").curve("train/objective")[0] == [4, 8]
    assert read_status(disk / "run")["status"] == "finished"


def test_a_disk_that_is_full_at_the_start(disk: Path) -> None:
    fill(disk)
    outcome = launch("train", *WORDS)
    assert_one_sentence(outcome, "No space left on device")


def test_a_run_directory_that_is_deleted_is_not_made_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 4, lambda: shutil.rmtree("run"))
    outcome = launch("train", *WORDS, "training.log_every=100")
    assert_one_sentence(outcome, "cannot be written: the run directory is gone")
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    "code", quick([errno.ESTALE, errno.EDQUOT], errno.EDQUOT), ids=["NFS is gone", "a quota"]
)
def test_what_a_server_s_disk_answers(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The answers of a mount whose server is gone, and of a quota, when a checkpoint is flushed."""
    original, refusing = os.fsync, list[bool]()

    def fsync(descriptor: int) -> None:
        if refusing:
            raise OSError(code, os.strerror(code))
        original(descriptor)

    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: refusing.append(True))
        patch.setattr(os, "fsync", fsync)
        outcome = launch("train", *WORDS, "training.wait_for_space=0")
    assert_one_sentence(outcome, f"cannot be written: {os.strerror(code)}")
    assert read(here / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert not list((here / "run").rglob("*.partial"))
    again = launch("train", *WORDS)
    assert again.status == 0, again.err
    assert read_status(here / "run")["status"] == "finished"


def without_capabilities() -> None:
    """Take from root what lets it write anywhere, and leave it what it owns (capset(2))."""
    version_3 = 0x20080522
    header, none = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def test_a_directory_that_becomes_read_only(here: Path) -> None:
    said, process = here / "said.txt", os.fork()
    if process == 0:
        try:
            if not os.getuid():
                without_capabilities()
            with pytest.MonkeyPatch.context() as patch:
                folder = here / "run" / "checkpoints"
                at_step(patch, 4, lambda: folder.chmod(0o555))
                outcome = launch("train", *WORDS)
            said.write_text(f"{outcome.status}\n{outcome.err}")
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    status, _, err = said.read_text().partition("\n")
    assert_one_sentence(Outcome(int(status), "", err), "cannot be written: Permission denied")
    assert read(here / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert read_status(here / "run")["status"] == "failed"


def test_ctrl_c_of_a_sweep_says_what_never_began(here: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        original = Metrics.on_train_start

        def second(self: Metrics, trainer: Any, module: Any) -> None:
            original(self, trainer, module)
            if "seed=2" in str(trainer.default_root_dir):
                signal.raise_signal(signal.SIGINT)

        patch.setattr(Metrics, "on_train_start", second)
        stopped = launch("train", *TINY, "-m", "seed=1,2,3", "hydra.sweep.dir=sweep")
    assert stopped.status == 130
    assert "1 job finished, 1 begun and not finished, 1 never begun" in stopped.err
    assert "train.py -m resume=sweep" in stopped.err
    again = launch("train", "-m", "resume=sweep")
    assert again.status == 0, again.err
    assert [read_status(here / "sweep" / f"seed={seed}")["status"] for seed in (1, 2, 3)] == [
        "finished"
    ] * 3
    assert "2 jobs to do; left alone: 1 finished" in again.out


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    words = [*TINY, "model=ncsn", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"8?8" in done.stdout  # 8×8
    assert read_status(tmp_path / "run")["status"] == "finished"
