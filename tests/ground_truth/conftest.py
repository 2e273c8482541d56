"""Noise written down beforehand, and a smooth ε-network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser
from betasigma.preconditioning import Preconditioning
from betasigma.schedules import NoiseSchedule


class Replay:
    """Gives a sampler these draws, one after the other."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self._draws = iter(draws)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        drawn = next(self._draws)
        assert drawn.shape[1:] == tuple(shape)
        return drawn.to(dtype)


class Network(nn.Module):
    """ε̂ of four numbers of unit variance and DDPM's step index, float64.

    Like a trained one it is nearly x where there is nothing but noise, so that x̂_0 stays of order
    one at every level.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        angle = 1.57 * (c_noise[:, None] + 1) / self.levels
        return angle.sin() * x - angle.cos() * torch.tanh(x @ self.mix)


class Doubled(Network):
    """The same with what it says of the variance: between −1.2 and 1.2."""

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([super().forward(x, c_noise, y), 1.2 * torch.sin(x @ self.mix.T)], dim=1)


@pytest.fixture
def replay() -> type[Replay]:
    return Replay


@pytest.fixture
def eps_model() -> Callable[..., Denoiser]:
    """``eps_model(schedule)``: a model around the ε-network, trained on every t, which has learned
    a variance with ``doubled=True``.
    """

    def make(schedule: NoiseSchedule, doubled: bool = False, **options) -> Denoiser:
        preconditioning = Preconditioning(
            "epsilon", "timestep", "unit_variance", sigma_data=1.0, levels=schedule.levels
        )
        network = (Doubled if doubled else Network)(schedule.levels).requires_grad_(False)
        return Denoiser(
            network, schedule, preconditioning, (4,), trained_on="continuous", **options
        )

    return make


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """``noise(*shape, seed=0)``: standard normal numbers, float64."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw
