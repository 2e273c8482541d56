r"""Predictor–corrector sampling of the reverse SDE (Song et al. 2021, algorithms 1–5).

The forward process dx = f·x dt + g dw has the reverse (equation 6)

    dx = [f·x − g²·score] dt + g dw̄.

A *predictor* takes one step of it from t to s < t, x_s = mean + √v·z:

| predictor           | mean                                  | v           | equation    |
|---------------------|---------------------------------------|-------------|-------------|
| `reverse_diffusion` | (2 − α_{t|s})·x + σ²_{t|s}·score      | σ²_{t|s}    | 46          |
| `euler_maruyama`    | x − (f·x − g²·score)·(t − s)          | g²·(t − s)  | 6           |
| `ancestral`         | (x + σ²_{t|s}·score)/α_{t|s}          | β̃           | 47, and 2.6 |

with α_{t|s}, σ²_{t|s} of :func:`~betasigma.schedules.transition`, √(1 − β_t) and β_t between
neighbouring levels of DDPM, 1 and σ_t² − σ_s² on a σ-ladder. Reverse diffusion mirrors the forward
step itself, so it needs no derivative of the schedule; Euler–Maruyama takes f and g at t and needs
steps that are small against 1/g² (on the cosine schedule, whose g² grows without bound, an even
grid in log-SNR). The ancestral mean is the posterior's, 2.6 of docs/equations.md, written with the
score; its variance is β̃ of 2.7 on both families, as in equation 47 (their code takes β_t where the
schedule is variance preserving; ``Ancestral(variance="beta")`` is that).

A *corrector* then moves within one noise level by Langevin dynamics. It runs before the predictor,
as in the authors' code, so that the last evaluation is the one that ends at clean data:

    x ← x + step·score + √(2·step)·z,    step = 2·α²_{t|s}·(snr·√d/‖score‖)².

Their code takes the mean of ‖score‖ over the batch, which would make a sample depend on its
neighbours; here it is each sample's own, and ‖z‖ is replaced by √d as their appendix G advises for
small batches. In a few dimensions ‖score‖ can come arbitrarily near to 0, and the step is kept at
or below σ_t², where one step reaches E[α·x_0 | x_t] and above which it would overshoot.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from betasigma.denoiser import Prediction
from betasigma.options.samplers import Predictor, PredictorCorrectorOptions, Steps
from betasigma.samplers.sampler import CountingDenoiser, GridArguments, Noise, Sampler
from betasigma.schedules import NoiseSchedule, posterior, transition


def reverse_diffusion(
    schedule: NoiseSchedule, at_t: Prediction, t: float, s: float
) -> tuple[Tensor, float]:
    """Mean and variance of x_s: the forward step mirrored."""
    ratio, variance = transition(schedule, t, s)
    mean = (2 - ratio).item() * at_t.x_t + variance.item() * at_t.score
    return mean, variance.item()


def euler_maruyama(
    schedule: NoiseSchedule, at_t: Prediction, t: float, s: float
) -> tuple[Tensor, float]:
    """Mean and variance of x_s: one step of the reverse SDE with its coefficients at t."""
    drift, diffusion = (c.item() for c in schedule.sde(t))
    mean = at_t.x_t - (t - s) * (drift * at_t.x_t - diffusion * at_t.score)
    return mean, (t - s) * diffusion


def ancestral(
    schedule: NoiseSchedule, at_t: Prediction, t: float, s: float
) -> tuple[Tensor, float]:
    """Mean and variance of x_s: the posterior q(x_s | x_t, x̂_0)."""
    c_x0, c_xt, variance = (c.item() for c in posterior(schedule, t, s))
    return c_x0 * at_t.x0 + c_xt * at_t.x_t, variance


PREDICTORS = {made.__name__: made for made in (reverse_diffusion, euler_maruyama, ancestral)}


class PredictorCorrector(Sampler):
    """Langevin corrector and a predictor of the reverse SDE at every time of the grid.

    Args:
        predictor: ``reverse_diffusion``, ``euler_maruyama`` or ``ancestral``.
        snr: size of a corrector's step, > 0; the paper takes 0.16 on CIFAR-10.
        corrector_steps: corrector's steps before each step of the predictor, ≥ 0.
        steps, clip, options: see :class:`Sampler`.
    """

    name = "predictor_corrector"

    def __init__(
        self,
        predictor: Predictor = "reverse_diffusion",
        snr: float = 0.16,
        corrector_steps: int = 1,
        steps: Steps = None,
        clip: bool = False,
        **options: Unpack[GridArguments],
    ) -> None:
        super().__init__(steps, clip, **options)
        PredictorCorrectorOptions.check(
            predictor=predictor, snr=snr, corrector_steps=corrector_steps
        )
        self.predictor, self.snr, self.corrector_steps = predictor, snr, corrector_steps

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        for _ in range(self.corrector_steps):
            x = self.correct(model, x, t, s, rng)
        prediction = model(x, t)
        if s == 0:
            return prediction.x0
        mean, variance = PREDICTORS[self.predictor](model.schedule, prediction, t, s)
        return mean + variance**0.5 * rng.normal(x.shape[1:], x.dtype)

    def correct(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        """State after one step of Langevin dynamics at t, on the way to s."""
        score = model(x, t).score
        norm = torch.linalg.vector_norm(score.flatten(1), dim=1)
        ratio, _ = transition(model.schedule, t, s)
        step = 2 * (ratio.item() * self.snr / norm) ** 2 * x[0].numel()
        step = step.clamp(max=model.schedule.sigma(t).item() ** 2)
        step = step.reshape(-1, *[1] * (x.ndim - 1))
        return x + step * score + (2 * step).sqrt() * rng.normal(x.shape[1:], x.dtype)
