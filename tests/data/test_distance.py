"""The largest distance of a data set: right, and found once for each content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy.spatial.distance import pdist

from betasigma.data import distance
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.sources import InMemory
from betasigma.errors import UserError


def data_of(images: torch.Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> ImageDataModule:
    data = ImageDataModule("digits", value_range=value_range)
    data._sources["train"] = InMemory(images)
    return data


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (300, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of examples that were compared, one for each search."""
    made: list[int] = []
    original = distance.largest_distance

    def counted(x: torch.Tensor, **options: object) -> float:
        made.append(len(x))
        return original(x, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(distance, "largest_distance", counted)
    return made


def test_it_is_scipy_s_and_in_the_model_s_units(images: torch.Tensor, tmp_path: Path) -> None:
    expected = pdist(images.flatten(1).double().numpy()).max()
    found = distance.measure(data_of(images, (-1.0, 1.0)), None, tmp_path)
    assert found.value == pytest.approx(2 * expected / 255, rel=1e-12)
    assert (found.compared, found.examples) == (300, 300)


def test_it_is_found_once_for_each_content(
    images: torch.Tensor, tmp_path: Path, searches: list[int]
) -> None:
    first = distance.measure(data_of(images), None, tmp_path)
    assert distance.measure(data_of(images.clone()), None, tmp_path) == first
    assert len(searches) == 1
    changed = images.clone()
    changed[7, 0, 0, 0] ^= 1
    distance.measure(data_of(changed), None, tmp_path)
    assert len(searches) == 2
    assert distance.measure(data_of(images), 50, tmp_path).value <= first.value
    assert searches[2:] == [50]


def test_a_damaged_cache_is_no_cache(
    images: torch.Tensor, tmp_path: Path, searches: list[int]
) -> None:
    first = distance.measure(data_of(images), None, tmp_path)
    (file,) = tmp_path.glob("distances/*")
    for text in ("{", "[]", json.dumps({"key": "other", "squared": 1.0})):
        file.write_text(text)
        assert distance.measure(data_of(images), None, tmp_path) == first
    assert len(searches) == 4


def test_a_cache_that_cannot_be_written_is_a_warning(images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "distances").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be written"):
        assert distance.measure(data_of(images), None, tmp_path).value > 0


def test_more_than_memory_holds_is_refused(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance, "MOST_BYTES", 100 * 64)
    with pytest.raises(UserError, match=r"sigma\.examples=100 at most"):
        distance.measure(data_of(images), None, tmp_path)
    assert distance.measure(data_of(images), 100, tmp_path).compared == 100
