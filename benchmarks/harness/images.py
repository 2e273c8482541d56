"""Images to measure speed with, made up where no data set is at hand: speed does not read them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def png_folder(folder: Path, n: int, channels: int, size: int) -> Path:
    """``n`` smooth random images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(_blobs(n, channels, size)):
        pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    return folder


def mnist(root: Path, n_train: int = 60_000, n_test: int = 10_000) -> Path:
    """A folder in torchvision's layout of MNIST, of made-up images; returns ``root``."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", n_train), ("t10k", n_test)):
        images = np.resize(_blobs(min(n, 2000), 1, 28)[:, 0], (n, 28, 28))
        labels = (np.arange(n) % 10).astype(np.uint8)
        heads = {
            "images-idx3-ubyte": struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes(),
            "labels-idx1-ubyte": struct.pack(">II", 0x801, n) + labels.tobytes(),
        }
        for name, content in heads.items():
            (raw / f"{split}-{name}").write_bytes(content)
            with gzip.open(raw / f"{split}-{name}.gz", "wb", compresslevel=1) as file:
                file.write(content)
    return root


def _blobs(n: int, channels: int, size: int) -> np.ndarray:
    """Smooth bumps at random places, uint8 ``(n, channels, size, size)``."""
    rng = np.random.default_rng(0)
    grid = np.arange(size)
    y, x = (rng.uniform(0, size, (n, channels, 1, 1)) for _ in range(2))
    width = rng.uniform(size / 8, size / 3, (n, channels, 1, 1))
    distance = (grid[:, None] - y) ** 2 + (grid[None, :] - x) ** 2
    return (255 * np.exp(-distance / (2 * width**2))).astype(np.uint8)
