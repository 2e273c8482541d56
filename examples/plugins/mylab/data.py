"""Data sets: whatever a function returns. Shape, channels, classes and range are asked of the
data."""

import numpy as np
from torch import Tensor, from_numpy
from torch.utils.data import Dataset


def stripes(size: int = 8, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """An array: images ``(n, size, size)`` of upright (label 0) and level (label 1) stripes."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(size) * rng.uniform(0.5, 2.5, (n, 1)) + rng.uniform(0, 6.3, (n, 1)))
    images = np.repeat((127.5 + 127.5 * wave).astype(np.uint8)[:, None], size, axis=1)
    labels = np.arange(n) % 2
    images[labels == 1] = images[labels == 1].swapaxes(1, 2)
    return images, labels


def archive(path: str) -> str:
    """A file: ``.npy``, or ``.npz`` with ``images`` and maybe ``labels``."""
    return path


class Discs(Dataset):
    """A PyTorch data set: pictures ``(1, size, size)`` in [0, 1] of a soft disc somewhere."""

    value_range = (0.0, 1.0)

    def __init__(self, split: str, size: int = 8) -> None:
        rng = np.random.default_rng(["train", "test"].index(split))
        self.centres = rng.uniform(2, size - 2, (500 if split == "train" else 100, 2))
        self.size = size

    def __len__(self) -> int:
        return len(self.centres)

    def __getitem__(self, index: int) -> Tensor:
        row, column = np.ogrid[: self.size, : self.size]
        far = (row - self.centres[index, 0]) ** 2 + (column - self.centres[index, 1]) ** 2
        return from_numpy(np.exp(-far / 4).astype(np.float32))[None]
