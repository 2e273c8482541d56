"""The error that training tells of compares families that draw their noise in different ways."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from betasigma.modules.training_means import AT_ONCE, FiniteMean, MeanError
from betasigma.objectives.error_curve import GRID, from_schedule_log_snr
from betasigma.schedules import NoiseSchedule, geometric, linear

SIGNED, UNSIGNED = (-1.0, 1.0), (0.0, 1.0)


def at_log_snr(log_snr: Tensor) -> Tensor:
    """An error that rises with log-SNR as a model's does."""
    return torch.sigmoid(0.6 * (log_snr - 3))


def drawn(
    schedule: NoiseSchedule, value_range: tuple[float, float], n: int, levels: bool = True
) -> tuple[Tensor, Tensor]:
    """Errors of examples as training draws them, and their times."""
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = (draws * schedule.levels).ceil() / schedule.levels
    if not levels:
        t = schedule.t_min + (1 - schedule.t_min) * draws
    log_snr = schedule.log_snr(t) + from_schedule_log_snr(0.0, value_range)
    return at_log_snr(log_snr).float(), t


@pytest.mark.parametrize(
    ("schedule", "value_range", "levels"),
    [
        (linear(), SIGNED, True),
        (linear(), SIGNED, False),
        (geometric(), UNSIGNED, True),
        (geometric(), UNSIGNED, False),
        (geometric(232, 50.0), UNSIGNED, True),
    ],
    ids=["ddpm", "ddpm, continuous", "ncsn", "ncsn, continuous", "ncsn_v2"],
)
def test_errors_are_those_at_each_log_snr_whatever_is_drawn(
    schedule: NoiseSchedule, value_range: tuple[float, float], levels: bool
) -> None:
    metric = MeanError(schedule, value_range, GRID)
    error, t = drawn(schedule, value_range, 6400, levels)
    for part in range(0, 6400, 128):
        metric.update(error[part : part + 128], t[part : part + 128])
    found = metric.compute()
    assert tuple(found) == GRID
    for log_snr in GRID:
        assert found[log_snr] == pytest.approx(at_log_snr(torch.tensor(log_snr)).item(), abs=0.01)
    # what both families draw on average are errors of noise levels that they do not share
    mean = sum(found[log_snr] for log_snr in GRID) / len(GRID)
    assert mean == pytest.approx(at_log_snr(torch.tensor(GRID)).mean().item(), abs=0.003)


def test_a_ladder_with_wide_steps_is_read_between_them() -> None:
    metric = MeanError(geometric(5), UNSIGNED, GRID)
    metric.update(*drawn(geometric(5), UNSIGNED, 200))
    found = metric.compute()
    for log_snr in GRID:
        assert found[log_snr] == pytest.approx(at_log_snr(torch.tensor(log_snr)).item(), abs=0.03)


def test_nothing_is_said_before_every_level_has_had_an_example() -> None:
    schedule, metric = geometric(), MeanError(geometric(), UNSIGNED, GRID)
    error, t = drawn(schedule, UNSIGNED, 400)
    few = t > 0.35  # the three finest levels are missing
    metric.update(error[few], t[few])
    assert metric.compute() == {}
    metric.update(error[~few], t[~few])
    assert tuple(metric.compute()) == GRID


def test_what_is_not_finite_is_left_out() -> None:
    error, t = drawn(geometric(), UNSIGNED, 400)
    clean, spoilt = (MeanError(geometric(), UNSIGNED, GRID) for _ in range(2))
    clean.update(error, t)
    spoilt.update(torch.cat([error, torch.tensor([math.nan, math.inf])]), torch.cat([t, t[:2]]))
    assert spoilt.compute() == clean.compute()

    mean = FiniteMean()
    mean.update(torch.tensor([1.0, math.nan, 3.0]))
    assert mean.compute() == 2
    mean.reset()
    mean.update(torch.tensor(math.inf))
    assert math.isnan(mean.compute())


def test_where_no_point_of_the_grid_is_covered_there_is_no_error() -> None:
    schedule = geometric(1, 0.1, 0.05)
    metric = MeanError(schedule, UNSIGNED, ())
    metric.update(torch.ones(4), torch.ones(4, dtype=torch.float64))
    assert metric.compute() == {}


def test_what_a_step_puts_aside_is_added_up_as_if_at_once() -> None:
    at_once, by_steps = (MeanError(linear(), SIGNED, GRID) for _ in range(2))
    error, t = drawn(linear(), SIGNED, 16 * (AT_ONCE + 3))
    for part in range(0, len(error), 16):
        at_once.update(error[part : part + 16], t[part : part + 16])
        by_steps.see(error[part : part + 16], t[part : part + 16])
    assert len(by_steps.waiting) == 3
    found = by_steps.added_up()
    assert found.compute() == pytest.approx(at_once.compute(), rel=1e-5)
    assert found.sums[1].sum() == len(error)
    assert len(by_steps.waiting) == 3  # a look changes nothing
    by_steps.reset()
    assert by_steps.added_up().sums.sum() == 0


def test_what_waits_in_a_checkpoint_is_added_up_in_the_same_order() -> None:
    """However often and whenever a run is stopped, its means are the same to the last bit."""
    pieces = torch.rand(AT_ONCE + 20, 7, generator=torch.Generator().manual_seed(0)).unbind()
    whole, stopped = FiniteMean(), FiniteMean()
    for piece in pieces:
        whole.see(piece)
    for piece in pieces[:30]:
        stopped.see(piece)
    resumed = FiniteMean()
    resumed.sums = stopped.sums.clone()
    resumed.unpack(stopped.packed())
    for piece in pieces[30:]:
        resumed.see(piece)
    assert torch.equal(resumed.sums, whole.sums)
    assert torch.equal(resumed.added_up().sums, whole.added_up().sums)
