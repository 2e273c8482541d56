"""Forward and reverse strips against what is known of a data set of one example: its ideal denoiser
is that example, and DDIM then moves on the straight line α·x_0 + σ·ε."""

from __future__ import annotations

import math

import pytest
import torch

from betasigma.evaluation.film import film, levels_to_show
from betasigma.oracles import EmpiricalDenoiser
from betasigma.samplers import DDIM, AnnealedLangevin
from betasigma.schedules import NoiseSchedule, geometric, linear

SHAPE = (1, 20, 20)


def of_one_image(schedule: NoiseSchedule, value_range: tuple[float, float]) -> EmpiricalDenoiser:
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return EmpiricalDenoiser(image[None], schedule, None, value_range)


@pytest.mark.parametrize("schedule", [linear(steps=50), geometric(10)])
def test_frames_are_at_the_noise_levels_they_are_labelled_with(schedule: NoiseSchedule) -> None:
    denoiser = of_one_image(schedule, (-1.0, 1.0))
    x0 = denoiser.data[0].reshape(SHAPE)
    made = film(denoiser, DDIM(steps=None, dtype="float64"), x0, 6, seed=3)
    assert made.steps == schedule.levels
    assert made.log_snr[0] == math.inf
    assert torch.equal(made.forward[-1], made.reverse[-1])
    for log_snr, sigma, forward, reverse in zip(
        made.log_snr[1:], made.sigma[1:], made.forward[1:], made.reverse[1:], strict=True
    ):
        assert sigma**-2 == pytest.approx(math.exp(log_snr))
        alpha = schedule.alpha(schedule.t_of_log_snr(log_snr)).item()
        noise = (forward - alpha * x0) / (alpha * sigma)
        assert noise.std().item() == pytest.approx(1, abs=0.15)
        ending = (made.reverse[-1] - schedule.alpha(1.0) * x0) / schedule.sigma(1.0)
        expected = alpha * (x0 + sigma * ending)
        torch.testing.assert_close(reverse, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.reverse[0], x0)


def test_langevin_frames_are_taken_at_the_end_of_their_level() -> None:
    """There it is distributed as q_σ, a few per cent wider; it enters with the σ of the level
    before, 1.67 times this one's."""
    denoiser = of_one_image(geometric(10), (0.0, 1.0))
    x0 = denoiser.data[0].reshape(SHAPE)
    made = film(denoiser, AnnealedLangevin(inner_steps=30), x0, 6, seed=0)
    assert made.steps == 10 * 30 + 1
    for sigma, frame in zip(made.sigma[1:], made.reverse[1:], strict=True):
        assert (frame - x0).std().item() == pytest.approx(1.05 * sigma, rel=0.15)


def test_log_snr_is_that_of_data_in_minus_one_to_one() -> None:
    """At σ = 1, data in [0, 1] have a quarter of the variance of the same in [−1, 1]."""
    for value_range, expected in (((0.0, 1.0), -math.log(4)), ((-1.0, 1.0), 0.0)):
        denoiser = of_one_image(geometric(3), value_range)
        x0 = denoiser.data[0].reshape(SHAPE)
        made = film(denoiser, DDIM(steps=None), x0, 3, seed=0)
        assert made.log_snr[-1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "count"), [(linear(), 7), (geometric(4), 9), (geometric(1), 3)]
)
def test_levels_shown_are_the_schedule_s_own(schedule: NoiseSchedule, count: int) -> None:
    times = levels_to_show(schedule, count)
    assert len(times) <= min(count, schedule.levels)
    assert times[-1] == 1
    assert times[0] == pytest.approx(schedule.t_min)
    assert set(times) <= {i / schedule.levels for i in range(1, schedule.levels + 1)}
