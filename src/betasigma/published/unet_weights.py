"""Weights of a published U-Net under the names of :class:`~betasigma.networks.unet.UNet`, and of a
DDPM++ or NCSN++ under those of :class:`~betasigma.networks.ncsnpp.NCSNpp`.

All of them have its layers in its order: residual blocks by resolution on the way down, a middle,
residual blocks on the way up. What differs are the names, the layout of a few matrices, and where
attention is missing: there it is put in with zeros, which adds nothing to the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from betasigma.errors import UserError, counted
from betasigma.published.config_nodes import Node
from betasigma.published.weight_file import WeightFile, checked_tensors

Weights = dict[str, Tensor]

GROUPS = 32
"""Groups of a normalisation in all of the public codes, at any width."""

Part = Callable[[str, int, int | None], Weights]
"""Tensors of one layer by our names in it, for ``("down" | "up", level, block)``, where the block
is ``None`` for the layer between this level and the next; ``("middle", 0, 0 | 1)`` for the middle.
"""


class Tensors:
    """Tensors of a file, each to be taken once.

    Args:
        tensors: by name.
        source: the file.

    Raises:
        UserError: where they are no weights (:func:`checked_tensors`).
    """

    def __init__(self, tensors: Mapping[Any, Any], source: WeightFile) -> None:
        self._left = checked_tensors(tensors, source)
        self._named = source.named

    def __iter__(self) -> Iterator[str]:
        return iter(self._left)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """The tensor, as float32."""
        if name not in self._left:
            raise UserError(f"{self._named} has no {name}, which its settings ask for")
        return self._left.pop(name).detach().to(torch.float32)

    def layer(self, theirs: str, ours: str) -> Weights:
        """Weight and, where there is one, bias of a layer."""
        found = {f"{ours}.weight": self.take(f"{theirs}.weight")}
        if f"{theirs}.bias" in self._left:
            found[f"{ours}.bias"] = self.take(f"{theirs}.bias")
        return found

    def layers(self, theirs: str, names: Mapping[str, str]) -> Weights:
        """Layers below a prefix: their names and ours."""
        found: Weights = {}
        for name, ours in names.items():
            found |= self.layer(f"{theirs}{name}", ours)
        return found

    def block(self, theirs: str, names: Mapping[str, str], shortcut: str) -> Weights:
        """Layers of a residual block, and its shortcut where it has one of this name."""
        found = self.layers(f"{theirs}.", names)
        if f"{theirs}.{shortcut}.weight" in self._left:
            found |= self.layer(f"{theirs}.{shortcut}", "shortcut")
        return found

    def joined(self, attention: Weights) -> Weights:
        """The same with the projections q, k and v as one layer."""
        for kind in ("weight", "bias"):
            parts = [attention.pop(f"{name}.{kind}", torch.empty(0)) for name in "qkv"]
            if len({part.shape for part in parts}) > 1:
                raise UserError(f"{self._named} has q, k and v of different shapes in an attention")
            attention[f"attention.qkv.{kind}"] = torch.cat(parts)
        return attention

    def finish(self) -> None:
        """Check that every tensor was taken."""
        for name in self._left:
            raise UserError(
                f"{self._named} has {counted(len(self._left), 'tensor')} that its settings have "
                f"no place for, {name} first"
            )


@dataclass(frozen=True)
class UNetShape:
    """What says which layers a U-Net has.

    Attributes:
        size: side of the images.
        widths: channels of each level, from fine to coarse.
        blocks: residual blocks of a level on the way down.
        attending: which levels attend.
        middle: whether the middle attends; ours does where any level does.
    """

    size: int
    widths: list[int]
    blocks: int
    attending: list[bool]
    middle: bool = True

    @property
    def shown(self) -> list[bool]:
        """Which levels attend in our network."""
        alone = self.middle and not any(self.attending)
        return [*self.attending[:-1], True] if alone else self.attending

    def network(self, **others: Any) -> Node:
        """The node ``network``, with ``others``, options that differ from ours."""
        first = self.widths[0]
        if any(width % first for width in self.widths):
            raise UserError(
                f"the levels have {', '.join(map(str, self.widths))} channels; ours are multiples "
                f"of the first"
            )
        return {
            "_target_": "betasigma.networks.unet.UNet",
            "channels": first,
            "multipliers": [width // first for width in self.widths],
            "blocks": self.blocks,
            "attention": [self.size >> level for level, shown in enumerate(self.shown) if shown],
            "norm_groups": GROUPS,
            "group_width": 1,
            **others,
        }

    def weights(self, part: Part) -> Weights:
        """Weights of all layers between the first and the last convolution.

        Args:
            part: tensors of each layer, asked for in the order of the network.
        """
        shown, last = self.shown, len(self.widths) - 1
        weights: Weights = {}

        def put(side: str, index: int, level: int, block: int | None, attends: bool) -> None:
            found = part(side, level, block)
            if attends and not any(name.startswith("attention.") for name in found):
                found |= silent_attention(self.widths[last if side == "middle" else level])
            weights.update({f"{side}.{index}.{name}": value for name, value in found.items()})

        def put_levels(side: str, levels: Sequence[int], blocks: int) -> None:
            indices = count()
            for level in levels:
                for block in range(blocks):
                    put(side, next(indices), level, block, shown[level])
                if level != levels[-1]:
                    put(side, next(indices), level, None, False)

        put_levels("down", range(last + 1), self.blocks)
        put("middle", 0, 0, 0, any(shown))
        put("middle", 1, 0, 1, False)
        put_levels("up", range(last, -1, -1), self.blocks + 1)
        return weights


def attending(size: int, levels: int, sides: Sequence[int]) -> list[bool]:
    """Which levels attend, by the resolutions that do."""
    return [size >> level in sides for level in range(levels)]


def silent_attention(width: int) -> Weights:
    """Attention that adds nothing: its output projection is zero."""
    return {
        "attention.norm.weight": torch.ones(width),
        "attention.norm.bias": torch.zeros(width),
        "attention.qkv.weight": torch.zeros(3 * width, width),
        "attention.qkv.bias": torch.zeros(3 * width),
        "attention.out.weight": torch.zeros(width, width),
        "attention.out.bias": torch.zeros(width),
    }


def as_linear(weights: Weights) -> Weights:
    """The same with convolutions of one pixel as matrices."""
    return {name: w.flatten(1) if w.ndim > 2 else w for name, w in weights.items()}


def cosines_first(weights: Weights) -> Weights:
    """The first matrix of a noise embedding whose features are cosines and then sines, for ours,
    which are sines and then cosines.
    """
    name = "conditioning.hidden.weight"
    cosines, sines = weights[name].chunk(2, dim=1)
    return {name: torch.cat([sines, cosines], dim=1)}


@dataclass(frozen=True)
class NCSNppShape:
    """What says which layers an NCSN++ has.

    Attributes:
        size: side of the images.
        channels: width at the full resolution.
        multipliers: width of each level, in units of ``channels``.
        blocks: residual blocks of a level on the way down.
        sides: resolutions that attend.
        progressive_input, progressive_output: ours.
    """

    size: int
    channels: int
    multipliers: list[int]
    blocks: int
    sides: list[int]
    progressive_input: str
    progressive_output: str

    @property
    def attending(self) -> list[bool]:
        """Which levels attend.

        Raises:
            UserError: where none does: theirs attends in the middle all the same, ours does not.
        """
        levels = attending(self.size, len(self.multipliers), self.sides)
        if not any(levels):
            raise UserError(
                f"none of the resolutions with attention, {self.sides}, occurs in the network; "
                f"ours has no attention in the middle alone"
            )
        return levels

    def network(self, **others: Any) -> Node:
        """The node ``network``."""
        return {
            "_target_": "betasigma.networks.ncsnpp.NCSNpp",
            "channels": self.channels,
            "multipliers": self.multipliers,
            "blocks": self.blocks,
            "attention": [
                self.size >> level for level, attends in enumerate(self.attending) if attends
            ],
            "progressive_input": self.progressive_input,
            "progressive_output": self.progressive_output,
            **others,
        }

    def weights(self, part: Part) -> Weights:
        """Weights of all layers behind the first convolution.

        Args:
            part: tensors of a layer, asked for in the order of computation: ``"down"``, ``"up"``
                and ``"middle"`` for a block, and with the block ``None`` ``"shrink"``,
                ``"inputs"`` and ``"grow"`` between this level and the next, ``"outputs"`` at its
                end.
        """
        levels = range(len(self.multipliers))
        last = levels[-1]
        weights: Weights = {}

        def put(side: str, index: str, level: int, block: int | None = None) -> None:
            found = part(side, level, block)
            weights.update({f"{side}.{index}.{name}": value for name, value in found.items()})

        for level in levels:
            for block in range(self.blocks):
                put("down", f"{level}.{block}", level, block)
            if level < last:
                put("shrink", f"{level}", level)
                if self.progressive_input != "none":
                    put("inputs", f"{level}", level)
        for block in range(2):
            put("middle", f"{block}", last, block)
        for index, level in enumerate(reversed(levels)):
            for block in range(self.blocks + 1):
                put("up", f"{index}.{block}", level, block)
            if self.progressive_output == "skip":
                put("outputs", f"{index}", level)
            if level > 0:
                put("grow", f"{index}", level)
        if self.progressive_output == "none":
            put("outputs", "0", 0)
        return weights

    def attends(self, side: str, level: int, block: int | None) -> bool:
        """Whether a block attends: on the way up only the last one of a level."""
        if side == "middle":
            return block == 0
        return self.attending[level] and (side == "down" or (side, block) == ("up", self.blocks))
