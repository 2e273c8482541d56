"""Where no adaptive solver can follow a model's flow, one sentence says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.likelihood import FlowLikelihood
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import AdaptiveODE
from betasigma.schedules import linear


class Times(nn.Module):
    """A network whose output is its input, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return self.factor * x


def sampled(model: Denoiser) -> None:
    AdaptiveODE().sample(model, 2, seed=0)


def scored(model: Denoiser) -> None:
    FlowLikelihood().log_prob(model, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (float("nan"), "the model's output is not finite at t="),
        (float("inf"), "the model's output is not finite at t="),
        (1e30, "the flow of this model is too steep to be followed to"),
    ],
)
@pytest.mark.parametrize("follow", [sampled, scored])
def test_it_says_what_is_wrong_with_the_model(
    factor: float, sentence: str, follow: Callable[[Denoiser], None]
) -> None:
    schedule = linear()
    preconditioning = Preconditioning("epsilon", "timestep", levels=schedule.levels)
    model = Denoiser(Times(factor), schedule, preconditioning, (2,), trained_on="continuous")
    with pytest.raises(UserError, match=sentence):
        follow(model)
