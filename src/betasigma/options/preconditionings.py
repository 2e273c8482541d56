"""Options of preconditioning: what the network is shown and what its output means."""

from __future__ import annotations

from typing import ClassVar, Literal

from betasigma.errors import UserError
from betasigma.options.base import ComponentOptions, Positive, option
from betasigma.options.composition import Composition

Prediction = Literal["epsilon", "score", "raw_score", "x0", "v", "edm"]
Conditioning = Literal["timestep", "scaled_time", "log_sigma", "level_number", "none"]
InputScaling = Literal["none", "unit_variance"]


class PreconditioningOptions(ComponentOptions):
    group: ClassVar[str] = "preconditioning"
    targets = ("betasigma.preconditioning.Preconditioning",)

    prediction: Prediction = option("epsilon", "what the network's output means")
    conditioning: Conditioning = option("timestep", "what the network is told of the noise level")
    input_scaling: InputScaling = option("none", "whether its input is scaled to unit variance")
    sigma_data: Positive = option(
        0.5, "standard deviation of the data, of prediction=edm and input_scaling=unit_variance"
    )
    timestep_scale: Positive = option(1.0, "factor of the number that conditioning=timestep tells")

    def check_with(self, composition: Composition) -> None:
        wanted = composition.network.conditioning
        if wanted is not None and self.conditioning != wanted:
            raise UserError(
                f"preconditioning.conditioning={self.conditioning} does not fit "
                f"network={composition.network.target}, which must be told {wanted}: give "
                f"preconditioning.conditioning={wanted}"
            )
