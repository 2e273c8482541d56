"""The UNet of DDPM (Ho et al. 2020, appendix B), for both families.

A PixelCNN++-like UNet with group normalisation: per resolution a few residual blocks, with
self-attention at chosen resolutions, then a strided convolution down; in the middle block,
attention, block; on the way up one residual block more per resolution, each fed with the feature
map of the same size from the way down; then nearest-neighbour upsampling and a convolution. The
noise level enters every residual block as a shift of its features.

With ``channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,)`` on 3x32x32 images it is
the network of Ho et al.'s CIFAR-10 runs, 35,746,307 parameters, and computes the same function as
diffusers' ``UNet2DModel`` in the configuration of google/ddpm-cifar10-32.

Features keep one memory format from end to end: channels_last if the input or the weights have it.
That is the faster one on GPUs, and on CPUs in float32, or in bfloat16 with AMX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from betasigma.networks.layers import Conditioning, initialised
from betasigma.options.data import height_and_width
from betasigma.options.networks import Embedding, UNetOptions, check_image_network, resolutions
from betasigma.options.plugins import Component

Resample = Literal["down", "up"]


class UNet(Component, nn.Module):
    """Image → image, given one number per image and optionally a class label.

    The smallest resolution attends too, in the middle, as in Ho et al., unless ``attention`` is
    empty: then nothing does.

    Args:
        in_channels: channels of the input.
        image_size: height and width of the images the network is for, one number or both.
        out_channels: channels of the output; those of the input by default, twice as many where a
            variance is learned.
        channels: width at the full resolution.
        multipliers: width at each resolution, in multiples of ``channels``, from fine to coarse.
        blocks: residual blocks per resolution on the way down (one more on the way up).
        attention: resolutions whose residual blocks are followed by self-attention; of images that
            are not square, lesser sides.
        heads: attention heads.
        head_channels: width of a head; then the number of heads follows from it.
        dropout: rate of dropout before the second convolution of a residual block.
        num_classes: number of class labels, 0 for none. Label ``num_classes`` is the null class.
        embedding: of the noise level, ``"positional"``, ``"fourier"`` or ``"radians"``.
        fourier_scale: standard deviation of the Fourier frequencies.
        conditional: False for a network that does not see the noise level (NCSNv2).
        norm_groups: most groups of a normalisation (see :class:`GroupNorm`).
        group_width: least channels of a group.
        norm_eps: added to the variance in a normalisation.
        scale_shift: the noise level and the label also scale the features of a residual block,
            after its second normalisation (Nichol & Dhariwal 2021).
        resampling: ``"convolution"`` between resolutions, as in Ho et al., or ``"residual"``: a
            residual block whose features are averaged or repeated (Dhariwal & Nichol 2021).
        padding: zeros around what a strided convolution sees, ``"end"`` for the right and the
            bottom, as in Ho et al., ``"both"`` for all sides.
        embedding_channels: width of φ; ``channels`` by default. The vector is 4 times as wide.
        frequency_shift: of the positional embedding, see
            :class:`~betasigma.networks.layers.Positional`.
        null_class: False for a network that was trained with a label for every image: then ``y``
            must be given, and there is no label ``num_classes``.
        checkpoint: recompute activations in the backward pass instead of keeping them.

    Raises:
        UserError: for a value out of range, or one that does not fit the images
            (:class:`~betasigma.options.networks.UNetOptions`).
    """

    config_group = "network"

    channels_last_on_cpu: ClassVar[bool] = True
    """See :func:`betasigma.devices.faster_channels_last`."""

    def __init__(
        self,
        in_channels: int,
        image_size: int | Sequence[int],
        out_channels: int | None = None,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int = 0,
        embedding: Embedding = "positional",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        norm_groups: int = 32,
        group_width: int = 4,
        norm_eps: float = 1e-6,
        scale_shift: bool = False,
        resampling: str = "convolution",
        padding: str = "end",
        embedding_channels: int | None = None,
        frequency_shift: float = 1.0,
        null_class: bool = True,
        checkpoint: bool = False,
    ) -> None:
        check_image_network(UNetOptions, locals())
        super().__init__()
        self.num_classes = num_classes
        features = embedding_channels or channels
        emb_channels = 4 * features if conditional or num_classes else 0
        self.conditioning = Conditioning(
            features,
            emb_channels,
            num_classes,
            embedding,
            fourier_scale,
            conditional,
            frequency_shift,
            null_class,
        )
        norm = partial(GroupNorm, norm_groups, least=group_width, eps=norm_eps)

        def block(
            width_in: int, width: int, attends: bool, resample: Resample | None = None
        ) -> ResidualBlock:
            n = width // head_channels if head_channels else heads
            return ResidualBlock(
                width_in,
                width,
                emb_channels,
                heads=n if attends else 0,
                dropout=dropout,
                norm=norm,
                scale_shift=scale_shift,
                resample=resample,
                checkpoint=checkpoint,
            )

        in_blocks = resampling == "residual"

        widths = [channels * m for m in multipliers]
        lesser = min(height_and_width(image_size))
        attends = [size in attention for size in resolutions(lesser, len(widths))]
        last = len(widths) - 1

        self.enter = initialised(nn.Conv2d(in_channels, channels, 3, padding=1))
        width = channels
        skips = [width]
        self.down = nn.ModuleList()
        for level, level_width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(width, level_width, attends[level]))
                width = level_width
                skips.append(width)
            if level < last:
                self.down.append(
                    block(width, width, attends=False, resample="down")
                    if in_blocks
                    else Downsample(width, padding)
                )
                skips.append(width)

        self.middle = nn.ModuleList(
            [block(width, width, attends=bool(attention)), block(width, width, attends=False)]
        )

        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), widths[level], attends[level]))
                width = widths[level]
            if level > 0:
                self.up.append(
                    block(width, width, attends=False, resample="up")
                    if in_blocks
                    else Upsample(width)
                )

        self.leave = nn.Sequential(
            norm(width),
            nn.SiLU(),
            initialised(nn.Conv2d(width, out_channels or in_channels, 3, padding=1), zero=True),
        )

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c_noise (B,), y int64 (B,) or None for the null class → (B, C', H, W).

        Raises:
            UserError: if labels are given to a network that has none.
        """
        emb = self.conditioning(c_noise, y)
        h = self.enter(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            if isinstance(layer, ResidualBlock) and layer.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, emb)
        return cast(Tensor, self.leave(h))


