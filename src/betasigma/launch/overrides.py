"""Rewrite the words of a command line as Hydra reads them, and refuse names that no group has."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString

from betasigma.commands.config import key_of
from betasigma.errors import UserError, did_you_mean
from betasigma.launch.command_line import quoted
from betasigma.launch.configs import Configs
from betasigma.options import plugins

HYDRA_PLUGINS = {
    "hydra/launcher": ("joblib", "submitit_slurm", "submitit_local", "rq", "ray"),
    "hydra/sweeper": ("optuna", "ax", "nevergrad"),
}
"""Launchers and sweepers that Hydra has as packages of their own."""

OF_SEARCHES = ("joblib", "optuna")
"""Those that the extra [search] brings, with what they work with."""


def as_name(word: str, configs: Configs) -> str:
    """Quote numbers that are names, expand ``glob(*)`` over a group, and let keys of panels, of
    filters and of a data set of one's own be new ones.

    Hydra wants a string for a group (``bridge=0,1``) and for ``name=2024``.
    """
    key, _, value = word.partition("=")
    resumes = any(other.startswith("resume=") for other in configs.line.overrides)
    new_run = configs.config_name in ("train", "prefetch") and not resumes
    if re.match(rf"(dashboard\.(panels|filters){'|data.source' * new_run})\.", key):
        return f"++{word}"
    if key == "init" and configs.config_name == "train":  # short for the run of a node
        return f"init.run={value}"
    group = key_of(word)
    a_number = r"\d[\w.+-]*" if key == "name" else r"\d+"
    if re.fullmatch(rf"{a_number}(,{a_number})*", value):
        named = key == "name" or configs.is_group(group)
        return f"{key}={','.join(map(quoted, value.split(',')))}" if named else word
    if value.startswith("[") and configs.is_group(group):
        _check_names(word, configs)
    if not (configs.line.sweeps and "glob(" in value):
        return word
    typed: Any = OverridesParser.create().parse_override(word).value()
    listed = typed.list if isinstance(typed, ChoiceSweep) else [typed]
    if not any(isinstance(one, Glob) for one in listed):
        return word
    if not configs.is_group(group):
        raise UserError(f"{word} names no values: glob is for groups, list those of {key}")
    found = [_names(one, configs.choices(group)) for one in listed]
    if not all(found):
        raise UserError(f"{word} fits none of {', '.join(configs.choices(group))}")
    return f"{key}={','.join(map(quoted, dict.fromkeys(chain(*found))))}"


def _names(value: Any, known: list[str]) -> list[str]:
    """The choices of a group that one value of a sweep names."""
    if isinstance(value, Glob):
        include, exclude = (list(map(str, names)) for names in (value.include, value.exclude))
        return list(Glob(include, exclude).filter(known))
    return [value.text if isinstance(value, QuotedString) else str(value)]


def first_value(word: str) -> str:
    """An override with the first of its values, where it has several."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_discrete_sweep():
        return word
    value = next(override.sweep_string_iterator(), None)
    return word if value is None else f"{word.partition('=')[0]}={value}"


def _check_names(word: str, configs: Configs) -> None:
    """Refuse a list for a group if it holds anything but names, for which Hydra raises a TypeError.
    Refuse several names for a group that describes one thing: Hydra would merge their keys.
    """
    group = key_of(word)
    listed: Any = OverridesParser.create().parse_override(word).value()
    names = listed if isinstance(listed, list) else []
    for name in names:
        if not isinstance(name, str):
            raise UserError(unknown_choice(group, str(name), configs))
    for name in names if len(names) > 1 else ():
        file = configs.load(f"{group}/{name}")
        node = file.content if file.package else file.content.get(group)
        # callbacks are nodes by name, and experiments have no node of their own
        if node and not all(isinstance(value, dict) for value in node.values()):
            more = "; +loggers.mine._target_=… adds one beside it" if group == "logger" else ""
            raise UserError(
                f"{word} chooses {len(names)}, and {group} is one: write {group}={name}, or "
                f"-m {group}={','.join(names)} for a run of each{more}"
            )


def as_choice(word: str) -> str:
    """Turn a sweep's ``node.key=value`` into a choice of one value.

    Hydra composes the common config of a sweep without the swept groups. So it would apply
    ``sampler.steps=10`` of ``sampler=ddim,ancestral sampler.steps=10`` to the default sampler and
    refuse it. A choice is applied in each job, after its group. Hydra cannot choose ``null`` or
    nothing.
    """
    key, equals, value = word.partition("=")
    plain = re.fullmatch(r"[a-z]\w*(\.\w+)+", key) and not key.startswith("hydra.")
    swept = "(" in value or re.search(r",(?![^\[{]*[\]}])", value)
    chosen = value and value.lower() != "null"
    return f"{key}=choice({value})" if equals and plain and chosen and not swept else word


def as_typed(word: str) -> str:
    """Undo :func:`as_choice`."""
    key, _, value = word.partition("=")
    found = re.fullmatch(r"choice\((.*)\)", value)
    return f"{key}={found[1]}" if found and as_choice(f"{key}={found[1]}") == word else word


def unknown_choice(group: str, choice: str, configs: Configs) -> str:
    """Sentence for ``group=choice`` where the group has no such file."""
    known = configs.choices(group)
    listed = f"choose from {', '.join(known)}"
    if choice in HYDRA_PLUGINS.get(group, ()):
        package = f"hydra-{choice.partition('_')[0]}-{group.removeprefix('hydra/')}"
        package = '"betasigma[search]"' if choice in OF_SEARCHES else package
        return f"{group}={choice} is not installed: pip install {package}; or {listed}"
    near = did_you_mean(choice, known, cutoff=0.5, before=f"{group}=")
    hint = f"{near} " if near else ""
    own = "" if plugins.allowed() else "; one of a package of your own needs plugins=[…]"
    if plugins.allowed() and not plugins.config_folders():
        own = f"; there is no folder conf in {' or '.join(plugins.allowed())}"
    return f"{group}={choice} is unknown; {hint}{listed}{'' if group.startswith('hydra/') else own}"
