"""Compose the configs of many jobs to what Hydra composes, in a fraction of its time.

Hydra reads every file anew for each config, and goes through all of its groups. The jobs of a sweep
take their configs from the same files, and most of them make the same choices of groups.
"""

from __future__ import annotations

import pickle
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader, which reads each file and parses each word once, and has Hydra compose each
    choice of groups once. The values of each job are then set on a copy.

    A file that changes in its lifetime is not read again.
    """

    def __init__(self, path: ConfigSearchPath) -> None:
        super().__init__(path)
        self._parser = OverridesParser.create()
        self._words: dict[str, Override] = {}
        self._files: dict[tuple[str | None, ...], CachingConfigRepository] = {}
        self._loaded: dict[tuple[Any, ...], bytes] = {}
        self._chosen: dict[tuple[Any, ...], bytes] = {}
        self._groups: dict[tuple[IConfigRepository, str], bool] = {}

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed, files = self._parse_overrides_and_create_caching_repo(config_name, overrides)
        values = [word for word in parsed if self._sets_value(word, files)]
        choices = [str(word.input_line) for word in parsed if word not in values]
        key = (config_name, run_mode, from_shell, validate_sweep_overrides, *choices)
        if key not in self._chosen:
            composed = super()._load_configuration_impl(
                config_name, choices, run_mode, from_shell, validate_sweep_overrides
            )
            self._chosen[key] = pickle.dumps(composed)
        config: DictConfig = pickle.loads(self._chosen[key])  # a fifth of the time of a deep copy
        self._apply_overrides_to_config(values, config)
        task = [word for word in parsed if not word.is_hydra_override()]
        config.hydra.overrides.task = [word.input_line for word in task]
        config.hydra.job.override_dirname = get_overrides_dirname(
            task, **config.hydra.job.config.override_dirname
        )
        return config

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        new = [word for word in dict.fromkeys(overrides) if word not in self._words]
        self._words |= zip(new, self._parser.parse_overrides(new), strict=True)
        parsed = [self._words[word] for word in overrides]
        elsewhere = [word for word in parsed if word.get_key_element() == "hydra.searchpath"]
        key = (config_name, *(word.input_line for word in elsewhere))
        if key not in self._files:
            self._files[key] = CachingConfigRepository(self.repository)
            self._process_config_searchpath(config_name, parsed, self._files[key])
        return parsed, self._files[key]

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """A copy of a file: Hydra builds a config out of its nodes, and other configs need them."""
        key = (repo, default.config_path, default.package, default.primary)
        if key not in self._loaded:
            self._loaded[key] = pickle.dumps(super()._load_single_config(default, repo))
        loaded: ConfigResult = pickle.loads(self._loaded[key])
        return loaded

    def _sets_value(self, word: Override, files: IConfigRepository) -> bool:
        """Whether a word sets a value, outside Hydra's own node, and chooses no file."""
        if word.is_hydra_override() or word.key_or_group == "hydra" or word.is_sweep_override():
            return False
        if isinstance(word.value(), dict):
            return True
        key = (files, word.key_or_group)
        if key not in self._groups:
            self._groups[key] = files.group_exists(word.key_or_group)
        return not self._groups[key]
