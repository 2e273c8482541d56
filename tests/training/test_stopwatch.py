"""Seconds of training, without what interrupts it."""

from __future__ import annotations

import pytest
import torch

from betasigma.training import steps
from betasigma.training.steps import Stopwatch


def test_a_lap_is_the_time_since_the_last_one_without_the_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now)
    watch = Stopwatch()
    now += 2.0
    for seconds in (30.0, 5.0):
        with watch.pause(torch.device("cpu"), "sampling"):
            now += seconds
        now += 1.0
    assert watch.lap() == 4.0
    now += 3.0
    assert watch.lap() == 3.0
    assert watch.lap() == 0.0
    now += 0.5
    assert watch.seconds == 7.5
    assert watch.shares() == {"sampling": 35.0, "training": 7.0, "the rest": 0.5}
