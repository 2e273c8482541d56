"""The arithmetic of a network, against counts by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from betasigma.networks.cost import count_flop
from betasigma.networks.energy import energy_mlp
from betasigma.networks.unet import UNet


class Small(nn.Module):
    """A convolution of 3 to 5 channels, one of 5 to 2, and a matrix for the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 2, 1)
        self.noise = nn.Linear(1, 5)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        level = self.noise(c_noise[:, None])[:, :, None, None]
        return self.second(torch.relu(self.first(x) + level))


def test_two_operations_for_each_multiplication() -> None:
    pixels = 6 * 4
    first, second, noise = 3 * 9 * 5 * pixels, 5 * 2 * pixels, 5
    network = Small()
    flop = count_flop(network, (3, 6, 4))
    assert flop is not None
    assert flop.forward == 2 * (first + second + noise)
    # of each the gradient of its weights; of the second that of its input too
    assert flop.backward == 2 * (first + 2 * second + noise)
    assert all(p.grad is None for p in network.parameters())


def test_nothing_need_be_computed() -> None:
    network = UNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(8,), num_classes=3)
    flop = count_flop(network, (1, 8, 8), num_classes=3)
    with FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert flop is not None
    assert flop.forward == counted.get_total_flops()


def test_what_cannot_be_told_is_not_told() -> None:
    assert count_flop(energy_mlp(2, width=8, depth=1), (2,)) is None
