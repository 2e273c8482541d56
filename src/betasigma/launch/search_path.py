"""Where config groups are looked for: in the app's own folder, in betasigma's tree, and in the
folder ``conf`` of each outside package that the user has let in.

So a study outside this package writes the groups it adds and composes all others.
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
    """Make Hydra look there."""
    Plugins.instance().register(MoreTrees)
