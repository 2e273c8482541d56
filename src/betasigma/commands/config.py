"""Turn a composed config into plain containers that fit the options of a command."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.options.apps import ModelConfig, Train
from betasigma.options.base import REGISTRY, Options, dump, parse_component, parse_leniently
from betasigma.options.networks import NetworkOptions
from betasigma.runs.header import check_plain, checkpoint_path, read_header
from betasigma.runs.record import current_name

STANDARD_PRECONDITIONING = "betasigma.preconditioning.Preconditioning"


Asked = TypeVar("Asked", bound=Options)


def at_most(most: int, *limits: Any) -> int:
    """What ``${at_most:most,…}`` is in a config: ``most``, or the least of the limits that are
    known, if that is less.
    """
    return min([most, *(limit for limit in limits if isinstance(limit, int))])


OmegaConf.register_new_resolver("at_most", at_most, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, resolved and without Hydra's own node.

    A single name for ``runs`` or ``plugins`` becomes a list.
    """
    return _resolved(config, unresolved(config))


def _resolved(config: DictConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """As above, of a config and the same with its interpolations in plain containers."""
    for key in sorted(_missing_keys(raw)):
        raise UserError(f"{key} has no value; give {key}=…")
    try:
        content = {key: _resolved_node(config[key]) for key in map(str, config) if key != "hydra"}
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    for key in ("runs", "plugins"):
        if isinstance(content.get(key), str):
            content[key] = [content[key]]
    return content


def _resolved_node(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def parsed(config: DictConfig, schema: type[Asked]) -> tuple[dict[str, Any], Asked]:
    """Return the config as plain containers, and as the options of ``schema``.

    Keys beside those of the schema are allowed if other nodes read from them by interpolation: the
    knobs of an outside schedule, for example.
    """
    raw = unresolved(config)
    content = _resolved(config, raw)
    read = {key.partition(".")[0] for key in interpolated_keys(raw) if "." in key}
    known = {field.alias or name: field for name, field in schema.model_fields.items()}
    content = {k: v for k, v in content.items() if k in known or k not in read}
    for key, field in known.items():
        if key not in content and field.get_default(call_default_factory=True) is not None:
            raise UserError(f"{key} has no value; give {key}=…")
    options = schema.parse(content)
    plugins.check_traits(options)
    return filled(content, dump(options)), options


def filled(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with missing keys taken from ``defaults``, except those that are null, at
    every depth.
    """
    whole = dict(content)
    for key, value in defaults.items():
        own = whole.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            whole[key] = filled(own, value)
        elif key not in whole and value is not None:
            whole[key] = value
    return whole


def key_and_place(override: str) -> str:
    """The key of an override as it is typed: ``sampler@edit.sampler`` of
    ``+sampler@edit.sampler=ddim``.
    """
    return override.partition("=")[0].lstrip("+~")


def key_of(override: str) -> str:
    """The key of an override: ``sampler`` of ``+sampler@edit.sampler=ddim``."""
    return key_and_place(override).partition("@")[0]


def leave_out_former_keys(config: DictConfig, overrides: Sequence[str]) -> None:
    """Where another class is typed (``network._target_=mylab.nets.DiT``), leave out what the chosen
    file says of the former one: all that is not typed too, and no key that the classes share.
    """
    typed = list(map(key_of, overrides))
    for group in REGISTRY:
        node = config.get(group)
        if f"{group}._target_" not in typed or not isinstance(node, DictConfig):
            continue
        target = str(node["_target_"])
        former = [
            name
            for name in map(str, node)
            if name != "_target_"
            and not any(within(word, f"{group}.{name}") for word in typed)
            and not plugins.is_shared_key(group, target, name)
        ]
        if group == "schedule":  # the node that users turned
            own = REGISTRY[group].get(target)
            knobs = {known.knobs for known in REGISTRY[group].values()} - {own and own.knobs, None}
            for name in knobs:
                if name in config and not any(within(word, str(name)) for word in typed):
                    _delete(config, str(name))
        for name in former:
            _delete(node, name)


def within(key: str, node: str) -> bool:
    """Whether a dotted key is a node or lies in it."""
    return key == node or key.startswith(f"{node}.")


def _delete(node: DictConfig, name: str) -> None:
    with open_dict(node):
        del node[name]


def unresolved(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers with its interpolations, without Hydra's own node."""
    raw: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in raw.items() if key != "hydra"}


def _missing_keys(node: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys without a value in an unresolved config."""
    if node == MISSING:
        yield key
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from _missing_keys(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _missing_keys(value, f"{key}[{number}]")


def interpolated_keys(raw: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys that nodes of an unresolved config read from other nodes."""
    return {
        name
        for key, value in raw.items()
        for name in re.findall(r"\$\{(?:oc\.select:)?\s*([\w.]+)", _text(value))
        if name.partition(".")[0] != key
    }


def saved_header(run: Any, key: str = "run") -> dict[str, Any]:
    """Read the header of a run or a checkpoint, with its config upgraded to this version.

    What a model needs is checked, new keys get their defaults, and removed keys are left out with a
    warning.
    """
    path = checkpoint_path(run, key)
    header = read_header(path, key)
    recorded = header.get("plugins")  # early checkpoints lack it
    recorded = recorded if isinstance(recorded, dict) else {}
    try:
        config = upgrade(header["config"])
        if "${" in _text(config):
            raise UserError("it has an interpolation, and nothing in a file is resolved")
        model = {k: v for k, v in config.items() if k in ModelConfig.model_fields}
        options, gone = parse_leniently(ModelConfig, model)
        for name in options.unresolved:
            raise UserError(f"{name}=auto is no number")
        if options.model.trains:  # an oracle has no network
            _check_size(options.network, path)
    except plugins.NotAllowed as error:
        lacking = [name for name in recorded if name not in plugins.allowed()]
        names = list(dict.fromkeys([error.package, *lacking]))
        known = [f"{name} {recorded.get(name) or '(of an unknown version)'}" for name in names]
        told = plugins.NotAllowed(error.key, error.target, lacking)
        told.args = (f"{key}={run} was trained with {' and '.join(known)}: {told}",)
        raise told from None
    except UserError as error:
        raise UserError(f"{key}={run} has a config that cannot be used: {error}") from None
    for change in plugins.changed_versions(recorded):
        warnings.warn(f"{key}={run} was trained with {change}", stacklevel=2)
    if gone:
        warnings.warn(
            f"{key}={run} has keys that this version does not know, and leaves out: "
            f"{', '.join(gone)}",
            stacklevel=2,
        )
    check_plain(path, key)
    return {**header, "config": {**config, **dump(options)}}


def _check_size(network: NetworkOptions, path: Path) -> None:
    """Refuse a network that is larger than the file with its weights, before it takes memory."""
    levels = getattr(network, "multipliers", [1])
    channels, classes = getattr(network, "channels", 0), network.num_classes
    width = max(
        channels * max(levels) or getattr(network, "width", 0),
        getattr(network, "embedding_channels", None) or 0,
    )
    layers = getattr(network, "blocks", getattr(network, "depth", 1)) * len(levels)
    # in half precision, at least one square matrix at its widest and a row for each class; and an
    # entry for each layer
    if 2 * (width**2 + classes * channels) + layers > path.stat().st_size:
        raise UserError(
            f"its network is {width} wide with {layers} blocks and {classes} classes, and the file "
            f"is smaller than the weights of that"
        )


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of an earlier version to those of this one."""
    new = dict(config)
    if isinstance(new.get("preconditioning"), dict):
        new["preconditioning"] = {"_target_": STANDARD_PRECONDITIONING, **new["preconditioning"]}
    if isinstance(callbacks := new.get("callbacks"), dict):
        new["callbacks"] = {name: _with_current_monitor(node) for name, node in callbacks.items()}
    return new


def _with_current_monitor(node: Any) -> Any:
    if isinstance(node, dict) and isinstance(metric := node.get("monitor"), str):
        return {**node, "monitor": current_name(metric)}
    return node


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a training run that an earlier version began, with this version's defaults for
    keys that it lacks.
    """
    known = {key: value for key, value in config.items() if key in Train.model_fields}
    options, _ = parse_leniently(Train, known)
    return dump(options)


def trains(content: Mapping[str, Any]) -> bool:
    """Whether the model of a config is trained. An oracle is not."""
    return bool(parse_component("model", content["model"]).trains)


def class_trains(target: str) -> bool:
    """The same of a class of models; one of which nothing is known is trained."""
    return bool(getattr(REGISTRY["model"].get(target), "trains", True))


def learns_variance(content: Mapping[str, Any]) -> bool:
    """Whether the model of a config knows the variance of its reverse steps."""
    return trains(content) and parse_component("objective", content["objective"]).learns_variance


def _text(value: Any) -> str:
    """Join all strings in plain containers."""
    if isinstance(value, Mapping):
        return " ".join(map(_text, value.values()))
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) else ""
