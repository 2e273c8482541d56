"""What ``scripts/compare.py`` does: several runs' directories → their tables, curves and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from betasigma.commands.schema import Compare, validate
from betasigma.display import Display
from betasigma.report.evaluations import (
    read_evaluations,
    table_of_evaluations,
    write_evaluations,
)
from betasigma.report.plots import draw_error_curves
from betasigma.report.runs import (
    Run,
    draw_curves,
    error_curve,
    last_values,
    read_runs,
    write_table,
)
from betasigma.report.summary import draw_summary, summarise, table_of, write_summary
from betasigma.runs.directory import short

WIDEST = 6
"""Runs that fit side by side on a terminal."""


def compare(config: DictConfig) -> None:
    """Print the runs' results and last values, and draw both and their curves."""
    content = validate(config, Compare)
    out = short(Path(HydraConfig.get().runtime.output_dir))
    runs = read_runs(content["runs"])
    table = last_values(runs)
    display = Display()
    if len(runs) <= WIDEST:
        display.table("last values", ["metric", *(run.label for run in runs)], table)
    tell(runs, out)
    write_table(table, [run.label for run in runs], out / "table.csv")
    draw_curves(runs, content["metrics"], out / "curves.png")
    display.line(f"table   {out}/table.csv")
    display.line(f"curves  {out}/curves.png")
    errors = {run.label: curve for run in runs if (curve := error_curve(run))}
    if errors:
        draw_error_curves(errors, out / "denoising_error.png")
        display.line(f"denoising error by log-SNR {out}/denoising_error.png")


def tell(runs: Sequence[Run], out: Path) -> None:
    """Print what the runs achieved, one row a setting, and leave it as ``summary.csv`` and
    ``summary.png``.
    """
    out = short(out)
    rows = summarise(runs)
    display = Display()
    display.table(*table_of(rows))
    write_summary(rows, out / "summary.csv")
    display.line(f"summary {out}/summary.csv")
    if draw_summary(rows, out / "summary.png"):
        display.line(f"plot    {out}/summary.png")


def tell_evaluations(sweep: Path) -> None:
    """Print what the jobs of a sweep have measured, one row a job, and leave it as ``sweep.csv`` in
    the sweep's directory.
    """
    rows = read_evaluations(sweep)
    display = Display()
    display.table(*table_of_evaluations(rows))
    write_evaluations(rows, sweep / "sweep.csv")
    display.line(f"sweep   {short(sweep)}/sweep.csv")
