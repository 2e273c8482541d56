"""``data.image_size`` alone chooses a network that takes such images."""

from __future__ import annotations

import pytest

from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.launch.command_line import CommandLine
from betasigma.launch.configs import Configs
from betasigma.launch.image_network import fitting_network

CONFIGS = Configs(conf_directory(), "train", CommandLine({}, []))


@pytest.mark.parametrize(
    ("size", "network"),
    [
        *((8, "unet_8"), (12, "unet_8"), (14, "unet_8"), (16, "unet_32"), (28, "unet_28")),
        *((32, "unet_32"), (64, None), (24, None), (7, None)),
        *(("[16,32]", "unet_32"), ("[32,16]", "unet_32"), ("[8,20]", "unet_8"), ("[7,8]", None)),
    ],
)
def test_the_network_is_the_nearest_that_takes_such_images(
    size: int | str, network: str | None
) -> None:
    """``None`` keeps the data set's own, or lets it refuse."""
    assert fitting_network(["data=celeba", f"data.image_size={size}"], CONFIGS) == network


@pytest.mark.parametrize(
    "other", ["network=unet", "experiment=mnist_ddpm", "data=digits", "model=oracle"]
)
def test_a_choice_of_the_users_stands(other: str) -> None:
    assert fitting_network(["data=celeba", "data.image_size=32", other], CONFIGS) is None


def test_a_sweep_of_models_with_and_without_a_network_is_two_sweeps() -> None:
    words = ["data=celeba", "data.image_size=32"]
    with pytest.raises(UserError, match="need network=unet_32, and model=oracle has none: make it"):
        fitting_network([*words, "model=ddpm,oracle"], CONFIGS)
    assert fitting_network([*words, "model=ddpm,ncsn"], CONFIGS) == "unet_32"
    fits_both = ["data=celeba", "data.image_size=64", "model=ddpm,oracle"]
    assert fitting_network(fits_both, CONFIGS) is None
