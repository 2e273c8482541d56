"""Time grids: exact ends, exact levels, and the spacings that their names promise."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler

from betasigma.errors import UserError
from betasigma.options.samplers import Grid
from betasigma.samplers.sampler import time_grid
from betasigma.schedules import NoiseSchedule, cosine, geometric, linear

GRIDS = [grid for grid in get_args(Grid) if grid != "strided"]
SCHEDULES = {"linear": linear(), "cosine": cosine(), "geometric": geometric(10, 3.0, 0.01)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 333])
def test_grids_fall_from_the_start_to_t_min(schedule: NoiseSchedule, grid, steps: int) -> None:
    times = time_grid(schedule, steps, grid)
    assert len(times) == steps
    cut = schedule is SCHEDULES["cosine"] and grid in ("uniform_log_snr", "karras")
    start = schedule.ratio(times[0]).item()
    assert start == pytest.approx(math.exp(5.1) if cut else schedule.ratio(1.0).item(), rel=1e-9)
    assert (np.diff(times) < 0).all()
    if steps > 1:
        assert times[-1] == schedule.t_min


@every_schedule
def test_all_levels_are_the_default(schedule: NoiseSchedule) -> None:
    assert time_grid(schedule, None, "levels") == schedule.times().flip(0).tolist()


@pytest.mark.parametrize("steps", [2, 13, 50, 999])
def test_fewer_steps_than_levels_stay_on_levels(steps: int) -> None:
    schedule = linear()
    level = np.array(time_grid(schedule, steps, "levels")) * 1000
    np.testing.assert_allclose(level, level.round(), atol=1e-9)
    even = np.linspace(1000, 1, steps)
    assert np.abs(level - even).max() <= 0.5 + 1e-9


@every_schedule
def test_spacings(schedule: NoiseSchedule) -> None:
    def times(grid, rho: float = 7.0) -> torch.Tensor:
        return torch.tensor(time_grid(schedule, 20, grid, rho), dtype=torch.float64)

    def even(values: torch.Tensor) -> None:
        gaps = values.diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(19), rtol=1e-7, atol=0)

    even(times("uniform_t"))
    even(schedule.log_snr(times("uniform_log_snr")))
    for rho in (1.0, 3.0, 7.0):
        even(schedule.ratio(times("karras", rho)) ** (1 / rho))
    # towards ρ = ∞ the roots become logarithms
    near = time_grid(schedule, 20, "karras", 1e5)
    np.testing.assert_allclose(near, time_grid(schedule, 20, "uniform_log_snr"), rtol=1e-3)


def test_karras_levels_equal_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(18)
    schedule = geometric(1000, 80.0, 0.002)
    times = torch.tensor(time_grid(schedule, 18, "karras"), dtype=torch.float64)
    torch.testing.assert_close(
        schedule.sigma(times).float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_one_level_has_one_time(grid) -> None:
    single = geometric(1, 2.0, 0.01)
    assert time_grid(single, None, grid) == [1.0]
    assert time_grid(single, 50, grid) == [1.0]


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"sampler\.grid=even must be 'levels', 'strided'"):
        time_grid(linear(), 5, "even")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sampler\.steps=0 must be at least 1"):
        time_grid(linear(), 0, "levels")
    with pytest.raises(UserError, match=r"sampler\.rho=0\.0 must be above 0"):
        time_grid(linear(), 5, "karras", 0.0)
