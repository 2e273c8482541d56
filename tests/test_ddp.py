"""Two processes do what one does: randomness is addressed by an example's place in the step's
batch, so that sharing the batch changes nothing but the order of sums.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from launching import Outcome, launch, together, typed

from betasigma.runs.checkpoint import read
from betasigma.runs.record import Record

ROOT = Path(__file__).resolve().parents[1]

TINY = (
    "network.channels=8",
    "network.blocks=1",
    "network.attention=[]",
    "batch_size=64",
    "hardware.precision=32",
    "training.validate_every=4",
    "training.log_every=2",
    "training.sample_every=4",
    "training.num_samples=4",
    "training.warmup=2",
    "ema.decay=0.5",
    "sampler=ddim",
    "sampler.steps=2",
    "data.val_size=50",
    "evaluation.extractor=identity",
    "evaluation.n=80",
    "logger=none",
)
TWO = ("hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2")
SELDOM = ("training.validate_every=100000", "training.sample_every=100000")
STEPS = 8


class Done(NamedTuple):
    folder: Path
    out: str


class Two(NamedTuple):
    run: Path
    first: Outcome
    second: Outcome


def train(folder: Path, *words: str) -> Done:
    """``python train.py <words>`` in a folder of its own."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BETASIGMA_CACHE": str(folder / "cache")}
    done = typed(*words, *TINY, cwd=folder, env=environment)
    assert done.status == 0, done.out + done.err
    return Done(folder, done.out)


def jobs(folder: Path) -> list[Path]:
    """Run directories of the sweep below ``folder``."""
    return sorted(path for path in folder.glob("outputs/*/*") if path.is_dir())


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, this one."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BETASIGMA_CACHE", str(folder / "cache"))
        outcome = launch("train", *TINY, "hardware=cpu", f"steps={STEPS}")
        assert outcome.status == 0, outcome.err
        return outcome.run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The same run in two processes, which a launcher such as torchrun has started."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BETASIGMA_CACHE", str(folder / "cache"))
        words = ("train", *TWO, f"steps={STEPS}", *TINY, "hydra.run.dir=run")
        (first,), (second,) = together(words)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    return Two(folder / "run", first, second)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Half of that run, after another one in the same sweep, in two processes each."""
    return train(tmp_path_factory.mktemp("sweep"), "-m", "seed=1,0", f"steps={STEPS // 2}", *TWO)


@pytest.mark.slow
def test_a_sweep_of_two_processes_each_is_one_directory_per_job(sweep: Done) -> None:
    """The others of a job are started by running its command again, which must not be the
    sweep's.
    """
    assert [path.name for path in jobs(sweep.folder)] == [
        "seed=0",
        "seed=1",
    ]
    assert len(list((sweep.folder / "outputs").iterdir())) == 1
    for run in jobs(sweep.folder):
        assert json.loads((run / "status.json").read_text())["status"] == "finished"
        assert not list(run.glob("error*"))


@pytest.mark.slow
def test_a_run_continues_in_two_processes_where_the_sweep_left_it(one: Path, sweep: Done) -> None:
    run = next(path for path in jobs(sweep.folder) if path.name.endswith("seed=0"))
    out = train(sweep.folder, f"resume={run}", f"steps={STEPS}").out
    assert len(re.findall("^continuing", out, re.MULTILINE)) == 1
    check_first_speaks_and_writes(run, out)
    check_weights(one, run)


def test_only_the_first_process_speaks_and_writes(two: Two) -> None:
    check_first_speaks_and_writes(two.run, two.first.out)
    assert (two.second.out, two.second.err) == ("", "")


def check_first_speaks_and_writes(run: Path, out: str) -> None:
    assert len(re.findall("^run directory", out, re.MULTILINE)) == 1
    rows = Record(run / "metrics.csv").rows()
    places = [(row["step"], row["metric"]) for row in rows]
    assert len(places) == len(set(places))


def test_two_processes_reach_the_weights_of_one(one: Path, two: Two) -> None:
    check_weights(one, two.run)


def check_weights(one: Path, two: Two) -> None:
    alone = read(one / "checkpoints" / "last.ckpt")["state_dict"]
    shared = read(two / "checkpoints" / "last.ckpt")["state_dict"]
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_measure_what_one_measures(one: Path, two: Two) -> None:
    """Losses, validation and the evaluation's metrics, of samples that both have drawn."""
    alone, shared = (
        {row["metric"]: float(row["value"]) for row in Record(run / "metrics.csv").rows()}
        for run in (one, two.run)
    )
    assert alone.keys() == shared.keys()
    assert {"train/objective", "val/fd_identity", "val/kid_identity"} <= alone.keys()
    timing = "train/images_per_second"
    for name in alone.keys() - {timing}:
        assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
def test_torchrun_starts_a_run_that_does_not_know_it(one: Path, tmp_path: Path) -> None:
    words = [*TWO, f"steps={STEPS}", *TINY]
    command = ["torchrun", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BETASIGMA_CACHE": str(tmp_path / "cache")}

    def started(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    refused = started()
    assert "torchrun starts several processes, which must write to one directory" in refused.stderr
    assert refused.returncode != 0
    assert not (tmp_path / "outputs").exists()
    done = started("hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory") == 1
    check_weights(one, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_processes_at_one_step_and_saves_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM is sent to the first one alone: the other must not wait for it, nor be left behind.
    Ctrl-C in a terminal reaches both.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *TINY, *TWO, "steps=100000", *SELDOM],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("outputs/*/metrics.csv")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, _ = process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, out
    (run,) = (tmp_path / "outputs").iterdir()
    step = read(run / "checkpoints" / "last.ckpt")["betasigma"]["step"]
    assert step >= 2
    assert f"the last checkpoint is of step {step}" in out
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "interrupted"
    assert status["error"] == ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
    assert not list(run.glob("error*"))
