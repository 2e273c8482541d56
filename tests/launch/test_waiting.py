"""Threads spin on a machine that is quiet when a command starts, and sleep on one that is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from betasigma.launch import waiting
from betasigma.launch.waiting import BUSY, QUIET, SPIN_COUNT, USERS_OWN, choose_waiting


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    for name in USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(waiting, "usable_cpus", lambda: 2)


def machine(root: Path, monkeypatch: pytest.MonkeyPatch, *shares: float) -> Path:
    """A machine whose CPUs are idle for these shares of the time."""
    (root / "proc").mkdir()
    ticks = 100 * waiting.LOOK_SECONDS

    def write(idle: list[float]) -> None:
        lines = [f"cpu{i} 7 0 5 {1000 + round(own)} 3 0 0 0 0 0" for i, own in enumerate(idle)]
        (root / "proc/stat").write_text("\n".join(["cpu 9 9 9 9 9", *lines, "intr 5"]))

    write([0] * len(shares))
    monkeypatch.setattr(time, "sleep", lambda s: write([share * ticks for share in shares]))
    return root


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        ((1, 1, 1, 1), QUIET),
        ((0.9, 0, 0, 0.8), QUIET),  # the others are not for this process
        ((1, 1, 1, 0), BUSY),
        ((0.6, 1, 1, 0.6), BUSY),
        ((0, 1, 1, 0), BUSY),
    ],
)
def test_it_looks_at_the_cpus_that_the_process_may_use(tmp_path, monkeypatch, idle, expected):
    choose_waiting(machine(tmp_path, monkeypatch, *idle))
    assert os.environ.pop(SPIN_COUNT) == str(expected)


def test_of_an_unknown_system_it_thinks_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda s: None)
    choose_waiting(tmp_path)
    assert os.environ.pop(SPIN_COUNT) == str(QUIET)


@pytest.mark.parametrize("name", USERS_OWN)
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "own")
    choose_waiting()
    assert {n: os.environ.get(n) for n in USERS_OWN} == {n: None for n in USERS_OWN} | {name: "own"}
