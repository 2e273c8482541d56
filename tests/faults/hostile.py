"""Checkpoints that a stranger might send: each is a real one, with something wrong in it."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from betasigma.runs.checkpoint import HEADER, read
from betasigma.runs.header import RECORD

Spoil = Callable[[dict[str, Any]], Any]
"""Changes the contents of a checkpoint; what it returns, if a string, is the whole header."""


def hostile(good: Path, path: Path, spoil: Spoil) -> Path:
    """Write ``good`` to ``path`` with something wrong in it."""
    contents = copy.deepcopy(read(good))
    header = spoil(contents)
    text = header if isinstance(header, str) else json.dumps(contents[HEADER])
    torch.save(contents, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{RECORD}", text)
    return path


def config(key: str, value: Any) -> Spoil:
    """Another value of a key of the config."""

    def spoil(contents: dict[str, Any]) -> None:
        *nodes, last = key.split(".")
        node = contents[HEADER]["config"]
        for name in nodes:
            node = node[name]
        node[last] = value

    return spoil


def field(key: str, value: Any) -> Spoil:
    """Another value of a field of the header."""
    return lambda contents: contents[HEADER].update({key: value})


def part(key: str, value: Any) -> Spoil:
    """Another value of a part of the checkpoint."""
    return lambda contents: contents.update({key: value})


def first_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Another first tensor of the weights, raw and averaged."""

    def spoil(contents: dict[str, Any]) -> None:
        weights = contents["state_dict"]
        for prefix in ("denoiser.", "average."):
            name = next(n for n, v in weights.items() if n.startswith(prefix) and v.ndim > 1)
            weights[name] = change(weights[name])

    return spoil


def deep(contents: dict[str, Any]) -> str:
    """A header nested so deep that reading it would end the process."""
    return '{"format": 1, "config": ' + "[" * 100_000 + "]" * 100_000 + "}"


def deepish(contents: dict[str, Any]) -> str:
    """A header nested so deep that copying it would."""
    header = json.dumps(contents[HEADER])
    return header[:-1] + ', "more": ' + "[" * 200 + "]" * 200 + "}"


HEADERS: dict[str, tuple[Spoil, str]] = {
    "interpolation": (config("tags", ["${oc.env:HOME}"]), "interpolation"),
    "interpolation in a name": (config("name", "${oc.env:HOME}"), "interpolation"),
    "control characters in the name": (config("name", "\x1b[2Jrun"), "control characters"),
    "control characters in a key": (config("\x1b]0;x\x07", 1), "control characters"),
    "control characters in the version": (field("version", "\x9b31m"), "control characters"),
    "deep": (deep, "nested too deep"),
    "rather deep": (deepish, "nested too deep"),
    "100,000 multipliers": (config("network.multipliers", [1] * 100_000), "at most 16"),
    "huge channels": (config("network.channels", 2**15), "smaller than the weights"),
    "a billion levels": (config("schedule.steps", 10**9), "beta.steps=1000000000 must be"),
    "a wide embedding": (config("network.embedding_channels", 2**16), "smaller than the weights"),
    "a billion classes": (config("network.num_classes", 10**9), "smaller than the weights"),
    "a billion blocks": (config("network.blocks", 10**9), "at most 1000"),
    "no range": (field("value_range", [1.0, -1.0]), "not a betasigma checkpoint's"),
    "text for a range": (field("value_range", ["a", "b"]), "not a betasigma checkpoint's"),
    "three ends": (field("value_range", [0.0, 1.0, 2.0]), "not a betasigma checkpoint's"),
    "an endless range": (field("value_range", [0.0, float("inf")]), "not a betasigma checkpoint's"),
}
"""Told from the header, by every command that reads the file."""

WEIGHTS: dict[str, tuple[Spoil, str]] = {
    "other shapes": (first_weight(lambda w: w[..., :1].clone()), "do not fit its config"),
    "weights missing": (part("state_dict", {}), "do not fit its config"),
}
"""Told when the weights are read."""

STATES: dict[str, tuple[Spoil, str]] = {
    "no optimizer": (part("optimizer_states", []), "no state of the optimizer"),
    "an optimizer without its state": (
        part("optimizer_states", [{"state": {}, "param_groups": []}]),
        "no state of the optimizer",
    ),
    "an optimizer of text": (part("optimizer_states", ["adam"]), "no state of the optimizer"),
    "loops of text": (part("loops", "none"), "cannot be continued"),
    "loops without counters": (part("loops", {"fit_loop": {}}), "cannot be continued"),
}
"""Told when a run is continued."""
