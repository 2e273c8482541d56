"""Start training from given weights (``init=RUN``): all of them, unless the user names what not."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from betasigma.build import Config
from betasigma.commands.config import saved_header, within
from betasigma.commands.load import averaged_weights
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError, few
from betasigma.options.base import parse_component, typed
from betasigma.options.noise_schedules import LinearOptions
from betasigma.oracles import ExactDenoiser
from betasigma.report.runs import leaves
from betasigma.runs.checkpoint import read
from betasigma.runs.header import checkpoint_path

MEANING = ("preconditioning", "schedule", "model.value_range", "network")
"""Nodes and keys that say what the network is shown, what it computes (other heads or groups have
the same shapes) and what its output means.
"""
SHOWN = 6
"""Names in one message."""


class Initial(NamedTuple):
    """What was taken from where."""

    source: str
    step: int
    """Optimizer steps that the weights have seen."""
    loaded: list[str]
    """Names of the weights that were taken."""
    fresh: list[str]
    """Those that stay as they were initialised."""
    unused: list[str]
    """Those of the source that are left out."""
    differences: list[str]
    """What the network is shown, computes or means that is not as it was there."""

    def sentences(self, denoiser: nn.Module) -> list[str]:
        """What to tell the user."""
        own = denoiser.state_dict()
        numbers = sum(own[name].numel() for name in self.loaded)
        total = sum(value.numel() for value in own.values())
        found = [
            f"init: {len(self.loaded)} of {len(own)} weights ({numbers:,} of {total:,} numbers) "
            f"from {self.source} at step {self.step}"
        ]
        if self.fresh:
            found.append(f"init: not loaded, as initialised: {few(self.fresh, SHOWN)}")
        if self.unused:
            found.append(f"init: left out of {self.source}: {few(self.unused, SHOWN)}")
        return [*found, *(f"init: {difference}" for difference in self.differences)]


def load_initial(denoiser: Denoiser | ExactDenoiser, config: Config) -> Initial:
    """Fill a denoiser with the averaged weights of ``init.run``.

    Args:
        denoiser: whose weights are replaced, except those that ``init.skip`` names.
        config: of the run that is to be trained.

    Raises:
        UserError: if a weight is missing, is too much or has another shape and ``init.skip`` does
            not name it, or a pattern of ``init.skip`` names none.
    """
    source, patterns = config["init"]["run"], config["init"]["skip"]
    header = saved_header(source, "init")
    given = averaged_weights(read(checkpoint_path(Path(source), "init")))
    own = denoiser.state_dict()
    skipped = set[str]()
    for pattern in patterns:
        found = {name for name in (*own, *given) if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(
                f"init.skip=[{pattern}] names no weight: they are called {few(sorted(own), SHOWN)}"
            )
        skipped |= found
    taken = {name: value for name, value in given.items() if name not in skipped}
    wanted = {name: own[name] for name in own if name not in skipped}
    theirs, ours = header.get("sample_shape"), list(denoiser.sample_shape)
    if theirs is not None and theirs[0] != ours[0]:
        why = f"its data have the shape {tuple(theirs)}, and these {tuple(ours)}; "
    else:
        why = _network(header["config"], config)
    _check(source, wanted, taken, why)
    denoiser.load_state_dict({**own, **taken})
    return Initial(
        source,
        header["step"],
        sorted(taken),
        sorted(own.keys() - taken.keys()),
        sorted(given.keys() - taken.keys()),
        _differences(header["config"], config),
    )


def _check(source: str, wanted: dict[str, Tensor], taken: dict[str, Tensor], why: str) -> None:
    shapes = [
        f"{name} {tuple(taken[name].shape)} there, {tuple(value.shape)} here"
        for name, value in wanted.items()
        if name in taken and taken[name].shape != value.shape
    ]
    faults = {
        "other shapes": shapes,
        "not there": sorted(wanted.keys() - taken.keys()),
        "not here": sorted(taken.keys() - wanted.keys()),
    }
    found = [f"{what}: {few(names, SHOWN)}" for what, names in faults.items() if names]
    if found:
        raise UserError(
            f"init={source} has weights that do not fit this model ({'; '.join(found)}); {why}"
            f"init.skip=[…] names, with *, what is to be left as it is initialised"
        )


def _network(there: Config, here: Config) -> str:
    """Words that make the network here that of ``there``; ``""`` where the classes differ."""
    if here["network"].get("_target_") != there["network"].get("_target_"):
        return ""
    known = leaves(there)
    words = [
        f"{key}={json.dumps(theirs, separators=(',', ':'))}"
        for key, (theirs, _) in _unlike(there, here, "network").items()
        if key in known
    ]
    return f"{' '.join(words)} is its network; " if words else ""


def _differences(there: Config, here: Config) -> list[str]:
    unlike = _unlike(_with_ends(there), _with_ends(here), *MEANING)
    return [
        f"{key}={typed(ours)} here, {typed(theirs)} there" for key, (theirs, ours) in unlike.items()
    ]


def _unlike(there: Config, here: Config, *nodes: str) -> dict[str, tuple[Any, Any]]:
    """Values there and here of the keys of these nodes in which two configs differ."""
    theirs, ours = leaves(there), leaves(here)
    return {
        key: (theirs.get(key), ours.get(key))
        for node in nodes
        for key in theirs | ours
        if within(key, node) and theirs.get(key) != ours.get(key)
    }


def _with_ends(config: Config) -> Config:
    """The config with the first and last β of a schedule that leaves them to the steps."""
    options = parse_component("schedule", config["schedule"])
    if not isinstance(options, LinearOptions):
        return config
    first, last = options.ends
    return {**config, "schedule": {**config["schedule"], "start": first, "end": last}}
