"""Samplers: from noise to data through a Denoiser."""

from betasigma.samplers.ancestral import DDIM, Ancestral
from betasigma.samplers.dpm_solver import DPMSolver
from betasigma.samplers.langevin import AnnealedLangevin
from betasigma.samplers.predictor_corrector import PredictorCorrector
from betasigma.samplers.probability_flow import AdaptiveODE, Euler, Heun
from betasigma.samplers.sampler import (
    CountingDenoiser,
    Noise,
    Sampler,
    Samples,
    count_not_finite,
    in_batches,
    labels_in_turn,
)

__all__ = [
    "DDIM",
    "AdaptiveODE",
    "Ancestral",
    "AnnealedLangevin",
    "CountingDenoiser",
    "DPMSolver",
    "Euler",
    "Heun",
    "Noise",
    "PredictorCorrector",
    "Sampler",
    "Samples",
    "count_not_finite",
    "in_batches",
    "labels_in_turn",
]