class GroupNorm(nn.GroupNorm):
    """Group normalisation in as many groups as divide ``width``, but at most ``groups``.

    A group has at least ``least`` channels, 4 as in Ho et al.: with one, the normalisation would
    take away the shift of that channel, and with it the noise level and the label. Statistics are
    taken in float32, also of bfloat16 features.
    """

    def __init__(self, groups: int, width: int, least: int = 4, eps: float = 1e-6) -> None:
        most = max(1, min(groups, width // least))
        divisor = max(n for n in range(1, most + 1) if width % n == 0)
        super().__init__(divisor, width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # a graph has no contexts and no devices
            return super().forward(x)
        if x.device.type != "cpu":
            if torch.compiler.is_compiling():
                return self._fusible(x)
            return super().forward(x)  # few launches: one by one, the other form's are slower
        # The kernel takes bfloat16 features with float32 parameters and statistics as they are;
        # autocast would first copy the features to float32.
        with torch.autocast("cpu", enabled=False):
            if x.dtype == torch.bfloat16 and not x.is_contiguous():
                # Its channels_last form is far slower than the other form and two copies.
                y = super().forward(x.contiguous())
                return y.contiguous(memory_format=torch.channels_last)
            float32 = x.dtype == self.weight.dtype == torch.float32
            channels_last = x.ndim == 4 and not x.is_contiguous()
            plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
            if float32 and channels_last and plain:
                return self._of_sums(x)
            return super().forward(x)

    def _of_sums(self, x: Tensor) -> Tensor:
        """The same with channels last and without a gradient, by sums over the pixels of as many
        images as fit the cache. With few channels PyTorch's kernel takes up to five times as
        long; like it, this is E[x²] − E[x]², which loses digits where the mean is large.
        """
        batch, width, height, columns = x.shape
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        parts = pixels.split(max(1, IN_CACHE // pixels[0].numel()))
        sums = torch.cat([torch.stack((part.sum(1), (part * part).sum(1))) for part in parts], 1)
        sums = sums.view(2, batch, self.num_groups, -1).sum(3, keepdim=True)
        mean, square = sums.mul_(self.num_groups / pixels[0].numel())
        variance = square.addcmul_(mean, mean, value=-1).clamp_(min=0)
        scale = variance.add_(self.eps).rsqrt_() * self.weight.view(self.num_groups, -1)
        shift = torch.addcmul(self.bias.view(self.num_groups, -1), mean, scale, value=-1)
        y = torch.addcmul(shift.view(batch, 1, width), pixels, scale.view(batch, 1, width))
        return y.view(batch, height, columns, width).permute(0, 3, 1, 2)

    def _fusible(self, x: Tensor) -> Tensor:
        """The same in steps that torch.compile fuses and that leave the memory format alone: the
        kernel of GPUs returns features in the default format, which convolutions copy back.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(dtype).view(self.num_groups, -1, 1, 1)
        bias = self.bias.to(dtype).view(self.num_groups, -1, 1, 1)
        grouped = x.to(dtype).unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        scale = weight * torch.rsqrt(variance + self.eps)
        shift = bias - mean * scale
        return torch.addcmul(shift, grouped, scale).flatten(1, 2).to(x.dtype)


IN_CACHE = 2**18
"""Numbers that stay in a processor's cache from one sum over them to the next."""


class Dropout(nn.Module):
    """Dropout whose mask is cheap on the CPU as well.

    There F.dropout takes one draw of a serial generator per feature, which can cost as much as the
    convolutions around it; here every 64-bit draw serves four features, and the rate is rounded
    down to a multiple of 2⁻¹⁶.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.levels = int(rate * 2**16)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.levels == 0:
            return x
        rate = self.levels / 2**16
        if x.device.type != "cpu":
            return F.dropout(x, rate)
        keep = torch.empty_like(x)
        draws = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 3) // 4,), device=x.device)
        uniform = draws.view(torch.int16)[: x.numel()]
        torch.ge(uniform, self.levels - 2**15, out=keep.as_strided(uniform.shape, (1,)))
        return x * keep.mul_(1 / (1 - rate))


class Convolution(nn.Conv2d):
    """A convolution that is also computed with another bias than its own, or with none: the sum
    of two convolutions needs one bias, whose gradient is a pass over the features.
    """

    def forward(self, x: Tensor, bias: Tensor | Literal["own"] | None = "own") -> Tensor:
        return self._conv_forward(x, self.weight, self.bias if isinstance(bias, str) else bias)


class ResidualBlock(nn.Module):
    """Residual block, followed by self-attention where ``heads`` is not 0.

    h = conv(SiLU(norm(x))) + W e;  out = shortcut(x) + conv(dropout(SiLU(norm(h)))), with a 1x1
    convolution as the shortcut where the width changes. With ``scale_shift``, W e = (a, b) acts
    after the second normalisation instead, norm(h)·(1 + a) + b. With ``resample``, SiLU(norm(x))
    and x change their resolution first.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        emb_channels: int,
        heads: int,
        dropout: float,
        norm: Callable[[int], GroupNorm],
        scale_shift: bool,
        resample: Resample | None,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.scale_shift = scale_shift
        self.resample = resample
        self.norm1 = norm(width_in)
        self.conv1 = initialised(Convolution(width_in, width, 3, padding=1))
        shifts = 2 * width if scale_shift else width
        self.shift = initialised(nn.Linear(emb_channels, shifts)) if emb_channels else None
        self.norm2 = norm(width)
        self.dropout = Dropout(dropout)
        self.conv2 = initialised(Convolution(width, width, 3, padding=1), zero=True)
        self.shortcut = initialised(Convolution(width_in, width, 1)) if width_in != width else None
        self.attention = Attention(width, heads, norm) if heads else None

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """x (B, width_in, H, W), emb (B, emb_channels) → (B, width, H', W')."""
        if self.checkpoint and torch.is_grad_enabled():
            return recompute(self._compute, x, emb, use_reentrant=False)
        return self._compute(x, emb)

    def _compute(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = resampled(h, self.resample), resampled(x, self.resample)
        if self.shift is None or self.scale_shift:
            h = self.conv1(h)
        else:
            h = self.conv1(h, bias=None)
            shift = self.shift(emb) + self.conv1.bias  # float32, also where h is bfloat16
            h += shift.to(h.dtype)[:, :, None, None]
        h = self.norm2(h)
        if self.shift is not None and self.scale_shift:
            scale, shift = self.shift(emb)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = self.dropout(F.silu(h))
        if self.shortcut is None:
            h = x + self.conv2(h)
        else:
            bias = cast(Tensor, self.conv2.bias) + cast(Tensor, self.shortcut.bias)
            h = self.shortcut(x, bias=None) + self.conv2(h, bias)
        return h if self.attention is None else self.attention(h)


def resampled(x: Tensor, how: Resample) -> Tensor:
    """(B, C, H, W) → means of 2x2 pixels, (B, C, H/2, W/2), or each pixel 2x2 times, (B, C, 2H,
    2W).
    """
    if how == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual connection."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], GroupNorm]) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        for projection in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(projection)
        nn.init.zeros_(self.qkv.bias)
        self.out = initialised(nn.Linear(width, width), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → (B, width, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        parts = self.qkv(tokens).chunk(3, dim=2)  # unbound, the gradient would be copied twice
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        h = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h).transpose(1, 2).view(x.shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v for q, k, v of shape (B, heads, tokens, d).

    On the CPU in steps: there the backward pass of PyTorch's fused kernel takes up to four times
    as long in bfloat16. Elsewhere fused, which has no second derivative: where one is needed
    (sliced score matching), run under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """
    if q.device.type == "cpu":
        return (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded at the right and at the bottom only (Ho et al.), or at
    all sides (``padding="both"``).
    """

    def __init__(self, width: int, padding: str) -> None:
        super().__init__()
        self.at_end = padding == "end"
        self.conv = initialised(
            nn.Conv2d(width, width, 3, stride=2, padding=0 if self.at_end else 1)
        )

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """(B, width, H, W) → (B, width, H/2, W/2)."""
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1)) if self.at_end else x))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, computed as one transposed one.

    Each input pixel becomes a 2x2 square of equal pixels, so a weight of the convolution serves
    four neighbouring places: 4x4 weights with stride 2 do the same with 4/9 of the arithmetic and
    without the upsampled image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = initialised(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """(B, width, H, W) → (B, width, 2H, 2W)."""
        if torch.compiler.is_exporting():  # ONNX has no weight that is computed
            return cast(Tensor, self.conv(resampled(x, "up")))
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)
        weight = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
        weight = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
        y = F.conv_transpose2d(x, weight, stride=2, padding=1)
        bias = cast(Tensor, self.conv.bias)  # apart: oneDNN is slow at its gradient here
        return y.add_(bias.to(y.dtype)[:, None, None])
