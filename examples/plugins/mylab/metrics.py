"""Sliced Wasserstein distance (Rabin et al. 2012)."""

import torch

from betasigma import SampleMetric


class SlicedWasserstein(SampleMetric):
    """Distance of one-dimensional projections of images, each as sorted values."""

    name = "sliced_wasserstein"
    needs = "images"
    most = 1000  # samples, and real images, that are kept
    least = 2  # fewest of them

    def __init__(self, projections: int = 32) -> None:
        super().__init__()
        self.projections = projections

    def compute(self) -> torch.Tensor:
        samples, real = (
            rows.flatten(1).double() / 255 for rows in (self.rows(), self.rows(real=True))
        )
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(samples.shape[1], self.projections, generator=generator).to(
            samples
        )
        directions /= directions.norm(dim=0)
        grid = torch.linspace(0, 1, 100).to(samples)
        difference = (samples @ directions).quantile(grid, 0) - (real @ directions).quantile(
            grid, 0
        )
        return difference.square().mean().sqrt()
