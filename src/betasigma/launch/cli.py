"""The program ``betasigma``: its first word names an app, the rest is the app's command line."""

from __future__ import annotations

import os
import re
import sys

from betasigma.errors import did_you_mean, printed
from betasigma.launch.app import HELP
from betasigma.launch.scripts import APPS
from betasigma.runs.start import within
from betasigma.version import VERSION

COMPLETION = ("-sc", "--shell-completion")
"""Hydra's option by which a shell asks what could follow (``query=bash``) or learns to ask."""


@printed()
def main() -> None:
    """Run the app that the command line names."""
    words = sys.argv[1:]
    if words and words[0] in COMPLETION:
        words = _completion(words)
    if not words or words[0] in HELP:
        print(overview())
    elif words[0] == "--version":
        print(f"betasigma {VERSION}")
    elif words[0] in APPS:
        with within(words[0]):
            sys.argv[1:] = words[1:]
            APPS[words[0]]()
    else:
        print(f"error: {unknown_command(words[0])}", file=sys.stderr)
        sys.exit(1)


def overview() -> str:
    """What ``betasigma --help`` prints: every command with a line of its own."""
    width = max(map(len, APPS))
    commands = [f"  {name:{width}}  {app.__doc__}" for name, app in APPS.items()]
    return "\n".join(
        [
            "betasigma: DDPM and NCSN on one footing.",
            "",
            *commands,
            "",
            "betasigma <command> --help lists the command's groups and keys.",
            "Tab completion of commands, groups and keys, bash or zsh:",
            '  eval "$(betasigma -sc install=bash)"',
        ]
    )


def unknown_command(word: str) -> str:
    """Sentence for a first word that is no command."""
    if word.startswith("-") or "=" in word:
        return f"{word} belongs behind a command: betasigma train {word}"
    hints = [did_you_mean(word, APPS, cutoff=0.5), f"choose from {', '.join(APPS)}"]
    return f"{word} is no command of betasigma; {' '.join(filter(None, hints))}"


def _completion(words: list[str]) -> list[str]:
    """The command line whose app answers the shell, which asks without naming one.

    While the command itself is being typed, the commands are the answer. Behind it, the app is
    asked as if it were a program of its own.
    """
    if not any(word.startswith("query=") for word in words):
        return ["train", *words]
    command = re.match(r"(?P<program>\s*\S+)\s+(?P<name>\S+)\s+", os.environ["COMP_LINE"])
    if command is None:
        print(" ".join(APPS))
        sys.exit(0)
    if command["name"] not in APPS:
        sys.exit(0)
    os.environ["COMP_LINE"] = f"{command['program']} {command.string[command.end() :]}"
    return [command["name"], *words]
