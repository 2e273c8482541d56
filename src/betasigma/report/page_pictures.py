"""Samples of runs for a page: grids that training has drawn, cut to what the page has room for, and
the training images that are nearest to the last of them.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.evaluation.neighbours import nearest_examples
from betasigma.options.dashboards import SamplesOptions
from betasigma.pictures import COUNT, GAP, enlargement
from betasigma.report.runs import Run
from betasigma.runs.directory import DATA, SAMPLES
from betasigma.runs.files import read_json

BYTES = 6_000_000
"""Of all pictures of a page, as text."""

LARGEST = 2**26
"""Pixels of a picture that is opened."""

WHOLE = 320
"""Pixels of the longer side of a picture that is no grid of images."""

AT_ONCE = 4096
"""Training images that are searched at once."""

Load = Callable[[Run], Tensor | None]
"""Training images of a run, uint8 ``(N, C, H, W)``; ``None`` where they cannot be had."""

Sheet = dict[str, Any]


class Album:
    """Pictures of runs, all of them in about :data:`BYTES`."""

    def __init__(self, runs: int, options: SamplesOptions, load: Load) -> None:
        self._share = BYTES // max(1, runs)
        self._options, self._load = options, load
        self._training: dict[str, Tensor | None] = {}
        self._nearest: dict[tuple[str, bytes], Sheet] = {}

    def of(self, run: Run) -> Sheet:
        """Grids of a run by step, and the training images nearest to the samples of the last."""
        files = (run.directory / SAMPLES).glob("step_*.png")
        found = sorted((step, path) for path in files if (step := _step(path)) is not None)
        shape = read_json(run.directory / DATA).get("shape")
        most, steps = self._options.most, self._options.steps
        samples: Tensor | None = None
        while True:
            grids: list[Sheet] = []
            for step, path in _spread(found, steps):
                image = _open(path)
                if image is None:
                    continue
                samples = _samples(image, shape)
                if samples is None:
                    image.thumbnail((WHOLE, WHOLE))
                    grids.append({"step": step, **_sheet(image, 0)})
                else:
                    samples = samples[:most]
                    grids.append({"step": step, **_sheet(_in_grid(samples), len(samples))})
            size = sum(len(grid["picture"]) for grid in grids)
            if size <= self._share:
                break
            if most == 1 and steps == 1:
                return {"grids": []}
            # fewer samples before fewer steps
            most = max(1, min(most - 1, int(most * self._share / size)))
            if most < 4 and steps > 1:
                most, steps = 4, steps // 2
        beside = self._beside(run, samples) if samples is not None else {}
        return {"grids": grids, **beside}

    def real(self) -> dict[str, Sheet]:
        """The first training images of each set of data."""
        most = self._options.most
        return {
            key: _sheet(_in_grid(images[:most]), len(images[:most]))
            for key, images in self._training.items()
            if images is not None
        }

    def _beside(self, run: Run, samples: Tensor) -> Sheet:
        """Which real images are shown beside the samples of a run."""
        if not self._options.neighbours:
            return {}
        _, key = run.data
        if key not in self._training:
            self._training[key] = self._load(run)
        training = self._training[key]
        if training is None or training.shape[1:] != samples.shape[1:]:
            return {}
        known = (key, samples.numpy().tobytes())
        if known not in self._nearest:
            _, nearest = nearest_examples(samples, training.split(AT_ONCE))
            self._nearest[known] = _sheet(_in_grid(training[nearest[:, 0]]), len(nearest))
        return {"real": key, "nearest": self._nearest[known]}


def _sheet(image: Image.Image, count: int) -> Sheet:
    """A picture as a data URI, with how many samples it has and in what rows and columns."""
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    columns, rows = _shape(count)
    return {"count": count, "columns": columns, "rows": rows, "picture": picture}


def _shape(count: int) -> tuple[int, int]:
    """Columns and rows of so many samples."""
    columns = max(1, math.ceil(math.sqrt(count)))
    return columns, max(1, math.ceil(count / columns))


def _samples(image: Image.Image, shape: Any) -> Tensor | None:
    """The samples of a grid of images of this shape, uint8 ``(n, C, H, W)`` in their own size, as
    many as its file says; ``None`` where the picture is none.
    """
    if not (isinstance(shape, list) and len(shape) == 3):
        return None
    if not all(isinstance(n, int) and n > 0 for n in shape):
        return None
    channels, height, width = shape
    aside = 1 if channels in (1, 3) else channels  # stand side by side
    factor = enlargement(height, width * aside)
    down, right = height * factor + GAP, width * aside * factor + GAP
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[:, GAP:, GAP:]
    if 0 in pixels.shape or pixels.shape[1] % down or pixels.shape[2] % right:
        return None
    tiles = pixels.unfold(1, down, down).unfold(2, right, right)  # (3, rows, columns, H, W)
    tiles = tiles[..., :-GAP:factor, :-GAP:factor].permute(1, 2, 0, 3, 4)
    images = tiles.flatten(0, 1)[:, : 3 if channels == 3 else 1]
    count, least = len(images), len(images) - tiles.shape[1] + 1
    white = (images == 255).flatten(1).all(1)
    if image.info.get(COUNT) in [*map(str, range(least, count + 1))]:
        count = int(image.info[COUNT])
    else:  # the file of an earlier version, the rest of whose last row is as white as its gaps
        while count > least and white[count - 1]:
            count -= 1
    return torch.cat(images[:count].chunk(aside, dim=-1), dim=1).contiguous()


def _in_grid(images: Tensor) -> Image.Image:
    """Images ``(n, C, H, W)`` as a sheet without gaps."""
    if images.shape[1] not in (1, 3):
        images = torch.cat(images.split(1, dim=1), dim=-1)
    count, channels, height, width = images.shape
    columns, rows = _shape(count)
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    sheet[:count] = images
    sheet = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    array = sheet.contiguous().numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


def _step(path: Path) -> int | None:
    found = re.fullmatch(r"step_(\d{1,12})", path.stem)
    return int(found[1]) if found else None


def _spread(found: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """So many of a sequence, evenly, with its last."""
    if len(found) <= count:
        return list(found)
    indices = {round(len(found) * (i + 1) / count) - 1 for i in range(count)}
    return [found[index] for index in sorted(indices)]


def _open(path: Path) -> Image.Image | None:
    """A picture in colour; ``None`` of one that is damaged or too large."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert("RGB") if image.width * image.height <= LARGEST else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
