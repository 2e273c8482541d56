"""Commands that make room for a process that comes while they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import TINY, launch

from betasigma import cpus, devices


class OneIsBusy:
    """A look at a machine one of whose two CPUs another process uses."""

    def idle(self, passed: float) -> int:
        return 1


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpus.THREADS)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 2)
    monkeypatch.setattr(cpus, "_idle_at_start", [])
    monkeypatch.setattr("betasigma.launch.app.look_for_idle_cpus", lambda: None)
    monkeypatch.setattr(devices, "Look", OneIsBusy)
    monkeypatch.setattr(devices, "LOOK_EVERY", 0)


COMMANDS = {
    "train": (*TINY, "steps=6"),
    "sample": ("n=4", "sampler=ddim", "sampler.steps=4"),
    "evaluate": ("n=8", "sampler=ddim", "sampler.steps=4"),
}


@pytest.mark.parametrize("app", COMMANDS)
def test_a_neighbour_that_comes_later_is_followed(here: Path, ddpm_run: Path, app: str) -> None:
    run = () if app == "train" else (f"run={ddpm_run}",)
    outcome = launch(app, *COMMANDS[app], *run)
    assert outcome.status == 0, outcome.err
    said = outcome.out.splitlines()
    one = "1 of 2 CPUs, since other processes use the rest; hardware.threads=2 takes all"
    assert one not in said
    assert said.count(f"from here on {one}") == 1
    assert torch.get_num_threads() == 1


def test_threads_that_are_given_stay(here: Path, ddpm_run: Path) -> None:
    outcome = launch("sample", *COMMANDS["sample"], f"run={ddpm_run}", "hardware.threads=2")
    assert (outcome.status, torch.get_num_threads()) == (0, 2)
    assert "from here on" not in outcome.out
