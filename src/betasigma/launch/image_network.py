"""Choose a network that fits ``data.image_size``, if the user chooses no network."""

from __future__ import annotations

from collections.abc import Sequence

from betasigma.data.catalog import DATA_SETS

PHOTOGRAPHS = [name for name, known in DATA_SETS.items() if known.in_memory is None]
"""Data sets of image files; their default network is for 64×64 images."""

FITTING = {8: "unet_8", 12: "unet_8", 14: "unet_28", 16: "unet_32", 28: "unet_28", 32: "unet_32"}
"""Networks by image size. Other sizes keep the default of the data set."""

CHOOSE = ("network", "network._target_", "experiment", "resume")
"""Overrides that choose the network."""


def fitting_network(overrides: Sequence[str]) -> str | None:
    """Return the network for ``data.image_size``; ``None`` if something else chooses it."""
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    size = typed.get("data.image_size", "")
    chosen = any(key in typed for key in CHOOSE)
    if chosen or typed.get("data") not in PHOTOGRAPHS or not size.isdigit():
        return None
    return FITTING.get(int(size))
