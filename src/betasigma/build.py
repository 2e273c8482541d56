"""Make the object that a config node describes.

``_target_`` names the class, and the other keys are its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.options.base import typed

Config = dict[str, Any]


def make(
    node: Mapping[str, Any],
    group: str,
    key: str | None = None,
    offered: Mapping[str, Any] | None = None,
    kind: type = object,
    **always: Any,
) -> Any:
    """What ``_target_`` names, called with the node's other keys.

    Args:
        node: of the config.
        group: that the node belongs to.
        key: dotted place of the node in the config, where it is not the group's.
        offered: arguments that are passed where the class has parameters of these names.
        kind: what it must be.
        always: arguments that are passed in any case.

    Raises:
        UserError: if the class may not be imported, does not take these arguments, or makes
            something of another kind.
    """
    target, arguments = str(node["_target_"]), {k: v for k, v in node.items() if k != "_target_"}
    made = plugins.locate(target, group, key)
    more = {
        k: v for k, v in (offered or {}).items() if k not in arguments and plugins.takes(made, k)
    }
    arguments |= more | always
    try:
        found = made(**plugins.check_arguments(made, arguments, key or group))
    except TypeError as error:  # of a class whose **kwargs go to one that does not take them
        unknown = re.search(r"unexpected keyword argument '(\w+)'$", str(error))
        if unknown is None or unknown[1] not in node or plugins.takes(made, unknown[1]):
            raise
        word = f"{key or group}.{unknown[1]}={typed(node[unknown[1]])}"
        raise UserError(f"{word} is unknown: no class takes it that {target} hands it to") from None
    if not isinstance(found, kind):
        raise UserError(
            f"{key or group}._target_={target} gives {type(found).__name__}, and {key or group} "
            f"takes a {kind.__module__.partition('.')[0]} {kind.__name__}"
        )
    return found
