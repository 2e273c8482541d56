"""What a network can be built as, checked without importing torch.

The command line calls these functions before anything heavy is imported; the networks call them
again, so that a notebook gets the same sentence. Every message names the key as the config tree
has it, the value, and what is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

from betasigma.errors import UserError

EMBEDDINGS = ("positional", "fourier")


def resolutions(image_size: int, levels: int) -> tuple[int, ...]:
    """Sides of the square feature maps of a UNet, from fine to coarse.

    Raises:
        UserError: if ``image_size`` cannot be halved ``levels - 1`` times.
    """
    sizes = [image_size]
    while len(sizes) < levels and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    if len(sizes) < levels:
        raise UserError(
            f"network.multipliers has {levels} levels, which halves the image {levels - 1} times, "
            f"but {image_size}x{image_size} images allow at most {len(sizes)} levels "
            f"({_listed(sizes)}): give at most {len(sizes)} multipliers or an image size divisible "
            f"by {2 ** (levels - 1)}."
        )
    return tuple(sizes)


def check_unet(
    *,
    in_channels: int,
    image_size: int,
    out_channels: int | None = None,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    heads: int,
    head_channels: int | None,
    dropout: float,
    num_classes: int,
    embedding: str,
    fourier_scale: float = 16.0,
    norm_groups: int = 32,
) -> None:
    """Checks the arguments of :class:`betasigma.networks.unet.UNet` of the same names.

    Raises:
        UserError: at the first value that the network cannot be built with.
    """
    _at_least("in_channels", in_channels, 1)
    _at_least("image_size", image_size, 1)
    if out_channels is not None:
        _at_least("out_channels", out_channels, 1)
    if not multipliers or min(multipliers) < 1:
        raise UserError(
            f"network.multipliers={list(multipliers)} is not possible: give one positive integer "
            "per resolution, for instance [1,2,2]."
        )
    _at_least("blocks", blocks, 1)
    if not 0 <= dropout < 1:
        raise UserError(f"network.dropout={dropout} is not possible: give a number in [0, 1).")
    _at_least("norm_groups", norm_groups, 1)
    _check_conditioning("channels", channels, num_classes, embedding, fourier_scale)
    sizes = resolutions(image_size, len(multipliers))
    for resolution in attention:
        if resolution not in sizes:
            raise UserError(
                f"network.attention={list(attention)} asks for resolution {resolution}, which "
                f"never occurs: {image_size}x{image_size} images and {len(multipliers)} "
                f"multipliers give {_listed(sizes)}."
            )
    _at_least("heads", heads, 1)
    if head_channels is not None:
        _at_least("head_channels", head_channels, 1)
        if heads != 1:
            raise UserError(
                f"network.heads={heads} and network.head_channels={head_channels} exclude each "
                "other: give the number of heads, or their width and leave network.heads at 1."
            )
    if attention:
        attending = {m for size, m in zip(sizes, multipliers, strict=True) if size in attention}
        for width in sorted({channels * m for m in attending | {multipliers[-1]}}):
            _check_heads(width, heads, head_channels)


def check_mlp(
    *,
    dim: int,
    out_dim: int | None,
    width: int,
    depth: int,
    num_classes: int,
    embedding: str,
    fourier_scale: float,
) -> None:
    """Checks the arguments of :class:`betasigma.networks.mlp.MLP` of the same names.

    Raises:
        UserError: at the first value that the network cannot be built with.
    """
    _at_least("dim", dim, 1)
    if out_dim is not None:
        _at_least("out_dim", out_dim, 1)
    _at_least("depth", depth, 1)
    _check_conditioning("width", width, num_classes, embedding, fourier_scale)


def _check_conditioning(
    width_key: str, width: int, num_classes: int, embedding: str, fourier_scale: float
) -> None:
    if width < 4 or width % 2:
        raise UserError(
            f"network.{width_key}={width} is not possible: give an even number of at least 4 "
            "(half of it carries the sines of the noise level, half the cosines)."
        )
    _at_least("num_classes", num_classes, 0)
    if embedding not in EMBEDDINGS:
        raise UserError(f"network.embedding={embedding} is not one of {_listed(EMBEDDINGS)}.")
    if not fourier_scale > 0:
        raise UserError(
            f"network.fourier_scale={fourier_scale} is not possible: give a positive number."
        )


def _check_heads(width: int, heads: int, head_channels: int | None) -> None:
    key, value = ("heads", heads) if head_channels is None else ("head_channels", head_channels)
    if width % value:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        raise UserError(
            f"network.{key}={value} does not divide the {width} channels of an attention layer: "
            f"give one of {_listed(divisors)}."
        )


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(
            f"network.{key}={value} is not possible: give an integer of at least {least}."
        )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
