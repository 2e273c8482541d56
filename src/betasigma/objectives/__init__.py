"""Objectives: what a denoiser is trained to minimise."""

from betasigma.objectives.denoising import Denoising, LossTerms, Noised, Objective
from betasigma.objectives.hybrid import Hybrid
from betasigma.objectives.score_matching import (
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)

__all__ = [
    "Denoising",
    "ExplicitScoreMatching",
    "Hybrid",
    "ImplicitScoreMatching",
    "LossTerms",
    "Noised",
    "Objective",
    "SlicedScoreMatching",
]
