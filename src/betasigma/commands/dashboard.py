"""What ``scripts/dashboard.py`` does: read run directories and render the dashboard."""

from __future__ import annotations

from omegaconf import DictConfig

from betasigma.commands.config import parsed
from betasigma.display import Display
from betasigma.options.apps import Dashboard
from betasigma.options.base import dump
from betasigma.report.scan import find_recorded
from betasigma.runs.files import write_json
from betasigma.runs.start import Start


def dashboard(config: DictConfig, start: Start) -> None:
    """Render a dashboard of runs.

    Raises:
        UserError: for bad input.
    """
    _, asked = parsed(config, Dashboard)
    runs = find_recorded(asked.runs)
    path = start.directory / "dashboard.json"
    write_json(path, dump(asked.dashboard))
    Display().line(f"specification of {len(runs)} runs {path}")
