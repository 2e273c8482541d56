"""What a likelihood is given, and what it returns, whichever it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Examples(NamedTuple):
    """Examples as likelihoods see them.

    Attributes:
        x0: clean data in the model's value range, ``(B, *sample_shape)``, on the denoiser's device.
        dequantized: the same spread uniformly over their grey levels; points as they are.
        unit_bits: log₂ of the number of grey levels per unit of the value range, which turns a
            density of ``dequantized`` into bits of bytes; 0 for points.
        indices: numbers of the examples, by which their random numbers are addressed.
        y: class labels, or ``None``.
    """

    x0: Tensor
    dequantized: Tensor
    unit_bits: float
    indices: Tensor
    y: Tensor | None = None


class Terms(NamedTuple):
    """Bits per dimension.

    Attributes:
        bits: ``total`` and, of a bound, the terms that add up to it; each ``(B,)``, float64.
        per_level: a discrete bound's diffusion term by level, from level 2 up; else ``(B, 0)``.
        nfe: network evaluations that each example took.
    """

    bits: dict[str, Tensor]
    per_level: Tensor
    nfe: int
