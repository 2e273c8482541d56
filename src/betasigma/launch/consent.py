"""Which outside packages the person at the keyboard lets in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from betasigma.errors import UserError
from betasigma.options import plugins


def allow_typed(words: Sequence[str]) -> None:
    """Let in what the command line, the environment and installed packages name.

    Raises:
        UserError: where one of them names what cannot be found.
    """
    plugins.allow_named()
    plugins.allow(typed_plugins(words))


def typed_plugins(words: Sequence[str]) -> list[str]:
    """Packages of ``plugins=[…]`` on a command line."""
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


def check_named(names: Iterable[str]) -> None:
    """Refuse packages that a config names and the user does not.

    Raises:
        UserError: which says how to allow them.
    """
    for name in names:
        if name not in plugins.allowed():
            raise UserError(
                f"plugins=[{name}] stands in a config, and only the person who runs a command may "
                f"let a package in: add plugins=[{name}] to the command line"
            )
