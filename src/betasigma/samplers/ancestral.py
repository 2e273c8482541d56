r"""Ancestral sampling and DDIM: from x_t to x_s through the posterior q(x_s | x_t, x̂_0).

Ancestral sampling (Ho et al. 2020, algorithm 2; 2.11 of docs/equations.md) draws

    x_s = c_x0·x̂_0 + c_xt·x_t + √v·z,    z ~ N(0, I), z = 0 on the last step,

with the posterior mean of equation 2.6. v is β_t = σ²_{t|s} (their "fixed large", the default and
the choice of the published results) or the posterior variance β̃_t of equation 2.7 ("fixed small");
the two are optimal for x_0 ~ N(0, I) and for one-point data respectively. A model trained with
``objective=hybrid`` knows what lies between (Nichol & Dhariwal 2021, equation 15), pixel by pixel
and for the step that is taken, however long. Written with x̂_0, clipping it comes before the
posterior mean.

DDIM (Song, Meng & Ermon 2021, equation 12) keeps the marginals and chooses the noise:

    x_s = α_s·x̂_0 + √(σ_s² − η²·β̃)·ε̂ + η·√β̃·z,

deterministic at η = 0, ancestral sampling with β̃_t at η = 1. Neither needs neighbouring levels:
both run on any subset of them, and on a σ-ladder as on a β-schedule.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from betasigma.options.samplers import AncestralOptions, DDIMOptions, Steps, Variance
from betasigma.samplers.sampler import CountingDenoiser, GridArguments, Noise, Sampler
from betasigma.schedules import posterior, reverse_log_variances, transition


class Ancestral(Sampler):
    """DDPM's ancestral sampler (algorithm 2), on all levels or respaced to ``steps`` of them.

    Args:
        variance: ``beta`` for β_t, ``posterior`` for β̃_t, ``learned`` for the model's own.
        steps, clip, options: see :class:`Sampler`.
    """

    name = "ancestral"

    def __init__(
        self,
        variance: Variance = "beta",
        steps: Steps = None,
        clip: bool = True,
        **options: Unpack[GridArguments],
    ) -> None:
        super().__init__(steps, clip, **options)
        AncestralOptions.check(variance=variance)
        self.variance = variance

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        schedule, prediction = model.schedule, model(x, t)
        c_x0, c_xt, variance = posterior(schedule, t, s)
        mean = c_x0.item() * prediction.x0 + c_xt.item() * x
        if s == 0:
            return mean
        z = rng.normal(x.shape[1:], x.dtype)
        if self.variance == "learned":
            log_variance = prediction.log_variance(*reverse_log_variances(schedule, t, s))
            return mean + torch.exp(log_variance / 2) * z
        if self.variance == "beta":
            _, variance = transition(schedule, t, s)
        return mean + variance.sqrt().item() * z


class DDIM(Sampler):
    """Denoising diffusion implicit sampler (Song, Meng & Ermon 2021), in any number of steps.

    Args:
        eta: η ∈ [0, 1]; 0 is deterministic, 1 ancestral.
        steps, clip, options: see :class:`Sampler`.
    """

    name = "ddim"

    def __init__(
        self,
        eta: float = 0.0,
        steps: Steps = 50,
        clip: bool = True,
        **options: Unpack[GridArguments],
    ) -> None:
        super().__init__(steps, clip, **options)
        DDIMOptions.check(eta=eta)
        self.eta = eta

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        schedule = model.schedule
        prediction = model(x, t)
        x_s = schedule.alpha(s).item() * prediction.x0
        if s == 0:
            return x_s
        noise = self.eta**2 * posterior(schedule, t, s).variance
        x_s = x_s + (schedule.sigma(s) ** 2 - noise).sqrt().item() * prediction.eps
        if self.eta > 0:
            x_s = x_s + noise.sqrt().item() * rng.normal(x.shape[1:], x.dtype)
        return x_s
