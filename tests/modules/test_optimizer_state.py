"""A checkpoint is continued where the network has another memory format."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from betasigma.modules.diffusion import match_memory_format

FORMATS = [torch.contiguous_format, torch.channels_last]


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, seed: int) -> None:
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight.grad = torch.empty_like(weight).copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("written_in", FORMATS)
@pytest.mark.parametrize("read_in", FORMATS)
def test_a_fused_optimizer_continues_in_either_format(
    written_in: torch.memory_format, read_in: torch.memory_format
) -> None:
    start = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(start.to(memory_format=written_in))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    for seed in range(3):
        step(optimizer, weight, seed)
    saved, kept = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    step(optimizer, weight, 3)

    continued = nn.Parameter(kept.to(memory_format=read_in))
    other = torch.optim.Adam([continued], lr=0.1, fused=True)
    other.register_load_state_dict_post_hook(match_memory_format)
    other.load_state_dict(saved)
    step(other, continued, 3)
    torch.testing.assert_close(continued, weight)
