"""A diffusion transformer (Peebles & Xie 2023) in a page."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class DiT(nn.Module):
    """Patches of the image are tokens; noise level and label shift, scale and gate each block.

    Args:
        in_channels, image_size, out_channels: given by betasigma, from the data.
        num_classes: class labels; label ``num_classes`` and ``None`` mean "no label".
        patch: side of a patch.
        width: of a token; a multiple of ``4 * heads``.
        depth: number of blocks.
        heads: of the attention.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        out_channels: int | None = None,
        num_classes: int = 0,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        out = (out_channels or in_channels) * patch**2
        self.patch, self.width, self.null = patch, width, num_classes
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.place = nn.Parameter(torch.randn((image_size // patch) ** 2, width) / width**0.5)
        self.noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, out)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Images ``(B, C, H, W)``, one number each ``(B,)``, labels ``(B,)`` or ``None``."""
        condition = self.noise(self._waves(c_noise))
        if self.label is not None:
            none = torch.full((x.shape[0],), self.null, device=x.device)
            condition = condition + self.label(none if y is None else y)
        grid = self.embed(x)
        tokens = grid.flatten(2).mT + self.place
        for block in self.blocks:
            tokens = block(tokens, condition)
        out = self.head(tokens).mT.unflatten(2, grid.shape[2:])
        return nn.functional.pixel_shuffle(out, self.patch)

    def _waves(self, c_noise: Tensor) -> Tensor:
        """Sines and cosines at frequencies from 1 down to 1e-4, ``(B, width)``."""
        half = self.width // 2
        steps = torch.arange(half, device=c_noise.device) / (half - 1)
        angles = c_noise[:, None] * torch.exp(-math.log(10_000) * steps).to(c_noise)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Attention and a perceptron, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        last = nn.Linear(width, 6 * width)
        nn.init.zeros_(last.weight)  # a block starts as the identity
        self.modulation = nn.Sequential(nn.SiLU(), last)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(2, (3, self.heads, -1))
        mixed = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + gate * self.mix(mixed.transpose(1, 2).flatten(2))
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)
