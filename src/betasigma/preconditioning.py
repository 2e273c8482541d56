r"""Preconditioning: what the network is shown and what its output means.

Every denoiser here has the form of Karras et al. (2022, equation 7)

    x̂_0 = c_skip·x_t + c_out·F(c_in·x_t, c_noise),

and a family's parametrisation is a choice of the four coefficients as functions of the kernel (α,
σ):

| prediction | F is                    | c_skip        | c_out           |
|------------|-------------------------|---------------|-----------------|
| epsilon    | ε̂                       | 1/α           | −σ/α            |
| score      | σ·score = −ε̂ (NCSNv2)   | 1/α           | σ/α             |
| raw_score  | score (NCSN)            | 1/α           | σ²/α            |
| x0         | x̂_0                     | 0             | 1               |
| v          | α·ε̂ − σ·x̂_0             | α/(α² + σ²)   | −σ/(α² + σ²)    |
| edm        | at unit variance        | σ_d²/(α·P)    | σ̃·σ_d/√P        |

The first three follow from x_t = α·x_0 + σ·ε and score = −ε/σ (2.21 of docs/equations.md); v from
solving α·ε − σ·x_0 for x_0 (Salimans & Ho 2022). EDM writes x_t/α = x_0 + σ̃·ε with σ̃ = σ/α and
keeps input and target at unit variance for data of standard deviation σ_d, with P = σ̃² + σ_d²
(Karras et al. 2022, table 1).

How the network is told the noise level (``conditioning``) and whether its input is scaled
(``input_scaling``) are independent knobs: they are two of the steps between NCSN and DDPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from betasigma.options.plugins import Component
from betasigma.options.preconditionings import (
    Conditioning,
    InputScaling,
    PreconditioningOptions,
    Prediction,
)


class Coefficients(NamedTuple):
    """c_in, c_skip, c_out, c_noise at one or more noise levels, float64, the shape of t."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor


@dataclass(frozen=True)
class Preconditioning(Component):
    """Coefficients of the denoiser as functions of the noise level.

    Args:
        prediction: what the network's output means (table above).
        conditioning: the number that the network sees. ``timestep`` is t·L − 1, DDPM's t − 1 ∈ {0,
            …, T − 1}; ``scaled_time`` is 999·t (the VP SDE of Song et al. 2021); ``log_sigma`` is
            log(σ/α), for NCSN log σ; ``level_number`` is L − t·L, which counts NCSN's levels from
            the noisiest, 0, down to L − 1; ``none`` is 0, for networks that are told nothing
            (NCSNv2).
        input_scaling: ``none`` shows the network x_t itself; ``unit_variance`` shows
            x_t/√(α²σ_data² + σ²), which for NCSN and σ_data = 1 is the variance-preserving input of
            DDPM at the same SNR.
        sigma_data: standard deviation σ_data of the data, used by ``edm`` and ``unit_variance``.
        levels: L of the schedule, needed by ``timestep`` and ``level_number``.
        timestep_scale: factor of the number that ``timestep`` is; 1000/L where a model was told
            its step as one of 1000 (``rescale_timesteps`` of Nichol & Dhariwal 2021's code).
    """

    config_group = "preconditioning"

    prediction: Prediction = "epsilon"
    conditioning: Conditioning = "timestep"
    input_scaling: InputScaling = "none"
    sigma_data: float = 0.5
    levels: int = 1000
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        PreconditioningOptions.check_own(vars(self))

    def __call__(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """Coefficients at times ``t`` where the kernel is (``alpha``, ``sigma``); all float64 of
        one shape.
        """
        c_skip, c_out = self._output(alpha, sigma)
        return Coefficients(self._input(alpha, sigma), c_skip, c_out, self._noise(t, alpha, sigma))

    def _output(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction == "epsilon":
            return 1 / alpha, -sigma / alpha
        if self.prediction == "score":
            return 1 / alpha, sigma / alpha
        if self.prediction == "raw_score":
            return 1 / alpha, sigma**2 / alpha
        if self.prediction == "x0":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        power = alpha**2 + sigma**2
        if self.prediction == "v":
            return alpha / power, -sigma / power
        ratio = sigma / alpha
        power = ratio**2 + self.sigma_data**2
        return self.sigma_data**2 / power / alpha, ratio * self.sigma_data / power.sqrt()

    def _input(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "edm" or self.input_scaling == "unit_variance":
            return 1 / (alpha**2 * self.sigma_data**2 + sigma**2).sqrt()
        return torch.ones_like(alpha)

    def _noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.conditioning == "none":
            return torch.zeros_like(t)
        if self.conditioning == "timestep":
            return (t * self.levels - 1) * self.timestep_scale
        if self.conditioning == "scaled_time":
            return 999 * t
        if self.conditioning == "level_number":
            return self.levels - t * self.levels
        log_ratio = torch.log(sigma / alpha)
        return log_ratio / 4 if self.prediction == "edm" else log_ratio
