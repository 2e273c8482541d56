"""How a public model and ours are compared: random weights, equal outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser

CLOSE = 1e-5
"""Largest relative error of outputs in float32."""


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every weight random, those that start at zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            centre = float(parameter.ndim < 2 and name.endswith("weight"))
            parameter.copy_(centre + scale * noise)
    return module.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.01
    return float((ours - theirs).abs().max() / theirs.abs().max())


def images(batch: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Noise of the shape of a batch of images."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def output(denoiser: Denoiser, x: Tensor, step: int, y: Tensor | None = None) -> Tensor:
    """Output of the network in ``denoiser`` at DDPM's step 1 … L: what a public model returns at
    ``step - 1``, a learned variance included.
    """
    prediction = denoiser(x, step / denoiser.schedule.levels, y)
    if prediction.interpolation is None:
        return prediction.output
    return torch.cat([prediction.output, prediction.interpolation], 1)
