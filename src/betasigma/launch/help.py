"""What ``--help`` prints: groups, the config and example commands.

Hydra's own ``--help`` composes the config once per group, which is slow. Here the config is
composed once, and the groups are read from the search path. Each key has its default, meaning and
accepted values behind it, which the options models know.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from betasigma.errors import UserError
from betasigma.launch.configs import Configs
from betasigma.options.apps import TOP_LEVEL
from betasigma.options.base import REGISTRY, ComponentOptions, Options, accepted_values, models_of
from betasigma.options.hardware import SlurmOptions
from betasigma.options.lightning import CallbackOptions
from betasigma.options.loggers import LightningLoggerOptions
from betasigma.options.objectives import DenoisingOptions
from betasigma.options.plugins import locate
from betasigma.options.preconditionings import PreconditioningOptions
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
    """Return the text after the config: commands that the user can paste."""
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
    """Return the text before the config."""
    groups = configs.groups()
    listed = [f"{name}: {', '.join(configs.choices(name))}" for name in groups]
    described = [line for name in groups for line in _described(name, configs)]
    sections = ("", "== Groups ==", *listed, "", "== Choices ==", *described, "", "== Config ==")
    return "\n".join([HEADER, *sections])


def _described(group: str, configs: Configs) -> list[str]:
    """Describe each choice of a group by its comment; for a study, also say how to run it."""
    texts = {choice: configs.text(f"{group}/{choice}") for choice in configs.choices(group)}
    comments = {f"{group}={choice}": _comment(text) for choice, text in texts.items()}
    words = {word: comment for word, comment in comments.items() if comment}
    if any(re.search("^study:", text, re.MULTILINE) for text in texts.values()):
        words[f"-m {group}={','.join(texts)}"] = "the study, point by point"
    return [
        f"{word:{COLUMN}}  {shorten(what, WIDTH, placeholder='…')}" for word, what in words.items()
    ]


def _comment(text: str) -> str:
    """The comment that a file begins with, on one line, without ``# @package …``."""
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in head if not line.startswith("# @"))


BEHIND = 46
"""Where meanings begin, unless a value is longer."""

Fields = Mapping[str, FieldInfo]

BY_NAME = {"callbacks": CallbackOptions, "loggers": LightningLoggerOptions}
"""Nodes that hold any number of components, by names of the user's."""

PLAIN = {
    "cluster": (SlurmOptions,),
    "defaults": (PreconditioningOptions, DenoisingOptions),
}
"""Nodes that their field has no options for: they are checked elsewhere."""


def with_meanings(config: str, app: str) -> str:
    """A config with what each key means and accepts behind it."""
    content = yaml.safe_load(config)
    if app not in TOP_LEVEL or not isinstance(content, Mapping):
        return config
    return "\n".join(_lines(content, _fields_of(TOP_LEVEL[app]), ""))


def _lines(content: Mapping[str, Any], fields: Fields, indent: str) -> Iterator[str]:
    for key, value in content.items():
        field = fields.get(str(key))
        if isinstance(value, Mapping) and value:
            yield _line(f"{indent}{key}:", field.description if field else None)
            yield from _lines(value, _inner_fields(str(key), field, value), f"{indent}  ")
        else:
            yield _line(f"{indent}{key}: {_typed(value)}", _meaning(field))


def _line(text: str, meaning: str | None) -> str:
    return f"{text:{BEHIND}}  # {meaning}" if meaning else text


def _typed(value: Any) -> str:
    """A value as it is typed."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _meaning(field: FieldInfo | None) -> str | None:
    """What a key means, and in brackets what it accepts."""
    if field is None or field.alias == "_target_":
        return None
    accepted = "" if models_of(field) else f"({accepted_values(field)})"
    return " ".join(filter(None, [field.description, accepted]))


def _inner_fields(key: str, field: FieldInfo | None, value: Mapping[str, Any]) -> Fields:
    """Options of a node below a field, by the keys that a config has."""
    if key in BY_NAME:
        return dict.fromkeys(map(str, value), FieldInfo(annotation=BY_NAME[key]))
    if key in PLAIN and len(value) > 1:
        return {name: f for model in PLAIN[key] for name, f in _fields_of(model).items()}
    models = models_of(field) if field else []
    if not models:
        return {}
    components = [model for model in models if issubclass(model, ComponentOptions)]
    if not components or (len(models) > len(components) and "_target_" not in value):
        of_kind = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        return _fields_of(of_kind.get(value.get("kind"), models[0]))
    group, target = components[0].group, str(value.get("_target_"))
    known = REGISTRY.get(group, {}).get(target)
    return _fields_of(known) if known else _arguments(group, target)


def _fields_of(model: type[Options]) -> Fields:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _arguments(group: str, target: str) -> Fields:
    """What a class without an options model takes, by its type hints."""
    try:
        parameters = inspect.signature(locate(target, group), eval_str=True).parameters
    except (UserError, NameError, TypeError, ValueError):
        return {}
    hinted = {n: p.annotation for n, p in parameters.items() if p.annotation is not p.empty}
    return {name: FieldInfo(annotation=hint) for name, hint in hinted.items()}
