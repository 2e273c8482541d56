"""Where to paint: halves, the middle, or a picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.errors import UserError
from betasigma.options.edits import check_pixels
from betasigma.pictures import readable_formats


def hole_of(name: str, sample_shape: tuple[int, ...]) -> Tensor:
    """Where to paint, bool ``(1, H, W)``.

    Args:
        name: ``left``, ``right``, ``top``, ``bottom``, ``center`` or the path of a picture, white
            where to paint.
        sample_shape: of an image, ``(C, H, W)``.

    Raises:
        UserError: for points, or a picture that cannot be read, has another size, or is all of one
            value.
    """
    check_pixels(sample_shape)
    _, height, width = sample_shape
    hole = torch.zeros(1, height, width, dtype=torch.bool)
    rows, columns = slice(height), slice(width)
    if name in ("top", "bottom"):
        rows = slice(height // 2) if name == "top" else slice(height // 2, height)
    elif name in ("left", "right"):
        columns = slice(width // 2) if name == "left" else slice(width // 2, width)
    elif name == "center":
        rows = slice(height // 4, height - height // 4)
        columns = slice(width // 4, width - width // 4)
    else:
        return _of_picture(name, height, width)
    hole[:, rows, columns] = True
    return hole


def _of_picture(path: str, height: int, width: int) -> Tensor:
    try:
        with Image.open(path, formats=readable_formats()) as image:  # which reads no pixel yet
            if image.size != (width, height):
                raise UserError(
                    f"edit.hole={path} is {image.width}×{image.height}, and the model's images are "
                    f"{width}×{height}"
                )
            values = np.asarray(image.convert("L"))
    except UserError:
        raise
    except Exception as error:  # what a broken file raises depends on its format
        raise UserError(
            f"edit.hole={path} is neither left, right, top, bottom or center nor a picture that "
            f"can be read ({error})"
        ) from None
    hole = torch.from_numpy(values > 127)[None]
    if bool(hole.all()) or not bool(hole.any()):
        raise UserError(
            f"edit.hole={path} is {'all' if bool(hole.all()) else 'nowhere'} white: white is "
            f"painted anew, and the rest is known"
        )
    return hole
