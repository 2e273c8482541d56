"""Sweeps on a cluster: what is refused before anything is submitted, and, where this machine has
SLURM and the scripts that start one, a sweep through it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import OmegaConf

from betasigma.launch.sweeps import Sweep, left_behind, report
from betasigma.runs.record import Record
from betasigma.runs.status import job_number, read_status

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT.parent / "shared" / "slurm"
"""``slurm_up.sh``, ``slurm_down.sh`` and a stand-in for sacct, which needs accounting."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")

TINY = (
    "network.channels=8",
    "network.blocks=1",
    "network.attention=[]",
    "batch_size=16",
    "steps=4",
    "data.val_size=20",
    "training.num_samples=4",
    "sampler.steps=2",
    "logger=none",
)


class Done(NamedTuple):
    status: int
    out: str
    err: str
    folder: Path

    @property
    def jobs(self) -> list[Path]:
        """Run directories of the sweep, by job number."""
        runs = [path.parent for path in self.folder.glob("outputs/*/*/status.json")]
        return sorted(runs, key=job_number)


def train(folder: Path, *words: str, environment: dict[str, str] | None = None) -> Done:
    """``python train.py <words>`` in ``folder``."""
    folder.mkdir(exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "BETASIGMA_CACHE": str(folder / "cache")}
    known = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "HYDRA_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=folder,
        env=known | own | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr, folder)


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
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    done = train(tmp_path, *words, environment={"PATH": str(tmp_path)})
    assert done.status == 1
    assert done.err.startswith(f"error: {sentence}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


class UncompletedJobError(Exception):
    """As submitit names what it knows of a job without a result."""


def test_a_job_that_slurm_lost_is_named(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "running")):
        run = tmp_path / f"{number}_run"
        run.mkdir()
        content = {"status": status, "slurm_job": f"7_{number}"}
        (run / "status.json").write_text(json.dumps(content))
    sweep = Sweep(tmp_path, [["seed=0"], ["seed=1"], ["seed=2"]])
    error = "Job 7_{} (task: 0) with path /x\nhas not produced any output (state: TIMEOUT)"
    started = report(sweep, UncompletedJobError(error.format(1)))
    assert started is not None
    assert f"1 of 3 jobs failed (tracebacks in their error.txt):\n  {tmp_path}/1_run:" in started
    assert "SLURM says TIMEOUT" in started
    assert "1 job not ended yet" in started
    waiting = report(sweep, UncompletedJobError(error.format(2)))
    assert waiting is not None
    assert "job 2 (seed=2): ended without a result" in waiting


def test_who_stops_waiting_is_told_how_to_end_the_jobs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [["seed=0"]])
    assert "0 jobs finished, 0 begun and not finished, 1 never begun" in left_behind(sweep)
    for name in ("12", "12_0", "12_1"):
        (tmp_path / "slurm" / name).mkdir(parents=True)
    assert "scancel 12 ends them" in left_behind(sweep)


