"""What a config may say: types, ranges, meanings, and what groups require of each other.

Each group has a file. An outside package has its own options in a module ``options``.
"""

from betasigma.options import plugins
from betasigma.options.base import (
    AUTO,
    ComponentOptions,
    Count,
    Index,
    NonNegative,
    OpenUnit,
    Options,
    Positive,
    Probability,
    UnitInterval,
    option,
)
from betasigma.options.composition import Composition, DataFacts
from betasigma.options.data import DataOptions
from betasigma.options.likelihoods import LikelihoodOptions
from betasigma.options.lr_schedules import LearningRateOptions
from betasigma.options.models import ModelOptions
from betasigma.options.networks import NetworkOptions
from betasigma.options.noise_schedules import ScheduleOptions
from betasigma.options.objectives import ObjectiveOptions
from betasigma.options.optimizers import OptimizerOptions
from betasigma.options.preconditionings import PreconditioningOptions
from betasigma.options.samplers import GridOptions, SamplerOptions

__all__ = [
    "AUTO",
    "ComponentOptions",
    "Composition",
    "Count",
    "DataFacts",
    "DataOptions",
    "GridOptions",
    "Index",
    "LearningRateOptions",
    "LikelihoodOptions",
    "ModelOptions",
    "NetworkOptions",
    "NonNegative",
    "ObjectiveOptions",
    "OpenUnit",
    "OptimizerOptions",
    "Options",
    "Positive",
    "PreconditioningOptions",
    "Probability",
    "SamplerOptions",
    "ScheduleOptions",
    "UnitInterval",
    "option",
    "plugins",
]
