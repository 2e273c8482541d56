"""Several processes draw and measure what one does: samples are functions of seed and index, so
sharing them out changes nothing but the order of sums.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, launch, together

from betasigma.commands.sample import Draw
from betasigma.errors import UserError
from betasigma.runs.record import Record
from betasigma.runs.status import read_status

FP32 = "hardware.precision=32"
AT_ONCE = "batch_size=16"
"""Samples are drawn in the batches in which one process draws them, which makes them equal bits."""

MEASURED = (
    *("evaluation.extractor=identity", "evaluation.batch_size=16", "evaluation.n_reference=100"),
    *("evaluation.metrics=[fd,kid,precision]", "n=80", "error_curve=40", FP32),
    *("likelihood=continuous_bound", "likelihood.n=40"),
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def values(directory: Path) -> dict[str, float]:
    """Of every metric that a command has measured, each of which has one row."""
    rows = Record.of(directory).rows()
    found = {row["metric"]: float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    return found


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_two_processes_fill_a_folder_as_one_does(here: Path, ddpm_run: Path) -> None:
    words = ("sample", f"run={ddpm_run}", "save=folder", "n=40", AT_ONCE, FP32)
    (first,), (second,) = together((*words, "out=two", "hydra.run.dir=drawn2"))
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "40 samples by ddim, 2 network evaluations each\nimages two" in first.out
    assert (second.out, second.err) == ("", "")
    assert launch(*words, "out=one", "hydra.run.dir=drawn1").status == 0
    assert files(Path("two")) == files(Path("one"))
    assert len(files(Path("two"))) == 40
    told = [json.loads(Path(f"drawn{n}/samples.json").read_text()) for n in (1, 2)]
    assert told[0] == told[1]
    assert told[0]["drawn"] == 40


@pytest.mark.slow
def test_two_processes_measure_what_one_does(here: Path, labelled_run: Path) -> None:
    run = f"run={labelled_run}"
    filled = ("sample", run, "save=folder", "n=40", "hydra.run.dir=drawn", "out=images")
    assert launch(*filled, FP32, AT_ONCE).status == 0
    for path in list(Path("images").glob("*.png"))[::3]:
        path.unlink()
    commands = {
        "arrays": ("sample", run, "n=32", "seeds=[0,7]", AT_ONCE, FP32, "labels=[3,1]"),
        "samples": ("evaluate", run, *MEASURED),
        "images": ("evaluate", "images=images", "data=digits", *MEASURED[:4]),
    }
    several, alone = (
        [(*words, f"hydra.run.dir={name}{n}") for name, words in commands.items()] for n in (2, 1)
    )
    first, second = together(*several)
    assert [done.status for done in (*first, *second)] == [0] * 6, first + second
    assert [(done.out, done.err) for done in second] == [("", "")] * 3
    assert [launch(*words).status for words in alone] == [0] * 3
    assert files(Path("arrays2")) == files(Path("arrays1"))
    with np.load("arrays1/samples.npz") as one, np.load("arrays2/samples.npz") as two:
        for name in ("arr_0", "arr_1"):
            assert np.array_equal(one[name], two[name])
        assert len(one["arr_0"]) == 64
    for name in ("samples", "images"):
        same(values(Path(f"{name}2")), values(Path(f"{name}1")))
    names = " ".join(values(Path("samples2")))
    for name in ("eval/fd_identity", "eval/kid_identity", "eval/bits_per_dim", "eval/denoising"):
        assert name in names
    assert read_status(Path("samples2"))["status"] == "finished"

    (again,), (quiet,) = together((*filled[:-2], "hydra.run.dir=more", *filled[-1:], FP32, AT_ONCE))
    assert (again.status, quiet.status) == (0, 0), again.err + quiet.err
    assert "14 samples by ddim, 2 network evaluations each; 26 were there already" in again.out
    assert len(files(Path("images"))) == 40


def test_one_that_fails_ends_the_other_with_a_sentence(here: Path, ddpm_run: Path) -> None:
    def fail(self: Draw, *args: object) -> None:
        raise UserError("its disk is gone")

    command = ("sample", f"run={ddpm_run}", "n=32", FP32, "hydra.run.dir=drawn")
    (first,), (second,) = together(command, break_one=lambda: setattr(Draw, "__call__", fail))
    assert (first.status, second.status) == (1, 1)
    assert second.err == "error: its disk is gone\n"
    assert first.err == (
        "error: another process of this command has failed: UserError: its disk is gone\n"
    )
    assert read_status(Path("drawn"))["error"] == "UserError: its disk is gone"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["hydra.run.dir=a", "hardware.devices=3"],
            "hardware.devices=3 and hardware.nodes=1 are 3",
        ),
        ([], "torchrun starts several processes, which must write to one directory"),
        (["-m", "seed=1,2"], "torchrun starts the processes of one run, and -m is a sweep"),
    ],
)
def test_what_does_not_fit_the_processes_is_said(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = launch("sample", f"run={ddpm_run}", *words)
    assert refused.status == 1
    assert refused.err.startswith(f"error: {sentence}")
    assert refused.err.count("\n") == 1
    assert not (here / "outputs").exists()


def test_processes_that_cannot_meet_say_so(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "tests"}
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        failed = launch("sample", f"run={ddpm_run}", "n=4", "hydra.run.dir=drawn")
    assert failed.status == 1
    assert failed.err.startswith(
        f"error: the processes of this command cannot meet at 127.0.0.1:{place['MASTER_PORT']} ("
    )
    assert failed.err.count("\n") == 1
    assert "EADDRINUSE" in failed.err


@pytest.mark.parametrize("node", ["", "1"])
def test_other_machines_need_something_that_starts_processes_there(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """A rank that is set by hand makes no run: each process would take itself for the first."""
    if node:
        monkeypatch.setenv("NODE_RANK", node)
    refused = launch("sample", f"run={ddpm_run}", "hardware.nodes=2")
    assert refused.err.startswith("error: hardware.nodes=2 needs something that starts")


# ---------------------------------------------------------------------- as a user types it

TWO = ("hardware=ddp", "hardware.accelerator=cpu")


def script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py")]


@pytest.mark.slow
def test_a_sweep_of_evaluations_starts_the_processes_of_each(here: Path, ddpm_run: Path) -> None:
    words = (f"run={ddpm_run}", *MEASURED[:6], "error_curve=0", "sampler=ddim,heun")
    steps = ("sampler.steps=2", "-m")
    done = subprocess.run(
        [*script("evaluate"), *words, *steps, *TWO, "hydra.sweep.dir=two"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert launch("evaluate", *words, *steps, "hydra.sweep.dir=one").status == 0
    for job in ("sampler=ddim", "sampler=heun"):
        same(values(Path("two", job)), values(Path("one", job)))


@pytest.mark.slow
def test_one_that_is_killed_ends_the_others(here: Path, ddpm_run: Path) -> None:
    words = (f"run={ddpm_run}", "n=100000", "save=folder", "hydra.run.dir=drawn")
    process = subprocess.Popen(
        [*script("sample"), *words, *TWO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(here.glob("drawn/samples/*.png"))) < 600:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(other), signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert err == "error: process 2 of 2 was ended by SIGKILL\n"
    assert read_status(here / "drawn")["status"] == "failed"
