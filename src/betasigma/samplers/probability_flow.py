r"""The probability-flow ODE: from noise to data without noise on the way.

The deterministic process with the marginals q_t of the forward one is (Song et al. 2021, equation
13)

    dx/dt = f(t)·x − ½·g(t)²·score.                                                              (a)

In the variance-exploding view x̄ = x/α, σ̃ = σ/α the schedule drops out of it (Karras et al. 2022,
equation 1; Song, Meng & Ermon 2021, equation 14):

    dx̄/dσ̃ = ε̂(α·x̄, t(σ̃)).                                                                     (b)

- :class:`Euler` takes Euler steps of (a) in t: order 1, and the result depends on how time is
  written. Euler steps of (b) in σ̃ are DDIM.
- :class:`Heun` takes Heun's steps of (b): order 2, twice the evaluations (Karras et al. 2022,
  algorithm 1), with their churn of noise as an option (algorithm 2).
- :class:`AdaptiveODE` integrates (b) in λ = −log σ̃, dx̄/dλ = −σ̃·ε̂, with the Dormand–Prince pair
  of torchdiffeq, to a tolerance instead of in a number of steps.

(b) is solved in the units of x_t: with Δ = σ̃_s − σ̃_t an Euler step reads x_s = (α_s/α_t)·x_t +
α_s·Δ·ε̂. As everywhere the flow ends at t_min and x̂_0 is read off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Unpack

import torch
from torch import Tensor

from betasigma.denoiser import Prediction, refuse_not_finite, refusing_steep_flow
from betasigma.options.samplers import AdaptiveODEOptions, Dtype, Grid, HeunOptions, Start, Steps
from betasigma.samplers.sampler import (
    CountingDenoiser,
    GridArguments,
    Noise,
    Sampler,
    StartArguments,
    start_time,
)
from betasigma.schedules import NoiseSchedule


class Euler(Sampler):
    """Euler steps in t.

    The slope of the schedule at t serves for the whole step, so a coarse grid on a schedule that
    falls steeply near t = 1 (cosine) needs ``grid="uniform_log_snr"``.

    Args:
        steps, clip, options: see :class:`Sampler`.
    """

    name = "euler"

    def __init__(
        self, steps: Steps = 100, clip: bool = False, **options: Unpack[GridArguments]
    ) -> None:
        super().__init__(steps, clip, **options)

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        prediction = model(x, t)
        if s == 0:
            return prediction.x0
        drift, diffusion = (c.item() for c in model.schedule.sde(t))
        return x - (t - s) * (drift * x - diffusion / 2 * prediction.score)


class Heun(Sampler):
    """Heun's steps in σ/α, optionally stochastic (Karras et al. 2022, algorithm 2).

    With churn, a step from σ̃ in [s_min, s_max] first goes back to σ̂ = (1 + γ)·σ̃ by adding noise,
    γ = min(s_churn/steps, √2 − 1), but never beyond the largest noise of the schedule.

    Args:
        s_churn: S_churn ≥ 0; 0 is deterministic.
        s_min, s_max: bounds of σ/α between which noise is added; ``None``: no upper bound.
        s_noise: standard deviation of the noise that is added.
        steps, clip, options: see :class:`Sampler`.
    """

    name = "heun"

    def __init__(
        self,
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float | None = None,
        s_noise: float = 1.0,
        steps: Steps = 18,
        clip: bool = False,
        grid: Grid = "karras",
        **options: Unpack[StartArguments],
    ) -> None:
        super().__init__(steps, clip, grid, **options)
        upper = math.inf if s_max is None else s_max
        HeunOptions.check(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, upper, s_noise

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        x, t = self._churned(model.schedule, x, t, rng)
        prediction = model(x, t)
        if s == 0:
            return prediction.x0
        schedule = model.schedule
        alpha = schedule.alpha(s).item()
        carried = alpha / schedule.alpha(t).item() * x
        delta = alpha * (schedule.ratio(s) - schedule.ratio(t)).item()
        slope = prediction.eps
        slope_s = model(carried + delta * slope, s).eps
        return carried + delta * (slope + slope_s) / 2

    def _churned(
        self, schedule: NoiseSchedule, x: Tensor, t: float, rng: Noise
    ) -> tuple[Tensor, float]:
        """State with more noise, and its time."""
        ratio = schedule.ratio(t).item()
        if self.s_churn == 0 or not self.s_min <= ratio <= self.s_max:
            return x, t
        gamma = min(self.s_churn / len(self.times(schedule)), math.sqrt(2) - 1)
        higher = min(ratio * (1 + gamma), schedule.ratio(1.0).item())
        noise = self.s_noise * math.sqrt(higher**2 - ratio**2) * rng.normal(x.shape[1:], x.dtype)
        t_hat = schedule.t_of_ratio(higher).item()
        scale = schedule.alpha(t_hat).item()
        return scale * (x / schedule.alpha(t).item() + noise), t_hat


class AdaptiveODE(Sampler):
    """Dormand–Prince 5(4) with an adaptive step (torchdiffeq's ``dopri5``).

    The step is chosen for the batch as a whole. So this sampler alone is exempt from the rule that
    a sample does not depend on the batch it was drawn in: samples agree to the tolerance, and the
    number of evaluations varies from batch to batch (the largest is reported).

    Args:
        rtol, atol: relative and absolute tolerance on x/α, > 0; 1e-5 is Song et al.'s.
        clip, start, dtype, ratio_max: see :class:`Sampler`.
    """

    name = "adaptive_ode"
    repeatable = AdaptiveODEOptions.repeatable
    adaptive = AdaptiveODEOptions.adaptive

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        clip: bool = False,
        start: Start = "prior",
        dtype: Dtype = "float32",
        ratio_max: float | None = None,
    ) -> None:
        super().__init__(clip=clip, start=start, dtype=dtype, ratio_max=ratio_max)
        AdaptiveODEOptions.check(rtol=rtol, atol=atol)
        self.rtol, self.atol = rtol, atol

    def times(self, schedule: NoiseSchedule) -> list[float]:
        if schedule.levels == 1:
            return [1.0]
        first = start_time(schedule, self.ratio_max, in_noise=True)
        return self.from_first([first, schedule.t_min])

    def trajectory(self, model: CountingDenoiser, x: Tensor, rng: Noise) -> Iterator[Tensor]:
        first, *rest = self.times(model.schedule)
        for last in rest:
            x = follow_flow(model, model.schedule, x, first, last, self.rtol, self.atol)
            yield x
        yield model(x, rest[-1] if rest else first).x0


def follow_flow(
    model: Callable[[Tensor, float], Prediction],
    schedule: NoiseSchedule,
    x: Tensor,
    t: float,
    s: float,
    rtol: float,
    atol: float,
) -> Tensor:
    """State at s on the path of the flow (b) through x at t, towards less noise or more.

    Args:
        model: the prediction at a state and a time.
        schedule: the noise levels.
        x: state at t, shape ``(n, *sample_shape)``.
        t, s: times in [t_min, 1], different ones.
        rtol, atol: tolerance on x/α, > 0; the step is chosen for the batch as a whole.

    Raises:
        UserError: where the model's output is not finite, or the path too steep for the solver.
    """
    from torchdiffeq import odeint

    ends = torch.tensor([t, s], dtype=torch.float64)
    log_ratios = -schedule.log_snr(ends) / 2
    alpha = schedule.alpha(ends).tolist()
    # a solver's time must rise
    direction = 1.0 if log_ratios[1] > log_ratios[0] else -1.0
    span = direction * log_ratios
    low, high = log_ratios.aminmax()

    def slope(point: Tensor, x_bar: Tensor) -> Tensor:
        log_ratio = (direction * point.double().cpu()).clamp(low, high)
        time = schedule.t_of_log_snr(-2 * log_ratio).item()
        eps = model(schedule.alpha(time).item() * x_bar, time).eps
        refuse_not_finite(eps, time)
        return direction * schedule.ratio(time).item() * eps

    # a step must end at s: there may be no curve beyond it to step onto and interpolate from
    options = {"dtype": torch.float64, "step_t": span[1:].to(x.device)}
    tolerance = f"a relative tolerance of {rtol:g} and an absolute one of {atol:g}"
    with refusing_steep_flow(tolerance, "larger ones"):
        path = odeint(
            slope,
            x / alpha[0],
            span.to(x.device),
            rtol=rtol,
            atol=atol,
            method="dopri5",
            options=options,
        )
    return alpha[1] * path[-1]
