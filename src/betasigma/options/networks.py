"""Options of networks, and what they ask of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from betasigma.errors import UserError, counted
from betasigma.options.base import (
    ComponentOptions,
    Count,
    Index,
    Options,
    Positive,
    Probability,
    UnitInterval,
    option,
)
from betasigma.options.composition import Composition
from betasigma.options.data import ImageSize, height_and_width, kind_of

Embedding = Literal["positional", "fourier", "radians"]
Resampling = Literal["convolution", "residual"]
Padding = Literal["end", "both"]
Pooling = Literal["average", "max"]
Filter = Literal["box", "fir"]
Pyramid = Literal["none", "skip", "residual"]
EvenWidth = Annotated[int, Field(ge=4, le=2**16, multiple_of=2)]
"""Half of it carries the sines of the noise level, half the cosines."""

Width = Annotated[int, Field(ge=1, le=2**16)]
Blocks = Annotated[int, Field(ge=1, le=1000)]
Multiplier = Annotated[int, Field(ge=1, le=256)]


ONE_RESOLUTION = "without a second resolution (network.multipliers)"

MOST_LEVELS = 16
"""Resolutions of a network: each halves the image, and none has 65,536 pixels a side."""


class NetworkSize(NamedTuple):
    """Numbers that a network holds, at least."""

    weights: int
    kept: int
    """Of one example, for the backward pass."""
    widest: int
    """Of one example, in its largest layer."""


class NetworkOptions(ComponentOptions):
    """Options of a network; ``None`` for ``takes`` where only the class knows."""

    group: ClassVar[str] = "network"
    takes: ClassVar[Literal["images", "points"] | None] = None
    differentiates: ClassVar[bool] = False
    """Whether its output is a derivative, so that training differentiates twice."""
    can_learn_variance: ClassVar[bool] = True
    rectangular: ClassVar[bool] = False
    """Whether it takes images that are not square; its ``image_size`` is then a pair."""

    num_classes: Index = option(0, "class labels; 0: unconditional")

    @property
    def conditioning(self) -> str | None:
        """The only ``preconditioning.conditioning`` that it understands; ``None`` for any."""
        return None

    @classmethod
    def traits_of_signature(cls, required: Set[str]) -> dict[str, Any]:
        names = {"in_channels": "images", "image_size": "images", "dim": "points"}
        kinds = {names[name] for name in required & names.keys()}
        return {"takes": kinds.pop()} if len(kinds) == 1 else {}

    def shape_arguments(self, sample_shape: Sequence[int], doubled: bool) -> dict[str, Any]:
        """Return the arguments that follow from the data, which a constructor may ask for by name.

        Args:
            sample_shape: of one example, ``(C, H, W)`` or ``(d,)``.
            doubled: whether the network learns a variance too, with twice the outputs.
        """
        size, *sides = sample_shape
        outputs = 2 * size if doubled else size
        if len(sample_shape) == 1:
            return {"dim": size, "out_dim": outputs, "sample_shape": tuple(sample_shape)}
        return {
            "in_channels": size,
            "out_channels": outputs,
            "image_size": tuple(sides) if len(set(sides)) == 2 else sides[0],
            "sample_shape": tuple(sample_shape),
        }

    def size(self, shape: Sequence[int]) -> NetworkSize:
        """A lower bound of what the network takes of memory for one such example; 0 where only the
        class knows.
        """
        return NetworkSize(0, 0, 0)

    def check_with(self, composition: Composition) -> None:
        shape = composition.data.shape
        kind = f"{kind_of(shape)}s"
        if self.takes not in (None, kind):
            fits = (
                "a U-Net (network=unet_28, …)" if kind == "images" else "network=mlp or mlp_energy"
            )
            raise UserError(
                f"network={self.target} does not fit data={composition.data.name}: it takes "
                f"{self.takes}, and these are {kind}; use {fits}"
            )
        if kind == "images":
            self.check_sides(*shape[1:])

    def check_classes(self, composition: Composition) -> None:
        """Refuse a number of class labels that the data do not have."""
        known = composition.data.num_classes if self.num_classes else 0
        if self.num_classes != known:
            raise UserError(
                f"network.num_classes={self.num_classes} does not fit "
                f"data={composition.data.name}, which has {counted(known, 'class')}; 0 "
                f"trains without labels"
            )

    def check_sides(self, height: int, width: int) -> None:
        """Refuse images that the network cannot take."""
        if height != width and not self.rectangular:
            raise UserError(
                f"data.image_size=[{height},{width}] does not fit "
                f"network={(self.target or self.targets[0]).rpartition('.')[2]}, which takes "
                f"square images"
            )
        self.check_image_size(min(height, width))

    def check_image_size(self, image_size: int) -> None:
        """The same of square images, or of the lesser side of others."""


def unused_embedding(network: Any, composition: Composition) -> dict[str, str]:
    """Keys of the embedding of the noise level that have no effect, and why
    (:meth:`~betasigma.options.base.Options.unused`).
    """
    keys = ("embedding", "fourier_scale", "frequency_shift")
    if not network.conditional:
        return dict.fromkeys(keys, "without network.conditional=true")
    if composition.preconditioning.conditioning == "none":
        why = "with preconditioning.conditioning=none: every noise level is told as 0"
        return dict.fromkeys(keys, why)
    if network.embedding == "positional":
        return {"fourier_scale": "without network.embedding=fourier"}
    return {"frequency_shift": "without network.embedding=positional"}


class ImageShape(Options):
    """Arguments that a network for images may ask for."""

    node = "network"

    in_channels: Count = option(3, "channels of the images")
    image_size: ImageSize = option(32, "their height and width")
    out_channels: Count | None = option(None, "channels of the output; null: those of the images")


class PointShape(Options):
    """Arguments that a network for points may ask for."""

    node = "network"

    dim: Count = option(2, "coordinates of a point")
    out_dim: Count | None = option(None, "coordinates of the output; null: those of the points")


class ResidualOptions(NetworkOptions):
    """Options of a network of residual blocks at halved resolutions."""

    takes = "images"

    channels: EvenWidth = option(128, "width at full resolution")
    multipliers: Annotated[list[Multiplier], Field(min_length=1, max_length=MOST_LEVELS)] = option(
        [1, 2, 2, 2], "width at each resolution, in units of channels; each halves the image"
    )
    blocks: Blocks = option(2, "residual blocks at each resolution")
    attention: list[Count] = option([16], "resolutions with self-attention")
    dropout: Probability = option(0.1, "dropout before the second convolution of a block")
    embedding: Embedding = option("positional", "how the noise level enters")
    fourier_scale: Positive = option(16.0, "standard deviation of the Fourier frequencies")
    conditional: bool = option(True, "false: the network is not told the noise level (NCSNv2)")
    checkpoint: bool = option(False, "recompute activations in the backward pass to save memory")

    def size(self, shape: Sequence[int]) -> NetworkSize:
        """Two convolutions a block, and of its features the six that their derivatives, two
        normalisations and two nonlinearities need. A block on the way up reads at least twice its
        width.
        """
        weights, kept, widest = 0, 0, 0
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            area = math.prod(-(-side // 2**level) for side in shape[1:])
            of_a_block = 1 if self.checkpoint else 6
            weights += 9 * (4 * self.blocks + 1) * width**2
            kept += area * width * self.blocks * (2 * of_a_block + 3)
            widest = max(widest, area * width)
        return NetworkSize(weights, kept, widest)

    def check_image_size(self, image_size: int) -> None:
        check_attention(self.attention, image_size, len(self.multipliers))


def check_image_network(options: type[NetworkOptions], arguments: Mapping[str, Any]) -> None:
    """Check what the constructor of a network for images was given, its ``locals()``."""
    shape = ImageShape.check_own(arguments)
    options.check_own(arguments).check_sides(*height_and_width(shape.image_size))


class UNetOptions(ResidualOptions):
    targets = ("betasigma.networks.unet.UNet",)
    rectangular = True

    heads: Count = option(1, "attention heads")
    head_channels: Count | None = option(None, "width of a head, instead of heads")
    norm_groups: Count = option(32, "most groups of a normalisation")
    group_width: Count = option(4, "least channels of a group")
    norm_eps: Positive = option(1e-6, "added to the variance in a normalisation")
    scale_shift: bool = option(
        False, "the noise level also scales features, after the second normalisation of a block"
    )
    resampling: Resampling = option(
        "convolution", "between resolutions, or inside a residual block of its own"
    )
    padding: Padding = option("end", "at which sides a strided convolution is padded")
    embedding_channels: EvenWidth | None = option(
        None, "width of the embedding of the noise level; null: channels"
    )
    frequency_shift: UnitInterval = option(
        1.0, "1: its frequencies end at 1e-4 (Ho et al.), 0: one ratio before"
    )
    null_class: bool = option(True, "false: every image has a label, as in ADM")

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.head_channels is not None and self.heads != 1:
            raise ValueError(
                f"network.heads={self.heads} and network.head_channels={self.head_channels} "
                "exclude each other: give the number of heads, or their width and leave "
                "network.heads at 1."
            )
        return self

    def size(self, shape: Sequence[int]) -> NetworkSize:
        found = super().size(shape)
        embedding = 16 * (self.embedding_channels or self.channels) ** 2
        told = self.conditional or self.num_classes
        return found._replace(weights=found.weights + embedding) if told else found

    def unused(self, composition: Composition) -> dict[str, str]:
        found = unused_embedding(self, composition)
        if not (self.conditional or self.num_classes):
            why = "without network.conditional=true or network.num_classes"
            found |= dict.fromkeys(("embedding_channels", "scale_shift"), why)
        if not self.num_classes:
            found["null_class"] = "without network.num_classes"
        if not self.attention:
            why = "without network.attention with a resolution"
            found |= dict.fromkeys(("heads", "head_channels"), why)
        if len(self.multipliers) == 1:
            found |= dict.fromkeys(("resampling", "padding"), ONE_RESOLUTION)
        elif self.resampling == "residual":
            found["padding"] = "without network.resampling=convolution"
        return found

    def check_sides(self, height: int, width: int) -> None:
        for side in sorted({height, width}):
            resolutions(side, len(self.multipliers), f"{height}x{width} images")
        super().check_sides(height, width)

    def check_image_size(self, image_size: int) -> None:
        sizes = check_attention(self.attention, image_size, len(self.multipliers))
        if self.attention:
            pairs = zip(sizes, self.multipliers, strict=True)
            attending = {m for size, m in pairs if size in self.attention}
            for width in sorted({self.channels * m for m in attending | {self.multipliers[-1]}}):
                self._check_heads(width)

    def _check_heads(self, width: int) -> None:
        key, value = ("heads", self.heads)
        if self.head_channels is not None:
            key, value = "head_channels", self.head_channels
        if width % value:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            raise UserError(
                f"network.{key}={value} does not divide the {width} channels of an attention "
                f"layer: give one of {_listed(divisors)}."
            )


class RefineNetOptions(NetworkOptions):
    targets = ("betasigma.networks.refinenet.RefineNet",)
    takes = "images"

    channels: Width = option(128, "width at full resolution")
    multipliers: Annotated[list[Multiplier], Field(min_length=3, max_length=MOST_LEVELS)] = option(
        [1, 2, 2, 2],
        "width of each stage, in units of channels; the last two dilate, those between the first "
        "and them halve the image",
    )
    pooling: Pooling = option("average", "of the refinement blocks: NCSN's, or NCSNv2's max")
    conditional: bool = option(True, "false: the network is not told the noise level (NCSNv2)")
    num_classes: Literal[0] = option(0, "it takes no class labels")

    @property
    def conditioning(self) -> str | None:
        return "level_number" if self.conditional else None

    def size(self, shape: Sequence[int]) -> NetworkSize:
        """Two residual blocks of two convolutions a stage, and as many again in its refinement."""
        weights, kept, widest = 0, 0, 0
        for stage, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            halvings = min(stage, len(self.multipliers) - 3)
            area = math.prod(-(-side // 2**halvings) for side in shape[1:])
            weights += 9 * 8 * width * min(width, self.channels)
            kept += 36 * area * min(width, self.channels)
            widest = max(widest, area * width)
        return NetworkSize(weights, kept, widest)

    def check_image_size(self, image_size: int) -> None:
        halvings = len(self.multipliers) - 3
        if image_size % 2**halvings or image_size <= 2**halvings:
            raise UserError(
                f"network.multipliers={self.multipliers} halves the image "
                f"{counted(halvings, 'time')}, which {image_size}x{image_size} images do not "
                f"allow: give fewer multipliers, or a size that {2**halvings} divides"
            )


class NCSNppOptions(ResidualOptions):
    targets = ("betasigma.networks.ncsnpp.NCSNpp",)

    blocks: Blocks = option(4, "residual blocks at each resolution")
    resample_filter: Filter = option("box", "averages and repetition, or the filter [1, 3, 3, 1]")
    progressive_input: Pyramid = option("none", "how the image enters at lower resolutions")
    progressive_output: Literal["none", "skip"] = option(
        "none", "skip: the output is a sum over resolutions"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        found = unused_embedding(self, composition)
        if len(self.multipliers) == 1:
            keys = ("resample_filter", "progressive_input", "progressive_output")
            found |= dict.fromkeys(keys, ONE_RESOLUTION)
        return found


class MLPOptions(NetworkOptions):
    targets = ("betasigma.networks.mlp.MLP",)
    takes = "points"

    width: EvenWidth = option(128, "width of the features")
    depth: Blocks = option(4, "residual blocks")
    embedding: Embedding = option("positional", "how the noise level enters")
    fourier_scale: Positive = option(16.0, "standard deviation of the Fourier frequencies")
    conditional: bool = option(True, "false: the network is not told the noise level")

    def size(self, shape: Sequence[int]) -> NetworkSize:
        kept = 4 * self.depth * self.width
        return NetworkSize(2 * self.depth * self.width**2, kept, self.width)

    def unused(self, composition: Composition) -> dict[str, str]:
        return unused_embedding(self, composition)


class EnergyMLPOptions(MLPOptions):
    targets = ("betasigma.networks.energy.energy_mlp",)
    differentiates = True
    can_learn_variance = False


def resolutions(image_size: int, levels: int, images: str = "") -> tuple[int, ...]:
    """Sides of the feature maps of a UNet, from fine to coarse; the lesser of those that are not
    square.

    Args:
        image_size: the finest.
        levels: how many.
        images: what they are of, for the message.

    Raises:
        UserError: if ``image_size`` cannot be halved ``levels - 1`` times.
    """
    sizes = [image_size]
    while len(sizes) < levels and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    if len(sizes) < levels:
        raise UserError(
            f"network.multipliers has {levels} levels, which halves the image "
            f"{counted(levels - 1, 'time')}, but {images or f'{image_size}x{image_size} images'} "
            f"allow at most {counted(len(sizes), 'level')} ({_listed(sizes)}): give at most "
            f"{counted(len(sizes), 'multiplier')} or an image size divisible by {2 ** (levels - 1)}"
        )
    return tuple(sizes)


def check_attention(attention: list[int], image_size: int, levels: int) -> tuple[int, ...]:
    """Return the :func:`resolutions`, among which those of the attention must be."""
    sizes = resolutions(image_size, levels)
    for resolution in attention:
        if resolution not in sizes:
            raise UserError(
                f"network.attention={attention} asks for resolution {resolution}, which never "
                f"occurs: {image_size}x{image_size} images and {counted(levels, 'multiplier')} "
                f"have {_listed(sizes)}"
            )
    return sizes


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
