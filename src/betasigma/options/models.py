"""Options of a family: the LightningModule, its name and the range of its data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from betasigma.options.base import ComponentOptions, option
from betasigma.options.composition import Composition


class ModelOptions(ComponentOptions):
    """Options of a LightningModule. ``family`` follows from the class and cannot be chosen."""

    group: ClassVar[str] = "model"
    family_of_class: ClassVar[str] = ""
    trains: ClassVar[bool] = True
    """Whether there is something to train."""

    name: str = option("", "of the model, in the names of its runs")
    family: str = option("", "follows from the class")
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)] = option(
        [-1.0, 1.0], "what the bytes 0 and 255 become"
    )
    defaults: dict[str, Any] = option(
        {}, "what other groups take from the family where nothing else is said"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.value_range
        if low >= high:
            raise ValueError(f"model.value_range=[{low:g}, {high:g}] must rise")
        known = self.family_of_class
        if known and self.family not in ("", known):
            raise ValueError(
                f"model.family={self.family} does not fit model={self.name}: the family follows "
                f"from the class, and {self.target} is of family {known}; leave the key out"
            )
        return self

    def unused(self, composition: Composition) -> dict[str, str]:
        found = {"family": ": it follows from the class of the model"}
        if composition.data.value_range is not None:
            found["value_range"] = f"on data={composition.data.name}, which keeps its own values"
        return found


class DDPMOptions(ModelOptions):
    targets = ("betasigma.modules.DDPM",)
    family_of_class = "ddpm"


class NCSNOptions(ModelOptions):
    targets = ("betasigma.modules.NCSN",)
    family_of_class = "ncsn"


class OracleOptions(ModelOptions):
    targets = ("betasigma.modules.Oracle",)
    family_of_class = "oracle"
    trains = False
