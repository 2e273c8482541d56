"""Curves over the noise levels, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def draw_error_curves(curves: Mapping[str, Mapping[float, float]], path: Path) -> None:
    """Denoising error of each model against log-SNR.

    Args:
        curves: by label, ‖ε − ε̂‖²/d by log-SNR (of data in [−1, 1]).
    """
    with _axes(path) as axes:
        for label, curve in curves.items():
            axes.plot(sorted(curve), [curve[at] for at in sorted(curve)], ".-", label=label)
        axes.set(
            xlabel="log-SNR (data in [−1, 1])",
            ylabel="denoising error ‖ε − ε̂‖²/d",
            yscale="log",
        )
        axes.legend(fontsize=7)


def draw_levels(bits: Sequence[float], path: Path) -> None:
    """Bits per dimension that each noise level costs, from level 2 up."""
    with _axes(path) as axes:
        marker = "." if len(bits) < 50 else None
        axes.plot(range(2, len(bits) + 2), list(bits), marker=marker)
        axes.set(xlabel="level", ylabel="bits/dim of the level", yscale="log")


@contextmanager
def _axes(path: Path) -> Iterator[Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    yield axes
    axes.grid(alpha=0.3)
    figure.tight_layout()
    canvas.print_png(path)
