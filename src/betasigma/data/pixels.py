r"""Between bytes and numbers: pixel u ∈ {0, …, 255} ↔ x in the model's value range [lo, hi].

Plain pixels go through one affine map, whatever the range,

    x = lo + (hi − lo)·u/255,        u = round(255·(x − lo)/(hi − lo)),

which is u/127.5 − 1 on [−1, 1] and u/255 on [0, 1]; either end is met exactly and the round trip is
exact for every u.

Uniform dequantisation spreads each byte over its own 256th of the range (NCSN, Song et al. 2021),

    x = lo + (hi − lo)·(u + v)/256,              v ~ U[0, 1),

which is what a model is trained on with ``data.dequantize``. One that was trained on plain pixels
knows u at lo + (hi − lo)·u/255, up to half a bin away from the middle of that 256th; its bins are

    x = lo + (hi − lo)·(u + v − ½)/255.

Either map from u + v to x has slope (hi − lo)/b, b = 256 or 255, so log-densities of the two differ
by its logarithm per dimension, and a model's density p bounds the bits per dimension of bytes
(Theis et al. 2016):

    bits/dim ≤ −log₂ p(x)/D + log₂(b/(hi − lo)):      + log₂ 127.5 or 7 on [−1, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ValueRange = tuple[float, float]


def from_uint8(pixels: Tensor, value_range: ValueRange) -> Tensor:
    """Bytes, any shape → float32 in [lo, hi], ends included."""
    low, high = value_range
    return pixels.to(torch.float32).div_(255 / (high - low)).add_(low)


def to_uint8(x: Tensor, value_range: ValueRange) -> Tensor:
    """Numbers, any shape and float dtype → the nearest byte; outside the range the nearest end."""
    low, high = value_range
    scaled = (x.to(torch.float32) - low).mul_(255 / (high - low))
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def dequantize(pixels: Tensor, uniform: Tensor, value_range: ValueRange) -> Tensor:
    """Bytes and float32 numbers of U[0, 1), of one shape → float32 spread over [lo, hi]."""
    low, high = value_range
    return uniform.add(pixels).div_(256 / (high - low)).add_(low)


def dequantized_bits(value_range: ValueRange) -> float:
    """log₂(256/(hi − lo)): what bits per dimension of bytes add to −log₂ p(x)/D."""
    low, high = value_range
    return math.log2(256 / (high - low))


def centred(pixels: Tensor, uniform: Tensor, value_range: ValueRange) -> Tensor:
    """As :func:`dequantize`, around the values of :func:`from_uint8`: half a bin beyond either
    end.
    """
    low, high = value_range
    return uniform.sub(0.5).add_(pixels).div_(255 / (high - low)).add_(low)


def centred_bits(value_range: ValueRange) -> float:
    """log₂(255/(hi − lo)): the same as :func:`dequantized_bits` for :func:`centred`."""
    low, high = value_range
    return math.log2(255 / (high - low))
