"""The error for bad input."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one clear sentence that names the key, the value and what would be
    accepted.

    The commands print it without a traceback and exit with status 1.
    """
