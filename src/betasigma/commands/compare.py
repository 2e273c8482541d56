"""What ``scripts/compare.py`` does: read run directories, print tables, draw curves."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from betasigma.commands.config import parsed
from betasigma.display import Display, warn
from betasigma.options.apps import Compare
from betasigma.options.training import DENOISING_ERROR
from betasigma.report import tables
from betasigma.report.measurements import last_values
from betasigma.report.plots import draw_curves, draw_error_curves, error_curves
from betasigma.report.rows import settings_of
from betasigma.report.runs import curves_to_draw, left_out, read_runs
from betasigma.runs.start import Start

WIDEST = 6
"""How many runs fit side by side on a terminal."""


def compare(config: DictConfig, start: Start) -> None:
    """Print results and last values of several runs, and draw their curves."""
    _, asked = parsed(config, Compare)
    out, display = start.directory, Display(quiet=asked.to != "terminal")
    runs = read_runs(asked.runs)
    if deeper := left_out(asked.runs):
        warn(deeper)
    data = sorted({str(run.config.get("data", {}).get("name", "")) for run in runs})
    if len(data) > 1:
        warn(f"runs of {' and '.join(data)}: their distances, errors and bits do not compare")
    table = tables.Table("last values", ["metric", *(run.label for run in runs)], last_values(runs))
    if len(runs) <= WIDEST:
        display.table(*table)
    rows = tables.report_runs(runs, out, display, asked)
    tables.write_csv(table, out / "table.csv")
    display.line(f"table   {out}/table.csv")
    if metrics := curves_to_draw(runs, asked.metrics):
        drawn = draw_curves(settings_of(runs), metrics, out / "curves", asked)
        display.line(f"curves  {drawn}")
    curves = error_curves(runs)
    if curves:
        path = draw_error_curves(curves, out / DENOISING_ERROR, asked)
        display.line(f"denoising error by log-SNR {path}")
    if asked.to == "csv":
        sys.stdout.write(tables.as_csv(tables.full_table(rows)))
    elif asked.to == "latex":
        print(tables.as_latex(tables.short_table("results", rows)))