# ---------------------------------------------------------------------- through SLURM


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which a one-node SLURM of our own is reached."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed here: no {missing[0]} (apt: slurm-wlm munge)")
    if not (SCRIPTS / "slurm_up.sh").is_file():
        pytest.skip("the scripts that start a one-node SLURM are not here (../shared/slurm)")
    # a short path: a socket's may not be longer than 107 characters
    state = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    ports = [str(port) for port in free_ports(2)]
    try:
        with (state / "up.txt").open("w") as said:
            up = ["bash", str(SCRIPTS / "slurm_up.sh"), str(state), "2", *ports]
            status = subprocess.run(up, stdout=said, stderr=said, timeout=60, check=False)
        assert status.returncode == 0, (state / "up.txt").read_text()
        yield {
            "SLURM_CONF": str(state / "slurm.conf"),
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        }
    finally:
        down = ["bash", str(SCRIPTS / "slurm_down.sh"), str(state)]
        subprocess.run(down, stdout=subprocess.DEVNULL, timeout=60, check=False)
        shutil.rmtree(state, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


HERE = ("cluster=slurm", "cluster.partition=local")


def test_a_sweep_is_four_complete_runs(slurm: dict[str, str], tmp_path: Path) -> None:
    done = train(
        tmp_path,
        "-m",
        "model=ddpm,ncsn",
        "seed=1,2",
        *HERE,
        *TINY,
        "sampler=ddim",
        "evaluation.n=4",
        "evaluation.metrics=[neighbours]",
        environment=slurm,
    )
    assert done.status == 0, done.err
    assert "4 jobs finished" in done.err
    assert [path.name for path in done.jobs] == [
        "model=ddpm,seed=1",
        "model=ddpm,seed=2",
        "model=ncsn,seed=1",
        "model=ncsn,seed=2",
    ]
    assert len(list((tmp_path / "outputs").iterdir())) == 1, "the sweep has one directory"
    extractors = set()
    for run in done.jobs:
        names = {path.name for path in run.iterdir()}
        assert {"metrics.csv", "environment.json", "summary.json", "log.txt", "samples"} <= names
        assert (run / "checkpoints" / "last.ckpt").is_file()
        assert json.loads((run / "status.json").read_text())["status"] == "finished"
        config = OmegaConf.load(run / "config.yaml")
        own = "sigma" if config.model.family == "ncsn" else "beta"
        assert {"sigma", "beta"} & set(config) == {own}
        assert config.schedule._target_.endswith("geometric" if own == "sigma" else "linear")
        extractors.add(config.evaluation.extractor)
    assert len(extractors) == 1
    assert "auto" not in extractors, "decided once, before the sweep was submitted"


def test_a_job_that_raises_says_why_in_its_run_directory(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """The parent names the job and shows no stack."""
    done = train(
        tmp_path,
        "-m",
        *HERE,
        "evaluation=none",
        *TINY,
        "network.channels=4000000",  # more memory than any machine has
        environment=slurm,
    )
    (run,) = done.jobs
    assert done.status == 1
    assert "1 of 1 jobs failed" in done.err
    assert str(run.relative_to(tmp_path)) in done.err
    assert "Traceback" not in done.err
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed"
    assert "allocate" in status["error"]
    trace = (run / "error.txt").read_text()
    assert trace.startswith("Traceback")
    assert "betasigma/networks" in trace


def test_two_tasks_of_a_job_train_together(slurm: dict[str, str], tmp_path: Path) -> None:
    done = train(
        tmp_path,
        "-m",
        *HERE,
        "cluster.cpus=1",
        "hardware=ddp",
        "hardware.accelerator=cpu",
        "evaluation=none",
        *TINY,
        "sampler=ddim",
        environment=slurm,
    )
    assert done.status == 0, done.err
    (run,) = done.jobs
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    outputs = [path.read_text() for path in tmp_path.glob("outputs/*/slurm/*/*_log.out")]
    assert len(outputs) == 2
    assert sum("run directory" in text for text in outputs) == 1


def test_slurm_says_itself_why_it_takes_no_job(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ("cluster=slurm", "cluster.partition=nowhere", "evaluation=none")
    done = train(tmp_path, "-m", *words, environment=slurm)
    assert done.status == 1
    assert "error: SLURM did not take the jobs: invalid partition specified: nowhere" in done.err
    assert "Traceback" not in done.err


def wait_for(what: str, seen: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)


def rows(run: Path) -> list[tuple[str, ...]]:
    """Every row of metrics.csv, except what a clock enters."""
    kept = ("step", "metric", "value")
    found = [tuple(row[key] for key in kept) for row in Record.of(run).rows()]
    return [row for row in found if row[1] != "train/images_per_second"]


def test_a_job_goes_on_after_each_way_of_starting_it_again(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """A warning that its time ends (USR2), and a requeue by somebody else, who just ends it."""
    steps = ("steps=600", "training.log_every=10", "training.checkpoint_every=50")
    words = (*TINY, "sampler=ddim", "evaluation=none", *steps)
    command = [sys.executable, str(ROOT / "train.py"), "-m", *HERE, *words]
    environment = {**os.environ, **slurm, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        parent = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            wait_for("checkpoint", lambda: list(tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")))
            (run,) = (
                path.parents[1] for path in tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")
            )
            job = read_status(run)["slurm_job"]
            for ask in (["scancel", "-s", "USR2", job], ["scontrol", "requeue", job]):
                before, first = len(rows(run)), read_status(run)["process"]
                subprocess.run(ask, env=environment, check=True)
                at_once = [
                    "scontrol",
                    "update",
                    f"jobid={job}",
                    "starttime=now",
                ]  # not in 2 minutes

                def started_again(old: int = first, hurry: list[str] = at_once) -> bool:
                    subprocess.run(hurry, env=environment, capture_output=True, check=False)
                    return bool(read_status(run)["process"] != old)

                wait_for("second start", started_again)
                wait_for("further row", lambda seen=before: len(rows(run)) > seen)
            assert parent.wait(timeout=200) == 0, (tmp_path / "said.txt").read_text()
        finally:
            parent.kill()
            parent.wait()
    assert read_status(run)["status"] == "finished"
    found = rows(run)
    assert len({row[:2] for row in found}) == len(found)
    whole = train(tmp_path / "whole", *words, environment={"OMP_NUM_THREADS": "1"})
    assert whole.status == 0, whole.err
    (alone,) = (tmp_path / "whole" / "outputs").iterdir()
    assert found == rows(alone)
