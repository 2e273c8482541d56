"""Options of the figures that a paper needs, and what they ask of the model."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from betasigma.errors import UserError
from betasigma.options.base import ComponentOptions, Count, Index, option
from betasigma.options.composition import Composition

Columns = Annotated[int, Field(ge=2, le=40)]


class FigureOptions(ComponentOptions):
    group: ClassVar[str] = "figure"
    of_models: ClassVar[bool] = False
    """Whether it loads models; else it reads what runs have recorded."""


class ModelFigureOptions(FigureOptions):
    """Options of a figure that loads models."""

    of_models = True

    def check_with(self, composition: Composition) -> None:
        if composition.data.points:
            raise UserError(
                f"figure={type(self).__name__.removesuffix('Options')} shows images; the data of "
                f"this model are points"
            )


class FilmstripOptions(ModelFigureOptions):
    targets = ("betasigma.commands.paper_figures.Filmstrip",)

    samples: Count = option(3, "rows of each run: samples 0, 1, … of the seed")
    columns: Columns = option(12, "noise levels, the last one the sample")


class DenoisedImageOptions(ModelFigureOptions):
    targets = ("betasigma.commands.paper_figures.DenoisedImage",)

    index: Index = option(0, "which test image")
    columns: Columns = option(10, "noise levels, evenly spaced in log-SNR")


class NeighboursOptions(ModelFigureOptions):
    targets = ("betasigma.commands.paper_figures.Neighbours",)

    samples: Count = option(8, "columns: samples 0, 1, … of the seed, and as many test images")
    nearest: Count = option(3, "training images below each, the nearest first")


class RecordedFigureOptions(FigureOptions):
    """Options of a figure of what runs have recorded: none."""

    targets = (
        "betasigma.commands.paper_figures.Frontier",
        "betasigma.commands.paper_figures.ErrorByNoise",
        "betasigma.commands.paper_figures.StudyResults",
    )
