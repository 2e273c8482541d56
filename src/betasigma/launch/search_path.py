"""Extend Hydra's search path: the app's folder, betasigma's tree, ``conf`` of each allowed package.

A study outside this package has files only for what it adds.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.runs.directory import short


class MoreTrees(SearchPathPlugin):
    """Puts betasigma's tree and those of outside packages after the app's folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for tree in (conf_directory(), *plugins.config_folders()):
            path = f"file://{tree}"
            if path not in [element.path for element in search_path.get_path()]:
                search_path.append("betasigma", path)


def refuse_same_names() -> None:
    """Refuse a config of an outside package with the name of another, which would hide it.

    Raises:
        UserError: which names both files.
    """
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


def register() -> None:
    """Register the search path with Hydra."""
    Plugins.instance().register(MoreTrees)
