"""Objectives: what a denoiser is trained to minimise."""

from betasigma.objectives.denoising import Denoising, LossTerms

__all__ = ["Denoising", "LossTerms"]
