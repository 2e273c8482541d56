"""Explain errors of Hydra and OmegaConf in one sentence that says what is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError

from betasigma.commands.config import (
    key_and_place,
    key_of,
    leave_out_former_keys,
    saved_header,
)
from betasigma.errors import UserError, did_you_mean
from betasigma.launch.configs import ConfigFile, Configs
from betasigma.launch.overrides import as_name, first_value, unknown_choice
from betasigma.options import plugins
from betasigma.options.base import REGISTRY, parse_component
from betasigma.options.lightning import REFUSED_FLAGS, refuse_flag
from betasigma.runs.directory import short

SYNONYMS = {
    "epochs": "training counts optimizer steps: steps={value}",
    "max_epochs": "training counts optimizer steps: steps={value}",
    "max_steps": "write steps={value}",
    "learning_rate": "write optimizer.lr={value}",
    "device": "write hardware=cpu or hardware=gpu",
    "gpus": "write hardware=gpu, or hardware=ddp hardware.devices={value}",
    "dataset": "write data={value}",
    "logger._target_": "logger=csv has the place for it: logger=csv logger._target_={value}",
    "model.family": "the family follows from the class of the model: write model={value}",
}
"""Keys of other programs, and what to write here."""


def explain(error: BaseException, configs: Configs) -> str:
    """Explain an error of composition in one sentence."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark, doing = error.problem_mark, f" ({error.context})" if error.context else ""
        place = f"{short(Path(mark.name))}, line {mark.line + 1}"
        return f"{place}, cannot be read as YAML: {error.problem}{doing}"
    if isinstance(error, UnicodeDecodeError) and (file := configs.not_utf8()) is not None:
        return f"{short(file)} is not written in UTF-8, as configs are: save it in that encoding"
    text = "\n".join(str(link) for link in _chain(error))
    typed = configs.line.overrides
    if found := re.search(r"Could not append to config\.[^']*'([^']+)'", text):
        word = _with_value(found[1], [word for word in typed if word.startswith("+")])
        return f"{word} adds a key that is there already: write {word.lstrip('+')}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(_with_value(found[1], typed), configs)
    if found := re.search(r"Cannot find primary config '([^']*)'", text):
        known = configs.primaries()
        near = did_you_mean(found[1], known, cutoff=0.75, before="--config-name=")
        hint = f"{near} " if near else ""
        return f"--config-name={found[1]} is unknown; {hint}choose from {', '.join(known)}"
    if found := re.search(r"Could not find '([^']+)/([^']*)'", text):
        return unknown_choice(found[1], found[2], configs)
    if found := re.search(r"\w+ while evaluating '(.*)': (.*)", text):
        return f"{found[1]} cannot be read: {found[2]}"
    if found := re.search(r"(?:missing value|Missing mandatory value): (\S+)", text):
        return f"{found[1]} has no value; give {found[1]}=…"
    if found := re.search(r"Multiple values for (\S+)\.", text):
        chosen = [w for w in typed if w.startswith("+") and key_of(w) == found[1]]
        for word in chosen:
            more = " and add -m" if found[1] == "search" and not configs.line.sweeps else ""
            return f"{word} adds a group that is there already: write {word.lstrip('+')}{more}"
    if found := re.search(r"Ambiguous value for argument '(.+)'$", text, re.MULTILINE):
        return (
            f"{found[1]} names several values: {configs.several} for a run of each, or write [a,b] "
            f"for a list"
        )
    if found := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return f"{found[1]} names several values: {configs.several} for a run of each"
    if found := re.search(r"Error merging override (\S+)", text):
        reason = (str(error.__cause__ or "").splitlines() or ["it is of another kind"])[0]
        return f"{found[1]} does not fit what the key holds: {reason}"
    if found := re.search(r"Error parsing override '([^']*)'", text):
        return f"{found[1]} is not an override; write key=value"
    if found := re.search(r"(\w*Sweeper\w*) does not support sweep type : (\w+)", text):
        return _unsupported_sweep(found[2].lower().removesuffix("_sweep"), typed)
    unreadable = r"(?:no viable alternative at input|mismatched input|Lexer\w+:) (.*)"
    if found := re.search(unreadable, text):
        of_a_value = any(isinstance(link, GrammarParseError) for link in _chain(error))
        what = "an interpolation" if of_a_value else "the command line"
        return f"{what} cannot be read at {found[1].strip()}; quote or close it"
    if "Config group override must be" in text:
        return _not_a_name(configs)
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


OF_RUNS = ("sample", "evaluate", "edit", "plot")
"""Apps of runs, which have data and a sampler of their own."""


