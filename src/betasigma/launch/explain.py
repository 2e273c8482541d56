"""Hydra's and OmegaConf's errors in one sentence that says what would be accepted."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from betasigma.launch.help import choices
from betasigma.launch.search_path import trees


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
    if found := re.search(r"Could not find '([^']+)/([^']*)'", text):
        return unknown_choice(found[1], found[2], folder)
    if found := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return unknown_key(_with_value(found[1]), folder, config_name)
    if found := re.search(r"(?:missing value|Missing mandatory value): (\S+)", text):
        return f"{found[1]} has no value; give {found[1]}=…"
    if found := re.search(r"Error parsing override '([^']*)'", text):
        return f"{found[1]} is not an override; write key=value"
    unreadable = r"(?:no viable alternative at input|mismatched input|Lexer\w+:) (.*)"
    if found := re.search(unreadable, text):
        return f"the command line cannot be read at {found[1].strip()}; quote or close it"
    if "Config group override must be" in text:
        return _not_a_name(folder)
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


def unknown_key(override: str, folder: Path, config_name: str) -> str:
    """Sentence for ``key=value`` where the config has no such key."""
    key = override.partition("=")[0].lstrip("+~")
    owners = _files_with(key, folder)
    if owners:
        group = owners[0].parent.name
        names = [path.stem for path in owners if path.parent.name == group]
        models = _models_with(names, folder) if group == "schedule" else ""
        return (
            f"{override} does not fit the {group} that was chosen; {key} belongs to "
            f"{group}={' or '.join(names)}{models}"
        )
    near = difflib.get_close_matches(key, known_keys(folder, config_name), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "--cfg job lists the keys"
    return f"{override} is unknown: there is no key {key}; {hint}"


def unknown_choice(group: str, choice: str, folder: Path) -> str:
    """Sentence for ``group=choice`` where the group has no such file."""
    known = choices(folder, group)
    near = difflib.get_close_matches(choice, known, n=1, cutoff=0.5)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={choice} is unknown; {hint}choose from {', '.join(known)}"


def known_keys(folder: Path, config_name: str) -> list[str]:
    """Every key that the app's config can have, with dots."""
    keys = _keys_of(folder / f"{config_name}.yaml", folder)
    for path in _group_files(folder):
        keys |= _keys_of(path, folder) | {path.parent.name}
    return sorted(keys)


def _group_files(folder: Path) -> list[Path]:
    """Files of the config groups that define keys."""
    overlays = ("hydra", "experiment", "bridge")
    files = [path for tree in trees(folder) for path in sorted(tree.glob("*/*.yaml"))]
    return [path for path in files if path.parent.name not in overlays]


def _files_with(key: str, folder: Path) -> list[Path]:
    """Group files that define ``key``."""
    files = _group_files(folder)
    if not key.startswith("model."):
        files = [
            path for path in files if path.parent.name != "model"
        ]  # they only set others' keys
    return [path for path in files if key in _keys_of(path, folder)]


def _keys_of(path: Path, folder: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return set()
    top = path.parent == folder or "@package _global_" in text
    return _flat(content, "" if top else f"{path.parent.name}.")


def _flat(node: dict[str, object], prefix: str) -> set[str]:
    keys: set[str] = set()
    for name, value in node.items():
        if name in ("defaults", "_target_", "hydra"):
            continue
        keys.add(prefix + name)
        if isinstance(value, dict):
            keys |= _flat(value, f"{prefix}{name}.")
    return keys


def _models_with(schedules: list[str], folder: Path) -> str:
    """``" (model=…)"`` with the models that choose one of these schedules."""
    pattern = rf"override /schedule: ({'|'.join(schedules)})\s*$"
    files = [path for tree in trees(folder) for path in sorted((tree / "model").glob("*.yaml"))]
    names = [f.stem for f in files if re.search(pattern, f.read_text("utf-8"), re.MULTILINE)]
    return f" ({' or '.join(f'model={name}' for name in names)})" if names else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _with_value(key: str) -> str:
    """``key=value`` as typed on the command line, or the key alone."""
    for word in sys.argv[1:]:
        if word.lstrip("+~").partition("=")[0] == key:
            return re.sub(r"=choice\((.*)\)$", r"=\1", word)
    return key


def _not_a_name(folder: Path) -> str:
    """Sentence for a group that was given a number or a truth value."""
    for word in sys.argv[1:]:
        group, _, choice = word.lstrip("+").partition("=")
        if (known := choices(folder, group)) and choice not in known:
            return unknown_choice(group, choice, folder)
    return "a config group needs the name of one of its files"
