"""What ``--help`` prints around the config: the groups to choose from and commands to start with.

Hydra's own ``--help`` composes the config tree once for each of its groups, which takes twice as
long as everything else; here the config is composed once and the groups are read off the search
path.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import shorten

from betasigma.launch.configs import Configs
from betasigma.runs.start import program

COLUMN, WIDTH = 32, 100
"""Of a choice, and of what it is."""

HEADER = "betasigma: DDPM and NCSN on one footing."

EXAMPLES = {
    "": "DDPM on the embedded digits",
    "model=ncsn sigma.levels=10": "the other family",
    "-m model=ddpm,ncsn seed=1,2,3": "a sweep",
    "-m search=optuna_lr": "a search",
    "resume=outputs/…": "continue a run",
}
"""What ``train`` may be given, and what comes of it."""


def footer() -> str:
    """What stands behind the config: commands as they can be pasted where the user stands."""
    train = shlex.join(program("train", Path.cwd()))
    width = max(map(len, EXAMPLES))
    return "\n".join(
        [
            "Any key above can be set as key=value, any group by name, several values with -m:",
            *(f"  {train} {words:{width}}  {what}" for words, what in EXAMPLES.items()),
            "--cfg job prints the config that would be run, --info defaults where it comes from.",
        ]
    )


def opening(configs: Configs) -> str:
    """What stands before the config.

    Args:
        configs: of the app, whose groups are listed.
    """
    groups = configs.groups()
    listed = [f"{name}: {', '.join(configs.choices(name))}" for name in groups]
    described = [line for name in groups for line in _described(name, configs)]
    sections = ("", "== Groups ==", *listed, "", "== Choices ==", *described, "", "== Config ==")
    return "\n".join([HEADER, *sections])


def _described(group: str, configs: Configs) -> list[str]:
    """What each choice of a group is, in the words of its file; of a study also how to run it."""
    files = [configs.load(f"{group}/{choice}") for choice in configs.choices(group)]
    words = {f"{group}={file.choice}": file.comment for file in files if file.comment}
    if any(file.is_point for file in files):
        words[f"-m {group}={','.join(file.choice for file in files)}"] = "the study, point by point"
    return [
        f"{word:{COLUMN}}  {shorten(what, WIDTH, placeholder='…')}" for word, what in words.items()
    ]
