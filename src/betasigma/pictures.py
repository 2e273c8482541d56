"""Pictures of samples: a grid of images, or a scatter plot of points in the plane."""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from betasigma.errors import counted
from betasigma.options.data import DECODERS
from betasigma.options.drawing import DrawingOptions
from betasigma.plot_style import BLUE, panels
from betasigma.runs.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 32
"""Smaller images are enlarged by a whole factor until a side has this many pixels."""

GAP = 2
"""Pixels around each image of a grid."""


def picture(samples: Tensor, columns: int | None = None) -> Image.Image:
    """Picture of samples: uint8 images ``(n, C, H, W)`` as a grid, or float points ``(n, d)``."""
    return scatter(samples) if samples.ndim == 2 else grid(samples, columns)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Grid of uint8 images ``(n, C, H, W)``; about square without ``columns``.

    Images of other than 1 or 3 channels are shown as their channels side by side, in grey.
    """
    from torchvision.utils import make_grid  # a second, which a page of pictures does not need

    if images.shape[1] not in (1, 3):
        images = torch.cat(images.split(1, dim=1), dim=-1)
    factor = enlargement(*images.shape[-2:])
    images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    sheet = make_grid(images, nrow=columns, padding=GAP, pad_value=255)
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())


def enlargement(height: int, width: int) -> int:
    """By how much a grid enlarges images of this size."""
    return max(1, math.ceil(SMALLEST / min(height, width)))


def image_of(pixels: Tensor) -> Image.Image:
    """One uint8 image ``(C, H, W)``, with 1 to 4 channels, as it is."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def scatter(points: Tensor) -> Image.Image:
    """Scatter plot of the first two coordinates of points ``(n, d)``; of one, a histogram."""
    with panels(1, (5, 5)) as (figure, (axes,)):
        first, *others = points.T
        if others:
            axes.scatter(first.numpy(), others[0].numpy(), s=4, alpha=0.6, color=BLUE)
            axes.set_aspect("equal")
        else:
            axes.hist(first[first.isfinite()].numpy(), bins="sqrt", color=BLUE)
        axes.set(xlabel="first coordinate", ylabel="second coordinate" if others else "samples")
        axes.set_title(counted(len(points), "sample"))
        return rendered(figure)


def rendered(figure: Figure) -> Image.Image:
    """Render a matplotlib figure as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(
        torch.frombuffer(canvas.buffer_rgba(), dtype=torch.uint8)
        .numpy()
        .reshape(*canvas.get_width_height()[::-1], 4)
    ).convert("RGB")


def save_figure(figure: Figure, path: Path, look: DrawingOptions) -> Path:
    """Write a matplotlib figure in every format of ``look``, each file whole or not at all, beside
    ``path`` with its own suffix. Return the path of the first.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph of a PDF
    undated: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = [path.with_name(f"{path.stem}.{form}") for form in look.formats]
    for form, destination in zip(look.formats, paths, strict=True):
        with replace_file(destination) as partial, partial.open("wb") as file:
            figure.savefig(file, format=form, dpi=look.dpi, metadata=undated.get(form))
    return paths[0]


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of ``DECODERS`` that the installed Pillow has, for ``Image.open(…, formats=…)``."""
    Image.init()
    return tuple(form for form in DECODERS if form in Image.OPEN)


CAPTION = "Description"
"""Name in a PNG file of the text that says what it shows."""


COUNT = "Samples"
"""Name in a PNG file of the number of images in its grid, whose last row may have gaps."""


def save(image: Image.Image, path: Path, caption: str = "", count: int | None = None) -> None:
    """Write a PNG file, whole or not at all, with what it shows as text in it."""
    text = PngInfo()
    if caption:
        text.add_text(CAPTION, caption)
    if count is not None:
        text.add_text(COUNT, str(count))
    with replace_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=text)
