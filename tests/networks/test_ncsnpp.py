"""DDPM++ and NCSN++: resampling, labels, and what they refuse. Equality with the authors' code is
tested where that is at hand (tests/published)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.downsampling import downsample_2d
from diffusers.models.upsampling import upsample_2d

from betasigma.errors import UserError
from betasigma.networks.ncsnpp import FeatureConditioning, NCSNpp, Resampler
from betasigma.networks.unet import ResidualBlock


def small(**changes: Any) -> NCSNpp:
    torch.manual_seed(0)
    options = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return NCSNpp(**{"in_channels": 3, "image_size": 8, **options, **changes})


@pytest.mark.parametrize(("resampling", "taps"), [("box", [1, 1]), ("fir", [1, 3, 3, 1])])
def test_resampling_is_that_of_diffusers(resampling: Any, taps: list[int]) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 6, 10), torch.tensor(taps, dtype=torch.float32)
    torch.testing.assert_close(Resampler(resampling, -1)(x), downsample_2d(x, kernel))
    torch.testing.assert_close(Resampler(resampling, 1)(x), upsample_2d(x, kernel))


def test_every_sum_of_a_residual_block_keeps_its_variance() -> None:
    """At the start the branches are zero, so a block is its shortcut over √2 (and over 2 where it
    attends)."""
    net = small()
    x = torch.randn(2, 8, 8, 8)
    emb = torch.randn(2, 32)
    torch.testing.assert_close(net.down[0][0](x, emb), x / 2**0.5)
    wide = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(net.middle[0](wide, emb), wide / 2)


def test_a_label_is_added_to_the_features_of_the_noise_level() -> None:
    torch.manual_seed(0)
    conditioning = FeatureConditioning(8, 16, 3, "positional", 16.0, True)
    c_noise, y = torch.tensor([3.0, 5.0]), torch.tensor([2, 0])
    phi = conditioning.features(c_noise) + conditioning.labels.weight[y]  # type: ignore[misc,union-attr]
    hidden = torch.nn.functional.silu(conditioning.hidden(phi))
    expected = torch.nn.functional.silu(conditioning.out(hidden))
    torch.testing.assert_close(conditioning(c_noise, y), expected)


def test_attention_once_a_resolution_on_the_way_up() -> None:
    net = small(blocks=2)
    attends = [[block.attention is not None for block in level] for level in net.up]  # type: ignore[union-attr]
    assert attends == [[False, False, True], [False, False, False]]
    assert not any(isinstance(module, ResidualBlock) for module in net.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention": (5,)},
            r"network\.attention=\[5\] asks for resolution 5, which never occurs",
        ),
        ({"progressive_input": "cat"}, r"network\.progressive_input=cat must be"),
        ({"resample_filter": "cubic"}, r"network\.resample_filter=cubic must be 'box' or 'fir'"),
        ({"channels": 7}, r"network\.channels=7 must be a multiple of 2"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_labels_for_a_network_without_any() -> None:
    with pytest.raises(UserError, match="Class labels were given"):
        small()(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
