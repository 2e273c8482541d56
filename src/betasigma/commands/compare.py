"""What ``scripts/compare.py`` does: read run directories, print tables, draw curves."""

from __future__ import annotations

from omegaconf import DictConfig

from betasigma.commands.config import validate
from betasigma.display import Display
from betasigma.options.apps import Compare
from betasigma.report.measurements import error_curve, last_values
from betasigma.report.plots import draw_curves, draw_error_curves
from betasigma.report.runs import curves_to_draw, read_runs
from betasigma.report.tables import Table, report_runs, write_csv
from betasigma.runs.start import Start

WIDEST = 6
"""How many runs fit side by side on a terminal."""


def compare(config: DictConfig, start: Start) -> None:
    """Print results and last values of several runs, and draw their curves."""
    content = validate(config, Compare)
    out = start.directory
    runs = read_runs(content["runs"])
    table = Table("last values", ["metric", *(run.label for run in runs)], last_values(runs))
    display = Display()
    if len(runs) <= WIDEST:
        display.table(*table)
    report_runs(runs, out)
    write_csv(table, out / "table.csv")
    display.line(f"table   {out}/table.csv")
    if metrics := curves_to_draw(runs, content["metrics"]):
        draw_curves(runs, metrics, out / "curves.png")
        display.line(f"curves  {out}/curves.png")
    errors = {run.label: curve for run in runs if (curve := error_curve(run))}
    if errors:
        display.line(f"denoising error by log-SNR {draw_error_curves(errors, out)}")
