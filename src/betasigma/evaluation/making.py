"""Objects from nodes ``{_target_: …, arguments}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from betasigma.errors import UserError

Make = Callable[[Mapping[str, Any]], Any]


def make_own(node: Mapping[str, Any]) -> Any:
    """An object of this project's.

    Raises:
        UserError: where the node names anything else.
    """
    target = str(node["_target_"])
    if target.partition(".")[0] != "betasigma":
        raise UserError(f"{target} is not of betasigma, and no other package was allowed")
    return resolve_name(target)(**{k: v for k, v in node.items() if k != "_target_"})
