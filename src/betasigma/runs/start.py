"""How a run was started: what launching hands to the command that runs. No heavy imports."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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


_typed: list[list[str]] = []


def typed_words() -> list[str]:
    """The command line behind the program, as it was typed. The worker of a cluster has its own."""
    return list(_typed[-1] if _typed else sys.argv[1:])


@contextmanager
def remembered_words() -> Iterator[None]:
    """Remember the command line, which is rewritten for Hydra in this block."""
    _typed.append(sys.argv[1:])
    try:
        yield
    finally:
        _typed.pop()


CLONE = Path(__file__).resolve().parents[3]
"""Top of the clone, or of the copy of its code that a sweep's jobs run, where this is one."""


@dataclass(frozen=True)
class Start:
    """How a run was started.

    Attributes:
        directory: of the run; relative to ``here`` where the process is there too.
        overrides: of the config that were typed for this run.
        words: the command line of this run alone, with which its other processes are started.
        here: directory in which the user stands.
        searched: whether a sweeper waits for the value of ``objective_metric``.
        job: number among the jobs of a sweep.
        sweep: id of that sweep: the name of its directory, or what ``wandb sweep`` has called it.
    """

    directory: Path
    overrides: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    here: Path = field(default_factory=Path.cwd)
    searched: bool = False
    job: int | None = None
    sweep: str | None = field(default_factory=lambda: os.environ.get("WANDB_SWEEP_ID"))

    def command(self, app: str, *words: str) -> str:
        """A command line that can be pasted where the user stands. It lets in the packages that
        this one lets in.
        """
        lets_in = [word for word in self.overrides if word.lstrip("+").startswith("plugins=")]
        return shlex.join([*program(app, self.here), *lets_in, *words])


def program(app: str, here: Path) -> list[str]:
    """What starts an app: ``betasigma train`` where that was typed or there is no clone, otherwise
    ``python train.py``, by its path from ``here``.
    """
    script = CLONE / ("train.py" if app == "train" else f"scripts/{app}.py")
    if subcommand() or not script.is_file():
        return ["betasigma", app]
    inside = here.resolve() == CLONE
    return ["python", os.path.relpath(script, CLONE) if inside else str(script)]
