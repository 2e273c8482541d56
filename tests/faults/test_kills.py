"""SIGKILL at any moment: nothing is lost or counted twice once the run has gone on."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, forked, launch, status_of

from betasigma.runs.checkpoint import read
from betasigma.runs.header import newest_step
from betasigma.runs.record import Record
from betasigma.runs.status import FINISHED, read_status

WORDS = (
    *TINY,
    "training.accumulate=2",
    "network.dropout=0.1",
    "training.log_every=7",
    "training.checkpoint_every=3",
    "training.validate_every=6",
    "training.sample_every=8",
    "evaluation=default",
    "evaluation.every=9",
    "evaluation.metrics=[fd,neighbours]",
    "evaluation.extractor=identity",
    "evaluation.n=70",
    "evaluation.n_during=70",
)


def rows(run: Path) -> list[tuple[str, ...]]:
    """Every row of metrics.csv in order, without its clocks."""
    found = [tuple(v for k, v in row.items() if k != "time") for row in Record.of(run).rows()]
    timed = "train/images_per_second"
    return [row if timed not in row else (*row[:2], *row[3:]) for row in found]


def child(run: Path, steps: int, before: Callable[[], None] = lambda: None) -> int:
    """Start the run, or continue it, in a process of its own."""
    return forked("train", *WORDS, f"steps={steps}", f"hydra.run.dir={run}", before=before)


def assert_same(run: Path, whole: Path) -> None:
    a, b = (read(path / "checkpoints" / "last.ckpt") for path in (run, whole))
    assert a["global_step"] == b["global_step"]
    for part in ("state_dict", "optimizer_states"):
        one, other = ([t for t in tensors(contents[part])] for contents in (a, b))
        assert len(one) == len(other) > 0
        assert all(map(torch.equal, one, other)), part
    assert rows(run) == rows(whole)
    pictures = [sorted(p.name for p in (path / "samples").iterdir()) for path in (run, whole)]
    assert pictures[0] == pictures[1]
    assert not list(run.rglob("*.partial"))


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for member in inside for tensor in tensors(member)]


def undisturbed(folder: Path, steps: int) -> Path:
    """The run that nothing happens to."""
    run = folder / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = launch("train", *WORDS, f"steps={steps}", f"hydra.run.dir={run}")
    assert outcome.status == 0, outcome.err
    return run


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of as many steps as it takes to come to each moment three times."""
    return undisturbed(tmp_path_factory.mktemp("short"), SHORT)


SHORT = 30

MOMENTS = {
    "validation": ("betasigma.modules.DiffusionModule", "validation_step"),
    "sampling": ("betasigma.training.periodic.SampleGrids", "act"),
    "after sampling": ("betasigma.training.periodic", "log_picture"),
    "evaluation": ("betasigma.commands.measure.Meter", "measure"),
    "record": ("betasigma.runs.record.Record", "append_together"),
    "checkpoint": ("betasigma.runs.checkpoint", "append_header"),
    "rename": ("os", "replace"),
    "summary": ("betasigma.commands.train", "write_json"),
}


def kill_at(place: tuple[str, str], call: int) -> None:
    """SIGKILL this process when a function is called for the nth time."""
    owner_name, name = place
    module, _, last = owner_name.rpartition(".")
    owner = (
        getattr(__import__(module, fromlist=[last]), last)
        if last[:1].isupper()
        else __import__(owner_name, fromlist=[name])
    )
    original, calls = getattr(owner, name), [0]

    def act(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, act)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("call", [1, 3])
def test_a_kill_at_a_chosen_moment(tmp_path: Path, short: Path, moment: str, call: int) -> None:
    os.chdir(tmp_path)
    run = tmp_path / "run"
    status = status_of(child(run, SHORT, lambda: kill_at(MOMENTS[moment], call)))
    killed = status == -signal.SIGKILL
    assert killed or (moment == "summary" and call == 3)
    if killed:
        status = status_of(child(run, SHORT))
    assert status == 0
    assert_same(run, short)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """Of one run, which finishes all the same. Half of them come while it starts, the other half
    after it has got on.
    """
    os.chdir(tmp_path)
    run, seed = tmp_path / "run", int(os.environ.get("BETASIGMA_KILLS", "0"))
    draw, kills, steps = random.Random(seed), 0, []
    while read_status(run).get("status") != FINISHED:
        process, begun = child(run, 60), newest_step(run)
        gets_on = draw.random() < 0.5 or not kills
        done, deadline = 0, time.monotonic() + draw.uniform(0.2, 3.0)
        while not done and kills < 20 and (gets_on or time.monotonic() < deadline):
            done, status = os.waitpid(process, os.WNOHANG)
            time.sleep(0.005)
            if gets_on and newest_step(run) != begun:
                gets_on, deadline = False, time.monotonic() + draw.uniform(0.0, 0.5)
        if kills == 20:
            done, status = os.waitpid(process, 0)
        if done:
            assert os.WEXITSTATUS(status) == 0
            continue
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        kills += 1
        steps.append(newest_step(run))
    print(f"{kills} kills survived, at checkpoints {steps}", file=sys.stderr)
    assert kills >= 5
    assert_same(run, undisturbed(tmp_path, 60))
