"""Layers that the networks share: noise and class conditioning, and the initialisation.

A network here sees one number ``c`` per sample, whatever that number means (a time step, log σ),
and optionally a class label. Both become one vector, which every residual block adds to its
features after a linear map of its own:

    e = SiLU(W₂ SiLU(W₁ φ(c)) + embedding of the label)

``φ`` is the sinusoidal embedding of Vaswani et al. 2017 as Ho et al. 2020 use it (appendix B), or
random Fourier features (Tancik et al. 2020) as Song et al. 2021 use them for log σ. The outer SiLU
stands before each block's linear map in Ho et al.; it is applied here, once per forward pass.

Weights start as Ho et al. have them: uniform, with variance 1 / (mean of fan-in and fan-out), and
biases at zero. Layers that end a residual branch start at zero, so that every block starts as the
identity.
"""

from __future__ import annotations

import math
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from betasigma.errors import UserError
from betasigma.options.networks import Embedding

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def initialised(layer: Layer, zero: bool = False) -> Layer:
    """``layer`` with initial weights as above, or with zeros."""
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def centred(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    """``x`` with the values of ``value_range`` moved to [−1, 1], where both ends are as far from
    the zeros that convolutions pad with.
    """
    low, high = value_range
    return x if (low, high) == (-1, 1) else x * (2 / (high - low)) - (high + low) / (high - low)


class Positional(nn.Module):
    """Sines and cosines of ``c`` at frequencies that fall geometrically from 1 to 1e-4.

    (B,) → (B, width). Equal to Ho et al.'s ``get_timestep_embedding`` at integer time steps.

    Args:
        width: sines and cosines together.
        shift: s in the frequencies 1e-4^(i/(width/2 − s)): 1 for Ho et al., 0 for Nichol & Dhariwal
            2021, whose frequencies end one ratio before 1e-4.
    """

    def __init__(self, width: int, shift: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self.shift = shift

    def forward(self, c: Tensor) -> Tensor:
        # Not a buffer: a network cast to bfloat16 must still tell neighbouring time steps apart.
        half = self.width // 2
        place = torch.arange(half, dtype=torch.float32, device=c.device)
        # In the order of the code that each comes from: at step 1000 the last bit of a frequency is
        # 1e-4 of a phase, and published weights were trained on these.
        fall = -math.log(10_000)
        of_ho = place * (fall / (half - self.shift))
        exponent = of_ho if self.shift else place * fall / half
        return _sines(c[:, None] * torch.exp(exponent))


class Fourier(nn.Module):
    """Sines and cosines of ``2π w c`` at ``width / 2`` fixed frequencies ``w ~ N(0, scale²)``.

    (B,) → (B, width). The frequencies come from torch's global generator and are saved with the
    weights.

    Args:
        width: sines and cosines together.
        scale: standard deviation of w.
        radians: 2π w is what is kept, so that a phase is rounded once, as in EDM's code; w itself
            in that of Song et al.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float, radians: bool = False) -> None:
        super().__init__()
        self._turn = 1.0 if radians else 2 * math.pi
        unit = 2 * math.pi if radians else 1.0
        self.register_buffer("frequencies", unit * scale * torch.randn(width // 2))

    @property
    def turns(self) -> Tensor:
        """w, ``(width / 2,)``."""
        return self.frequencies * (self._turn / (2 * math.pi))

    def forward(self, c: Tensor) -> Tensor:
        # In the order of the code that each comes from: at log σ = 7 a phase of 10³ has no more
        # than 4 digits behind the point, and published weights were trained on these.
        return _sines(c[:, None] * self.frequencies * self._turn)


def embed(
    embedding: Embedding, width: int, fourier_scale: float, shift: float = 1.0
) -> Fourier | Positional:
    """Features of the noise level, by the name that a config has for them."""
    if embedding == "positional":
        return Positional(width, shift)
    return Fourier(width, fourier_scale, radians=embedding == "radians")


def _sines(angles: Tensor) -> Tensor:
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def refuse_labels() -> NoReturn:
    """Refuse class labels for a network that has none.

    Raises:
        UserError: always.
    """
    raise UserError(
        "Class labels were given to a network with network.num_classes=0: train one with "
        "network.num_classes set to the number of classes, or leave the labels out."
    )


class Conditioning(nn.Module):
    """Noise level and class label → the vector that all residual blocks share.

    Labels are 0 … num_classes − 1; ``num_classes`` itself is the null class, which stands for "no
    label" in classifier-free guidance (Ho & Salimans 2022) and is what ``y=None`` means.

    Args:
        features: width of ``φ``.
        width: width of the vector.
        num_classes: 0 for a network without labels.
        embedding: ``"positional"``, ``"fourier"`` or ``"radians"``.
        fourier_scale: standard deviation of the Fourier frequencies.
        conditional: False for a network that does not see the noise level (NCSNv2).
        frequency_shift: of the positional embedding.
        null_class: False where there is no label for "no label", so that ``y`` must be given.
    """

    def __init__(
        self,
        features: int,
        width: int,
        num_classes: int,
        embedding: Embedding,
        fourier_scale: float,
        conditional: bool,
        frequency_shift: float = 1.0,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_class = null_class
        self.features: Positional | Fourier | None = None
        self.labels: nn.Embedding | None = None
        if conditional:
            self.features = embed(embedding, features, fourier_scale, frequency_shift)
            self.hidden = initialised(nn.Linear(features, width))
            self.out = initialised(nn.Linear(width, width))
        if num_classes:
            self.labels = nn.Embedding(num_classes + int(null_class), width)
            nn.init.xavier_uniform_(self.labels.weight)

    def forward(self, c_noise: Tensor, y: Tensor | None) -> Tensor | None:
        """c_noise (B,), y int64 (B,) or None → (B, width), or None if it depends on neither.

        Raises:
            UserError: if labels are given to a network that has none, or none to a network without
                a null class.
        """
        if y is None and self.labels is not None and not self.null_class:
            raise UserError(
                "this network was trained with a label for every image (network.null_class=false): "
                "give class labels, labels=[…] or labels=all"
            )
        if y is not None and self.labels is None:
            refuse_labels()
        e: Tensor | None = None
        if self.features is not None:
            phi = self.features(c_noise).to(self.hidden.weight.dtype)
            e = self.out(F.silu(self.hidden(phi)))
        if self.labels is not None:
            if y is None:
                y = torch.full_like(c_noise, self.num_classes, dtype=torch.int64)
            label = self.labels(y)
            e = label if e is None else e + label
        return None if e is None else F.silu(e)
