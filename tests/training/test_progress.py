"""What a run will take is said once its first steps have shown it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from betasigma.training import steps
from betasigma.training.progress import MEASURED, Estimate


class Lines:
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("begun", [0, 600])
def test_the_estimate_is_the_time_of_a_step_without_the_first_and_validation(
    monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    now = 50.0
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now)
    display, cpu = Lines(), torch.device("cpu")
    trainer: Any = SimpleNamespace(global_step=begun, strategy=SimpleNamespace(root_device=cpu))
    module: Any = SimpleNamespace(device=cpu)
    estimate = Estimate(display, batch_size=32, total=begun + 1000)  # type: ignore[arg-type]
    estimate.on_train_start(trainer, module)
    now += 90.0  # the first step, which compiles
    for step in range(begun + 1, begun + 20):
        estimate.on_step(trainer, module, step)
        if step == begun + 2:
            estimate.on_validation_start(trainer, module)
            now += 300.0
            estimate.on_validation_end(trainer, module)
        now += 2.0
    left = 1000 - 1 - MEASURED
    minutes, seconds = divmod(2 * left, 60)
    (line,) = display.lines
    assert line.startswith(f"{left} more steps will take about 0:{minutes}:{seconds:02d}, at 16 im")


def test_a_short_run_is_not_estimated() -> None:
    display = Lines()
    estimate = Estimate(display, batch_size=32, total=20)  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(global_step=0)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    estimate.on_train_start(trainer, module)
    for step in range(1, 21):
        estimate.on_step(trainer, module, step)
    assert display.lines == []