def unknown_key(override: str, configs: Configs) -> str:
    """Sentence for ``key=value`` where the config has no such key: the nearest reason."""
    key, value = key_and_place(override), override.partition("=")[2]
    node, flag = key.partition(".")[0], key.removeprefix("trainer.")
    typed = set(map(key_and_place, configs.line.overrides))
    owners = [file for file, own in _own_keys(configs) if key in own]
    group = owners[0].group if owners else ""
    choices = [file.choice for file in owners if file.group == group]
    belongs_to = f"{group}={' or '.join(choices)}"
    if flag != key and flag in REFUSED_FLAGS:
        return refuse_flag(flag, value)
    if key == "resume":
        again = f"; a sweep goes on by its command with hydra.sweep.dir={value}"
        return f"{override} is of train alone{again if configs.line.sweeps else ''}"
    if "resume" in typed:
        return (
            f"{override} is not among the keys of a new run, and resume=… continues a run with its "
            f"own: leave it out"
        )
    if configs.config_name in OF_RUNS and (asked := _without_consent(configs)):
        return asked
    of_a_run = configs.config_name in OF_RUNS and node not in typed
    if of_a_run and owners and node in ("data", "sampler"):  # of which they choose none
        if node == "data" and "reference" in typed:
            return f"{override} has no effect: images=… and reference=… are compared as they are"
        if node == "data" and ("run" in typed or "images" not in typed):
            return f"{override} has no effect: the data of run=… are prepared as in training"
        wanted = {
            "sampler": f"a sampler beside it: give {belongs_to}",
            "data": "a data set to compare images=… with beside it: give data=image_folder",
        }[node]
        return f"{override} needs {wanted}, say"
    if other := _other_name(key, value, configs):
        return f"{override} is unknown: there is no key {key}; {other}"
    refusal = _if_added(key, configs)
    if refusal and (not owners or f"{node}._target_" in typed):
        return refusal
    if refusal == "":
        return f"{override} is no key that {node} has yet: +{override.lstrip('+~')} adds it"
    if owners:
        models = _models_with(choices, configs) if group == "schedule" else ""
        return (
            f"{override} does not fit the {group} that was chosen; {key} belongs to "
            f"{belongs_to}{models}"
        )
    return f"{override} is unknown: there is no key {key}; {_instead(key, configs)}"


def _without_consent(configs: Configs) -> str:
    """What is said of a run that is typed and names a package that was not let in."""
    for word in configs.line.overrides:
        if word.startswith("run="):
            try:
                saved_header(word.removeprefix("run=").strip("'"))
            except plugins.NotAllowed as error:
                return str(error)
            except UserError:  # said when the key is right
                continue
    return ""


def _if_added(key: str, configs: Configs) -> str | None:
    """What would be said of a node if the keys that are typed were added; empty where its class
    takes them, ``None`` where there is no class to ask.
    """
    node, *names = key.split(".")
    place = f"{node}.{names[0]}" if names and node in ("callbacks", "loggers") else node
    group = "logger" if node == "loggers" else node
    if group not in REGISTRY:
        return None
    try:
        words = [first_value(as_name(word, configs)) for word in configs.line.overrides]
        words = [re.sub(r"^\+?(?=(?!hydra\.)\w+\.)", "++", word) for word in words]
        config = replace(configs, line=configs.line._replace(overrides=words)).composed()
        if not OmegaConf.select(config, f"{place}._target_"):
            return None
        leave_out_former_keys(config, words)
        content: Any = OmegaConf.to_container(OmegaConf.select(config, place), resolve=True)
        parse_component(group, content, place)
    except UserError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException):  # something else is wrong too
        return None
    return ""


def _other_name(key: str, value: str, configs: Configs) -> str:
    """What to write for a key of other programs; empty for any other key."""
    last = key.rpartition(".")[2]
    if "schedule" in last and key.startswith("optimizer") and configs.is_group("lr_schedule"):
        return f"write lr_schedule={value}, of {', '.join(configs.choices('lr_schedule'))}"
    return SYNONYMS.get(key, "").format(value=value or "…")


def _instead(key: str, configs: Configs) -> str:
    """Suggest what the user may have meant by an unknown key."""
    known = known_keys(configs)
    nested = [name for name in known if name.endswith(f".{key}")][:3]
    if nested:
        return f"did you mean {' or '.join(nested)}?"
    return did_you_mean(key, known, 3) or "--cfg job lists the keys"


def known_keys(configs: Configs) -> list[str]:
    """Return every dotted key that the app's config can have."""
    keys = set(configs.load(configs.primary).keys)
    for file, own in _own_keys(configs):
        keys |= own | {file.group}
    return sorted(keys)


def _own_keys(configs: Configs) -> Iterator[tuple[ConfigFile, set[str]]]:
    """Yield the files of config groups with the keys that they define.

    A file that chooses for other groups (a model, an experiment, a point of a study) also sets keys
    of these groups. It defines only the keys below its own name.
    """
    files = configs.files()
    overlays = {file.group for file in files if file.chooses and not file.package}
    for file in files:
        below = {key for key in file.keys if f"{key}.".startswith(f"{file.group}.")}
        yield file, below if file.group in overlays else file.keys


def _models_with(schedules: list[str], configs: Configs) -> str:
    """``" (model=…)"`` with the models that choose one of these schedules."""
    names = []
    for choice in configs.choices("model"):
        if configs.load(f"model/{choice}").chooses.get("schedule") in schedules:
            names.append(f"model={choice}")
    return f" ({' or '.join(names)})" if names else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _with_value(key: str, typed: list[str]) -> str:
    """``key=value`` as typed on the command line, or the key alone."""
    for word in typed:
        if key_and_place(word) == key:
            return re.sub(r"=choice\((.*)\)$", r"=\1", word)
    return key


def _unsupported_sweep(kind: str, typed: list[str]) -> str:
    """Sentence for a range that the chosen sweeper cannot search."""
    words = [word for word in typed if f"{kind}(" in word] or [kind]
    return (
        f"{words[0]} is for a sweeper that searches: add hydra/sweeper=optuna, or list the values"
    )


def _not_a_name(configs: Configs) -> str:
    """Sentence for a group that was given a number or a truth value."""
    for word in configs.line.overrides:
        group, _, choice = word.lstrip("+").partition("=")
        if configs.is_group(group) and choice not in configs.choices(group):
            return unknown_choice(group, choice, configs)
    return "a config group needs the name of one of its files"
