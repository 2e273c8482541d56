"""Jobs in other processes than that of the command, as each launcher starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import TINY

JOB = """
import json, os, sys
from betasigma import cpus
from betasigma.launch.app import app

@app("train")
def main(config, start):
    told = [name for name in os.environ if name.startswith(("GOMP_", "OMP_WAIT"))]
    (start.directory / "found").write_text(json.dumps([os.getpid(), cpus._idle_at_start, told]))

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
        env={k: v for k, v in os.environ.items() if not k.startswith("GOMP_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        said, _ = command.communicate(timeout=200)
    found = next((here / "sweep").glob("*/found"), None)
    assert found is not None, said
    process, idle, told = json.loads(found.read_text())
    assert process != command.pid
    assert idle != [77]
    assert len(idle) == 1
    assert told == []
