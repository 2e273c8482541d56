"""Likelihood: variational bounds and the probability-flow ODE, in bits per dimension."""

from betasigma.likelihood.bound import Bound, ContinuousBound, DiscreteBound, VariationalBound
from betasigma.likelihood.flow import FlowLikelihood
from betasigma.likelihood.terms import Examples, Terms
from betasigma.prior import GaussianPrior

__all__ = [
    "Bound",
    "ContinuousBound",
    "DiscreteBound",
    "Examples",
    "FlowLikelihood",
    "GaussianPrior",
    "Terms",
    "VariationalBound",
]
