"""DDPM++ and NCSN++ (Song et al. 2021, appendix H), and EDM's configurations of them.

The U-Net of Ho et al. (see :mod:`betasigma.networks.unet`) with these changes, each a key:

- residual blocks as BigGAN's, which change the resolution inside, after the first normalisation;
- every sum of a residual block, and of its attention, is divided by √2;
- resampling by averages and repetition, or by the anti-aliasing filter [1, 3, 3, 1] of StyleGAN2
  (``resample_filter="fir"``), which treats what lies outside the image as zero;
- the noisy image enters at every resolution (``progressive_input``), resampled once more at each,
  through a 1x1 convolution that is added (``"skip"``) or a 3x3 one that becomes the way itself
  (``"residual"``);
- the output is a sum of one image a resolution (``progressive_output="skip"``);
- attention once a resolution on the way up, after its last block.

DDPM++ has ``resample_filter="box"`` and no progressive parts, and is told the time step by sines;
NCSN++ has ``"fir"`` and ``progressive_input="residual"``, and is told log σ by Fourier features.
Labels are added to these features (Karras et al. 2022, appendix F.2).

With the defaults on 3x32x32 images it is DDPM++ of their CIFAR-10 runs, 61.8 million parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from betasigma.networks.layers import (
    Fourier,
    Positional,
    centred,
    embed,
    initialised,
    refuse_labels,
)
from betasigma.networks.unet import Attention, Dropout, GroupNorm
from betasigma.options.networks import (
    Embedding,
    Filter,
    NCSNppOptions,
    Pyramid,
    check_image_network,
    resolutions,
)
from betasigma.options.plugins import Component

HALF = 0.5**0.5
TAPS = {"box": (1.0, 1.0), "fir": (1.0, 3.0, 3.0, 1.0)}


class NCSNpp(Component, nn.Module):
    """Image → image, given one number per image and optionally a class label.

    The smallest resolution attends too, in the middle, unless ``attention`` is empty: then nothing
    does.

    Args:
        in_channels: channels of the input.
        image_size: height and width of the images the network is for.
        out_channels: channels of the output; those of the input by default, twice as many where a
            variance is learned.
        value_range: of clean data; the network sees it as [−1, 1].
        channels: width at the full resolution.
        multipliers: width at each resolution, in multiples of ``channels``, from fine to coarse.
        blocks: residual blocks per resolution on the way down (one more on the way up).
        attention: resolutions with self-attention.
        dropout: rate of dropout before the second convolution of a residual block.
        num_classes: number of class labels, 0 for none. Label ``num_classes`` is the null class.
        embedding: of the noise level, ``"positional"``, or ``"fourier"`` or ``"radians"``, which
            have twice as many features.
        fourier_scale: standard deviation of the Fourier frequencies.
        conditional: False for a network that does not see the noise level.
        resample_filter: ``"box"`` or ``"fir"``.
        progressive_input: ``"none"``, ``"skip"`` or ``"residual"``.
        progressive_output: ``"none"`` or ``"skip"``.
        checkpoint: recompute activations in the backward pass instead of keeping them.

    Raises:
        UserError: for a value out of range, or one that does not fit the images
            (:class:`~betasigma.options.networks.NCSNppOptions`).
    """

    config_group = "network"

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        out_channels: int | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        embedding: Embedding = "positional",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        resample_filter: Filter = "box",
        progressive_input: Pyramid = "none",
        progressive_output: Pyramid = "none",
        checkpoint: bool = False,
    ) -> None:
        check_image_network(NCSNppOptions, locals())
        super().__init__()
        self.value_range = value_range
        out = out_channels or in_channels
        emb_channels = 4 * channels if conditional or num_classes else 0
        self.conditioning = FeatureConditioning(
            channels, emb_channels, num_classes, embedding, fourier_scale, conditional
        )

        def block(width_in: int, width: int, attends: bool = False, scale: int = 0) -> nn.Module:
            resample = Resampler(resample_filter, scale) if scale else None
            return ScaledBlock(
                width_in, width, emb_channels, attends, dropout, resample, checkpoint
            )

        widths = [channels * m for m in multipliers]
        attends = [size in attention for size in resolutions(image_size, len(widths))]
        last = len(widths) - 1

        self.enter = initialised(nn.Conv2d(in_channels, channels, 3, padding=1))
        width, pyramid = channels, in_channels
        skips = [width]
        self.down, self.shrink, self.inputs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, level_width in enumerate(widths):
            level_blocks = nn.ModuleList()
            for _ in range(blocks):
                level_blocks.append(block(width, level_width, attends[level]))
                width = level_width
                skips.append(width)
            self.down.append(level_blocks)
            if level < last:
                self.shrink.append(block(width, width, scale=-1))
                skips.append(width)
                if progressive_input == "skip":
                    self.inputs.append(SkipInput(pyramid, width, resample_filter))
                elif progressive_input == "residual":
                    self.inputs.append(ResidualInput(pyramid, width, resample_filter))
                    pyramid = width

        self.middle = nn.ModuleList([block(width, width, bool(attention)), block(width, width)])

        self.up, self.grow, self.outputs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(last, -1, -1):
            level_blocks = nn.ModuleList()
            for i in range(blocks + 1):
                attends_here = attends[level] and i == blocks
                level_blocks.append(block(width + skips.pop(), widths[level], attends_here))
                width = widths[level]
            self.up.append(level_blocks)
            if level == 0 or progressive_output == "skip":
                leave = initialised(nn.Conv2d(width, out, 3, padding=1), zero=True)
                self.outputs.append(nn.Sequential(GroupNorm(32, width), nn.SiLU(), leave))
            if level > 0:
                self.grow.append(block(width, width, scale=1))
        self.enlarge = Resampler(resample_filter, 1)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c_noise (B,), y int64 (B,) or None for the null class → (B, C', H, W).

        Raises:
            UserError: if labels are given to a network that has none.
        """
        emb = self.conditioning(c_noise, y)
        pyramid = centred(x, self.value_range)
        h = self.enter(pyramid)
        skips = [h]
        for level, blocks in enumerate(self.down):
            for layer in cast(nn.ModuleList, blocks):
                h = layer(h, emb)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h, emb)
                if self.inputs:
                    h, pyramid = self.inputs[level](h, pyramid)
                skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        image: Tensor | None = None
        for level, blocks in enumerate(self.up):
            for layer in cast(nn.ModuleList, blocks):
                h = layer(torch.cat([h, skips.pop()], dim=1), emb)
            if len(self.outputs) > 1:
                part = self.outputs[level](h)
                image = part if image is None else self.enlarge(image) + part
            if level < len(self.grow):
                h = self.grow[level](h, emb)
        return cast(Tensor, self.outputs[0](h)) if image is None else image


