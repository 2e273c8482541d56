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
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.evaluation.neighbours import nearest_examples
from betasigma.options.dashboards import SamplesOptions
from betasigma.pictures import COUNT, GAP, enlargement
from betasigma.report.scan import Recorded
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

Load = Callable[[Recorded], Tensor | None]
"""Training images of a run, uint8 ``(N, C, H, W)``; ``None`` where they cannot be had."""

Sheet = dict[str, Any]


class Tiles(NamedTuple):
    """Where the samples of a grid are, in pixels of its file."""

    columns: int
    rows: int
    width: int
    height: int
    factor: int
    channels: int


class Album:
    """Pictures of runs, all of them in about :data:`BYTES`."""

    def __init__(self, runs: int, options: SamplesOptions, load: Load) -> None:
        self._share = BYTES // max(1, runs)
        self._options, self._load = options, load
        self._training: dict[str, Tensor | None] = {}
        self._nearest: dict[tuple[str, bytes], Sheet] = {}

    def of(self, run: Recorded) -> Sheet:
        """Grids of a run by step, and the training images nearest to the samples of the last."""
        files = (run.directory / SAMPLES).glob("step_*.png")
        found = sorted((step, path) for path in files if (step := _step(path)) is not None)
        shape = read_json(run.directory / DATA).get("shape")
        tiles = {path: _tiles_of(shape, path) for _, path in found}  # early grids may have fewer
        most, steps = self._options.most, self._options.steps
        while True:
            cut = [(one, *_cut(one[1], tiles[one[1]], most)) for one in _spread(found, steps)]
            sheets = [(*one, image, count) for one, image, count in cut if image is not None]
            grids = [{"step": step, **_sheet(image, count)} for step, _, image, count in sheets]
            size = sum(len(grid["picture"]) for grid in grids)
            if size <= self._share:
                break
            if most == 1 and steps == 1:
                return {"grids": []}
            # fewer samples before fewer steps
            most, steps = (max(1, min(most - 1, int(most * self._share / size))), steps)
            if most < 4 and steps > 1:
                most, steps = 4, steps // 2
        described: Sheet = {"grids": grids}
        if sheets and self._options.neighbours:
            _, path, image, count = sheets[-1]
            described |= self._beside(run, image, count, tiles[path])
        return described

    def real(self) -> dict[str, Sheet]:
        """The first training images of each set of data."""
        return {
            key: _sheet(*_arranged(images[: self._options.most]))
            for key, images in self._training.items()
            if images is not None
        }

    def _beside(self, run: Recorded, image: Image.Image, count: int, tiles: Tiles | None) -> Sheet:
        """Which real images are shown beside the samples of a run."""
        if tiles is None:
            return {}
        _, key = run.data
        if key not in self._training:
            self._training[key] = self._load(run)
        training = self._training[key]
        samples = _taken_apart(image, count, tiles)
        if training is None or training.shape[1:] != samples.shape[1:]:
            return {}
        known = (key, samples.numpy().tobytes())
        if known not in self._nearest:
            _, places = nearest_examples(samples, training.split(AT_ONCE))
            self._nearest[known] = _sheet(*_arranged(training[places]))
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


def _tiles_of(shape: Any, path: Path) -> Tiles | None:
    """Where the samples are in a grid of images of this shape; ``None`` where it is none."""
    if not (isinstance(shape, list) and len(shape) == 3):
        return None
    if not all(isinstance(n, int) and n > 0 for n in shape):
        return None
    channels, height, width = shape
    width *= 1 if channels in (1, 3) else channels
    factor = enlargement(height, width)
    step = (width * factor + GAP, height * factor + GAP)
    size = _size(path)
    if size is None or any((length - GAP) % each for length, each in zip(size, step, strict=True)):
        return None
    columns, rows = ((length - GAP) // each for length, each in zip(size, step, strict=True))
    return Tiles(columns, rows, width * factor, height * factor, factor, channels)


def _cut(path: Path, tiles: Tiles | None, most: int) -> tuple[Image.Image | None, int]:
    """The first samples of a grid without gaps, in their own size, and how many; the whole of
    another picture.
    """
    image = _open(path)
    if image is None:
        return None, 0
    if tiles is None:
        image.thumbnail((WHOLE, WHOLE))
        return image, 0
    count = min(most, _count(image, tiles))
    columns, rows = _shape(count)
    width, height = tiles.width // tiles.factor, tiles.height // tiles.factor
    sheet = Image.new("RGB" if tiles.channels == 3 else "L", (columns * width, rows * height))
    for number in range(count):
        tile = _tile(image, tiles, number).convert(sheet.mode)
        place = (number % columns * width, number // columns * height)
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet, count


def _count(image: Image.Image, tiles: Tiles) -> int:
    """How many samples a grid has, as its file says; one of an earlier version does not, and the
    rest of its last row is as white as its gaps.
    """
    count = tiles.columns * tiles.rows
    least = count - tiles.columns + 1
    for known in range(least, count + 1):
        if image.info.get(COUNT) == str(known):
            return known
    while count > least and set(_tile(image, tiles, count - 1).getextrema()) == {(255, 255)}:
        count -= 1
    return count


def _tile(image: Image.Image, tiles: Tiles, number: int) -> Image.Image:
    row, column = divmod(number, tiles.columns)
    left, top = GAP + column * (tiles.width + GAP), GAP + row * (tiles.height + GAP)
    return image.crop((left, top, left + tiles.width, top + tiles.height))


def _taken_apart(sheet: Image.Image, count: int, tiles: Tiles) -> Tensor:
    """The samples of a sheet, uint8 ``(n, C, H, W)``."""
    pixels = torch.from_numpy(np.asarray(sheet).copy())
    pixels = pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    columns, rows = _shape(count)
    height, width = pixels.shape[1] // rows, pixels.shape[2] // columns
    apart = pixels.unfold(1, height, height).unfold(2, width, width)  # (C, rows, columns, H, W)
    images = apart.permute(1, 2, 0, 3, 4).flatten(0, 1)[:count]
    if tiles.channels in (1, 3):
        return images.contiguous()
    return torch.cat(images.chunk(tiles.channels, dim=-1), dim=1)


def _arranged(images: Tensor) -> tuple[Image.Image, int]:
    """Images ``(n, C, H, W)`` as a sheet, and how many they are."""
    if images.shape[1] not in (1, 3):
        images = torch.cat(images.split(1, dim=1), dim=-1)
    count, channels, height, width = images.shape
    columns, rows = _shape(count)
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    sheet[:count] = images
    sheet = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    array = sheet.contiguous().numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array), count


def _step(path: Path) -> int | None:
    found = re.fullmatch(r"step_(\d{1,12})", path.stem)
    return int(found[1]) if found else None


def _spread(found: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """So many of a sequence, evenly, with its last."""
    if len(found) <= count:
        return list(found)
    places = {round(len(found) * (i + 1) / count) - 1 for i in range(count)}
    return [found[place] for place in sorted(places)]


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _open(path: Path) -> Image.Image | None:
    """A picture in colour; ``None`` of one that is damaged or too large."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert("RGB") if image.width * image.height <= LARGEST else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
