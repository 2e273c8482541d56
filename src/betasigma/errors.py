"""The error for bad input."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class UserError(Exception):
    """Bad input. The message is one clear sentence that names the key, the value and what would be
    accepted.

    The commands print it without a traceback and exit with status 1.

    Attributes:
        details: what ``status.json`` of the run keeps besides the message; plain containers.
    """

    details: Mapping[str, Any] = MappingProxyType({})
