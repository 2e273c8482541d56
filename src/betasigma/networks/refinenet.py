"""The networks of NCSN and NCSNv2: RefineNet with dilated convolutions and InstanceNorm++.

Stages of two pre-activation residual blocks with ELU; the last two stages dilate their
convolutions by 2 and 4 where the ones before them halve the image, so that features stay large
(Yu et al. 2017). On the way up, one refinement block a stage (Lin et al. 2017) fuses its features
with what is coarser, after residual convolution units, and ends with chained residual pooling and
another unit.

Normalisation is InstanceNorm++ (Song & Ermon 2019, appendix A): instance normalisation, which takes
a channel's mean away, gives it back relative to the other channels,

    γ·((x − μ)/s + α·(μ − m)/v) + β,

with m, v mean and standard deviation of the channels' means μ. NCSN has a row (γ, α, β) for each
noise level before every convolution and pools by averages. NCSNv2 is told no level; its
refinement blocks have no normalisation and pool by the greatest value (Song & Ermon 2020, appendix
A).

With ``channels=128`` on 3x32x32 images and 10 levels it is NCSN's network for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from betasigma.networks.layers import centred
from betasigma.options.networks import Pooling, RefineNetOptions, check_image_network
from betasigma.options.plugins import Component


class Level(NamedTuple):
    """Between which two rows of a table each example lies, and how far."""

    below: Tensor
    above: Tensor
    share: Tensor


class RefineNet(Component, nn.Module):
    """Image → image, given the number of the noise level of each image, or nothing.

    Args:
        in_channels: channels of the input.
        image_size: height and width of the images the network is for.
        out_channels: channels of the output; those of the input by default.
        value_range: of clean data; the network sees it as [−1, 1].
        levels: number of noise levels, counted 0 … levels − 1. Between two of them their rows are
            interpolated.
        channels: width at the full resolution.
        multipliers: width of each stage, in multiples of ``channels``, from fine to coarse.
        pooling: of the refinement blocks, ``"average"`` (NCSN) or ``"max"`` (NCSNv2).
        conditional: False for a network that does not see the noise level (NCSNv2).
        num_classes: 0, since it takes no labels.

    Raises:
        UserError: for a value out of range, or one that does not fit the images
            (:class:`~betasigma.options.networks.RefineNetOptions`).
    """

    config_group = "network"

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        out_channels: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        levels: int = 10,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        pooling: Pooling = "average",
        conditional: bool = True,
        num_classes: int = 0,
    ) -> None:
        check_image_network(RefineNetOptions, locals())
        super().__init__()
        self.value_range = value_range
        self.levels = levels if conditional else 0
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1

        self.enter = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for stage, width in enumerate(widths):
            dilation = {last - 1: 2, last: 4}.get(stage, 1)
            width_in = widths[max(stage - 1, 0)]
            first = DilatedBlock(width_in, width, self.levels, dilation, enters=stage > 0)
            second = DilatedBlock(width, width, self.levels, dilation, enters=False)
            self.down.append(nn.ModuleList([first, second]))

        width = widths[last]
        self.refine = nn.ModuleList([RefineBlock([width], width, 1, self.levels, pooling)])
        for stage in range(last - 1, -1, -1):
            inputs, width = [widths[stage], width], widths[max(stage - 1, 0)]
            units = 1 if stage else 3
            self.refine.append(RefineBlock(inputs, width, units, self.levels, pooling))
        self.norm = InstanceNormPlus(width, self.levels)
        self.leave = nn.Conv2d(width, out_channels or in_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c_noise (B,) in [0, levels − 1], y None → (B, C', H, W)."""
        level = self._level(c_noise)
        h = self.enter(centred(x, self.value_range))
        stages = []
        for stage in self.down:
            for block in cast(nn.ModuleList, stage):
                h = block(h, level)
            stages.append(h)
        coarse, *finer = self.refine
        h = coarse([stages.pop()], level)
        for block in finer:
            h = block([stages.pop(), h], level)
        return cast(Tensor, self.leave(F.elu(self.norm(h, level))))

    def _level(self, c_noise: Tensor) -> Level | None:
        if not self.levels:
            return None
        number = c_noise.clamp(0, self.levels - 1)
        below = number.floor().long()
        return Level(below, (below + 1).clamp(max=self.levels - 1), (number - below)[:, None])


