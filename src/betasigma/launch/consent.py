"""Which outside packages the user allows, and their configs on Hydra's search path.

The path has the app's folder, betasigma's tree and ``conf`` of each allowed package: a study of
another package has files only for what it adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.runs.directory import short


def allow_typed(words: Sequence[str]) -> None:
    """Allow the packages that command line, environment and entry points name.

    Raises:
        UserError: if one of them cannot be found, or one of its configs would be hidden.
    """
    plugins.allow_named()
    plugins.allow(typed_plugins(words))
    refuse_same_names()


def typed_plugins(words: Sequence[str]) -> list[str]:
    """Return the packages of ``plugins=[…]`` on a command line."""
    found: list[str] = []
    for word in words:
        if not re.match(r"(--)?\+{0,2}plugins=", word):
            continue
        try:
            override = OverridesParser.create().parse_override(word.removeprefix("--"))
            value = override.value()
        except HydraException:
            continue  # Hydra says what is wrong with it
        found += [str(name) for name in (value if isinstance(value, list) else [value])]
    return found


def check_consent(config: DictConfig) -> None:
    """Refuse packages that a config allows and the user does not, and foreign code for Hydra."""
    named = config.get("plugins") or []
    for name in [named] if isinstance(named, str) else named:
        if name not in plugins.allowed():
            raise UserError(
                f"plugins=[{name}] stands in a config, and only the person who runs a command may "
                f"let a package in: add plugins=[{name}] to the command line"
            )
    if "hydra" in config:
        refuse_foreign_hydra(config)


def refuse_foreign_hydra(config: DictConfig) -> None:
    """Refuse foreign callbacks, launchers and log handlers in Hydra's own node.

    Hydra makes them from any importable class, before anything else reads the config.
    """
    node: Any = OmegaConf.to_container(config.hydra, resolve=False)
    for key, target in _made_by(node, "hydra"):
        package = target.partition(".")[0]
        if not target.startswith(HYDRA_MAKES) and not plugins.is_allowed(f"{package}."):
            raise UserError(
                f"{key}={target} stands in a config and is code of the package {package}, which "
                f"runs only where you allow it: add plugins=[{package}] if you trust it"
            )
    if plugins.VARIABLE in (node["job"].get("env_set") or {}):
        raise UserError(
            f"hydra.job.env_set.{plugins.VARIABLE} stands in a config, and only the person who "
            f"runs a command may let a package in: add plugins=[…] to the command line"
        )


HYDRA_MAKES = ("hydra.", "hydra_plugins.", "betasigma.", "logging.", "colorlog.", "optuna.")
"""What Hydra's own node may name: Hydra, its plugins, and what these are configured with."""


def check_search_path(locations: Iterable[str]) -> None:
    """Refuse packages in which a config has Hydra look for more configs, which imports them."""
    for location in locations:
        package = str(location).removeprefix("pkg://").partition(".")[0].partition("/")[0]
        if str(location).startswith("pkg://") and not plugins.is_allowed(f"{package}."):
            raise UserError(
                f"hydra.searchpath=[{location}] stands in a config, and imports the package "
                f"{package}: add plugins=[{package}] to the command line if you trust it"
            )


def _made_by(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every class or function that a node names, and where."""
    entries = node.items() if isinstance(node, dict) else ()
    for name, value in entries:
        if name in ("_target_", "class", "()", "factory") and isinstance(value, str):
            yield f"{key}.{name}", value
        yield from _made_by(value, f"{key}.{name}")
    for number, value in enumerate(node if isinstance(node, list) else ()):
        yield from _made_by(value, f"{key}.{number}")


class MoreTrees(SearchPathPlugin):
    """Puts betasigma's tree and those of outside packages after the app's folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for tree in (conf_directory(), *plugins.config_folders()):
            path = f"file://{tree}"
            if path not in [element.path for element in search_path.get_path()]:
                search_path.append("betasigma", path)


def refuse_same_names() -> None:
    """Refuse a config of an outside package with the name of another, which would hide it."""
    folders = plugins.config_folders()
    known: dict[Path, Path] = {}
    for folder in (conf_directory(), *folders) if folders else ():
        for path in sorted(folder.rglob("*.yaml")):
            other = known.setdefault(path.relative_to(folder), path)
            if other != path:
                raise UserError(
                    f"{short(path)} has the name of {short(other)}, which would be taken in its "
                    f"place: rename it"
                )


def register_search_path() -> None:
    """Register the search path with Hydra."""
    Plugins.instance().register(MoreTrees)
