"""A residual MLP for data that are points, such as two-dimensional toy distributions.

It has the UNet's contract and its conditioning (Ho et al. 2020, appendix B): each block adds a
linear map of the shared embedding of noise level and label to its hidden layer,

    h ← h + W₂ SiLU(W₁ SiLU(h) + V e).

SiLU is smooth, so the output is infinitely differentiable in x, and objectives that differentiate
through the trace of the Jacobian (implicit score matching, Hyvärinen 2005) can train it.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from betasigma.networks.layers import Conditioning, initialised
from betasigma.options.networks import Embedding, MLPOptions, PointShape
from betasigma.options.plugins import Component


class MLP(Component, nn.Module):
    """Point → point, given one number per point and optionally a class label.

    Args:
        dim: coordinates of a point.
        out_dim: coordinates of the output; those of the input by default.
        width: width of the features.
        depth: residual blocks.
        num_classes: number of class labels, 0 for none. Label ``num_classes`` is the null class.
        embedding: of the noise level, ``"positional"``, ``"fourier"`` or ``"radians"``.
        fourier_scale: standard deviation of the Fourier frequencies.
        conditional: False for a network that does not see the noise level.

    Raises:
        UserError: for a value out of range (:class:`~betasigma.options.networks.MLPOptions`).
    """

    config_group = "network"

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        width: int = 128,
        depth: int = 4,
        num_classes: int = 0,
        embedding: Embedding = "positional",
        fourier_scale: float = 16.0,
        conditional: bool = True,
    ) -> None:
        PointShape.check_own(locals())
        MLPOptions.check_own(locals())
        super().__init__()
        self.num_classes = num_classes
        emb_width = width if conditional or num_classes else 0
        self.conditioning = Conditioning(
            width, emb_width, num_classes, embedding, fourier_scale, conditional
        )
        self.enter = initialised(nn.Linear(dim, width))
        self.blocks = nn.ModuleList(MLPBlock(width, emb_width) for _ in range(depth))
        self.leave = initialised(nn.Linear(width, out_dim or dim), zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, dim), c_noise (B,), y int64 (B,) or None for the null class → (B, out_dim).

        Raises:
            UserError: if labels are given to a network that has none.
        """
        emb = self.conditioning(c_noise, y)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, emb)
        return cast(Tensor, self.leave(F.silu(h)))


class MLPBlock(nn.Module):
    """The residual block of the module's docstring."""

    def __init__(self, width: int, emb_width: int) -> None:
        super().__init__()
        self.hidden = initialised(nn.Linear(width, width))
        self.shift = initialised(nn.Linear(emb_width, width)) if emb_width else None
        self.out = initialised(nn.Linear(width, width), zero=True)

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """h (B, width), emb (B, emb_width) → (B, width)."""
        z = self.hidden(F.silu(h))
        if self.shift is not None:
            z = z + self.shift(emb)
        return h + self.out(F.silu(z))
