"""What a config may ask of the DiT and of the restart sampler, checked before PyTorch is imported.

A class without such a model is checked too, after it is imported: against its signature.
"""

from typing import Self

from pydantic import model_validator

from betasigma.errors import UserError
from betasigma.options import Count, GridOptions, NetworkOptions, Positive, option
from betasigma.options.samplers import Grid


class DiTOptions(NetworkOptions):
    targets = ("mylab.nets.DiT",)
    takes = "images"

    patch: Count = option(2, "side of a patch, in pixels")
    width: Count = option(64, "of a token")
    depth: Count = option(4, "number of blocks")
    heads: Count = option(4, "of the attention")

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"network.width={self.width} must be a multiple of 2*heads = {2 * self.heads}"
            )
        return self

    def check_image_size(self, image_size: int) -> None:
        if image_size % self.patch:
            raise UserError(
                f"network.patch={self.patch} does not divide images of {image_size}x{image_size}"
            )


class RestartOptions(GridOptions):
    targets = ("mylab.samplers.Restart",)

    steps: Count | None = option(18, "times on the grid; null: every level of the model")
    grid: Grid = option("karras", "how the times are spaced")
    low: Positive = option(0.2, "sigma/alpha from which a restart goes back")
    high: Positive = option(1.0, "sigma/alpha to which it adds noise")
    restarts: Count = option(2, "K, how often")
    inner: Count = option(4, "Heun steps of each restart")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"sampler.low={self.low:g} must be below sampler.high={self.high:g}")
        return self
