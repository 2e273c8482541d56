"""Which command of ``betasigma`` runs, for whoever starts it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_subcommand: list[str] = []


def subcommand() -> list[str]:
    """What stands between the program and its overrides on the command line: ``["train"]`` of
    ``betasigma train …``, nothing of ``python train.py …``.
    """
    return list(_subcommand)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Run as ``betasigma <name>``."""
    _subcommand[:] = [name]
    try:
        yield
    finally:
        _subcommand.clear()
