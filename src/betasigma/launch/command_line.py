"""Rewrite a command line into the order and form that Hydra accepts.

Hydra's parser wants options before overrides, and overrides without hyphens. Users and
``wandb agent`` mix them: ``model=ncsn -m seed=1,2``, ``--optimizer.lr=0.001``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra._internal.utils import get_args_parser

from betasigma.errors import UserError

MULTIRUN = "hydra.mode=MULTIRUN"
"""The override that means ``-m``."""

EXCLUSIVE = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")
"""Options that exclude one another."""

PLACES = ("--config-path", "--config-name", "--config-dir")
"""Options that say where configs are."""

PATHS = (
    *("run", "runs", "resume", "init", "init.run", "from", "to", "data.root", "images"),
    *("reference", "out", "sweep"),
    *("evaluation.inception_weights", "evaluation.dinov2_weights", "evaluation.cache"),
)
"""Keys whose values are paths, relative to the user's directory."""


BARE = {"jobs": "sweep={}", "sync": "runs=[{}]"}
"""Of some apps the key whose values may be typed alone: ``scripts/sync.py outputs/SWEEP``."""


class CommandLine(NamedTuple):
    """What was typed."""

    options: dict[str, str | None]
    """Hydra's options by their long name (``--multirun``), with their values."""
    overrides: list[str]
    """``key=value``, for the config."""

    @property
    def sweeps(self) -> bool:
        """Whether it asks for several runs."""
        return "--multirun" in self.options or MULTIRUN in self.overrides

    @property
    def asks_for_help(self) -> bool:
        """Whether it asks for the app's help."""
        return "--help" in self.options

    @property
    def only_shows(self) -> bool:
        """Whether it asks to be shown something, and for nothing to be done."""
        return bool(self.options.keys() & {"--help", "--cfg", "--info"})

    def words(self) -> list[str]:
        """Return the words in Hydra's order: options first."""
        options = [
            name if value is None else f"{name}={value}" for name, value in self.options.items()
        ]
        return [*options, *self.overrides]


def read_command_line(words: list[str]) -> CommandLine:
    """Separate options from overrides, in any order."""
    actions = [action for action in get_args_parser()._actions if action.option_strings]
    known = {name: action for action in actions for name in action.option_strings}
    options: dict[str, str | None] = {}
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            overrides.append(as_path(word))
        elif name in known and not (equals and known[name].nargs == 0):
            action = known[name]
            options[action.option_strings[0]] = _value(
                action, word, value if equals else None, rest
            )
        elif name in known and equals and name != "--run":
            raise UserError(f"{word} has a value, and {name} takes none: write {name}")
        elif name.startswith("--") and equals:  # --run=outputs/… too, beside Hydra's --run
            overrides.append(as_path(word.removeprefix("--")))
        else:
            raise UserError(_unknown(word, rest))
    asked = [name for name in EXCLUSIVE if name in options]
    if len(asked) > 1 and "--help" not in options:
        raise UserError(f"{' and '.join(asked)} ask for different things: leave one out")
    return CommandLine(options, overrides)


def with_key(line: CommandLine, app: str) -> CommandLine:
    """Put words that are typed alone behind the key that they are values of."""
    bare = [word for word in line.overrides if not re.match(r"[\w.@+~]+=", word)]
    if app not in BARE or not bare:
        return line
    keyed = [word for word in line.overrides if word not in bare]
    return line._replace(overrides=[*keyed, as_path(BARE[app].format(",".join(bare)))])


def as_path(word: str) -> str:
    """``key=path`` with the path quoted where Hydra would read it as something else: the directory
    of a sweep's job has ``=`` and commas in its name. So are the paths of ``key=a,b`` and
    ``key=[a,b]``, flags of another program (``flags='--channel_mult 1,2'``), and any values with
    letters beyond ASCII, which Hydra's grammar lacks.
    """
    key, _, value = word.partition("=")
    if key == "flags" and value.startswith("--"):
        return f"{key}={quoted(value)}"
    listed = re.fullmatch(r"\[(.*)\]", value)
    inner = listed[1] if listed else value
    values: Sequence[str] | None = None
    if key in PATHS and re.search(r"[^\w./~-]", value) and value[:1] not in "'\"":
        values = _existing_paths(inner)
    if values is None and re.fullmatch(r"([\w ./~,-]|[^\x00-\x7f])+", inner):
        values = None if value.isascii() else inner.split(",")
    if values is None:
        return word
    each = ",".join(map(quoted, map(str.strip, values)))
    return f"{key}=[{each}]" if listed else f"{key}={each}"


def _existing_paths(text: str) -> list[str] | None:
    """The existing paths that a text separates by commas; ``None`` where one does not exist."""
    found: list[str] = []
    begun = ""
    for piece in text.split(","):
        begun = f"{begun},{piece}" if begun else piece
        if Path(begun.strip()).expanduser().exists():
            found.append(begun.strip())
            begun = ""
    return None if begun else found


def quoted(value: str) -> str:
    """Quote a value so that Hydra reads it as one string."""
    return "'" + re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value) + "'"


def _value(action: argparse.Action, word: str, value: str | None, rest: list[str]) -> str | None:
    """The value of an option, taken from the following words where it is not in its own."""
    if action.nargs == 0:
        return None
    if value is None and rest and not _is_override(rest[0], action):
        value = rest.pop(0)
    if value is None and action.nargs == "?":
        value = str(action.const)
    allowed = action.choices
    if value is None or (allowed is not None and value not in allowed):
        wanted = f"one of {', '.join(map(str, allowed))}" if allowed else "a value"
        some = next(iter(allowed)) if allowed else "…"
        raise UserError(f"{word} needs {wanted}, for example {word.partition('=')[0]}={some}")
    return value


def _is_override(word: str, action: argparse.Action) -> bool:
    """Whether a word after an option is something of its own rather than the option's value."""
    if action.choices is not None:
        return word.startswith("-") or "=" in word
    return word.startswith("-")


def _unknown(word: str, rest: list[str]) -> str:
    """Sentence for an unknown option."""
    key = word.lstrip("-")
    if word.startswith("--") and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        return f"{word} {rest[0]} is two words: write --{key}={rest[0]} or {key}={rest[0]}"
    if word.startswith("--"):
        return f"{word} has no value: write --{key}=… or {key}=… (--help lists the keys)"
    return f"{word} is unknown: options are -m, --cfg job, --help and others of --hydra-help"
