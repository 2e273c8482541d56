"""Images made for the tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_image() -> Callable[..., None]:
    """``write_image(path, (width, height), seed, mode)``: an image of noise."""

    def write(
        path: Path, size: tuple[int, int] = (20, 20), seed: int = 0, mode: str = "RGB"
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)

    return write