class FeatureConditioning(nn.Module):
    """Noise level and class label → the vector that all blocks share.

    e = SiLU(W₂ SiLU(W₁ (φ(c) + embedding of the label)))
    """

    def __init__(
        self,
        channels: int,
        width: int,
        num_classes: int,
        embedding: Embedding,
        fourier_scale: float,
        conditional: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        features = channels if embedding == "positional" else 2 * channels
        self.features: Fourier | Positional | None = None
        self.labels: nn.Embedding | None = None
        if conditional:
            self.features = embed(embedding, features, fourier_scale)
        if num_classes:
            self.labels = nn.Embedding(num_classes + 1, features)
            nn.init.xavier_uniform_(self.labels.weight)
        if conditional or num_classes:
            self.hidden = initialised(nn.Linear(features, width))
            self.out = initialised(nn.Linear(width, width))

    def forward(self, c_noise: Tensor, y: Tensor | None) -> Tensor | None:
        """c_noise (B,), y int64 (B,) or None → (B, width), or None if it depends on neither.

        Raises:
            UserError: if labels are given to a network that has none.
        """
        phi: Tensor | None = None
        if self.features is not None:
            phi = self.features(c_noise).to(self.hidden.weight.dtype)
        if self.labels is not None:
            if y is None:
                y = torch.full_like(c_noise, self.num_classes, dtype=torch.int64)
            label = self.labels(y)
            phi = label if phi is None else phi + label
        elif y is not None:
            refuse_labels()
        return None if phi is None else F.silu(self.out(F.silu(self.hidden(phi))))


class ScaledBlock(nn.Module):
    """Residual block that resamples inside, and attention after it; each sum is divided by √2.

    h = conv(resample(SiLU(norm(x)))) + W e;
    out = (shortcut(resample(x)) + conv(dropout(SiLU(norm(h)))))/√2, with a 1x1 convolution as the
    shortcut where width or size changes.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        emb_channels: int,
        attends: bool,
        dropout: float,
        resample: Resampler | None,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.checkpoint, self.resample = checkpoint, resample
        self.norm1 = GroupNorm(32, width_in)
        self.conv1 = initialised(nn.Conv2d(width_in, width, 3, padding=1))
        self.shift = initialised(nn.Linear(emb_channels, width)) if emb_channels else None
        self.norm2 = GroupNorm(32, width)
        self.dropout = Dropout(dropout)
        self.conv2 = initialised(nn.Conv2d(width, width, 3, padding=1), zero=True)
        changes = width_in != width or resample is not None
        self.shortcut = initialised(nn.Conv2d(width_in, width, 1)) if changes else None
        self.attention = Attention(width, 1, partial(GroupNorm, 32)) if attends else None

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """x (B, width_in, H, W), emb (B, emb_channels) → (B, width, H', W')."""
        if self.checkpoint and torch.is_grad_enabled():
            return recompute(self._compute, x, emb, use_reentrant=False)
        return self._compute(x, emb)

    def _compute(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.shift is not None:
            h = h + self.shift(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        h = ((x if self.shortcut is None else self.shortcut(x)) + h) * HALF
        return h if self.attention is None else self.attention(h) * HALF


class Resampler(nn.Module):
    """Twice (``scale=1``) or half (``scale=-1``) the size, each channel by itself."""

    kernel: Tensor

    def __init__(self, resample_filter: Filter, scale: int) -> None:
        super().__init__()
        self.box, self.scale = resample_filter == "box", scale
        self.register_buffer("kernel", _kernel(resample_filter), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        if self.box:
            return F.avg_pool2d(x, 2) if self.scale < 0 else F.interpolate(x, scale_factor=2)
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.scale < 0:
            return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * weight, stride=2, padding=1, groups=x.shape[1])


class SkipInput(nn.Module):
    """Adds the image of half the size, through a 1x1 convolution."""

    def __init__(self, channels: int, width: int, resample_filter: Filter) -> None:
        super().__init__()
        self.resample = Resampler(resample_filter, -1)
        self.conv = initialised(nn.Conv2d(channels, width, 1))

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, width, H/2, W/2), pyramid (B, channels, H, W) → both of half the size."""
        pyramid = self.resample(pyramid)
        return h + self.conv(pyramid), pyramid


class ResidualInput(nn.Module):
    """Filters the way of the image, halves it by a 3x3 convolution and adds the features to it."""

    kernel: Tensor

    def __init__(self, channels: int, width: int, resample_filter: Filter) -> None:
        super().__init__()
        self.register_buffer("kernel", _kernel(resample_filter), persistent=False)
        self.padding = len(TAPS[resample_filter]) // 2
        self.conv = initialised(nn.Conv2d(channels, width, 3, stride=2))

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, width, H/2, W/2), pyramid (B, channels, H, W) → their sum, twice."""
        weight = self.kernel.to(pyramid.dtype).expand(pyramid.shape[1], 1, -1, -1)
        filtered = F.conv2d(pyramid, weight, padding=self.padding, groups=pyramid.shape[1])
        h = (h + self.conv(filtered)) * HALF
        return h, h


def _kernel(resample_filter: Filter) -> Tensor:
    taps = torch.tensor(TAPS[resample_filter])
    return torch.outer(taps, taps) / taps.sum() ** 2
