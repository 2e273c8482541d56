"""Options of the pictures that a command draws."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from betasigma.options.base import Options, option

Format = Literal["png", "pdf", "svg"]


class DrawingOptions(Options):
    """Options of the commands that draw plots."""

    dpi: Annotated[int, Field(ge=30, le=1200)] = option(150, "pixels per inch of a PNG")
    formats: Annotated[list[Format], Field(min_length=1)] = option(
        ["png", "pdf"], "files of each plot: png, pdf, svg"
    )
