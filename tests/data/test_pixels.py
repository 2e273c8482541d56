import math

import pytest
import torch

from betasigma.data import pixels

BYTES = torch.arange(256, dtype=torch.uint8)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)]


@pytest.mark.parametrize("value_range", RANGES)
def test_round_trip_is_exact(value_range):
    x = pixels.from_uint8(BYTES, value_range)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[-1].item()) == value_range
    assert torch.equal(pixels.to_uint8(x, value_range), BYTES)


def test_the_published_maps():
    assert torch.equal(pixels.from_uint8(BYTES, (-1.0, 1.0)), BYTES / 127.5 - 1)
    assert torch.equal(pixels.from_uint8(BYTES, (0.0, 1.0)), BYTES / 255)


def test_to_uint8_rounds_clamps_and_leaves_its_argument():
    x = torch.tensor([-9.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 9.0])
    before = x.clone()
    assert pixels.to_uint8(x, (0.0, 1.0)).tolist() == [0, 0, 0, 1, 255, 255]
    assert torch.equal(x, before)
    assert pixels.to_uint8(torch.tensor([1.0], dtype=torch.bfloat16), (-1.0, 1.0)).item() == 255


@pytest.mark.parametrize("value_range", RANGES)
def test_dequantized_bytes_stay_in_their_bins(value_range):
    low, high = value_range
    for uniform in (0.0, 0.5, 0.99):
        x = pixels.dequantize(BYTES, torch.full((256,), uniform), value_range)
        bins = ((x.double() - low) * 256 / (high - low) + 1e-4).floor()
        assert torch.equal(bins, BYTES.double())
        assert x.min() >= low
        assert x.max() < high


@pytest.mark.parametrize("value_range", RANGES)
def test_centred_bins_are_around_the_plain_values_and_touch(value_range):
    first, middle, last = (
        pixels.centred(BYTES, torch.full((256,), uniform), value_range)
        for uniform in (0.0, 0.5, 1.0)
    )
    plain = pixels.from_uint8(BYTES, value_range)
    torch.testing.assert_close(middle, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(last[:-1], first[1:], rtol=0, atol=1e-6)
    width = (value_range[1] - value_range[0]) / 255
    assert pixels.centred_bits(value_range) == pytest.approx(-math.log2(width))


def test_bits_of_the_uniform_density():
    """A model that knows nothing, p = 1/(hi − lo) per dimension, needs eight bits per byte."""
    for low, high in RANGES:
        log2_p = -math.log2(high - low)
        assert -log2_p + pixels.dequantized_bits((low, high)) == pytest.approx(8)
    assert pixels.dequantized_bits((-1.0, 1.0)) == 7
