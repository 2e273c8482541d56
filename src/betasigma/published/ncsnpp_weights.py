"""Weights of a published DDPM++ or NCSN++ under the names of
:class:`~betasigma.networks.ncsnpp.NCSNpp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from betasigma.errors import UserError
from betasigma.published.unet_weights import Part, Weights

Node = dict[str, Any]


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
        levels = [self.size >> level in self.sides for level in range(len(self.multipliers))]
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

        def put(side: str, place: str, level: int, block: int | None = None) -> None:
            found = part(side, level, block)
            weights.update({f"{side}.{place}.{name}": value for name, value in found.items()})

        for level in levels:
            for block in range(self.blocks):
                put("down", f"{level}.{block}", level, block)
            if level < last:
                put("shrink", f"{level}", level)
                if self.progressive_input != "none":
                    put("inputs", f"{level}", level)
        for block in range(2):
            put("middle", f"{block}", last, block)
        for place, level in enumerate(reversed(levels)):
            for block in range(self.blocks + 1):
                put("up", f"{place}.{block}", level, block)
            if self.progressive_output == "skip":
                put("outputs", f"{place}", level)
            if level > 0:
                put("grow", f"{place}", level)
        if self.progressive_output == "none":
            put("outputs", "0", 0)
        return weights

    def attends(self, side: str, level: int, block: int | None) -> bool:
        """Whether a block attends: on the way up only the last one of a level."""
        if side == "middle":
            return block == 0
        return self.attending[level] and (side == "down" or (side, block) == ("up", self.blocks))
