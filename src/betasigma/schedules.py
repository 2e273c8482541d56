r"""Noise schedules: how much signal and how much noise there is at every time.

Both families perturb data by the same Gaussian kernel (equations 2.1–2.3 and 2.16–2.17; numbers
like these, in this package, are those of docs/equations.md)

    x_t = α_t·x_0 + σ_t·ε,   ε ~ N(0, I),

and differ in the curve (α_t, σ_t) only. *Variance preserving* (DDPM): α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t).
*Variance exploding* (NCSN): α_t = 1, σ_t a ladder. What the two share is the signal-to-noise ratio,
log-SNR = log(α_t²/σ_t²), which falls strictly from level 1 to level L.

Time is t ∈ [t_min, 1]. The discrete levels, numbered i = 1 … L as in the papers (t rises with the
noise, so NCSN's σ_1 > … > σ_L is counted backwards), lie at t = i/L and are exact; between them
log-SNR is linear in t. Clean data, t = 0, is an end point of its own (α = 1, σ = 0) and not a value
of the curve: nothing is interpolated between it and level 1.

Schedules compute in float64 on the CPU; whoever uses a value casts it at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.options import AUTO
from betasigma.options.noise_schedules import (
    CosineOptions,
    GeometricOptions,
    LinearOptions,
    VPSDEOptions,
)
from betasigma.options.plugins import takes_by_name
from betasigma.randomness import Stream

Times = Tensor | float

DROWNED = math.exp(5.1)
"""σ/α = 164, where the noise has drowned data of unit variance: log-SNR −10.2, λ = −5.1 at which
DPM-Solver's code begins (Lu et al. 2022). DDPM's own schedule ends at 157."""

ROUNDING = 1e-6
"""How far beyond its ends, relatively, a time may lie: float32 has some multiples of 1e-7."""


class Kernel(NamedTuple):
    """q(x_t | x_0) = N(α·x_0, σ²·I) at one or more times; float64, the shape of the times."""

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor


class NoiseSchedule:
    """A curve t ↦ (α_t, σ_t) given by its log-SNR at the discrete levels.

    A subclass defines ``prior_std`` and, as functions of log-SNR, ``_alpha``, ``_sigma`` and
    ``_log_alpha_slope``.

    Args:
        log_snr: log(α²/σ²) at levels 1 … L, strictly decreasing, shape ``(levels,)``.

    Raises:
        ValueError: where ``log_snr`` is empty, not finite or not strictly decreasing.
    """

    def __init__(self, log_snr: Sequence[float] | np.ndarray) -> None:
        table = np.asarray(log_snr, dtype=np.float64)
        if table.ndim != 1 or table.size < 1 or not np.isfinite(table).all():
            raise ValueError(f"log_snr must be a vector of finite numbers, not {table}")
        if (np.diff(table) >= 0).any():
            raise ValueError("log_snr must fall strictly from one level to the next")
        self._log_snr = table
        self._times = np.arange(1, table.size + 1) / table.size

    @property
    def levels(self) -> int:
        """Number L of discrete levels."""
        return self._log_snr.size

    @property
    def t_min(self) -> float:
        """Time of level 1, the smallest noise on the curve."""
        return float(self._times[0])

    @property
    def prior_std(self) -> float:
        """Standard deviation of the distribution N(0, prior_std²·I) that sampling starts from at t
        = 1.
        """
        raise self._unfinished()

    @property
    def ratio_max(self) -> float:
        """σ/α from which a solver of few steps begins: the end of the curve, but at most 164 times
        ``prior_std``. A cosine ends at 20,291 because β is kept below 1, and on the way there is
        nothing to integrate; the end of a σ-ladder is a choice, and stays.
        """
        return min(self.ratio(1.0).item(), DROWNED * self.prior_std)

    def start_std(self, t: Times) -> Tensor:
        """Standard deviation of N(0, start_std²·I), which stands in for q(x_t) where sampling
        begins at ``t``: ``prior_std`` at t = 1, and falling as σ_t does; float64, the shape of
        ``t``.
        """
        return self.prior_std * self.sigma(t) / self.sigma(1.0)

    def times(self) -> Tensor:
        """Times of levels 1 … L: i/L, shape ``(levels,)``, rising."""
        return torch.from_numpy(self._times.copy())

    def log_snr(self, t: Times) -> Tensor:
        """log(α_t²/σ_t²) in float64, the shape of ``t``; +∞ at t = 0.

        Raises:
            UserError: where ``t``, which is step/levels, is neither in [t_min, 1] nor 0.
        """
        t = self._check(t)
        value = self._log_snr_at(t.clamp(min=self.t_min).numpy())
        return torch.where(t == 0, torch.inf, torch.from_numpy(np.asarray(value)))

    def t_of_log_snr(self, log_snr: Times) -> Tensor:
        """Time at which the curve has this log-SNR (inverse of :meth:`log_snr` on [t_min, 1]).

        Raises:
            ValueError: where ``log_snr`` is outside the curve's range (by more than rounding).
        """
        value = torch.as_tensor(log_snr, dtype=torch.float64).numpy()
        low, high = self._log_snr[-1], self._log_snr[0]
        slack = 1e-9 * max(1.0, abs(low), abs(high))
        if (value < low - slack).any() or (value > high + slack).any():
            raise ValueError(
                f"log-SNR {value} is outside the schedule's range [{low:.6g}, {high:.6g}]"
            )
        return torch.from_numpy(np.asarray(self._t_at(value.clip(low, high)), dtype=np.float64))

    def log_snr_slope(self, t: Times) -> Tensor:
        """d log-SNR/dt at ``t`` ∈ [t_min, 1]; at a level, the slope of the interval below it.

        Raises:
            UserError: where the schedule has one level only.
        """
        t = self._check(t)
        if self.levels == 1:
            raise UserError(
                "a noise schedule of one level has no slope in t: sigma.levels or beta.steps must "
                "be at least 2 for what integrates over t"
            )
        return torch.from_numpy(np.asarray(self._slope_at(t.numpy())))

    def ratio(self, t: Times) -> Tensor:
        """σ_t/α_t, the noise in the variance-exploding view x_t/α_t; float64, 0 at t = 0."""
        return torch.exp(-self.log_snr(t) / 2)

    def t_of_ratio(self, ratio: Times) -> Tensor:
        """Time at which σ_t/α_t is ``ratio`` > 0 (see :meth:`t_of_log_snr`)."""
        return self.t_of_log_snr(-2 * torch.log(torch.as_tensor(ratio, dtype=torch.float64)))

    def sde(self, t: Times) -> tuple[Tensor, Tensor]:
        """f(t) and g(t)² of the forward process as a diffusion, dx = f·x dt + g dw (Song et al.
        2021, equation 5), at ``t`` ∈ [t_min, 1].

        The kernel's mean and variance obey α' = f·α and (σ²)' = 2f·σ² + g², hence f = d log α/dt
        and g² = σ²·d log(σ²/α²)/dt = −σ²·d log-SNR/dt.

        Raises:
            UserError: where the schedule has one level only.
        """
        slope = self.log_snr_slope(t)
        return self.log_alpha_slope(t) * slope, -(self.sigma(t) ** 2) * slope

    def log_alpha_slope(self, t: Times) -> Tensor:
        """d log α/d log-SNR at ``t``, float64: 0 where the data keep their scale."""
        return self._log_alpha_slope(self.log_snr(t))

    def alpha(self, t: Times) -> Tensor:
        """Scale α_t of the data, float64, the shape of ``t``."""
        return self._alpha(self.log_snr(t))

    def sigma(self, t: Times) -> Tensor:
        """Standard deviation σ_t of the noise, float64, the shape of ``t``."""
        return self._sigma(self.log_snr(t))

    def at(self, t: Times) -> Kernel:
        """α_t, σ_t and log-SNR, looked up once."""
        log_snr = self.log_snr(t)
        return Kernel(self._alpha(log_snr), self._sigma(log_snr), log_snr)

    def _log_snr_at(self, t: np.ndarray) -> np.ndarray:
        return np.interp(t, self._times, self._log_snr)

    def _t_at(self, log_snr: np.ndarray) -> np.ndarray:
        return np.interp(-log_snr, -self._log_snr, self._times)

    def _slope_at(self, t: np.ndarray) -> np.ndarray:
        slopes = np.diff(self._log_snr) * self.levels
        interval = np.searchsorted(self._times, t, side="left") - 1
        return slopes[np.clip(interval, 0, slopes.size - 1)]

    def _alpha(self, log_snr: Tensor) -> Tensor:
        raise self._unfinished()

    def _sigma(self, log_snr: Tensor) -> Tensor:
        raise self._unfinished()

    def _log_alpha_slope(self, log_snr: Tensor) -> Tensor:
        """d log α/d log-SNR."""
        raise self._unfinished()

    def _check(self, t: Times) -> Tensor:
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        first, last = self.t_min * (1 - ROUNDING), 1 + ROUNDING
        inside = (time == 0) | ((time >= first) & (time <= last))
        if not inside.all():
            raise UserError(self._not_a_time(time[~inside].flatten()[0].item()))
        return torch.where(time == 0, time, time.clamp(self.t_min, 1))

    def _unfinished(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} must define prior_std and, as functions of log-SNR, _alpha, "
            f"_sigma and _log_alpha_slope"
        )

    def _not_a_time(self, t: float) -> str:
        step = (
            f"; step {t:.0f} is t={t / self.levels:.6g}" if t in range(2, self.levels + 1) else ""
        )
        return (
            f"t={t:.6g} is not a time: t is step/levels, here in [1/{self.levels}, 1], or 0 for "
            f"clean data{step}"
        )


class VariancePreserving(NoiseSchedule):
    """α_t² + σ_t² = 1 (Ho et al. 2020): α_t = √ᾱ_t, σ_t = √(1 − ᾱ_t)."""

    @property
    def prior_std(self) -> float:
        return 1.0

    def start_std(self, t: Times) -> Tensor:
        """1 at every ``t``: that of data of unit variance."""
        return torch.ones_like(self.sigma(t))

    @property
    def alpha_bar(self) -> Tensor:
        """ᾱ_1 … ᾱ_T, shape ``(levels,)``."""
        return torch.from_numpy(_sigmoid(self._log_snr))

    def _alpha(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr).sqrt()

    def _sigma(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr).sqrt()

    def _log_alpha_slope(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr) / 2


class LinearRate(NoiseSchedule):
    """A diffusion dx = −½β(t)·x dt + g dw with β(t) = β₀ + t·(β₁ − β₀), exact at every t (Song et
    al. 2021, appendix C).

    With B(t) = ∫₀ᵗ β = t·β₀ + ½t²·(β₁ − β₀) the data are scaled by α = e^{−B/2}; what σ is, and so
    log-SNR as a function of B, a subclass says.
    """

    def __init__(self, start: float, end: float, levels: int) -> None:
        self._start, self._rise = start, end - start
        super().__init__(self._log_snr_at(np.arange(1, levels + 1) / levels))

    @property
    def prior_std(self) -> float:
        return 1.0

    def _log_snr_at(self, t: np.ndarray) -> np.ndarray:
        return self._log_snr_of(self._integral(t))

    def _t_at(self, log_snr: np.ndarray) -> np.ndarray:
        integral = self._integral_of(log_snr)
        root = np.sqrt(self._start**2 + 2 * self._rise * integral)
        return np.clip(2 * integral / (self._start + root), self.t_min, 1)

    def _slope_at(self, t: np.ndarray) -> np.ndarray:
        return (self._start + t * self._rise) * self._slope_of(self._integral(t))

    def _integral(self, t: np.ndarray) -> np.ndarray:
        return t * self._start + t**2 * self._rise / 2

    def _log_snr_of(self, integral: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _integral_of(self, log_snr: np.ndarray) -> np.ndarray:
        """B, the inverse."""
        raise NotImplementedError

    def _slope_of(self, integral: np.ndarray) -> np.ndarray:
        """d log-SNR/dB."""
        raise NotImplementedError


class VPSDE(LinearRate, VariancePreserving):
    """g² = β: σ² = 1 − e^{−B}, hence log-SNR = −log(e^B − 1) (their equation 33)."""

    def _log_snr_of(self, integral: np.ndarray) -> np.ndarray:
        return -np.log(np.expm1(integral))

    def _integral_of(self, log_snr: np.ndarray) -> np.ndarray:
        return np.log1p(np.exp(-log_snr))

    def _slope_of(self, integral: np.ndarray) -> np.ndarray:
        return 1 / np.expm1(-integral)


class SubVPSDE(LinearRate):
    """g² = β·(1 − e^{−2B}): σ = 1 − e^{−B} = 1 − α², less noise than the VP SDE at every t, hence
    log-SNR = −B − 2·log(1 − e^{−B}) (their equation 33).
    """

    def _log_snr_of(self, integral: np.ndarray) -> np.ndarray:
        return -integral - 2 * np.log(-np.expm1(-integral))

    def _integral_of(self, log_snr: np.ndarray) -> np.ndarray:
        return -2 * np.log(self._alpha(torch.as_tensor(log_snr)).numpy())

    def _slope_of(self, integral: np.ndarray) -> np.ndarray:
        return -1 / np.tanh(integral / 2)

    def _alpha(self, log_snr: Tensor) -> Tensor:
        """The root of α² + q·α − 1 with q = σ/α, written without a difference."""
        ratio = torch.exp(-log_snr / 2)
        return 2 / (ratio + (ratio**2 + 4).sqrt())

    def _sigma(self, log_snr: Tensor) -> Tensor:
        return self._alpha(log_snr) * torch.exp(-log_snr / 2)

    def _log_alpha_slope(self, log_snr: Tensor) -> Tensor:
        squared = self._alpha(log_snr) ** 2
        return (1 - squared) / (1 + squared) / 2


class VarianceExploding(NoiseSchedule):
    """α_t = 1 (Song & Ermon 2019): x_t = x_0 + σ_t·ε."""

    @property
    def prior_std(self) -> float:
        return math.exp(-self._log_snr[-1] / 2)

    def _alpha(self, log_snr: Tensor) -> Tensor:
        return torch.ones_like(log_snr)

    def _sigma(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)

    def _log_alpha_slope(self, log_snr: Tensor) -> Tensor:
        return torch.zeros_like(log_snr)


@takes_by_name
def linear(
    start: float | None = None, end: float | None = None, steps: int = 1000
) -> VariancePreserving:
    """β rising linearly from ``start`` to ``end`` in ``steps`` steps (Ho et al. 2020, section 4).

    Without ``start`` and ``end`` it ends at the same noise whatever the number of steps, as in
    iDDPM's code: β from 0.1/steps to 20/steps, DDPM's 10⁻⁴ and 0.02 at 1,000.
    """
    first, last = LinearOptions.check(start=start, end=end, steps=steps).ends
    return _from_betas(np.linspace(first, last, steps, dtype=np.float64))


@takes_by_name
def sigmoid(
    start: float | None = None, end: float | None = None, steps: int = 1000
) -> VariancePreserving:
    """β rising from ``start`` to ``end`` along a sigmoid over [−6, 6] (Xu et al. 2022, GeoDiff);
    without them, between the ends of :func:`linear`.
    """
    first, last = LinearOptions.check(start=start, end=end, steps=steps).ends
    ramp = _sigmoid(np.linspace(-6, 6, steps, dtype=np.float64))
    return _from_betas(first + (last - first) * ramp)


@takes_by_name
def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> VariancePreserving:
    """ᾱ_t = f(t)/f(0), f(t) = cos²(π/2·(t/T + s)/(1 + s)), β_t at most ``max_beta``.

    Nichol & Dhariwal 2021, equation 17; ``offset`` is their s.
    """
    CosineOptions.check(steps=steps, offset=offset, max_beta=max_beta)
    t = np.arange(steps + 1) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


@takes_by_name
def vp_sde(start: float = 0.1, end: float = 20.0, steps: int = 1000) -> VPSDE:
    """The VP SDE with a rate β(t) that rises linearly from ``start`` to ``end`` (Song et al. 2021,
    appendix C); its ``steps`` levels at t = i/steps are those that samplers visit.

    Unlike :func:`linear`, which is its discretisation, it is exact between the levels, for models
    trained on every t.
    """
    VPSDEOptions.check(start=start, end=end, steps=steps)
    return VPSDE(start, end, steps)


@takes_by_name
def sub_vp_sde(start: float = 0.1, end: float = 20.0, steps: int = 1000) -> SubVPSDE:
    """The sub-VP SDE, whose models have the better likelihoods, with the rate of :func:`vp_sde`
    (Song et al. 2021, section 3.4).
    """
    VPSDEOptions.check(start=start, end=end, steps=steps)
    return SubVPSDE(start, end, steps)


@takes_by_name
def geometric(levels: int = 10, max: float = 1.0, min: float = 0.01) -> VarianceExploding:
    """σ falling geometrically from ``max`` to ``min`` in ``levels`` levels (Song & Ermon 2019,
    section 4.2).

    Between the levels log σ is linear in t, so the ladder *is* the continuous schedule
    σ(t) = σ_min·(σ_max/σ_min)^((t·L − 1)/(L − 1)).
    """
    GeometricOptions.check(levels=levels, max=max, min=min)
    for knob, value in {"levels": levels, "max": max, "min": min}.items():
        if value == AUTO:
            raise UserError(f"sigma.{knob}=auto is found from the data by a run; give a number")
    log_sigma = np.linspace(math.log(min), math.log(max), levels) if levels > 1 else [math.log(max)]
    return VarianceExploding(-2 * np.asarray(log_sigma))


def forward_path(
    schedule: NoiseSchedule, x0: Tensor, times: Sequence[float], rng: Stream
) -> Iterator[Tensor]:
    """One path of the forward process from ``x0``: x_t at each of the rising ``times`` (equation
    2.1, several of its steps taken at once by :func:`transition`).

    Args:
        schedule: the noise levels.
        x0: clean data, shape ``(n, *sample_shape)``.
        times: rising, each in [t_min, 1].
        rng: random numbers of these n.
    """
    x, s = x0, 0.0
    for t in times:
        ratio, variance = (c.item() for c in transition(schedule, t, s))
        x = ratio * x + variance**0.5 * rng.normal(x.shape[1:], x.dtype)
        yield x
        s = t


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(c_x0·x_0 + c_xt·x_t, variance·I)."""

    c_x0: Tensor
    c_xt: Tensor
    variance: Tensor


