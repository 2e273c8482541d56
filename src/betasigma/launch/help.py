"""Print groups and example commands around the config, for ``--help``.

Hydra's own ``--help`` composes the config once per group, which is slow. Here the config is
composed once, and the groups are read from the search path.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import shorten

from betasigma.launch.configs import Configs
from betasigma.runs.start import program

COLUMN, WIDTH = 32, 100
"""Widths of a choice and of its description."""

HEADER = "betasigma: DDPM and NCSN on one footing."

EXAMPLES = {
    "train": {
        "": "DDPM on the embedded digits",
        "model=ncsn sigma.levels=10": "the other family",
        "-m model=ddpm,ncsn seed=1,2,3": "a sweep",
        "-m search=optuna_lr": "a search",
        "resume=outputs/…": "continue a run",
        "-m resume=outputs/…": "continue a sweep",
    },
    "sample": {
        "run=outputs/…": "64 samples by the run's own sampler",
        "run=outputs/… n=100 sampler=ddim sampler.steps=20": "by another",
    },
    "evaluate": {
        "run=outputs/…": "2,000 samples by the run's own sampler",
        "run=outputs/… -m sampler=ddim,heun sampler.steps=10,50": "a table of samplers and steps",
        "run=outputs/… evaluation=none likelihood=flow": "bits per dimension",
    },
    "edit": {"run=outputs/… edit=inpaint": "fill in a part of images"},
    "import": {"from=model.pt to=outputs/model": "a published model becomes a run"},
    "plot": {
        "figure=frontier runs=outputs/…": "distance against network evaluations",
        "figure=filmstrip runs=[outputs/…,outputs/…]": "from noise to samples, both families",
    },
    "jobs": {
        "outputs/SWEEP": "state, step, speed and last error of each job",
        "outputs/SWEEP watch=true": "until all have ended",
        "outputs/SWEEP conclude=true": "and what they have measured",
    },
    "compare": {"runs=[outputs/…,outputs/…]": "a table and curves"},
    "dashboard": {
        "runs=outputs": "a page of all runs below outputs",
        "runs=outputs serve=8000": "the same, which follows them",
    },
    "sync": {"outputs/…": "a run, or all of a sweep", "outputs/… again=true": "once more"},
}
"""Example overrides of each app, and what they do."""


def footer(app: str) -> str:
    """Return the text after the config: commands that the user can paste.

    Args:
        app: name of the primary config.
    """
    examples = EXAMPLES.get(app, {})
    start = shlex.join(program(app, Path.cwd()))
    width = max(map(len, examples), default=0)
    return "\n".join(
        [
            "Any key above can be set as key=value, any group by name, several values with -m:",
            *(f"  {start} {words:{width}}  {what}" for words, what in examples.items()),
            "--cfg job prints the config that would be run, --info defaults where it comes from.",
        ]
    )


def opening(configs: Configs) -> str:
    """Return the text before the config.

    Args:
        configs: of the app, whose groups are listed.
    """
    groups = configs.groups()
    listed = [f"{name}: {', '.join(configs.choices(name))}" for name in groups]
    described = [line for name in groups for line in _described(name, configs)]
    sections = ("", "== Groups ==", *listed, "", "== Choices ==", *described, "", "== Config ==")
    return "\n".join([HEADER, *sections])


def _described(group: str, configs: Configs) -> list[str]:
    """Describe each choice of a group by its comment; for a study, also say how to run it."""
    files = [configs.load(f"{group}/{choice}") for choice in configs.choices(group)]
    words = {f"{group}={file.choice}": file.comment for file in files if file.comment}
    if any(file.is_point for file in files):
        words[f"-m {group}={','.join(file.choice for file in files)}"] = "the study, point by point"
    return [
        f"{word:{COLUMN}}  {shorten(what, WIDTH, placeholder='…')}" for word, what in words.items()
    ]
