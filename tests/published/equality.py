"""How a public model and ours are compared: random weights, equal outputs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser

CLOSE = 1e-5
"""Largest relative error of outputs in float32."""


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that are a function of their names: matrices of unit gain, vectors near 0, and near 1
    where they are the weights of a normalisation.
    """
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        noise = torch.randn(tuple(shape), generator=generator)
        if len(shape) > 1:
            weights[name] = noise / noise[0].numel() ** 0.5
        else:
            weights[name] = float(name.endswith("weight")) + 0.1 * noise
    return weights


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every weight random, those that start at zero or one too."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    module.load_state_dict(random_weights(shapes, seed), strict=False)
    return module.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.01
    return float((ours - theirs).abs().max() / theirs.abs().max())


def images(batch: int, shape: Sequence[int], seed: int = 1) -> Tensor:
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