def transition(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Tensor, Tensor]:
    """Forward kernel q(x_t | x_s) = N(α_{t|s}·x_s, σ²_{t|s}·I) for s < t; returns (α_{t|s},
    σ²_{t|s}).

    α_{t|s} = α_t/α_s and σ²_{t|s} = σ_t² − α_{t|s}²·σ_s² = σ_t²·(1 − SNR_t/SNR_s): for neighbouring
    levels of DDPM these are √(1 − β_t) and β_t (equation 2.1); for NCSN 1 and σ_t² − σ_s².
    """
    return _transition(schedule.at(t), schedule.at(s))


def _transition(later: Kernel, sooner: Kernel) -> tuple[Tensor, Tensor]:
    variance = -(later.sigma**2) * torch.expm1(later.log_snr - sooner.log_snr)
    return later.alpha / sooner.alpha, variance


def posterior(schedule: NoiseSchedule, t: Times, s: Times) -> Posterior:
    """Posterior q(x_s | x_t, x_0) of the forward process, s < t, for any Gaussian schedule
    (equations 2.5–2.7).

    With (α_{t|s}, σ²_{t|s}) of :func:`transition`, Bayes' rule for Gaussians gives the mean
    α_s·σ²_{t|s}/σ_t²·x_0 + α_{t|s}·σ_s²/σ_t²·x_t and the variance σ²_{t|s}·σ_s²/σ_t², DDPM's β̃_t.
    At s = 0 it is x_0 itself with variance 0.
    """
    later, sooner = schedule.at(t), schedule.at(s)
    ratio, variance = _transition(later, sooner)
    noise, kept = later.sigma**2, sooner.sigma**2
    return Posterior(
        c_x0=sooner.alpha * variance / noise,
        c_xt=ratio * kept / noise,
        variance=variance * kept / noise,
    )


def reverse_log_variances(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Tensor, Tensor]:
    """log β̃ and log β of the step from t to s < t, the least and the greatest variance that its
    reverse can need for data of at most unit variance (Nichol & Dhariwal 2021, section 3.1).

    The step to clean data has β̃ = 0; as they do, it is given that of level 2 instead.

    Raises:
        UserError: where the schedule has one level only.
    """
    if schedule.levels < 2:
        raise UserError(
            "a learned variance lies between those of two neighbouring noise levels: sigma.levels "
            "or beta.steps must be at least 2"
        )
    _, beta = transition(schedule, t, s)
    first = posterior(schedule, 2 / schedule.levels, 1 / schedule.levels).variance
    clean = torch.as_tensor(s, dtype=torch.float64) == 0
    return torch.where(clean, first, posterior(schedule, t, s).variance).log(), beta.log()


def _from_betas(betas: np.ndarray) -> VariancePreserving:
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return VariancePreserving(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
