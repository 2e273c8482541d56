"""The network for images of a size that the user chose, where they chose no network."""

from __future__ import annotations

from collections.abc import Sequence

PHOTOGRAPHS = ("image_folder", "celeba")
"""Data sets of large images, whose own network is for 64x64."""

FITTING = {8: "unet_8", 12: "unet_8", 14: "unet_28", 16: "unet_32", 28: "unet_28", 32: "unet_32"}
"""Networks by the size of the images; all others keep the data set's own."""

CHOOSE = ("network", "network._target_", "experiment", "resume")
"""Words that choose the network."""


def fitting_network(overrides: Sequence[str]) -> str | None:
    """Name of the network for the ``data.image_size`` of a command line; ``None`` where something
    else chooses it.
    """
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    size = typed.get("data.image_size", "")
    chosen = any(key in typed for key in CHOOSE)
    if chosen or typed.get("data") not in PHOTOGRAPHS or not size.isdigit():
        return None
    return FITTING.get(int(size))
