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
    """ε̂ of four numbers and DDPM's step index, float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.tanh(x @ self.mix) + 0.3 * torch.cos(c_noise / 200)[:, None]


@pytest.fixture
def replay() -> type[Replay]:
    return Replay


@pytest.fixture
def eps_model() -> Callable[..., Denoiser]:
    """``eps_model(schedule)``: a model around the ε-network, trained on every t."""

    def make(schedule: NoiseSchedule, **options) -> Denoiser:
        preconditioning = Preconditioning("epsilon", "timestep", levels=schedule.levels)
        return Denoiser(
            Network(), schedule, preconditioning, (4,), trained_on="continuous", **options
        ).requires_grad_(False)

    return make


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """``noise(*shape, seed=0)``: standard normal numbers, float64."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw
