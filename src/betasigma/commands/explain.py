"""Hydra's and OmegaConf's errors in one sentence that says what would be accepted."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml


def explain(error: Exception, folder: Path, config_name: str) -> str:
    """One sentence for an error of composition.

    Args:
        error: what Hydra or OmegaConf raised.
        folder: the config tree.
        config_name: the app's primary config.
    """
    text = "\n".join(str(link) for link in _chain(error))
    if found := re.search(r"Could not (?:override|append to config\.[^']*)\s?'([^']+)'", text):
        return unknown_key(_with_value(found[1]), folder, config_name)
    if found := re.search(r"Could not find '([^']+)/([^']+)'", text):
        return unknown_choice(found[1], found[2], folder)
    if found := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return unknown_key(_with_value(found[1]), folder, config_name)
    if found := re.search(r"(?:missing value|Missing mandatory value): (\S+)", text):
        return f"{found[1]} has no value; give {found[1]}=…"
    if found := re.search(r"Error parsing override '([^']*)'", text):
        return f"{found[1]} is not an override; write key=value"
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


def unknown_key(override: str, folder: Path, config_name: str) -> str:
    """Sentence for ``key=value`` where the config has no such key."""
    key = override.partition("=")[0].lstrip("+~")
    owners = _schedules_with(key.partition(".")[0], folder)
    if owners:
        return (
            f"{override} does not fit the schedule that was chosen; {key} belongs to "
            f"schedule={owners} ({_models_with(owners, folder)})"
        )
    near = difflib.get_close_matches(key, known_keys(folder, config_name), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "--cfg job lists the keys"
    return f"{override} is unknown: there is no key {key}; {hint}"


def unknown_choice(group: str, choice: str, folder: Path) -> str:
    """Sentence for ``group=choice`` where the group has no such file."""
    choices = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    near = difflib.get_close_matches(choice, choices, n=1, cutoff=0.5)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={choice} is unknown; {hint}choose from {', '.join(choices)}"


def known_keys(folder: Path, config_name: str) -> list[str]:
    """Every key that some file of the config tree defines, with dots."""
    keys: set[str] = set()
    for path in folder.glob("**/*.yaml"):
        group = path.relative_to(folder).parts[0]
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        if group == "hydra" or not isinstance(content, dict):
            continue
        if path.parent == folder and path.stem != config_name:
            continue
        top = path.parent == folder or "@package _global_" in text
        keys.update(_flat(content, "" if top else f"{group}."))
        if path.parent != folder:
            keys.add(group)
    return sorted(keys)


def _flat(node: dict[str, object], prefix: str) -> set[str]:
    keys: set[str] = set()
    for name, value in node.items():
        if name in ("defaults", "_target_", "hydra"):
            continue
        keys.add(prefix + name)
        if isinstance(value, dict):
            keys |= _flat(value, f"{prefix}{name}.")
    return keys


def _schedules_with(node: str, folder: Path) -> str:
    """Names of the schedules that define this top-level node, joined by "or"."""
    names = [
        path.stem
        for path in sorted((folder / "schedule").glob("*.yaml"))
        if node != "schedule" and node in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    ]
    return " or ".join(names)


def _models_with(schedules: str, folder: Path) -> str:
    names = [
        path.stem
        for path in sorted((folder / "model").glob("*.yaml"))
        if re.search(
            rf"override /schedule: ({schedules.replace(' or ', '|')})\s*$",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    ]
    return " or ".join(f"model={name}" for name in names) or "by choice"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _with_value(key: str) -> str:
    """``key=value`` as typed on the command line, or the key alone."""
    for word in sys.argv[1:]:
        if word.lstrip("+~").partition("=")[0] == key:
            return word
    return key
