"""Images that are not square, and of any number of channels, from the files to the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch

from betasigma.data import sources
from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError
from betasigma.evaluation.choice import choose
from betasigma.options.networks import RefineNetOptions, UNetOptions
from betasigma.pictures import grid, picture


def test_the_digits_are_cut_not_stretched() -> None:
    wide, square = (sources.load("digits", None, "test", size) for size in ([8, 16], 16))
    assert isinstance(wide, sources.InMemory)
    assert isinstance(square, sources.InMemory)
    assert torch.equal(wide.images, square.images[:, :, 4:12])


def test_a_datamodule_of_images_that_are_not_square(
    tmp_path: Path, write_image: Callable[..., None]
) -> None:
    for i in range(12):
        write_image(tmp_path / f"{i}.png", (30, 20), i)
    data = ImageDataModule(
        "image_folder", tmp_path, batch_size=4, image_size=(16, 32), channels=4, workers=0
    )
    assert data.sample_shape == (4, 16, 32)
    batch = next(iter(data.train_dataloader()))
    assert data.prepare_batch(batch)["x"].shape == (4, 4, 16, 32)
    assert data.describe()["shape"] == [4, 16, 32]


def test_a_run_on_wide_images_of_four_channels(
    here: Path, train: Launch, write_image: Callable[..., None]
) -> None:
    """Trained, measured, drawn and sampled."""
    for i in range(30):
        write_image(here / "images" / f"{i}.png", (16, 8), i)
    ended = train(
        *("data=image_folder", "data.root=images", "data.image_size=[4,8]", "data.channels=4"),
        *("network=unet_8", "evaluation=default", "evaluation.n=20", "evaluation.metrics=[fd]"),
    )
    assert "training ddpm on image_folder (4×4×8, " in ended.out
    assert "images of 4 channels fit no network of features" in ended.out
    assert "fd_identity" in (ended.run / "metrics.csv").read_text()


def test_a_network_for_squares_refuses_others() -> None:
    with pytest.raises(
        UserError, match=r"data\.image_size=\[16,32\] does not fit network=.*square"
    ):
        RefineNetOptions().check_sides(16, 32)
    assert UNetOptions().shape_arguments((3, 16, 32), False)["image_size"] == (16, 32)
    assert UNetOptions().shape_arguments((3, 16, 16), False)["image_size"] == 16


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_a_picture_of_other_channels_shows_each(channels: int) -> None:
    images = torch.arange(channels, dtype=torch.uint8)[None, :, None, None].repeat(1, 1, 32, 32)
    sheet = np.asarray(grid(images))[..., 0]
    assert sheet[16, 2 + 16 : 2 + 32 * channels : 32].tolist() == list(range(channels))


@pytest.mark.parametrize("coordinates", [1, 2, 3])
def test_a_picture_of_points(coordinates: int) -> None:
    points = torch.linspace(0, 1, 60).reshape(-1, coordinates)
    points[0] = math.inf  # as of a model that has diverged
    drawn = picture(points)
    assert len(np.unique(np.asarray(drawn))) > 2


def test_features_of_other_channels() -> None:
    assert choose("auto", sample_shape=(4, 8, 16)).extractor == "identity"
    for extractor, shape in (("auto", (4, 64, 64)), ("efficientnet_lite0", (2, 8, 8))):
        with pytest.raises(UserError, match="networks of features see 1 or 3"):
            choose(extractor, sample_shape=shape)