class InstanceNormPlus(nn.Module):
    """InstanceNorm++ with a row (γ, α, β) a level, or with one row where ``levels`` is 0."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        rows = max(levels, 1)
        scales = 1 + 0.02 * torch.randn(rows, 2 * width)
        self.rows = nn.Parameter(torch.cat([scales, torch.zeros(rows, width)], dim=1))

    def forward(self, x: Tensor, level: Level | None) -> Tensor:
        """(B, width, H, W) → (B, width, H, W)."""
        mean = x.mean(dim=(2, 3))
        centre, variance = mean.mean(1, keepdim=True), mean.var(1, keepdim=True)
        relative = (mean - centre) / (variance + 1e-5).sqrt()
        rows: Tensor = self.rows
        if level is not None:
            rows = torch.lerp(rows[level.below], rows[level.above], level.share)
        gamma, alpha, beta = rows[:, :, None, None].chunk(3, dim=1)
        return gamma * (F.instance_norm(x) + alpha * relative[:, :, None, None]) + beta


class DilatedBlock(nn.Module):
    """Residual block: twice InstanceNorm++, ELU and a convolution.

    The first of a stage (``enters``) has a convolution as its shortcut, and halves the image unless
    its convolutions are dilated.
    """

    def __init__(self, width_in: int, width: int, levels: int, dilation: int, enters: bool) -> None:
        super().__init__()
        self.halves = enters and dilation == 1
        self.norm1 = InstanceNormPlus(width_in, levels)
        self.conv1 = _conv(width_in, width_in, dilation)
        self.norm2 = InstanceNormPlus(width_in, levels)
        self.conv2 = _conv(width_in, width, dilation)
        self.shortcut: nn.Conv2d | None = None
        if enters:
            halving = nn.Conv2d(width_in, width, 1)
            self.shortcut = halving if self.halves else _conv(width_in, width, dilation)

    def forward(self, x: Tensor, level: Level | None) -> Tensor:
        """(B, width_in, H, W) → (B, width, H, W), or half of H and W."""
        h = self.conv1(F.elu(self.norm1(x, level)))
        h = self.conv2(F.elu(self.norm2(h, level)))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return F.avg_pool2d(h, 2) if self.halves else h


class RefineBlock(nn.Module):
    """Features of one or two resolutions → features of the finer one (Lin et al. 2017)."""

    def __init__(
        self, widths_in: Sequence[int], width: int, units: int, levels: int, pooling: Pooling
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ConvUnits(w, 2, levels) for w in widths_in)
        self.fuse = Fusion(widths_in, width, levels) if len(widths_in) > 1 else None
        self.pool = ChainedPooling(width, levels, pooling)
        self.out = ConvUnits(width, units, levels)

    def forward(self, inputs: Sequence[Tensor], level: Level | None) -> Tensor:
        """(B, width_in, H, W), finest first → (B, width, H, W) of the finest."""
        adapted = [unit(x, level) for unit, x in zip(self.adapt, inputs, strict=True)]
        h = adapted[0] if self.fuse is None else self.fuse(adapted, level)
        return cast(Tensor, self.out(self.pool(h, level), level))


class ConvUnits(nn.Module):
    """Residual convolution units (RCU): each adds what two convolutions make of its input."""

    def __init__(self, width: int, units: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(width, width, bias=False) for _ in range(2 * units))
        self.norms = _norms([width] * 2 * units, levels)

    def forward(self, x: Tensor, level: Level | None) -> Tensor:
        """(B, width, H, W) → (B, width, H, W)."""
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = conv(F.elu(norm(h, level)))
            if i % 2:
                x = h = x + h
        return x


class Fusion(nn.Module):
    """Multi-resolution fusion (MSF): the sum of the inputs at the size of the first."""

    def __init__(self, widths_in: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(w, width) for w in widths_in)
        self.norms = _norms(widths_in, levels)

    def forward(self, inputs: Sequence[Tensor], level: Level | None) -> Tensor:
        """(B, width_in, H, W), finest first → (B, width, H, W) of the finest."""
        size = inputs[0].shape[2:]
        features = [
            conv(norm(x, level))
            for norm, conv, x in zip(self.norms, self.convs, inputs, strict=True)
        ]
        return torch.stack(
            [F.interpolate(h, size, mode="bilinear", align_corners=True) for h in features]
        ).sum(0)


class ChainedPooling(nn.Module):
    """Chained residual pooling (CRP): each link pools over 5x5 pixels and convolves."""

    def __init__(self, width: int, levels: int, pooling: Pooling) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(width, width, bias=False) for _ in range(2))
        self.norms = _norms([width] * 2, levels)
        self.pool = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}[pooling](5, 1, 2)

    def forward(self, x: Tensor, level: Level | None) -> Tensor:
        """(B, width, H, W) → (B, width, H, W)."""
        x = link = F.elu(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            link = conv(self.pool(norm(link, level)))
            x = x + link
        return x


class AsItIs(nn.Module):
    """In the place of a normalisation where there is none."""

    def forward(self, x: Tensor, level: Level | None) -> Tensor:
        return x


def _norms(widths: Sequence[int], levels: int) -> nn.ModuleList:
    """Normalisations of a refinement block, which only a network with levels has."""
    return nn.ModuleList(InstanceNormPlus(w, levels) if levels else AsItIs() for w in widths)


def _conv(width_in: int, width: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, padding=dilation, dilation=dilation, bias=bias)
