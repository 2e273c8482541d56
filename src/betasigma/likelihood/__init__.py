"""Likelihood: variational bounds and the probability-flow ODE, in bits per dimension."""

from betasigma.likelihood.bound import Bound, ContinuousBound, DiscreteBound
from betasigma.likelihood.flow import FlowLikelihood
from betasigma.prior import GaussianPrior

__all__ = ["Bound", "ContinuousBound", "DiscreteBound", "FlowLikelihood", "GaussianPrior"]
