"""Samplers: from noise to data through a Denoiser."""

from betasigma.samplers.ancestral import DDIM, Ancestral
from betasigma.samplers.base import Sampler, Samples
from betasigma.samplers.langevin import AnnealedLangevin

__all__ = ["DDIM", "Ancestral", "AnnealedLangevin", "Sampler", "Samples"]
