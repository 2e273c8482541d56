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
from betasigma.testing.contract import of_kind, require, shape


def check_schedule(schedule: NoiseSchedule | Callable[[], NoiseSchedule]) -> None:
    """Assert the contract of a noise schedule.

    Args:
        schedule: one, or a function that returns one.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    expected = "a betasigma.schedules.NoiseSchedule"
    made: NoiseSchedule = of_kind(schedule, NoiseSchedule, "schedule.type", expected)
    _check_levels(made)
    t = _times_between(made)
    _check_values(made, t)
    _check_curve(made, t)
    _check_ends(made)
    if made.levels > 1:
        _check_steps(made, t)
        _check_sde(made)


def _times_between(schedule: NoiseSchedule) -> Tensor:
    """Every level (some hundred of many) and four times in each gap, two of them near its ends."""
    levels = schedule.times()[:: max(1, schedule.levels // 128)]
    gaps = [levels[:-1] + share * levels.diff() for share in (0.03, 0.3, 0.8, 0.97)]
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
    off = (schedule.ratio(t) / (sigma / alpha) - 1).abs()
    require(
        bool(off.max() < 1e-7),
        "schedule.log_snr",
        "ratio(t) to be σ/α",
        f"it is {1 + off.max():g} times that or its inverse at t={t[off.argmax()]:g}",
    )
    rises = log_snr.diff() >= 0
    require(
        not bool(rises.any()),
        "schedule.monotone",
        "log-SNR to fall strictly from t_min to 1",
        f"it does not between t={t[:-1][rises][:1].sum():g} and t={t[1:][rises][:1].sum():g}",
    )
    for name in ("log_snr", "ratio"):
        back = getattr(schedule, f"t_of_{name}")(getattr(schedule, name)(t))
        require(
            bool((back - t).abs().max() < 1e-7),
            "schedule.inverse",
            f"t_of_{name} to be the inverse of {name}",
            f"it is off by up to {(back - t).abs().max():.2g} in t",
        )


def _check_ends(schedule: NoiseSchedule) -> None:
    for clean in (schedule.at(0.0)[:2], (schedule.alpha(0.0), schedule.sigma(0.0))):
        alpha, sigma = clean[0].item(), clean[1].item()
        require(
            (alpha, sigma) == (1.0, 0.0),
            "schedule.clean",
            "α=1 and σ=0 at t=0, the clean end point",
            f"they are {alpha!r} and {sigma!r}",
        )
    least, start = schedule.sigma(1.0).item(), schedule.start_std(1.0).item()
    require(
        least * (1 - 1e-7) <= schedule.prior_std < float("inf") and start == schedule.prior_std,
        "schedule.prior",
        f"prior_std and start_std(1), from which sampling starts, to be one finite number, not "
        f"below σ(1)={least:g}, the noise there",
        f"they are {schedule.prior_std:g} and {start:g}",
    )
    least = schedule.ratio(schedule.t_min).item()
    require(
        schedule.levels == 1 or schedule.ratio_max > least,
        "schedule.prior",
        f"ratio_max, at which solvers start, to be above {least:g}, σ/α at t_min",
        f"it is {schedule.ratio_max:g}",
    )
    high = schedule.log_snr(schedule.t_min).item()
    for name, outside in (("log_snr", 1.01), ("log_snr", -0.1), ("t_of_log_snr", high + 0.1)):
        try:
            value = getattr(schedule, name)(outside).item()
        except (ValueError, UserError):
            continue
        require(
            False,
            "schedule.range",
            f"a ValueError or UserError by {name}({outside:g}), which is off the curve",
            f"it is {value:g}",
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
    """f = d log α/dt and g² = dσ²/dt − 2f·σ², by central differences inside the intervals, and so
    are the slopes that both are made of.
    """
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
    fall = (after.log_snr - before.log_snr) / (2 * h)
    found = torch.stack([schedule.log_snr_slope(t), schedule.log_alpha_slope(t) * fall])
    wanted = torch.stack([fall, slope])
    off = ((found - wanted).abs() / (1 + wanted.abs())).amax(1)
    require(
        bool(off.max() < 1e-4),
        "schedule.sde",
        "log_snr_slope and log_alpha_slope to be d log-SNR/dt and d log α/d log-SNR",
        f"they are off by {off[0]:.2g} and {off[1]:.2g} of their size",
    )
