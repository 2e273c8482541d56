"""Small models to sample from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser
from betasigma.preconditioning import Preconditioning
from betasigma.schedules import NoiseSchedule

MakeModel = Callable[..., Denoiser]


class Tiny(nn.Module):
    """An ε-network of one layer on six numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        told = torch.cos(c_noise / 3) if y is None else torch.cos(c_noise / 3 + y)
        return torch.tanh(self.mix(x)) + 0.2 * told[:, None]


@pytest.fixture
def make_model() -> MakeModel:
    """``make_model(schedule, num_classes=0, …)``: a model around a network of random weights."""

    def make(schedule: NoiseSchedule, **options) -> Denoiser:
        preconditioning = Preconditioning("epsilon", "log_sigma", levels=schedule.levels)
        settings = {"trained_on": "continuous", **options}
        return Denoiser(Tiny(), schedule, preconditioning, (6,), **settings)

    return make
