"""What ``scripts/dashboard.py`` does: read run directories and render the dashboard."""

from __future__ import annotations

import webbrowser
from functools import partial
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig
from torch import Tensor

from betasigma.commands.checks import check_run
from betasigma.commands.config import complete, parsed
from betasigma.data.custom import open_split
from betasigma.data.sources import InMemory
from betasigma.display import Display, warn
from betasigma.errors import UserError, counted
from betasigma.options.apps import Dashboard
from betasigma.options.dashboards import SamplesOptions
from betasigma.report.page import HOST, Pages, make_server, render, state_of_files
from betasigma.report.page_data import page_data, panel_of
from betasigma.report.page_pictures import Album
from betasigma.report.runs import Run, leaves
from betasigma.report.scan import find_recorded
from betasigma.runs.files import write_text
from betasigma.runs.start import Start

PAGE = "dashboard.html"


def dashboard(config: DictConfig, start: Start) -> None:
    """Render a dashboard of runs as a page, and serve it where that is asked for."""
    _, asked = parsed(config, Dashboard)
    if asked.to == "wandb":
        from betasigma.commands.wandb_dashboard import show_on_wandb  # an extra

        show_on_wandb(asked, start)
        return
    display = Display()
    read = partial(describe, asked, leaves(check_run(compose("train")).content))
    if asked.serve is not None:
        serve(asked, Pages(read, partial(state_of_files, asked.runs)), display)
        return
    data = read()
    path = start.directory / PAGE
    write_text(path, render(data))
    display.line(
        f"page of {counted(len(data['runs']), 'run')} {path} ({path.stat().st_size / 1e6:.1f} MB)"
    )
    if asked.open:
        webbrowser.open(path.resolve().as_uri())


def describe(asked: Dashboard, defaults: dict[str, Any]) -> dict[str, Any]:
    """Read the runs and describe them for a page."""
    runs = find_recorded(asked.runs)
    options = panel_of(asked.dashboard, SamplesOptions)
    return page_data(runs, asked.dashboard, Album(len(runs), options, training_images), defaults)


def training_images(run: Run) -> Tensor | None:
    """Training images of a run, uint8 ``(N, C, H, W)``; ``None`` where they are not at hand, and of
    points. Nothing is downloaded.
    """
    try:
        content = complete(run.config)
        source = open_split(content["data"], "train", content["seed"])
    except (UserError, OSError, KeyError) as error:
        warn(f"no real images of {run.data[0]} on the page: {error}")
        return None
    if not isinstance(source, InMemory):
        warn(f"no real images of {run.data[0]} on the page: they are not held in memory")
        return None
    return source.images if source.images.dtype == torch.uint8 else None


def serve(asked: Dashboard, pages: Pages, display: Display) -> None:
    """Serve the page until Ctrl-C."""
    assert asked.serve is not None
    number = len(pages.data()["runs"])
    with make_server(pages, asked.serve) as server:
        address = f"http://{HOST}:{asked.serve}/"
        display.line(
            f"page of {counted(number, 'run')} at {address}, which follows them; Ctrl-C ends it"
        )
        if asked.open:
            webbrowser.open(address)
        server.serve_forever()
