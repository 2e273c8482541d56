"""Read the configs on an app's search path, and check that points of a study stand alone.

The search path has our tree, ``--config-dir``, ``hydra.searchpath`` and outside packages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from betasigma.errors import UserError
from betasigma.launch.command_line import PLACES, CommandLine
from betasigma.launch.consent import check_search_path

BASE = "base"
"""File of a group that its others are made from; nobody chooses it."""


class ConfigFile(NamedTuple):
    """One file of a config group, or a primary config."""

    name: str
    """Name by which it is chosen: ``sampler/ddim``, ``train``."""
    content: dict[str, Any]
    package: str
    """Node that its keys belong to; ``""`` for the top."""
    defaults: list[InputDefault]

    @property
    def group(self) -> str:
        """``sampler`` of ``sampler/ddim``."""
        return self.name.rpartition("/")[0]

    @property
    def choice(self) -> str:
        """``ddim`` of ``sampler/ddim``."""
        return self.name.rpartition("/")[2]

    @property
    def keys(self) -> set[str]:
        """Its dotted keys."""
        return dotted_keys(self.content, f"{self.package}." if self.package else "")

    @property
    def chooses(self) -> dict[str, str]:
        """Choices that it makes for other groups."""
        groups = [one for one in self.defaults if isinstance(one, GroupDefault) and one.override]
        return {str(one.group).lstrip("/"): str(one.value) for one in groups}

    @property
    def is_point(self) -> bool:
        """Whether it is a point of a study."""
        return "study" in self.content


@dataclass(frozen=True)
class Configs:
    """Configs over the whole search path of an app."""

    folder: Path
    config_name: str
    line: CommandLine
    several: str = "add -m"
    """What is done for a run of each of several values."""
    _files: dict[str, ConfigFile] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """Name of the primary config."""
        return self.line.options.get("--config-name") or self.config_name

    def is_group(self, name: str) -> bool:
        """Whether there is a config group ``name``."""
        return bool(name) and self._repository.group_exists(name)

    def choices(self, group: str) -> list[str]:
        """Choices of a group, sorted, without the file that they are made from."""
        return [name for name in self._repository.get_group_options(group) if name != BASE]

    def primaries(self) -> list[str]:
        """Names that ``--config-name`` takes, sorted."""
        names = self._repository.get_group_options("", ObjectType.CONFIG)
        return sorted(name for name in names if not name.startswith("_"))  # Hydra's own

    def groups(self) -> list[str]:
        """The groups of the primary config, sorted."""
        return sorted(set(self._groups_of(self.primary)))

    def files(self) -> list[ConfigFile]:
        """Every file of every group except Hydra's own."""
        found = self._repository.get_group_options("", ObjectType.GROUP)
        options = self._repository.get_group_options
        names = [f"{group}/{choice}" for group in found for choice in options(group)]
        return [self.load(name) for name in names if not name.startswith("hydra/")]

    def text(self, name: str) -> str:
        """``sampler/ddim`` as it is written, twenty times as fast as it is read as a config; empty
        where it is no file.
        """
        for folder in self._folders():
            if (file := folder / f"{name}.yaml").is_file():
                return file.read_text(encoding="utf-8")
        return ""

    def _folders(self) -> Iterator[Path]:
        """The folders of the search path, in its order."""
        for source in self._repository.get_sources():
            if (folder := _folder(f"{source.scheme()}://{source.path}")) is not None:
                yield folder

    def not_utf8(self) -> Path | None:
        """The first file of the search path that is not written in UTF-8."""
        for folder in self._folders():
            for file in sorted(folder.rglob("*.yaml")):
                try:
                    file.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    return file
        return None

    def load(self, name: str) -> ConfigFile:
        """Read ``train`` or ``sampler/ddim``."""
        if name not in self._files:
            self._files[name] = load_file(self._repository, name)
        return self._files[name]

    def _groups_of(self, name: str) -> Iterator[str]:
        for default in self.load(name).defaults:
            if isinstance(default, GroupDefault) and not default.override:
                yield str(default.group)
            elif isinstance(default, ConfigDefault) and default.path not in ("_self_", name):
                yield from self._groups_of(str(default.path))

    @property
    def extended(self) -> bool:
        """Whether configs from elsewhere take part."""
        return bool(self.line.options.keys() & set(PLACES)) or bool(
            _search_path(self.line.overrides)
        )

    def composed(self) -> DictConfig:
        """The config as Hydra will compose it."""
        self._more_places()
        mode = RunMode.MULTIRUN if self.line.sweeps else RunMode.RUN
        loader = ConfigLoaderImpl(self._own_path())
        return loader.load_configuration(self.primary, list(self.line.overrides), mode)

    def _own_path(self) -> ConfigSearchPath:
        """Where configs are, without ``hydra.searchpath``."""
        options = self.line.options
        path = create_config_search_path(options.get("--config-path") or str(self.folder))
        if extra := options.get("--config-dir"):
            if not os.path.isdir(extra):
                raise UserError(f"--config-dir={extra} does not exist; give a folder of configs")
            where = f"file://{os.path.abspath(extra)}"
            path.prepend("command-line", where, anchor=SearchPathQuery(provider="schema"))
        return path

    def _more_places(self) -> list[str]:
        """``hydra.searchpath``, as typed or as the primary config has it."""
        typed = _search_path(self.line.overrides)
        if typed is not None:
            return typed
        main = load_file(ConfigRepository(self._own_path()), self.primary).content
        found = OmegaConf.select(OmegaConf.create(main), "hydra.searchpath") or []
        check_search_path(found)
        return [str(location) for location in found]

    @cached_property
    def _repository(self) -> ConfigRepository:
        path = self._own_path()
        for where in self._more_places():
            path.prepend("hydra.searchpath", where, anchor=SearchPathQuery(provider="schema"))
        return ConfigRepository(path)


