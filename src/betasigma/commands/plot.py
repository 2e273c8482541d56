"""What ``scripts/plot.py`` does: draw one figure for a paper."""

from __future__ import annotations

from omegaconf import DictConfig

from betasigma.build import make, require
from betasigma.commands.config import parsed
from betasigma.commands.paper_figures import Figure, FigureRequest
from betasigma.display import Display, plain_warnings
from betasigma.options.apps import Plot
from betasigma.runs.start import Start


def plot(config: DictConfig, start: Start) -> None:
    """Draw a figure of runs into a new directory.

    Raises:
        UserError: for bad input.
    """
    content, asked = parsed(config, Plot)
    plain_warnings()
    display = Display()
    node = content["figure"]
    figure = require(make(node, "figure"), Figure, "figure", node["_target_"])
    path = figure.draw(FigureRequest(asked, content, start.directory, display))
    for form in asked.formats:
        display.line(f"figure {path.with_name(f'{path.stem}.{form}')}")
