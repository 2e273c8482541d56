"""Explain errors of Hydra and OmegaConf in one sentence that says what is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from betasigma.commands.config import key_and_place
from betasigma.errors import did_you_mean
from betasigma.launch.configs import ConfigFile, Configs
from betasigma.options import plugins
from betasigma.options.base import REGISTRY
from betasigma.options.lightning import REFUSED_FLAGS, refuse_flag

HYDRA_PLUGINS = {
    "hydra/launcher": ("joblib", "submitit_slurm", "submitit_local", "rq", "ray"),
    "hydra/sweeper": ("optuna", "ax", "nevergrad"),
}
"""Launchers and sweepers that Hydra has as packages of their own."""

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

TAKEN_FROM_THE_RUN = {"sampler": "a sampler", "data": "a data set to compare images=… with"}
"""Groups of which sample and evaluate choose nothing by themselves."""


def explain(error: BaseException, configs: Configs) -> str:
    """Explain an error of composition in one sentence."""
    text = "\n".join(str(link) for link in _chain(error))
    typed = configs.line.overrides
    if found := re.search(r"Could not append to config\.[^']*'([^']+)'", text):
        word = _with_value(found[1], [word for word in typed if word.startswith("+")])
        return f"{word} adds a key that is there already: write {word.lstrip('+')}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(_with_value(found[1], typed), configs)
    if found := re.search(r"Could not find '([^']+)/([^']*)'", text):
        return unknown_choice(found[1], found[2], configs)
    if found := re.search(r"(?:missing value|Missing mandatory value): (\S+)", text):
        return f"{found[1]} has no value; give {found[1]}=…"
    if found := re.search(r"Ambiguous value for argument '(.+)'$", text, re.MULTILINE):
        return (
            f"{found[1]} names several values: add -m for a run of each, or write [a,b] for a list"
        )
    if found := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return f"{found[1]} names several values: add -m for a run of each"
    if found := re.search(r"Error merging override (\S+)", text):
        reason = (str(error.__cause__ or "").splitlines() or ["it is of another kind"])[0]
        return f"{found[1]} does not fit what the key holds: {reason}"
    if found := re.search(r"Error parsing override '([^']*)'", text):
        return f"{found[1]} is not an override; write key=value"
    if found := re.search(r"(\w*Sweeper\w*) does not support sweep type : (\w+)", text):
        return _unsupported_sweep(found[2].lower().removesuffix("_sweep"), typed)
    unreadable = r"(?:no viable alternative at input|mismatched input|Lexer\w+:) (.*)"
    if found := re.search(unreadable, text):
        return f"the command line cannot be read at {found[1].strip()}; quote or close it"
    if "Config group override must be" in text:
        return _not_a_name(configs)
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


class UnknownKey(NamedTuple):
    """``key=value``, as typed, of a key that the config does not have."""

    override: str
    configs: Configs

    @property
    def key(self) -> str:
        return key_and_place(self.override)

    @property
    def value(self) -> str:
        return self.override.partition("=")[2]

    @property
    def node(self) -> str:
        return self.key.partition(".")[0]

    @property
    def owners(self) -> list[ConfigFile]:
        """Files of groups that have the key."""
        return [file for file, own in _own_keys(self.configs) if self.key in own]

    @property
    def choices(self) -> list[str]:
        """Those of the first owner's group."""
        owners = self.owners
        return [file.choice for file in owners if file.group == owners[0].group]

    @property
    def belongs_to(self) -> str:
        """``schedule=geometric or geometric_auto``; empty where no file has the key."""
        return f"{self.owners[0].group}={' or '.join(self.choices)}" if self.owners else ""


def unknown_key(override: str, configs: Configs) -> str:
    """Sentence for ``key=value`` where the config has no such key."""
    word = UnknownKey(override, configs)
    sentence = next(filter(None, (why(word) for why in WHY_UNKNOWN)), None)
    return sentence or (
        f"{override} is unknown: there is no key {word.key}; "
        f"{_instead(word.key, word.value, configs)}"
    )


def _refused_flag(word: UnknownKey) -> str | None:
    flag = word.key.removeprefix("trainer.")
    refused = flag != word.key and flag in REFUSED_FLAGS
    return refuse_flag(flag, word.value) if refused else None


def _beside_resume(word: UnknownKey) -> str | None:
    if not any(other.startswith("resume=") for other in word.configs.line.overrides):
        return None
    return (
        f"{word.override} is not among the keys of a new run, and resume=… continues a run with "
        f"its own: leave it out"
    )


def _without_its_group(word: UnknownKey) -> str | None:
    typed = set(map(key_and_place, word.configs.line.overrides))
    of_a_run = word.configs.config_name in ("sample", "evaluate") and word.node not in typed
    if not of_a_run or word.node not in TAKEN_FROM_THE_RUN or not word.owners:
        return None
    what = TAKEN_FROM_THE_RUN[word.node]
    return f"{word.override} needs {what} beside it: give {word.belongs_to}, say"


def _of_ones_own(word: UnknownKey) -> str | None:
    known = word.belongs_to or word.configs.is_group(word.node)
    if not (word.node in REGISTRY and plugins.allowed() and known):
        return None
    owned = f" ({word.key} belongs to {word.belongs_to})" if word.belongs_to else ""
    near = did_you_mean(word.key, known_keys(word.configs), cutoff=0.85)
    hint = f"{near} " if near and not owned else ""
    return (
        f"{word.override} is unknown: it is no key of the {word.node} that was chosen{owned}; "
        f"{hint}where a class of your own takes it, +{word.override.lstrip('+~')} adds it"
    )


def _of_another_choice(word: UnknownKey) -> str | None:
    if not word.owners:
        return None
    group = word.owners[0].group
    models = _models_with(word.choices, word.configs) if group == "schedule" else ""
    return (
        f"{word.override} does not fit the {group} that was chosen; {word.key} belongs to "
        f"{word.belongs_to}{models}"
    )


WHY_UNKNOWN = (
    _refused_flag,
    _beside_resume,
    _without_its_group,
    _of_ones_own,
    _of_another_choice,
)
"""Reasons why a key is unknown, the nearest first. Each gives its sentence where it applies."""


def _instead(key: str, value: str, configs: Configs) -> str:
    """Suggest what the user may have meant by an unknown key."""
    last = key.rpartition(".")[2]
    if "schedule" in last and key.startswith("optimizer") and configs.is_group("lr_schedule"):
        return f"write lr_schedule={value}, of {', '.join(configs.choices('lr_schedule'))}"
    if key in SYNONYMS:
        return SYNONYMS[key].format(value=value or "…")
    known = known_keys(configs)
    nested = [name for name in known if name.endswith(f".{key}")][:3]
    if nested:
        return f"did you mean {' or '.join(nested)}?"
    return did_you_mean(key, known, 3) or "--cfg job lists the keys"


def unknown_choice(group: str, choice: str, configs: Configs) -> str:
    """Sentence for ``group=choice`` where the group has no such file."""
    known = configs.choices(group)
    listed = f"choose from {', '.join(known)}"
    if choice in HYDRA_PLUGINS.get(group, ()):
        package = f"hydra-{choice.partition('_')[0]}-{group.removeprefix('hydra/')}"
        return f"{group}={choice} is not installed: pip install {package}; or {listed}"
    near = did_you_mean(choice, known, cutoff=0.5, before=f"{group}=")
    hint = f"{near} " if near else ""
    own = "" if plugins.allowed() else "; one of a package of your own needs plugins=[…]"
    return f"{group}={choice} is unknown; {hint}{listed}{own if group in REGISTRY else ''}"


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
