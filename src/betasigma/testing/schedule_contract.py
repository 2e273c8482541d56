"""The contract of a noise schedule: α(t), σ(t) in float64, log-SNR that falls, levels that are
exact.

Samplers, objectives and likelihoods read one another's numbers off the schedule: the posterior of a
step from two kernels, the time of a noise level from the inverse, the coefficients of the SDE from
the slope. So its views must be of one curve.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.schedules import NoiseSchedule, posterior, transition
from betasigma.testing.contract import require, shape


def check_schedule(schedule: NoiseSchedule | Callable[[], NoiseSchedule]) -> None:
    """Assert the contract of a noise schedule.

    Args:
        schedule: one, or a function that returns one.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    made = schedule if isinstance(schedule, NoiseSchedule) else schedule()
    require(
        isinstance(made, NoiseSchedule),
        "schedule.type",
        "a betasigma.schedules.NoiseSchedule",
        f"it is of class {type(made).__name__}",
    )
    _check_levels(made)
    t = _times_between(made)
    _check_values(made, t)
    _check_curve(made, t)
    _check_ends(made)
    if made.levels > 1:
        _check_steps(made, t)
        _check_sde(made)


def _times_between(schedule: NoiseSchedule) -> Tensor:
    """Every level (some hundred of many) and two times in each gap."""
    levels = schedule.times()[:: max(1, schedule.levels // 128)]
    gaps = [levels[:-1] + share * levels.diff() for share in (0.3, 0.8)]
    return torch.cat([levels, *gaps, torch.ones(1, dtype=torch.float64)]).unique()


def _check_levels(schedule: NoiseSchedule) -> None:
    times, count = schedule.times(), schedule.levels
    wanted = torch.arange(1, count + 1, dtype=torch.float64) / count
    require(
        torch.equal(times, wanted) and schedule.t_min == wanted[0],
        "schedule.levels",
        f"times() to be i/L for i = 1 … L={count}, and t_min the first of them",
        f"they are {shape(times)} from {times[0].item():g} to {times[-1].item():g}, and "
        f"t_min={schedule.t_min:g}",
    )


def _check_values(schedule: NoiseSchedule, t: Tensor) -> None:
    for name in ("alpha", "sigma", "log_snr"):
        for times in (t, t[0]):
            value = getattr(schedule, name)(times)
            require(
                value.dtype == torch.float64
                and value.device.type == "cpu"
                and value.shape == times.shape,
                "schedule.dtype",
                f"{name}(t) in float64 on the CPU, in the shape {tuple(times.shape)} of t",
                f"it is {shape(value)} on {value.device}",
            )
        value = getattr(schedule, name)(t)
        bad = ~value.isfinite() | ((value <= 0) & (name != "log_snr"))
        require(
            not bool(bad.any()),
            "schedule.values",
            f"{name} to be finite{'' if name == 'log_snr' else ' and positive'} on [t_min, 1]",
            f"{name}({t[bad][:1].sum():g}) = {value[bad][:1].sum():g}",
        )


def _check_curve(schedule: NoiseSchedule, t: Tensor) -> None:
    alpha, sigma, log_snr = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    ratio = 2 * torch.log(alpha / sigma)
    off = (ratio - log_snr).abs() / log_snr.abs().clamp(min=1)
    require(
        bool(off.max() < 1e-7),
        "schedule.log_snr",
        "log_snr(t) to be log(α²/σ²)",
        f"at t={t[off.argmax()]:g} they are {log_snr[off.argmax()]:g} and {ratio[off.argmax()]:g}",
    )
    rises = log_snr.diff() >= 0
    require(
        not bool(rises.any()),
        "schedule.monotone",
        "log-SNR to fall strictly from t_min to 1",
        f"it does not between t={t[:-1][rises][:1].sum():g} and t={t[1:][rises][:1].sum():g}",
    )
    back = schedule.t_of_log_snr(log_snr)
    require(
        bool((back - t).abs().max() < 1e-7),
        "schedule.inverse",
        "t_of_log_snr to be the inverse of log_snr",
        f"it is off by up to {(back - t).abs().max():.2g} in t",
    )


def _check_ends(schedule: NoiseSchedule) -> None:
    alpha, sigma = schedule.alpha(0.0).item(), schedule.sigma(0.0).item()
    require(
        (alpha, sigma) == (1.0, 0.0),
        "schedule.clean",
        "α=1 and σ=0 at t=0, the clean end point",
        f"they are {alpha!r} and {sigma!r}",
    )
    require(
        0 < schedule.prior_std < float("inf"),
        "schedule.prior",
        "prior_std, from which sampling starts, to be positive and finite",
        f"it is {schedule.prior_std}",
    )
    for outside in (1.01, -0.1):
        try:
            value = schedule.log_snr(outside).item()
        except (ValueError, UserError):
            continue
        require(
            False,
            "schedule.range",
            f"a ValueError or UserError at t={outside}, which is off the curve",
            f"log_snr is {value:g} there",
        )


def _check_steps(schedule: NoiseSchedule, t: Tensor) -> None:
    """From r over s to t is from r to t, and a step back leads to the marginal of s. Both read
    ``at``, which so is seen to be of the same curve.
    """
    r, s, late = t[:-2], t[1:-1], t[2:]
    (first, v_first), (second, v_second) = transition(schedule, s, r), transition(schedule, late, s)
    whole, v_whole = transition(schedule, late, r)
    scale = schedule.sigma(late) ** 2
    off = torch.maximum(
        (first * second - whole).abs(), (second**2 * v_first + v_second - v_whole).abs() / scale
    )
    require(
        bool(off.max() < 1e-7),
        "schedule.transition",
        "the kernels of two steps to make up that of both (Chapman–Kolmogorov)",
        f"they are off by {off.max():.2g}",
    )
    back = posterior(schedule, t[1:], t[:-1])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    mean = back.c_x0 + back.c_xt * alpha[1:] - alpha[:-1]
    spread = (back.c_xt * sigma[1:]) ** 2 + back.variance - sigma[:-1] ** 2
    off = torch.maximum(mean.abs() / alpha[:-1], spread.abs() / sigma[:-1] ** 2)
    require(
        bool(off.max() < 1e-7),
        "schedule.posterior",
        "a step of the posterior to lead from q(x_t) to q(x_s)",
        f"mean and variance are off by {off.max():.2g}",
    )


def _check_sde(schedule: NoiseSchedule) -> None:
    """f = d log α/dt and g² = dσ²/dt − 2f·σ², by central differences inside the intervals."""
    middles = schedule.times()[:-1] + 0.5 / schedule.levels
    t = middles[:: max(1, len(middles) // 64)]
    h = 1e-4 / schedule.levels
    f, g2 = schedule.sde(t)
    before, after = schedule.at(t - h), schedule.at(t + h)
    slope = (after.alpha.log() - before.alpha.log()) / (2 * h)
    growth = (after.sigma**2 - before.sigma**2) / (2 * h) - 2 * slope * schedule.sigma(t) ** 2
    off = torch.maximum(
        (f - slope).abs() / (1 + slope.abs()), (g2 - growth).abs() / (1 + growth.abs())
    )
    worst = off.argmax()
    require(
        bool(off.max() < 1e-4),
        "schedule.sde",
        f"sde({t[worst]:g}) to be f={slope[worst]:g}, g²={growth[worst]:g}, the derivatives of "
        f"α and σ",
        f"it is f={f[worst]:g}, g²={g2[worst]:g}",
    )
