"""What a training says as it runs: how long it will take, loss and speed, what validation found."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import Finished, Launch

from betasigma.display import ASCII, WIDEST_CURVE, sparkline
from betasigma.runs.files import read_json
from betasigma.training import progress, steps
from betasigma.training.progress import (
    MEASURED,
    Forecast,
    Metrics,
    ShowProgress,
    Work,
)
from betasigma.training.steps import EVALUATION, VALIDATION, Stopwatch

CPU = torch.device("cpu")


class Lines:
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def forecast(total: int, works: dict[str, Work] | None = None, **more: Any) -> Forecast:
    return Forecast(Stopwatch(), 32, total, lambda: works or {}, **more)


def test_the_speed_is_shown_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passed before training began is no part of it."""
    now, shown = 50.0, list[str]()
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now)
    display: Any = SimpleNamespace(
        work=lambda *_: nullcontext(lambda step, note, left: shown.append(note))
    )
    watch, trainer = Stopwatch(), SimpleNamespace(global_step=0, is_global_zero=True)
    module: Any = SimpleNamespace(recent_objective=lambda: 1.0, device=CPU)
    rest = Forecast(watch, 32, 100, dict)
    show = ShowProgress(display, rest, SimpleNamespace(best=1.0))  # type: ignore[arg-type]
    now += 10.0
    for callback in (show, Metrics(rest, 50, None)):  # type: ignore[arg-type]
        callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    show.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    now += 2.0
    show.on_step(trainer, module, 1)  # type: ignore[arg-type]
    assert shown == ["objective 1.0000  16 images/s"]


@pytest.mark.parametrize("begun", [0, 600])
def test_the_estimate_is_the_time_of_a_step_without_the_first_and_validation(
    monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    now = 50.0
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now)
    display, total = Lines(), begun + 1000
    trainer: Any = SimpleNamespace(
        global_step=begun, strategy=SimpleNamespace(root_device=CPU), is_global_zero=False
    )
    module: Any = SimpleNamespace(device=CPU)
    rest = forecast(total, {EVALUATION: Work(after=3 * 32 * 15)})
    show = ShowProgress(display, rest, SimpleNamespace(best=1.0))  # type: ignore[arg-type]
    metrics = Metrics(rest, 50, None)  # type: ignore[arg-type]
    for callback in (show, metrics):
        callback.on_train_start(trainer, module)
    now += 90.0  # the first step, which compiles
    for step in range(begun + 1, begun + 20):
        show.on_step(trainer, module, step)
        if step == begun + 2:
            metrics.on_validation_start(trainer, module)
            now += 300.0
            metrics.on_validation_end(trainer, module)
        now += 2.0
    left = 1000 - 1 - MEASURED
    minutes, seconds = divmod(2 * left, 60)
    (line,) = display.lines
    assert line.startswith(f"{left} more steps will take about 0:{minutes}:{seconds:02d}, at 16 im")
    assert line.endswith("validation, samples and evaluation about 0:00:30 more")


def test_a_short_run_is_not_estimated() -> None:
    display = Lines()
    show = ShowProgress(display, forecast(20), SimpleNamespace(best=1.0))  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=False)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    show.on_train_start(trainer, module)
    for step in range(1, 21):
        show.on_step(trainer, module, step)
    assert display.lines == []


def test_work_is_counted_between_steps() -> None:
    at_last, not_at_last = Work(7.0, 100, with_last=True), Work(7.0, 100, after=5.0)
    assert at_last.between(0, 300, 300) == 21.0
    assert not_at_last.between(0, 300, 300) == 14.0
    assert at_last.between(100, 299, 300) == 7.0
    assert Work(after=5.0).between(0, 300, 300) == 0.0


def test_what_is_left_is_what_it_took_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(steps.time, "perf_counter", lambda: now)
    watch = Stopwatch()
    works = {VALIDATION: Work(960.0, 100, with_last=True), EVALUATION: Work(after=9600.0)}
    rest = Forecast(watch, 32, 300, lambda: works)
    rest.begin(0)
    # 96 evaluations a step: a validation counts as 10 steps, the evaluation as 100
    assert rest.seconds(0, 2.0) == 2 * (300 + 3 * 10 + 100)
    with watch.pause(CPU, VALIDATION):
        now += 50.0
    assert rest.seconds(100, 2.0) == 2 * 200 + 2 * 50 + 2 * 100
    assert rest.seconds(300, 2.0) == 2 * 100


def test_a_budget_of_time_limits_the_training_and_not_what_follows() -> None:
    rest = forecast(10**6, {EVALUATION: Work(after=9600.0)}, budget=lambda: 30.0)
    rest.begin(0)
    assert rest.seconds(5, 2.0) == 30.0 + 200.0


def test_a_log_file_has_few_plain_lines(ddpm: Finished) -> None:
    lines = ddpm.out.splitlines()
    assert lines[0].startswith("will train ddpm on digits: 6 steps of 16, then a grid of samples")
    assert len(lines) < 40
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", ddpm.out)
    (validated,) = [line for line in lines if line.startswith("step 6: val/denoising_error ")]
    assert validated.endswith("the best so far")
    (spent,) = [line for line in lines if line.startswith("time ")]
    assert {"training", "validation", "sampling", "saving"} <= set(
        re.findall(r"[a-z]+(?= \d)", spent)
    )
    (curve,) = [line for line in lines if line.startswith("train/objective ")]
    assert re.search(r" [▁▂▃▄▅▆▇█]{3} .* at step 2, .* at step 6, least ", curve)
    seconds = read_json(ddpm.run / "summary.json")["seconds"]
    assert sum(seconds.values()) > 0
    assert seconds["training"] > 0


def test_a_terminal_shows_loss_speed_and_validation_from_the_first_on(
    train: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes what it writes to for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(progress, "REFRESHED", 0.0)
    out = train("training.log_every=6", "training.validate_every=2", "data.val_size=64").out
    seen = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split("[\r\n]", out)]
    steps = [part for part in seen if part.startswith("training ")]
    assert any(
        re.search(r" [1-5]/6 +objective \d\.\d+ +\d+ images/s +0:\d\d:\d\d left", s) for s in steps
    )
    assert any(re.match(r"validating .*\d+ %", part) for part in seen)
    told = [part for part in seen if part.startswith("step ")]
    assert [part.split(":")[0] for part in told] == ["step 2", "step 4", "step 6"]


def test_a_sparkline_shows_the_course_of_a_curve() -> None:
    assert sparkline([1000.0, 100.0, 10.0, 1.0]) == "█▆▃▁", "by the logarithm"
    assert sparkline([-7.0, 0.0]) == "▁█"
    assert sparkline([2.0, math.nan, 1.0]) == "█ ▁"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert len(sparkline([float(n) for n in range(1, 1000)])) == WIDEST_CURVE
    assert set(sparkline([3.0, 1.0], ASCII)) <= set(ASCII)
