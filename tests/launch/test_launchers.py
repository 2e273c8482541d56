"""Jobs in other processes than that of the command, as each launcher starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import TINY
from omegaconf import DictConfig

from betasigma import cpus
from betasigma.launch.app import app
from betasigma.runs.start import Start

JOB = """
import json, os, sys
from betasigma import cpus
from betasigma.launch.app import app

@app("train")
def main(config, start):
    told = [name for name in os.environ if name.startswith(("GOMP_", "OMP_WAIT"))]
    found = [os.getpid(), cpus._idle_at_start, "OMP_NUM_THREADS" in os.environ, told]
    (start.directory / "found").write_text(json.dumps(found))

if __name__ == "__main__":
    cpus._idle_at_start.append(77)  # what this process has found
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local",)], ids="".join
)
def test_a_job_looks_itself_at_its_machine(here: Path, launcher: tuple[str, ...]) -> None:
    """And takes over nothing that the command has found on its own."""
    (here / "job.py").write_text(JOB)
    words = (f"hydra/launcher={launcher[0]}", *launcher[1:], "hydra.sweep.dir=sweep")
    with subprocess.Popen(
        [sys.executable, "job.py", "-m", *TINY, *words],
        env={k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_", "MKL_"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        said, _ = command.communicate(timeout=200)
    found = next((here / "sweep").glob("*/found"), None)
    assert found is not None, said
    process, idle, has_threads, told = json.loads(found.read_text())
    assert process != command.pid
    assert idle != [77]
    assert has_threads == (launcher[0] == "joblib")  # which shares the CPUs out itself
    assert len(idle) == (0 if has_threads else 1)
    assert told == []


def test_each_job_of_a_sweep_in_one_process_looks_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that was busy for a moment does not slow the jobs of the next hours."""
    for name in cpus.THREADS_OF_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpus, "_idle_at_start", [])
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 8)
    looks = iter([1, 8, 3])
    monkeypatch.setattr(cpus, "_idle_cpus", lambda root: next(looks))
    found: list[int] = []

    @app("train")
    def main(config: DictConfig, start: Start) -> None:
        found.append(cpus.idle_cpus())

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *TINY, "seed=1,2,3"])
    main()
    assert found == [1, 8, 3]
