"""Preconditioning: each prediction type recovers x_0 exactly from the output that it means."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from betasigma.errors import UserError
from betasigma.preconditioning import Preconditioning
from betasigma.schedules import NoiseSchedule, geometric, linear

DATA = 0.5  # σ_data


def targets(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """What the output of a perfect network is, from the definition of its prediction type."""
    score_of_the_kernel = -eps / sigma
    ratio = sigma / alpha
    power = ratio**2 + DATA**2
    # Karras et al. 2022, equation 8: the target of F at (x_0 + n, σ) with n = σ·ε
    edm = power.sqrt() / (ratio * DATA) * (x0 - DATA**2 / power * (x0 + ratio * eps))
    return {
        "epsilon": eps,
        "score": sigma * score_of_the_kernel,
        "raw_score": score_of_the_kernel,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "edm": edm,
    }


@pytest.fixture(params=[linear(), geometric(10, 3.0, 0.01)], ids=["vp", "ve"])
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


def kernel(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    t = schedule.times()[:: max(1, schedule.levels // 10)]
    return t, schedule.alpha(t), schedule.sigma(t)


@pytest.mark.parametrize("prediction", ["epsilon", "score", "raw_score", "x0", "v", "edm"])
def test_the_output_that_is_meant_gives_x0(schedule: NoiseSchedule, prediction) -> None:
    t, alpha, sigma = kernel(schedule)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(t), generator=generator, dtype=torch.float64)
    output = targets(x0, eps, alpha, sigma)[prediction]
    _, c_skip, c_out, _ = Preconditioning(prediction, sigma_data=DATA)(t, alpha, sigma)
    x_t = alpha * x0 + sigma * eps
    torch.testing.assert_close(c_skip * x_t + c_out * output, x0, rtol=1e-9, atol=1e-9)


def test_edm_equals_diffusers(schedule: NoiseSchedule) -> None:
    """EDM's table 1 in the view x/α, as diffusers' EDM scheduler has it."""
    scheduler = EDMEulerScheduler(sigma_data=DATA)
    t, alpha, sigma = kernel(schedule)
    ours = Preconditioning("edm", "log_sigma", sigma_data=DATA)(t, alpha, sigma)
    x_t, output = torch.randn(
        2, len(t), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    ratio = sigma / alpha
    shown = scheduler.precondition_inputs(x_t / alpha, ratio)
    torch.testing.assert_close(ours.c_in * x_t, shown, rtol=1e-12, atol=0)
    x0 = torch.stack(
        [
            scheduler.precondition_outputs(x, F, r)
            for x, F, r in zip(x_t / alpha, output, ratio, strict=True)
        ]
    )
    torch.testing.assert_close(ours.c_skip * x_t + ours.c_out * output, x0, rtol=1e-10, atol=1e-12)
    noise = torch.stack([scheduler.precondition_noise(r) for r in ratio])
    torch.testing.assert_close(ours.c_noise, noise, rtol=1e-12, atol=1e-12)


def test_edm_shows_and_asks_for_unit_variance(schedule: NoiseSchedule) -> None:
    t, alpha, sigma = kernel(schedule)
    c_in, *_ = Preconditioning("edm", sigma_data=DATA)(t, alpha, sigma)
    variance_of_x_t = alpha**2 * DATA**2 + sigma**2
    torch.testing.assert_close(c_in**2 * variance_of_x_t, torch.ones_like(t))
    # F is linear in (x_0, ε): its variance is the sum of two squares
    one, nil = torch.ones_like(t), torch.zeros_like(t)
    of_x0 = targets(one, nil, alpha, sigma)["edm"]
    of_eps = targets(nil, one, alpha, sigma)["edm"]
    torch.testing.assert_close(
        (DATA * of_x0) ** 2 + of_eps**2, torch.ones_like(t), rtol=1e-8, atol=0
    )


def test_what_the_network_is_told(schedule: NoiseSchedule) -> None:
    t, alpha, sigma = kernel(schedule)
    told = {
        conditioning: Preconditioning("epsilon", conditioning, levels=schedule.levels)(
            t, alpha, sigma
        ).c_noise
        for conditioning in ("timestep", "scaled_time", "log_sigma", "level_number", "none")
    }
    steps = torch.arange(schedule.levels, dtype=torch.float64)
    torch.testing.assert_close(
        told["timestep"], steps[:: max(1, schedule.levels // 10)], rtol=0, atol=1e-9
    )
    torch.testing.assert_close(told["scaled_time"], 999 * t)
    torch.testing.assert_close(told["log_sigma"], torch.log(sigma / alpha))
    torch.testing.assert_close(  # NCSN's σ_1 is the largest, and number 0
        told["level_number"], schedule.levels - 1 - told["timestep"], rtol=0, atol=1e-9
    )
    assert not told["none"].any()


def test_input_scaling(schedule: NoiseSchedule) -> None:
    t, alpha, sigma = kernel(schedule)
    plain = Preconditioning("epsilon")(t, alpha, sigma).c_in
    assert torch.equal(plain, torch.ones_like(t))
    scaled = Preconditioning("epsilon", input_scaling="unit_variance", sigma_data=1.0)(
        t, alpha, sigma
    ).c_in
    # for data of unit variance, what a VE model is shown is VP's x_t at the same SNR
    vp_alpha = torch.sigmoid(schedule.log_snr(t)).sqrt()
    torch.testing.assert_close(scaled * alpha, vp_alpha, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, r"preconditioning\.prediction=noise must be 'epsilon', 'score'"),
        ({"conditioning": "sigma"}, r"preconditioning\.conditioning=sigma"),
        ({"input_scaling": "half"}, r"preconditioning\.input_scaling=half"),
        ({"sigma_data": 0.0}, r"preconditioning\.sigma_data=0"),
    ],
)
def test_bad_values_are_named(options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preconditioning(**options)
