"""The average of the weights, against its own definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from betasigma.modules.averaging import averaged_copy, ramped_decay, update_average


def model(value: float) -> nn.Module:
    linear = nn.Linear(2, 1)
    nn.init.constant_(linear.weight, value)
    nn.init.constant_(linear.bias, -value)
    linear.register_buffer("seen", torch.tensor(value))
    return linear


def test_the_decay_rises_to_the_published_one() -> None:
    decays = [ramped_decay(0.9999, k) for k in range(100_000)]
    assert decays[0] == pytest.approx(1 / 10)
    assert decays[90] == pytest.approx(91 / 100)
    assert decays == sorted(decays)
    assert decays[-1] == 0.9999
    assert max(ramped_decay(0.5, k) for k in range(100)) == 0.5
    assert ramped_decay(0.0, 1000) == 0.0


def test_a_short_run_hardly_remembers_where_it_began() -> None:
    average, trained = averaged_copy(model(0.0)), model(1.0)
    for k in range(1, 201):
        update_average(average, trained, ramped_decay(0.9999, k))
    assert float(average.weight.min()) > 0.999  # type: ignore[union-attr, operator]


def test_one_update() -> None:
    average, trained = averaged_copy(model(1.0)), model(2.0)
    update_average(average, trained, 0.75)
    torch.testing.assert_close(average.weight, torch.full((1, 2), 0.75 * 1 + 0.25 * 2))
    torch.testing.assert_close(average.bias, torch.full((1,), -1.25))
    assert float(average.seen) == 2.0
    update_average(average, trained, 0.0)
    assert torch.equal(average.weight, trained.weight)


def test_the_average_is_for_use_and_not_for_training() -> None:
    average = averaged_copy(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
