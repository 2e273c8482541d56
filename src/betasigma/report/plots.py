"""Plots of runs: curves over training, results, error by noise level, bits by level; and sheets of
images.

A line is a setting: its runs differ in the seed alone. It shows their mean, with a band or bar of
one standard error. Nothing is joined that was measured differently.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from betasigma import plot_style
from betasigma.options import training
from betasigma.options.drawing import DrawingOptions
from betasigma.pictures import save_figure
from betasigma.report.measurements import error_curve, examples_in_words
from betasigma.report.rows import Row, Setting, means_by_seed, settings_of, standard_error
from betasigma.report.runs import Run
from betasigma.runs.record import current_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


AS_IT_IS = DrawingOptions()

ERROR = "‖ε − ε̂‖²/d"
LOG_SNR = "log-SNR of data in [−1, 1]"

MARKERS = {"train": "o", "test": "s"}
"""Of a distance, by the split that it is taken to."""

TERMS = {"prior": 0.35, "diffusion": 0.65, "decoder": 1.0}
"""Opacity of the terms of a bound, in their order."""


class ErrorCurve(NamedTuple):
    """The denoising error of a setting.

    Attributes:
        curves: of each seed, the error by log-SNR.
        n: how many examples it and those beside it were measured on, in words; ``""`` where that
            is not known.
    """

    label: str
    family: str
    curves: Sequence[Mapping[float, float]]
    n: str = ""


def draw_curves(
    settings: Sequence[Setting], metrics: Sequence[str], path: Path, look: DrawingOptions = AS_IT_IS
) -> Path:
    """Draw each metric over the steps, one line a setting."""
    with plot_style.panels(len(metrics)) as (figure, axes):
        colours = plot_style.family_colours([setting.family for setting in settings])
        for panel, metric in zip(axes, metrics, strict=True):
            positive, examples = True, set()
            for setting, colour in zip(settings, colours, strict=True):
                of_runs: list[tuple[Run, dict[float, float]]] = []
                for run in setting.runs:
                    examples |= {s.context.get("n", "") for s in run.series if s.metric == metric}
                    if curve := run.curve(current_name(metric)):
                        of_runs.append((run, curve))
                if known := means_by_seed(of_runs):
                    _draw_mean(panel, known, colour, with_seeds(setting.label, len(known)))
                    positive &= all(value > 0 for curve in known for value in curve.values())
            title, unit = meaning(metric)
            panel.set(xlabel="optimizer step", ylabel=_with_n(unit, examples_in_words(examples)))
            panel.set_title(title)
            if positive:
                panel.set_yscale("log")
                plot_style.plain_log_axis(panel.yaxis)
        plot_style.legend_below(figure, axes)
        return save_figure(figure, path, look)


def error_curves(runs: Sequence[Run]) -> list[ErrorCurve]:
    """Denoising errors by log-SNR as they were last measured, by setting."""
    found = [(one, [(run, error_curve(run)) for run in one.runs]) for one in settings_of(runs)]
    n = examples_in_words(curve.n for _, curves in found for _, curve in curves)
    return [
        ErrorCurve(setting.label, setting.family, errors, n)
        for setting, curves in found
        if (errors := means_by_seed((run, own.errors) for run, own in curves if own.errors))
    ]


def draw_error_curves(
    found: Sequence[ErrorCurve], path: Path, look: DrawingOptions = AS_IT_IS
) -> Path:
    """Draw ‖ε − ε̂‖²/d of each setting against log-SNR (of data in [−1, 1])."""
    with plot_style.panels() as (figure, (axes,)):
        draw_errors(axes, found)
        plot_style.legend_below(figure, [axes])
        return save_figure(figure, path, look)


def draw_errors(axes: Axes, found: Sequence[ErrorCurve]) -> None:
    """Draw the same into an existing panel, without a legend."""
    from matplotlib.ticker import MaxNLocator

    colours = plot_style.family_colours([one.family for one in found])
    for one, colour in zip(found, colours, strict=True):
        _draw_mean(axes, one.curves, colour, with_seeds(one.label, len(one.curves)), marker=".")
    axes.set_title("denoising error by noise level")
    n = " / ".join(dict.fromkeys(one.n for one in found if one.n))
    axes.set(xlabel=LOG_SNR, ylabel=_with_n(ERROR, n), yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot_style.plain_log_axis(axes.yaxis)


def draw_levels(bits: Sequence[float], n: int, path: Path) -> Path:
    """Bits per dimension that each noise level costs, from level 2 up, a mean over n examples."""
    with plot_style.panels() as (figure, (axes,)):
        marker = "." if len(bits) < 50 else None
        axes.plot(range(2, len(bits) + 2), list(bits), marker=marker, color=plot_style.GREY)
        axes.set(xlabel="noise level", ylabel=f"bits/dim of the level, n={n}", yscale="log")
        return save_figure(figure, path, AS_IT_IS)


def draw_results(
    rows: Sequence[Row],
    columns: Sequence[str],
    path: Path,
    errors: Sequence[ErrorCurve] = (),
    look: DrawingOptions = AS_IT_IS,
) -> Path | None:
    """Draw results over the rows of a table: a panel for each metric, a line a row, bars of one
    standard error over the seeds.

    Args:
        columns: to draw: distances, likelihoods and :data:`DENOISING_ERROR`.
        errors: denoising error by log-SNR, for a panel of its own; ``()`` for none.

    Returns:
        The picture's path; ``None`` where there is nothing to draw.
    """
    metrics = list(dict.fromkeys(column.split()[0] for column in columns))
    number = len(metrics) + bool(errors)
    if not number:
        return None
    names = [_name_of(row, rows) for row in rows]
    longest = max(map(len, names), default=0)
    size = (plot_style.PANEL[0] * 0.85 + 0.05 * longest / number, max(2.2, 1.3 + 0.3 * len(rows)))
    with plot_style.panels(number, size) as (figure, axes):
        colours = plot_style.family_colours([row.family for row in rows])
        for column, (panel, metric) in enumerate(zip(axes, metrics, strict=False)):
            own = [column for column in columns if column.split()[0] == metric]
            if any(column.endswith(" total") for column in own):
                _draw_bits(panel, rows, own, colours)
                unit = "bits/dim"
            elif metric == training.DENOISING_ERROR:
                _draw_points(panel, rows, {"o": training.DENOISING_ERROR}, colours)
                unit = ERROR
            else:
                by_split = {MARKERS[s]: f"{metric} {s}" for s in MARKERS if f"{metric} {s}" in own}
                _draw_points(panel, rows, by_split, colours)
                _draw_floor(panel, rows, f"{metric} floor")
                unit = "Fréchet distance"
            measured = _measured(rows, [c for c in own if not c.endswith(" floor")])
            panel.set_xlabel(f"{unit}{measured and f', {measured}'}")
            panel.set_title(metric)
            panel.set_yticks(range(len(rows)), names if column == 0 else [""] * len(rows))
            panel.set_ylim(len(rows) - 0.5, -0.5)
            panel.grid(visible=False, axis="y")
            if panel.get_legend_handles_labels()[0]:
                panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / size[1]), ncols=3)
        if errors:
            draw_errors(axes[-1], errors)
        return save_figure(figure, path, look)


def with_seeds(label: str, seeds: int) -> str:
    """A label with the number of seeds that a mean is over."""
    return f"{label} ({seeds} seeds)" if seeds > 1 else label


def _with_n(unit: str, n: str) -> str:
    return f"{unit}, {n}" if n else unit


def meaning(metric: str) -> tuple[str, str]:
    """What a metric is called in a plot, and its unit."""
    if metric == training.SPEED:
        return "training speed", "images/s"
    prefix, _, name = metric.partition("/")
    where = {"train": " in training", "val": " in validation"}.get(prefix, "")
    if name.startswith(training.DENOISING_ERROR):
        return f"{name.replace('_', ' ')}{where}", ERROR
    if metric in (training.TRAIN_OBJECTIVE, training.VALIDATION_OBJECTIVE):
        return f"objective{where}", "unit of its family"
    return metric, metric


def _draw_mean(
    axes: Axes,
    curves: Sequence[Mapping[float, float]],
    colour: str,
    label: str,
    marker: str | None = None,
) -> None:
    """The mean of curves where all of them have a value, with a band of one standard error."""
    x = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[at] for curve in curves] for at in x]
    means = [statistics.mean(found) for found in values]
    few = "." if len(x) < 20 else None
    axes.plot(x, means, color=colour, label=label, marker=marker or few)
    if len(curves) > 1:
        reach = [standard_error(found) or 0.0 for found in values]
        low = [mean - error for mean, error in zip(means, reach, strict=True)]
        high = [mean + error for mean, error in zip(means, reach, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=plot_style.BAND, linewidth=0)


def _draw_points(
    axes: Axes, rows: Sequence[Row], by_marker: Mapping[str, str], colours: Sequence[str]
) -> None:
    """Means with their standard errors, a line a row; the values of the seeds faint behind them."""
    for number, (marker, column) in enumerate(by_marker.items()):
        shift = 0.16 * (number - (len(by_marker) - 1) / 2)
        for index, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            values = row.values.get(column)
            if not values:
                continue
            at = index + shift
            if len(values) > 1:
                axes.plot(values, [at] * len(values), marker, color=colour, alpha=0.25, ms=3)
            axes.errorbar(
                [statistics.mean(values)],
                [at],
                xerr=standard_error(values) or None,
                fmt=marker,
                color=colour,
            )
        if len(by_marker) > 1:
            split = column.rpartition(" ")[2]
            axes.plot([], [], marker, color=plot_style.GREY, label=f"to {split} images")


def _draw_floor(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """What real images score, as a band from the least to the largest of the rows."""
    found = [value for row in rows for value in row.values.get(column, [])]
    if found:
        low, high = min(found), max(found)
        axes.axvspan(low, high, color=plot_style.GREY, alpha=plot_style.BAND)
        axes.axvline(
            statistics.mean(found), color=plot_style.GREY, lw=1, label="real test images (floor)"
        )


def _draw_bits(
    axes: Axes, rows: Sequence[Row], columns: Sequence[str], colours: Sequence[str]
) -> None:
    """Totals with their standard errors, over bars of their terms where no term is below 0."""
    totals = [column for column in columns if column.endswith(" total")]
    for number, total in enumerate(totals):
        stem = total.removesuffix("total")
        shift = 0.3 * (number - (len(totals) - 1) / 2)
        for index, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            terms = {term: row.mean(stem + term) or 0.0 for term in TERMS}
            left = 0.0
            if all(0 <= value < math.inf for value in terms.values()):
                for term, value in terms.items():
                    height = 0.6 / len(totals)
                    axes.barh(
                        index + shift, value, height, left, color=colour, alpha=TERMS[term] * 0.6
                    )
                    left += value
            if (mean := row.mean(total)) is not None:
                reach = standard_error(row.values[total])
                axes.errorbar([mean], [index + shift], xerr=reach, fmt="ok", ms=3)
    for term, opacity in TERMS.items():
        if any(column.endswith(f" {term}") for column in columns):
            axes.barh([0], [0], color=plot_style.GREY, alpha=opacity * 0.6, label=term)


def _name_of(row: Row, rows: Sequence[Row]) -> str:
    """Name of a row, with n and NFE where rows differ in them."""
    own = [f"{key}={row.size(key)}" for key in ("n", "NFE") if len({r.size(key) for r in rows}) > 1]
    seeds = max((len(values) for values in row.values.values()), default=1)
    return with_seeds(", ".join([row.label, *own]), seeds)


def _measured(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """n and NFE by which columns were measured, as far as they are the same in all rows."""
    known = [row.measured[column] for row in rows for column in columns if column in row.measured]
    common = set.intersection(*map(set, known)) if known else set()
    return ", ".join(sorted(common))


CELL, GAP, CAPTION = 0.62, 0.08, 0.28
"""Width of a cell of a sheet in inches, and what is between two and a caption, as shares of it."""


class Sheet(NamedTuple):
    """Images in rows and columns.

    Attributes:
        cells: uint8 ``(C, H, W)`` by row and column, all of one size; ``None`` for an empty one.
        rows, columns: their names.
        captions: below each image, by row and column; ``()`` for none.
    """

    title: str
    cells: Sequence[Sequence[Tensor | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    captions: Sequence[Sequence[str]] = ()


def draw_sheets(sheets: Sequence[Sheet], note: str, path: Path, look: DrawingOptions) -> Path:
    """Draw sheets one below the other."""
    columns = max(len(sheet.columns) for sheet in sheets)
    longest = max(len(row) for sheet in sheets for row in sheet.rows)
    heights = [_tops(sheet)[-1] for sheet in sheets]
    size = (
        CELL * columns + 0.07 * longest + 0.3,
        (CELL * sum(heights) + 0.45 * len(sheets) + 0.35) / len(sheets),
    )
    ratios = {"height_ratios": heights}
    with plot_style.panels(1, size, rows=len(sheets), gridspec_kw=ratios) as (figure, axes):
        for panel, sheet in zip(axes, sheets, strict=True):
            _draw_sheet(panel, sheet)
        figure.supxlabel(note, fontsize=8)
        return save_figure(figure, path, look)


def _draw_sheet(axes: Axes, sheet: Sheet) -> None:
    tops = _tops(sheet)
    shape = next(cell.shape for row in sheet.cells for cell in row if cell is not None)
    wide = shape[2] / shape[1]
    for number, (top, row) in enumerate(zip(tops, sheet.cells, strict=False)):
        for column, cell in enumerate(row):
            left = column * (wide + GAP)
            if cell is not None:
                axes.imshow(
                    _pixels(cell),
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                    interpolation="nearest",
                    extent=(left, left + wide, top + 1, top),
                )
            if sheet.captions and sheet.captions[number][column]:
                told = sheet.captions[number][column]
                axes.text(left + wide / 2, top + 1.04, told, ha="center", va="top", size=7)
    columns = len(sheet.columns)
    axes.set_xlim(0, columns * (wide + GAP) - GAP)
    axes.set_ylim(tops[-1], 0)
    axes.set_xticks([c * (wide + GAP) + wide / 2 for c in range(columns)], sheet.columns, size=7)
    axes.set_yticks([top + 0.5 for top in tops[:-1]], sheet.rows, size=8)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.set_title(sheet.title, loc="left")
    axes.grid(visible=False)
    axes.set_frame_on(False)


def _tops(sheet: Sheet) -> list[float]:
    """Where rows begin and where the last one ends, an image being 1 high."""
    tops = [0.0]
    for number in range(len(sheet.cells)):
        told = bool(sheet.captions) and any(sheet.captions[number])
        tops.append(tops[-1] + 1 + GAP + (CAPTION if told else 0))
    return tops


def _pixels(cell: Tensor) -> np.ndarray:
    """An image as matplotlib takes it; other than 1 or 3 channels are shown by their mean."""
    array = cell.permute(1, 2, 0).numpy()
    if array.shape[2] == 3:
        return array
    return array.mean(2) if array.shape[2] > 1 else array[..., 0]
