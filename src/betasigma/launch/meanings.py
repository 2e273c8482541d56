"""The composed config as ``--help`` shows it: each key with its default, meaning and accepted
values, which the options models know.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from betasigma.errors import UserError
from betasigma.options.apps import TOP_LEVEL
from betasigma.options.base import REGISTRY, ComponentOptions, Options, accepted_values, models_of
from betasigma.options.plugins import locate

COLUMN = 46
"""Where meanings begin, unless a value is longer."""

Fields = Mapping[str, FieldInfo]


def with_meanings(config: str, app: str) -> str:
    """A config with what each key means and accepts behind it.

    Args:
        config: YAML, as Hydra prints it.
        app: name of the primary config.
    """
    content = yaml.safe_load(config)
    if app not in TOP_LEVEL or not isinstance(content, Mapping):
        return config
    return "\n".join(_lines(content, _fields_of(TOP_LEVEL[app]), ""))


def _lines(content: Mapping[str, Any], fields: Fields, indent: str) -> Iterator[str]:
    for key, value in content.items():
        field = fields.get(str(key))
        if isinstance(value, Mapping) and value:
            yield _line(f"{indent}{key}:", field.description if field else None)
            yield from _lines(value, _inner_fields(field, value), f"{indent}  ")
        else:
            yield _line(f"{indent}{key}: {_typed(value)}", _meaning(field))


def _line(text: str, meaning: str | None) -> str:
    return f"{text:{COLUMN}}  # {meaning}" if meaning else text


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


def _inner_fields(field: FieldInfo | None, value: Mapping[str, Any]) -> Fields:
    """Options of a node below a field, by the keys that a config has."""
    models = models_of(field) if field else []
    if not models:
        return {}
    components = [model for model in models if issubclass(model, ComponentOptions)]
    if not components or (len(models) > len(components) and "_target_" not in value):
        kind = value.get("kind")
        return _fields_of(next((m for m in models if _kind(m) == kind), models[0]))
    group, target = components[0].group, str(value.get("_target_"))
    known = REGISTRY.get(group, {}).get(target)
    return _fields_of(known) if known else _arguments(group, target)


def _fields_of(model: type[Options]) -> Fields:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _kind(model: type[Options]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _arguments(group: str, target: str) -> Fields:
    """What a class without an options model takes, by its type hints and docstring."""
    try:
        made = locate(target, group)
        parameters = inspect.signature(made, eval_str=True).parameters
    except (UserError, NameError, TypeError, ValueError):
        return {}
    hinted = {n: p.annotation for n, p in parameters.items() if p.annotation is not p.empty}
    meanings = _documented(inspect.getdoc(made) or "")
    return {n: FieldInfo(annotation=h, description=meanings.get(n)) for n, h in hinted.items()}


def _documented(docstring: str) -> dict[str, str]:
    """Meanings of arguments, as the section ``Args:`` of a docstring has them."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entry = re.compile(r"^ {4}(\w+(?:, \w+)*):(.*(?:\n {5}.*)*)", re.MULTILINE)
    return {
        name: " ".join(found[2].split())
        for found in entry.finditer(section[1] if section else "")
        for name in found[1].split(", ")
    }
