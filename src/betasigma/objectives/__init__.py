"""Objectives: what a denoiser is trained to minimise."""

from betasigma.objectives.denoising import Denoising, LossTerms, Objective
from betasigma.objectives.score_matching import (
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)

__all__ = [
    "Denoising",
    "ExplicitScoreMatching",
    "ImplicitScoreMatching",
    "LossTerms",
    "Objective",
    "SlicedScoreMatching",
]
