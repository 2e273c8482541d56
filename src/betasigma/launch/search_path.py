"""Extend Hydra's search path: the app's folder, betasigma's tree, ``conf`` of each allowed package.

A study outside this package has files only for what it adds.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from betasigma.config_tree import conf_directory
from betasigma.options import plugins


class MoreTrees(SearchPathPlugin):
    """Puts betasigma's tree and those of outside packages after the app's folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for tree in (conf_directory(), *plugins.config_folders()):
            path = f"file://{tree}"
            if path not in [element.path for element in search_path.get_path()]:
                search_path.append("betasigma", path)


def register() -> None:
    """Register the search path with Hydra."""
    Plugins.instance().register(MoreTrees)
