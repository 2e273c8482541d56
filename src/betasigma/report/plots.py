"""Plots of runs, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from betasigma.options.training import DENOISING_ERROR
from betasigma.report.rows import Row
from betasigma.report.runs import Run
from betasigma.runs.files import replace_file


def draw_curves(runs: Sequence[Run], metrics: Sequence[str], path: Path) -> None:
    """Draw each metric over the steps, one line a run."""
    with _panels(path, len(metrics), (5.5 * len(metrics), 4)) as panels:
        for axes, metric in zip(panels, metrics, strict=True):
            for run in runs:
                steps, values = run.record.curve(metric)
                if steps:
                    marker = "." if len(steps) < 20 else None
                    axes.plot(steps, values, label=run.label, marker=marker)
            axes.set(xlabel="optimizer step", ylabel=metric, yscale="log")
        panels[0].legend(fontsize=7)


def draw_results(rows: Sequence[Row], columns: Mapping[str, Sequence[str]], path: Path) -> bool:
    """Draw columns over the rows, with error bars of one standard deviation over the seeds.

    Args:
        rows: of a table.
        columns: by the label of their common axis; one without columns is left out.
        path: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    drawn = {label: names for label, names in columns.items() if names}
    if not drawn:
        return False
    with _panels(path, len(drawn), (1.5 + 4.5 * len(drawn), 4.5)) as panels:
        for axes, (label, names) in zip(panels, drawn.items(), strict=True):
            for column in names:
                places = [i for i, row in enumerate(rows) if row.mean(column) is not None]
                axes.errorbar(
                    places,
                    [rows[i].mean(column) or 0.0 for i in places],
                    [rows[i].std(column) or 0.0 for i in places],
                    label=column,
                    marker="o",
                    markersize=4,
                    capsize=3,
                    linestyle="--" if column.endswith("floor") else "-",
                )
            axes.set_xticks(range(len(rows)), [row.label for row in rows], rotation=35, ha="right")
            axes.set_ylabel(label)
            axes.legend(fontsize=7)
    return True


def draw_error_curves(curves: Mapping[str, Mapping[float, float]], folder: Path) -> Path:
    """Draw the denoising error of each model against log-SNR.

    Args:
        curves: by label, ‖ε − ε̂‖²/d by log-SNR (of data in [−1, 1]).
        folder: of the picture.

    Returns:
        The picture's path.
    """
    path = folder / f"{DENOISING_ERROR}.png"
    with _panels(path) as (axes,):
        for label, curve in curves.items():
            axes.plot(sorted(curve), [curve[at] for at in sorted(curve)], ".-", label=label)
        axes.set(
            xlabel="log-SNR (data in [−1, 1])",
            ylabel="denoising error ‖ε − ε̂‖²/d",
            yscale="log",
        )
        axes.legend(fontsize=7)
    return path


def draw_levels(bits: Sequence[float], path: Path) -> None:
    """Bits per dimension that each noise level costs, from level 2 up."""
    with _panels(path) as (axes,):
        marker = "." if len(bits) < 50 else None
        axes.plot(range(2, len(bits) + 2), list(bits), marker=marker)
        axes.set(xlabel="level", ylabel="bits/dim of the level", yscale="log")


@contextmanager
def _panels(path: Path, number: int = 1, size: tuple[float, float] = (6, 4)) -> Iterator[list[Any]]:
    """Axes side by side, written to ``path`` when they are filled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110)
    canvas = FigureCanvasAgg(figure)
    panels = [figure.add_subplot(1, number, place) for place in range(1, number + 1)]
    yield panels
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with replace_file(path) as partial, partial.open("wb") as file:
        canvas.print_png(file)