def load_file(repository: IConfigRepository, name: str) -> ConfigFile:
    """Read ``train`` or ``sampler/ddim`` from a search path; empty if it does not exist."""
    found = repository.load_config(name)
    if found is None or not OmegaConf.is_dict(found.config):
        return ConfigFile(name, {}, "", [])
    group = name.rpartition("/")[0].replace("/", ".")
    package = found.header.get("package") or group
    content: Any = OmegaConf.to_container(found.config)
    defaults = list(found.defaults_list or [])
    return ConfigFile(name, content, "" if package == "_global_" else package, defaults)


def _folder(source: str) -> Path | None:
    """Where a search path's ``file://…`` or ``pkg://…`` is; ``None`` for Hydra's own schemes."""
    scheme, _, location = source.partition("://")
    if scheme == "file":
        return Path(location)
    return Path(str(resources.files(location.replace("/", ".")))) if scheme == "pkg" else None


def _search_path(overrides: Sequence[str]) -> list[str] | None:
    """Return the value of the last ``hydra.searchpath=[…]`` override, if there is one."""
    for word in reversed(overrides):
        if word.partition("=")[0].lstrip("+") == "hydra.searchpath":
            try:
                value = OverridesParser.create().parse_override(word).value()
            except HydraException:  # Hydra reports it
                return []
            return [str(where) for where in value] if isinstance(value, list) else []
    return None


def dotted_keys(node: dict[Any, Any], prefix: str = "") -> set[str]:
    """Return the dotted keys of a config in plain containers, except Hydra's."""
    keys: set[str] = set()
    for name, value in node.items():
        if name not in ("defaults", "_target_", "hydra"):
            keys.add(f"{prefix}{name}")
            if isinstance(value, dict):
                keys |= dotted_keys(value, f"{prefix}{name}.")
    return keys


class Studies:
    """Checks the points of a study: config files that set ``study``, for runs to be compared.

    A point chooses a whole model. A point together with another override that chooses the model
    would be ambiguous.
    """

    def __init__(self, config: DictConfig) -> None:
        path = ConfigSearchPathImpl()
        for source in config.hydra.runtime.config_sources:
            path.append(source.provider, f"{source.schema}://{source.path}")
        self._files = ConfigRepository(path)
        self._whole = cache(partial(_whole, self._files))
        self._chosen = cache(self._find)

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse a point of a study together with another choice of the same group.

        A file that chooses nothing for other groups (a sampler, for example) is allowed.
        """
        files = [file for word in overrides if (file := self._chosen(word)) is not None]
        for point in files:
            for group, name in point.chooses.items() if point.is_point else ():
                if not self._whole(f"{group}/{name}").chooses:
                    continue
                for other in files:
                    if other is not point and group in (other.group, *other.chooses):
                        raise UserError(
                            f"{point.group}={point.choice} and {other.group}={other.choice} both "
                            f"choose the {group}; leave one out"
                        )

    def _find(self, override: str) -> ConfigFile | None:
        """The file that an override chooses; ``None`` if it chooses none."""
        group, _, choice = override.lstrip("+").partition("=")
        choice = choice.strip("'")
        name = f"{group}/{choice}"
        there = choice != "null" and self._files.config_exists(name)
        return self._whole(name) if there else None


def _whole(files: IConfigRepository, name: str) -> ConfigFile:
    """A file together with those of its group that it is made from."""
    file = load_file(files, name)
    for default in file.defaults:
        if isinstance(default, ConfigDefault) and default.path != "_self_":
            base = _whole(files, f"{file.group}/{default.path}")
            content, defaults = base.content | file.content, [*base.defaults, *file.defaults]
            file = file._replace(content=content, defaults=defaults)
    return file
