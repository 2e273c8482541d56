"""Features of one's own, for Fréchet and kernel distances."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from betasigma import FeatureExtractor


class RandomFilters(FeatureExtractor):
    """Mean and peak response of fixed random filters: cheap, and good for small images.

    Args:
        filters: how many.
        seed: of them.
    """

    name = "random_filters"
    weight: Tensor

    def __init__(self, filters: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(filters, 1, 3, 3, generator=generator))
        self.dim = 2 * filters
        self.fingerprint = f"random_filters-{filters}-{seed}"  # statistics are kept under it

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, None]:
        grey = images.float().mean(1, keepdim=True) / 127.5 - 1
        found = relu(conv2d(grey, self.weight)).flatten(2)
        return torch.cat([found.mean(2), found.amax(2)], 1), None
