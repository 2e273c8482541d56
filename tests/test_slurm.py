"""Sweeps on a cluster: what is refused before anything is submitted, and sweeps through a SLURM of
one node, which the tests bring up where its packages are installed.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from launching import ROOT, TINY, Outcome, launch, typed
from slurm_node import missing_program, slurm_here

from betasigma.runs.checkpoint import read
from betasigma.runs.job_states import JobState, read_jobs
from betasigma.runs.record import Record
from betasigma.runs.status import read_status
from betasigma.runs.sweep_record import read_sweep


def train(folder: Path, *words: str, environment: dict[str, str] | None = None) -> Outcome:
    """``python train.py <words>`` in ``folder``."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA_")}
    return typed(*words, cwd=folder, env=known | (environment or {}), timeout=240)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["cluster=slurm"],
            "cluster=slurm submits the jobs of a sweep: add -m",
        ),
        (
            ["-m", "cluster=slurm", "cluster.tasks=2", "hardware.devices=1"],
            "cluster.tasks=2 does not fit hardware.devices=1",
        ),
        (
            ["-m", "cluster=slurm", "hardware=gpu"],
            "hardware.accelerator=gpu needs GPUs on the nodes: give cluster.gpus=1",
        ),
        (
            ["-m", "cluster=slurm", "hardware=ddp", "hardware.devices=4", "cluster.gpus=2"],
            "hardware.devices=4 needs as many GPUs per node",
        ),
        (
            ["-m", "cluster=slurm", "cluster.gpus=3"],
            "batch_size=128 cannot be divided",
        ),
        (
            ["-m", "cluster=slurm", "hardware=ddp,auto"],
            "cluster.tasks would be 2 for one job of this sweep and 1 for another",
        ),
        (
            ["-m", "cluster=slurm", "cluster.minutes=soon"],
            "cluster.minutes=soon must be a valid integer",
        ),
        (
            ["-m", "cluster=slurm", "cluster.minutes=2"],
            "cluster.minutes=2 is no longer than the 120 s before its end",
        ),
        (
            ["-m", "cluster=slurm", "model=ncsn", "sigma.levels=10,0"],
            "sigma.levels=0 must be at least 1",
        ),
        (
            ["-m", "cluster=slurm"],
            "cluster=slurm needs SLURM's commands, and sbatch is not on the PATH",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_submitted(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.setenv("PATH", str(here))
    done = launch("train", *words)
    assert done.status == 1
    assert done.err.startswith(f"error: {sentence}")
    assert done.err.count("\n") == 1
    assert not (here / "outputs").exists()


# ---------------------------------------------------------------------- through SLURM

HERE = ("cluster=slurm", "cluster.partition=local", "cluster.cpus=1")

LONG = (
    "steps=300",
    "training.log_every=10",
    "training.checkpoint_every=20",
    "training.validate_every=1000",
    "training.sample_every=1000",
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which a SLURM of one node is reached."""
    if lacks := missing_program():
        pytest.skip(f"SLURM is not installed here: no {lacks} (apt-get install slurm-wlm munge)")
    with slurm_here() as environment, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


def wait_for(what: str, seen: Callable[[], object], seconds: float = 300) -> None:
    """Wait, and have SLURM start at once what it would start in two minutes."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"no {what}"
        said = ask("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines()
        for line in said:
            if line.endswith("BeginTime"):
                ask("scontrol", "update", f"jobid={line.split()[0]}", "starttime=now")
        time.sleep(0.3)


def ask(*command: str) -> str:
    """What a command of SLURM says."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def states(sweep: Path) -> dict[str, JobState]:
    """Jobs by the names of their directories."""
    return {job.directory.name: job for job in read_jobs(sweep)}


def rows(run: Path) -> list[tuple[str, ...]]:
    """Every row of metrics.csv, except what a clock enters."""
    kept = ("step", "metric", "value")
    found = [tuple(row[key] for key in kept) for row in Record.of(run).rows()]
    return [row for row in found if row[1] != "train/images_per_second"]


def the_sweep(folder: Path, parent: subprocess.Popen[bytes] | None = None) -> Path:
    """The only sweep below ``folder``, once it has a record."""

    def is_there() -> bool:
        assert parent is None or parent.poll() is None, (folder / "said.txt").read_text()
        return bool(list(folder.glob("outputs/*/sweep.json")))

    wait_for("sweep", is_there)
    (record,) = folder.glob("outputs/*/sweep.json")
    return record.parent


@pytest.mark.slurm
def test_what_the_cluster_lacks_is_said_at_once(slurm: dict[str, str], here: Path) -> None:
    for words, sentence in (
        (
            ["cluster.partition=nowhere"],
            "cluster.partition=nowhere is no partition of this cluster, which has local, urgent",
        ),
        (
            ["cluster.partition=urgent", "cluster.minutes=61"],
            "cluster.minutes=61 is above the 60 minutes that partition urgent lets a job run",
        ),
        (
            ["hydra.sweep.dir=100%"],
            f"cluster=slurm would write its logs below {here.resolve()}/100%, and SLURM takes no %",
        ),
    ):
        refused = launch("train", "-m", *TINY, "cluster=slurm", *words)
        assert refused.status == 1
        assert refused.err.startswith(f"error: {sentence}")
        assert refused.err.count("\n") == 1
    assert not (here / "outputs").exists()


@pytest.mark.slurm
def test_a_dry_run_says_what_would_be_submitted(slurm: dict[str, str], here: Path) -> None:
    on_four = ("hardware.devices=2", "hardware.nodes=2", "hardware.strategy=ddp")
    asked = ("cluster.minutes=90", "cluster.memory_gb=2", "cluster.dry_run=true")
    done = launch("train", "-m", *TINY, *HERE, *on_four, *asked, "seed=1,2", "ema.decay=0.5,0.9")
    assert done.status == 0, done.err
    for option in (
        *("nodes=2", "ntasks-per-node=2", "cpus-per-task=1", "partition=local"),
        *("time=90", "mem=2GB", "array=0-3%4"),
    ):
        assert f"#SBATCH --{option}\n" in done.out
    for seed in (1, 2):
        for decay in ("0.5", "0.9"):
            assert f"job seed={seed},ema.decay={decay}\n" in done.out
    assert "nothing was submitted" in done.out
    assert ask("squeue", "-h") == ""
    assert not (here / "outputs").exists()


@pytest.mark.slurm
def test_a_sweep_ends_with_its_table_whatever_its_jobs_do(
    slurm: dict[str, str], here: Path
) -> None:
    """Two jobs raise, one is killed, one finishes: the command waits for all, and what is left is
    done on another launcher.
    """
    sizes = "network.channels=65536,8"  # the first is more memory than this machine has
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *LONG, *HERE, sizes, "seed=1,2"]
    with (here / "said.txt").open("w") as said:
        parent = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        sweep = the_sweep(here, parent)
        killed, alone = (sweep / f"network.channels=8,seed={seed}" for seed in (1, 2))
        wait_for("checkpoint", lambda: list((killed / "checkpoints").glob("last.ckpt")))
        os.kill(read_status(killed)["process"], signal.SIGKILL)
        status = parent.wait(timeout=400)
    finally:
        parent.kill()
        parent.wait()
    out = (here / "said.txt").read_text()
    assert status == 1, out
    assert "#SBATCH --partition=local" in out
    assert "3 failed, 1 finished" in out
    assert "3 of 4 jobs failed" in out
    assert "Traceback" not in out
    found = states(sweep)
    assert found[killed.name].error.startswith("ended without saying why")
    for seed in (1, 2):
        raised = found[f"network.channels=65536,seed={seed}"]
        assert (raised.state, raised.slurm[-2:]) == ("failed", f"_{seed - 1}")
        assert "allocate" in raised.error
        assert "betasigma/networks" in (raised.directory / "error.txt").read_text()
    assert found[alone.name].state == "finished"
    assert found[alone.name].step == 300
    assert found[alone.name].node

    code = (read_sweep(sweep) or pytest.fail("no record")).code or {}
    environment = json.loads((alone / "environment.json").read_text())
    assert code["from"] == "snapshot"
    assert environment["git"].get("commit") == code.get("commit")
    assert environment["code"] == code["path"] == str(sweep.resolve() / "code" / code["digest"])

    before = (alone / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    words = ("-m", f"resume={sweep.relative_to(here)}", "cluster=none", "network.channels=8")
    again = launch("train", *words)
    assert again.status == 0, again.err
    assert "3 jobs to do; left alone: 1 finished" in again.out
    assert [job.state for job in read_jobs(sweep)] == ["finished"] * 4
    assert (alone / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    assert json.loads((killed / "environment.json").read_text())["resumed_after"]
    assert rows(killed) != rows(alone)
    assert rows(killed) == rows(sweep / "network.channels=65536,seed=1")
    assert len(list(csv.reader((sweep / "summary.csv").open()))) == 2


@pytest.mark.slurm
def test_a_sweep_survives_its_parent_warnings_preemption_and_a_cancelled_job(
    slurm: dict[str, str], here: Path
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *LONG, *HERE, "seed=1,2,3"]
    with (here / "said.txt").open("w") as said:
        parent = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        sweep = the_sweep(here, parent)
        runs = [sweep / f"seed={seed}" for seed in (1, 2, 3)]

        def has_begun(number: int) -> bool:
            return (runs[number] / "checkpoints" / "last.ckpt").is_file()

        wait_for("checkpoints", lambda: has_begun(0) and has_begun(1))
    finally:
        parent.kill()
        parent.wait()
    assert [job.state for job in read_jobs(sweep)] == ["running", "running", "queued"]
    first, second, _ = (job.slurm for job in read_jobs(sweep))
    ask("scancel", "-s", "USR2", first)  # as before the end of its time
    ask("scancel", second)
    wait_for("warned job", lambda: states(sweep)["seed=1"].state == "preempted")
    wait_for("cancelled job", lambda: states(sweep)["seed=2"].state == "stopped")
    wait_for("third job", lambda: has_begun(2))
    wait_for("restart", lambda: states(sweep)["seed=1"].state in ("running", "finished"))
    # SLURM ends both for a job that is more urgent
    ask("sbatch", "-p", "urgent", "-c", "2", "-t", "5", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for("preemption", lambda: states(sweep)["seed=3"].state == "preempted")
    left = ("seed=1", "seed=3")
    wait_for("end", lambda: all(states(sweep)[name].state == "finished" for name in left))

    shown = launch("jobs", str(sweep), "watch=true", "every=1", "conclude=true")
    assert shown.status == 1
    assert "2 finished, 1 stopped" in shown.out
    assert "1 of 3 jobs failed" in shown.err
    assert (sweep / "summary.csv").is_file()

    again = launch("train", "-m", f"resume={sweep.relative_to(here)}")
    assert again.status == 0, again.err
    assert "1 job to do; left alone: 2 finished" in again.out
    assert "#SBATCH --cpus-per-task=1" in again.out  # it goes on where it ran before
    assert launch("jobs", str(sweep), "conclude=true").status == 0

    whole = launch("train", "-m", *TINY, *LONG, "seed=1,2,3", "hydra.sweep.dir=whole")
    assert whole.status == 0, whole.err
    for run in runs:
        found = rows(run)
        assert len({row[:2] for row in found}) == len(found)
        assert found == rows(here / "whole" / run.name)


@pytest.mark.slurm
def test_two_tasks_of_a_job_train_together(slurm: dict[str, str], here: Path) -> None:
    done = launch("train", "-m", *TINY, *HERE, "hardware=ddp", "hardware.accelerator=cpu")
    assert done.status == 0, done.err
    sweep = the_sweep(here)
    (job,) = read_jobs(sweep)
    assert (job.state, job.step) == ("finished", 6)
    outputs = [path.read_text() for path in sweep.glob("slurm/*/*_log.out")]
    assert len(outputs) == 2
    assert sum("run directory" in text for text in outputs) == 1


@pytest.mark.slurm
def test_two_nodes_train_together(
    slurm: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a daemon of its own, on this machine."""
    with slurm_here(nodes=2) as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        both = ("hardware.nodes=2", "hardware.strategy=ddp", "hardware.accelerator=cpu")
        done = launch("train", "-m", *TINY, *HERE, *both)
        assert done.status == 0, done.err
        (job,) = read_jobs(the_sweep(here))
    assert (job.state, job.step) == ("finished", 6)
    assert launch("train", *TINY, "hardware=cpu", "hydra.run.dir=one").status == 0
    shared, alone = (
        read(run / "checkpoints" / "last.ckpt")["state_dict"]
        for run in (job.directory, Path("one"))
    )
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slurm
def test_two_tasks_of_srun_draw_together(slurm: dict[str, str], here: Path, ddpm_run: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "sample.py"), f"run={ddpm_run}", "save=folder"]
    one = ("n=48", "batch_size=16", "hardware.precision=32")
    done = subprocess.run(
        [
            *("srun", "--ntasks=2", "--cpus-per-task=1", "--kill-on-bad-exit"),
            *(*script, *one, "out=two", "hydra.run.dir=drawn"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images two") == 1
    assert launch("sample", *script[2:], *one, "out=one").status == 0
    found = {path.name: path.read_bytes() for path in Path("two").glob("*.png")}
    assert len(found) == 48
    assert found == {path.name: path.read_bytes() for path in Path("one").glob("*.png")}


@pytest.mark.slurm
def test_jobs_do_not_start_on_code_that_has_changed(
    slurm: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the clone were edited between submission and start: the digest is of other code."""
    monkeypatch.setattr("betasigma.launch.snapshot.digest_of_code", lambda: "other")
    done = launch("train", "-m", *TINY, *HERE, "cluster.code=unchanged")
    assert done.status == 1
    assert "the code has changed since this sweep was submitted" in done.err
