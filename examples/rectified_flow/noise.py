"""The straight path and what the network says about it."""

import numpy as np
import torch
from torch import Tensor

from betasigma.preconditioning import Coefficients
from betasigma.schedules import NoiseSchedule, Times
from rectified_flow.options import StraightPathOptions


class StraightPath(NoiseSchedule):
    """α = 1 − τ and σ = τ, with τ = end·t at every t, between the levels too.

    Args:
        levels: number of levels.
        end: τ of the last level, below 1, where no signal would be left and log-SNR has no value.
    """

    def __init__(self, levels: int = 1000, end: float = 0.999) -> None:
        StraightPathOptions.check(levels=levels, end=end)
        self._end = end
        tau = np.linspace(0, end, levels + 1)[1:]
        super().__init__(2 * np.log((1 - tau) / tau))

    def log_snr(self, t: Times) -> Tensor:
        tau = self._end * self._check(t)
        return 2 * torch.log((1 - tau) / tau)

    def t_of_log_snr(self, log_snr: Times) -> Tensor:
        super().t_of_log_snr(log_snr)  # refuses what is off the curve
        tau = torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64) / 2)
        return (tau / self._end).clamp(self.t_min, 1)

    def log_snr_slope(self, t: Times) -> Tensor:
        tau = self._end * self._check(t)
        return -2 * self._end / (tau * (1 - tau))

    @property
    def prior_std(self) -> float:
        return self._end

    # (1 − τ)/τ = e^{λ/2} at log-SNR λ
    def _alpha(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr / 2)

    def _sigma(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def _log_alpha_slope(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2) / 2


class Velocity:
    """The network's output is ε − x_0; x_0 = (x_t − σ·(ε − x_0))/(α + σ) on any schedule.

    Args:
        scale: of σ/(α + σ), which the network is told; 1000 suits a positional embedding.
    """

    def __init__(self, scale: float = 1000.0) -> None:
        self.scale = scale

    def __call__(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Coefficients:
        share = sigma / (alpha + sigma)
        return Coefficients(torch.ones_like(t), 1 / (alpha + sigma), -share, self.scale * share)
