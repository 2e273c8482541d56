"""Choose a network that fits ``data.image_size``, if the user chooses no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from betasigma.commands.config import class_trains
from betasigma.data.catalog import DATA_SETS
from betasigma.data.facts import described_facts
from betasigma.errors import UserError
from betasigma.launch.configs import Configs
from betasigma.options.networks import UNetOptions

PHOTOGRAPHS = [name for name, known in DATA_SETS.items() if known.in_memory is None]
"""Data sets of image files; their default network is for 64×64 images."""

CHOOSE = ("network", "network._target_", "experiment", "resume")
"""Overrides that choose the network."""


def fitting_network(overrides: Sequence[str], configs: Configs) -> str | None:
    """Return the network for ``data.image_size``; ``None`` if something else chooses it, or the
    model trains none.

    It is the one for images of this size (of two sides the lesser), or of the nearest size from
    half of it up, that accepts such images.

    Raises:
        UserError: where some models of a sweep need it, and others train none.
    """
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    sides = [int(side) for side in re.findall(r"\d+", typed.get("data.image_size", ""))]
    chosen = any(key in typed for key in CHOOSE)
    if not sides and typed.get("data") == "array" and not chosen:
        sides = _sides_of_array(typed)
    known = typed.get("data") in (*PHOTOGRAPHS, "array")
    models = typed.get("model", "").split(",")
    untrained = [model for model in models if not _trains(model, configs)]
    if chosen or not known or len(sides) not in (1, 2) or untrained == models:
        return None
    size = min(sides)
    native = {
        int(sized[1]): name
        for name in configs.choices("network")
        if (sized := re.fullmatch(r"unet_(\d+)", name)) and 2 * int(sized[1]) > size
    }
    nearest = sorted(native, key=lambda known: abs(known - size))
    found = next((native[n] for n in nearest if _accepts(native[n], sides, configs)), None)
    default = configs.load(f"data/{typed['data']}").chooses.get("network")
    if found == default:
        return None
    if found is not None and untrained:
        raise UserError(
            f"images of this size need network={found}, and model={untrained[0]} has none: make "
            f"it a sweep of its own"
        )
    return found


def _trains(model: str, configs: Configs) -> bool:
    node = configs.load(f"model/{model}").content.get("model", {})
    return class_trains(node.get("_target_", ""))


def _sides_of_array(typed: Mapping[str, str]) -> list[int]:
    """Height and width of the images of a file; ``[]`` where they cannot be told."""
    axes = typed.get("data.axes")
    node = {"name": "array", "root": typed.get("data.root"), "axes": axes, "values": [0, 1]}
    try:
        return list(described_facts(node).shape[1:])
    except UserError:  # the check of the config says it, with more to go by
        return []


def _accepts(network: str, sides: Sequence[int], configs: Configs) -> bool:
    try:
        options = UNetOptions.parse(configs.load(f"network/{network}").content)
        options.check_sides(sides[0], sides[-1])
    except UserError:
        return False
    return True
