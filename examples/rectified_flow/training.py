"""What is minimised, and the LightningModule that names the family."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from betasigma.denoiser import Denoiser
from betasigma.modules import DiffusionModule
from betasigma.objectives import Noised, Objective
from betasigma.randomness import Stream
from rectified_flow.options import FlowMatchingOptions


@dataclass(frozen=True)
class FlowMatching(Objective):
    """E‖(ε − x_0) − (ε̂ − x̂_0)‖²/d (Liu et al. 2023, equation 1)."""

    options: ClassVar[type[FlowMatchingOptions]] = FlowMatchingOptions

    def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        predicted = denoiser(noised.x_t, noised.t, noised.y)
        noised.error(predicted)  # for the log: the error in the unit that all families share
        missed = (noised.eps - noised.x0) - (predicted.eps - predicted.x0)
        return missed.square().flatten(1).mean(1)


class RectifiedFlow(DiffusionModule):
    """Rectified flow."""

    family = "rectified_flow"
