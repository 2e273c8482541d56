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

    def unused(self, composition: Composition) -> dict[str, str]:
        found = {}
        objective, edm = composition.objective, self.prediction == "edm"
        weighs = getattr(objective, "weighting", None) == "edm"
        handed_on = weighs and getattr(objective, "sigma_data", None) == self.sigma_data
        if not (edm or self.input_scaling == "unit_variance" or handed_on):
            found["sigma_data"] = (
                "without preconditioning.prediction=edm, preconditioning.input_scaling="
                "unit_variance or objective.weighting=edm"
            )
        if edm:
            found["input_scaling"] = "with preconditioning.prediction=edm, which scales the input"
        if not getattr(composition.network, "conditional", True):
            found["conditioning"] = "without network.conditional=true"
        if self.conditioning != "timestep" or "conditioning" in found:
            found["timestep_scale"] = "without preconditioning.conditioning=timestep"
        return found

    def check_with(self, composition: Composition) -> None:
        wanted = composition.network.conditioning
        if wanted is not None and self.conditioning != wanted:
            raise UserError(
                f"preconditioning.conditioning={self.conditioning} does not fit "
                f"network={composition.network.target}, which must be told {wanted}: give "
                f"preconditioning.conditioning={wanted}"
            )
