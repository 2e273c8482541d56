"""Stand-ins: a data set held in two tensors, a sampler that needs no model, weights of the real
Inception architecture that nobody trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass
class Drawn:
    x: Tensor
    nfe: int
    batch_size: int


class TensorData:
    """The part of a datamodule that the evaluation sees; counts the images it gave away."""

    def __init__(self, train: Tensor, test: Tensor) -> None:
        self.splits = {"train": train, "test": test}
        self.given = 0

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        for batch in self.splits[split][:limit].split(batch_size):
            self.given += len(batch)
            yield batch

    def content_key(self, split: str) -> str:
        return hashlib.sha256(self.splits[split].numpy().tobytes()).hexdigest()

    def to_uint8(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class NoiseSampler:
    """Sample i of seed s is noise of generator (s, i), shifted by its label."""

    name = "noise"

    def __init__(self, shape: tuple[int, ...], fits: int = 1000) -> None:
        self.shape, self.fits = shape, fits
        self.asked: list[tuple[int, int]] = []

    def sample(self, denoiser, *, indices, seed, y, batch_size, progress):
        self.asked.append((len(indices), batch_size))
        rows = []
        for place, index in enumerate(indices):
            generator = torch.Generator().manual_seed(1000 * seed + index)
            shift = 0.0 if y is None else float(y[place])
            rows.append(torch.randn(self.shape, generator=generator) * 0.5 + shift)
            if progress is not None:
                progress(1 / len(indices))
        return Drawn(torch.stack(rows), 7, min(batch_size, self.fits))


def random_images(n: int, seed: int, channels: int = 3, size: int = 16) -> Tensor:
    """uint8 images that differ in colour, contrast and pattern, so that features differ too."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.randint(0, 256, (n, channels, 1, 1), generator=generator)
    contrast = torch.rand(n, 1, 1, 1, generator=generator) * 120
    pattern = torch.randn(n, channels, size, size, generator=generator)
    return (colour + contrast * pattern).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="session")
def images():
    return random_images


@pytest.fixture(scope="session")
def tensor_data():
    return TensorData


@pytest.fixture(scope="session")
def noise_sampler():
    return NoiseSampler


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("BETASIGMA_CACHE", str(tmp_path / "betasigma"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


PAIRS = {
    "fid": "frechet_inception_distance",
    "kid_inception": "kernel_inception_distance_mean",
    "is_inception": "inception_score_mean",
    "precision_inception": "precision",
    "recall_inception": "recall",
}
"""Names that torch-fidelity has for our metrics."""


@pytest.fixture(scope="session")
def fidelity(inception_file):
    """``fidelity(samples, real, kid_subset)``: torch-fidelity's values, and their spreads under
    ``*_std``, by our names.
    """

    def measure(samples: object, real: object, kid_subset: int) -> dict[str, float]:
        from torch_fidelity import calculate_metrics

        found = calculate_metrics(
            input1=samples,
            input2=real,
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=kid_subset,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(inception_file),
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
        assert found["frechet_inception_distance"] > 1e-3
        values = {name: found[theirs] for name, theirs in PAIRS.items()}
        spreads = {
            f"{name}_std": found[theirs.replace("_mean", "_std")]
            for name, theirs in PAIRS.items()
            if theirs.endswith("_mean")
        }
        return {**values, **spreads}

    return measure
