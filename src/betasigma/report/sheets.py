"""Sheets of images with names of their rows and columns, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from betasigma.options.drawing import DrawingOptions
from betasigma.pictures import save_figure
from betasigma.plot_style import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = 0.62
"""Width of a cell, in inches."""

GAP = 0.08
"""Between two cells, as a share of a cell."""


CAPTION = 0.28
"""Height of a caption, as a share of a cell."""


class Sheet(NamedTuple):
    """Images in rows and columns.

    Attributes:
        title: what they are.
        cells: uint8 ``(C, H, W)`` by row and column, all of one size; ``None`` for an empty one.
        rows: names of the rows.
        columns: names of the columns.
        captions: below each image, by row and column; ``()`` for none.
    """

    title: str
    cells: Sequence[Sequence[Tensor | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    captions: Sequence[Sequence[str]] = ()


def draw_sheets(sheets: Sequence[Sheet], note: str, path: Path, look: DrawingOptions) -> Path:
    """Draw sheets one below the other.

    Args:
        sheets: with as many columns each.
        note: what the names of the columns, or the captions, are.
        path: of the picture.
        look: how it is written.
    """
    columns = max(len(sheet.columns) for sheet in sheets)
    longest = max(len(row) for sheet in sheets for row in sheet.rows)
    heights = [_tops(sheet)[-1] for sheet in sheets]
    size = (
        CELL * columns + 0.07 * longest + 0.3,
        (CELL * sum(heights) + 0.45 * len(sheets) + 0.35) / len(sheets),
    )
    ratios = {"height_ratios": heights}
    with panels(1, size, rows=len(sheets), gridspec_kw=ratios) as (figure, axes):
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
