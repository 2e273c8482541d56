"""Where config groups are looked for: in the app's own folder, then in betasigma's tree.

So a study outside this package writes the groups it adds and composes all others.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from betasigma.config_tree import conf_directory


class OwnTree(SearchPathPlugin):
    """Puts betasigma's tree after the app's folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = f"file://{conf_directory()}"
        if path not in [element.path for element in search_path.get_path()]:
            search_path.append("betasigma", path)


def register() -> None:
    """Make Hydra look there."""
    Plugins.instance().register(OwnTree)
