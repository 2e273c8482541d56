"""The learning rate of every step, against closed forms and against PyTorch's schedules alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

from betasigma.modules.learning_rate import after_warmup, constant

BASE, STEPS = 0.5, 30

SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "cosine": partial(torchs.CosineAnnealingLR, T_max=20, eta_min=0.01),
    "restarts": partial(torchs.CosineAnnealingWarmRestarts, T_0=7, T_mult=2),
    "linear": partial(torchs.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=15),
    "step": partial(torchs.StepLR, step_size=6, gamma=0.3),
    "exponential": partial(torchs.ExponentialLR, gamma=0.9),
    "polynomial": partial(torchs.PolynomialLR, total_iters=15, power=2.0),
    "multistep": partial(torchs.MultiStepLR, milestones=[4, 9], gamma=0.5),
}


def optimizer(kind: Any = SGD) -> Optimizer:
    return kind([nn.Parameter(torch.ones(2))], lr=BASE)


def rates(scheduler: LRScheduler, steps: int = STEPS) -> list[float]:
    """Learning rate of each of the next steps."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_constant_is_a_ramp_and_then_the_optimizers_rate() -> None:
    found = rates(constant(optimizer(), 10))
    assert found == [BASE * min(1.0, (k + 1) / 10) for k in range(STEPS)]
    assert rates(constant(optimizer(), 0)) == [BASE] * STEPS


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_begins_where_the_warmup_ends(name: str, warmup: int) -> None:
    found = rates(after_warmup(SCHEDULES[name])(optimizer(), warmup))
    assert found[:warmup] == [BASE * (k + 1) / warmup for k in range(warmup)]
    alone = rates(SCHEDULES[name](optimizer()))
    assert found[warmup:] == pytest.approx(alone[: STEPS - warmup], rel=1e-12)


def test_cosine_is_half_a_period() -> None:
    """Loshchilov & Hutter 2017, equation 5, over 20 steps after 5 of warm-up."""
    found = rates(after_warmup(SCHEDULES["cosine"])(optimizer(), 5), 26)
    for k in range(21):
        expected = 0.01 + (BASE - 0.01) * (1 + math.cos(math.pi * k / 20)) / 2
        assert found[5 + k] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("at", [2, 5, 6, 13])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_continues_from_its_saved_state_to_the_same_bits(name: str, at: int) -> None:
    def begin() -> LRScheduler:
        return after_warmup(SCHEDULES[name])(optimizer(Adam), 5)

    first = begin()
    whole = rates(begin(), STEPS)
    assert rates(first, at) == whole[:at]
    file = io.BytesIO()
    torch.save([first.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)  # plain containers
    second = begin()
    second.load_state_dict(state)
    second.optimizer.load_state_dict(of_optimizer)
    assert rates(second, STEPS - at) == whole[at:]
