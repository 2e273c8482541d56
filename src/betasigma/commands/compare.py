"""What ``scripts/compare.py`` does: several runs' directories → one table and their curves."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from betasigma.commands.schema import Compare, validate
from betasigma.tracking.compare import draw_curves, last_values, read_runs, write_table
from betasigma.training.display import Display
from betasigma.training.runs import short


def compare(config: DictConfig) -> None:
    """Print a table of the runs' last values and draw their curves."""
    content = validate(config, Compare)
    out = short(Path(HydraConfig.get().runtime.output_dir))
    runs = read_runs(content["runs"])
    table = last_values(runs)
    display = Display()
    display.table("last values", ["metric", *(run.label for run in runs)], table)
    write_table(table, [run.label for run in runs], out / "table.csv")
    draw_curves(runs, content["metrics"], out / "curves.png")
    display.line(f"table  {out}/table.csv")
    display.line(f"curves {out}/curves.png")
