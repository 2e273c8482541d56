"""A run directory that holds a run is continued, never begun over, and written by one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launching import TINY, forked, launch, status_of

from betasigma.errors import UserError
from betasigma.runs.checkpoint import read
from betasigma.runs.lock import LOCK, is_held, locked, refuse_locked
from betasigma.runs.record import Record


def in_directory(directory: Path, *words: str) -> tuple[int, str, str]:
    """A run that is told where to write, as a job that a cluster starts again is."""
    outcome = launch("train", *TINY, f"hydra.run.dir={directory}", *words)
    return outcome.status, outcome.out, outcome.err


def rows(run: Path) -> list[tuple[str, str]]:
    """Of training: other tests evaluate the run that they share with these."""
    found = [(row["step"], row["metric"]) for row in Record.of(run).rows()]
    return [row for row in found if not row[1].startswith(("eval/", "sample/"))]


def step(run: Path) -> int:
    return int(read(run / "checkpoints" / "last.ckpt")["global_step"])


def test_a_repeated_command_continues_its_run(here: Path) -> None:
    run = here / "mine"
    assert in_directory(run)[0] == 0
    before = rows(run)
    status, out, _ = in_directory(run, "steps=8")
    assert status == 0
    assert "continuing ddpm" in out
    assert step(run) == 8
    assert len(set(rows(run))) == len(rows(run))
    assert set(before) < set(rows(run))


def test_a_repeated_command_leaves_a_finished_run_alone(copy_of_ddpm_run: Path) -> None:
    last = copy_of_ddpm_run / "checkpoints" / "last.ckpt"
    written = last.stat().st_mtime_ns
    status, out, _ = in_directory(copy_of_ddpm_run)
    assert status == 0
    assert "has ended after 6 steps: nothing to do" in out
    assert last.stat().st_mtime_ns == written


def test_what_a_finished_run_has_measured_outlives_its_checkpoints(copy_of_ddpm_run: Path) -> None:
    """They take most of the space, and are deleted first."""
    before = rows(copy_of_ddpm_run)
    shutil.rmtree(copy_of_ddpm_run / "checkpoints")
    status, _, err = in_directory(copy_of_ddpm_run)
    assert status == 1
    assert "holds a run that has ended and has no checkpoint any more" in err
    assert err.count("\n") == 1
    assert rows(copy_of_ddpm_run) == before


def test_another_run_in_the_directory_is_refused(copy_of_ddpm_run: Path) -> None:
    status, _, err = in_directory(copy_of_ddpm_run, "seed=3")
    assert status == 1
    assert "holds another run (of another seed)" in err
    assert "overwrite=true" in err
    assert err.count("\n") == 1
    assert step(copy_of_ddpm_run) == 6


def test_overwrite_begins_over_and_nothing_of_the_old_run_stays(
    copy_of_ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy_of_ddpm_run / "notes.txt").write_text("mine")
    words = ("seed=3", "steps=4", "overwrite=true")
    status, out, _ = in_directory(copy_of_ddpm_run, *words)
    assert status == 0
    assert "training ddpm" in out
    assert {row[0] for row in rows(copy_of_ddpm_run)} == {"2", "4"}
    assert [p.name for p in (copy_of_ddpm_run / "samples").iterdir()] == ["step_0000004.png"]
    assert (copy_of_ddpm_run / "notes.txt").read_text() == "mine"
    # the same job, started again by SLURM, goes on with what it has begun over
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    status, out, _ = in_directory(copy_of_ddpm_run, *words)
    assert "nothing to do" in out
    assert json.loads((copy_of_ddpm_run / "environment.json").read_text())["resumed_after"] == []


def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = here / "mine"
    assert in_directory(run)[0] == 0
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "summary.json").unlink()
    status, out, _ = in_directory(run)
    assert status == 0
    assert "training ddpm" in out
    assert len(set(rows(run))) == len(rows(run))


@pytest.mark.slow
def test_a_job_of_a_sweep_continues_in_its_own_directory(here: Path) -> None:
    words = (*TINY, "-m", "seed=1,2", "hydra.sweep.dir=sweep")
    assert launch("train", *words).status == 0
    again = launch("train", *words, "steps=8")
    assert again.status == 0, again.err
    for run in (here / "sweep" / "seed=1", here / "sweep" / "seed=2"):
        assert step(run) == 8
        assert len(set(rows(run))) == len(rows(run))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "hydra.run.dir=/proc", *TINY),
        ("train", "-m", "seed=1,2", "hydra.sweep.dir=/proc", *TINY),
        ("sample", "run=RUN", "hydra.run.dir=/proc"),
    ],
)
def test_a_directory_that_nobody_can_write_to_is_refused(
    here: Path, ddpm_run: Path, words: tuple[str, ...]
) -> None:
    refused = launch(*(word.replace("RUN", str(ddpm_run)) for word in words))
    assert re.fullmatch("error: directory /proc cannot be written: [A-Z][a-z ]+\n", refused.err)


def test_a_directory_in_use_is_refused_by_host_process_and_time(
    copy_of_ddpm_run: Path,
) -> None:
    """A lock is another process's, so another process holds it."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom betasigma.runs.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(100)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(copy_of_ddpm_run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = (copy_of_ddpm_run / "status.json").read_text()
        refused = launch("train", f"resume={copy_of_ddpm_run}", "steps=8")
        assert refused.status == 1
        assert f"is in use: process {holder.pid} on {socket.gethostname()}" in refused.err
        assert "since 20" in refused.err
        assert refused.err.count("\n") == 1
        assert (copy_of_ddpm_run / "status.json").read_text() == before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert str(holder.pid) in (copy_of_ddpm_run / LOCK).read_text()  # left behind
        taken_over = launch("train", f"resume={copy_of_ddpm_run}", "steps=8")
        assert taken_over.status == 0, taken_over.err
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_of_two_commands_at_once_one_trains(here: Path, copy_of_ddpm_run: Path) -> None:
    words, said = (f"resume={copy_of_ddpm_run}", "steps=400"), [here / "a.txt", here / "b.txt"]
    both = [forked("train", *words, said=file) for file in said]
    status = [status_of(process) for process in both]
    assert sorted(status) == [0, 1], [file.read_text() for file in said]
    assert "is in use" in said[status.index(1)].read_text()
    assert len(set(rows(copy_of_ddpm_run))) == len(rows(copy_of_ddpm_run))


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    with locked(tmp_path):
        pass


def test_looking_at_a_lock_does_not_let_go_of_it(tmp_path: Path) -> None:
    """As the end of a sweep does, which the sweep still holds: a lock of POSIX ends wherever its
    process closes the file.
    """
    with locked(tmp_path):
        assert not is_held(tmp_path)
        process = os.fork()
        if not process:
            try:
                refuse_locked(tmp_path)
            except UserError:
                os._exit(17)
            os._exit(0)
        assert status_of(process) == 17
