"""Check the points of a study: config files that set ``study``, for runs to be compared.

A point chooses a whole model. A point together with another override that chooses the model would
be ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import ConfigDefault
from omegaconf import DictConfig

from betasigma.errors import UserError
from betasigma.launch.configs import load_file


class ChosenFile(NamedTuple):
    """A file of a config group that the command line names.

    Attributes:
        word: the override, without quotes: ``model=ncsn``.
        group: its group.
        chooses: choices for other groups, by this file and the files in its defaults.
        is_point: whether it is a point of a study.
    """

    word: str
    group: str
    chooses: dict[str, str]
    is_point: bool


class Studies:
    """Knows what the files of config groups choose for other groups.

    Args:
        config: as Hydra composed it; it knows where configs are, ``hydra.searchpath`` included.
    """

    def __init__(self, config: DictConfig) -> None:
        path = ConfigSearchPathImpl()
        for source in config.hydra.runtime.config_sources:
            path.append(source.provider, f"{source.schema}://{source.path}")
        self._files = CachingConfigRepository(ConfigRepository(path))
        self._choices: dict[str, ChosenFile | None] = {}

    def check(self, overrides: Sequence[str]) -> None:
        """Refuse a point of a study together with another choice of the same group.

        A file that chooses nothing for other groups (a sampler, for example) is allowed.

        Args:
            overrides: of one run.

        Raises:
            UserError: if two overrides choose the same group.
        """
        typed = map(self._choice, overrides)
        choices = [choice for choice in typed if choice is not None]
        for point in choices:
            if not point.is_point:
                continue
            for group, name in point.chooses.items():
                if not _read(self._files, f"{group}/{name}")[0]:
                    continue
                for other in choices:
                    if other is not point and group in (other.group, *other.chooses):
                        raise UserError(
                            f"{point.word} and {other.word} both choose the {group}; leave one out"
                        )

    def _choice(self, override: str) -> ChosenFile | None:
        if override not in self._choices:
            self._choices[override] = _choice(override, self._files)
        return self._choices[override]


def _choice(override: str, repository: IConfigRepository) -> ChosenFile | None:
    """Return the file that an override chooses; ``None`` if it chooses none."""
    group, _, name = override.lstrip("+").partition("=")
    name = name.strip("'")
    if name == "null" or not repository.config_exists(f"{group}/{name}"):
        return None
    chooses, is_point = _read(repository, f"{group}/{name}")
    return ChosenFile(f"{group}={name}", group, chooses, is_point)


def _read(repository: IConfigRepository, path: str) -> tuple[dict[str, str], bool]:
    """Return the choices of a file for other groups, and whether it is a point of a study.

    Files in its defaults count as part of it.
    """
    file = load_file(repository, path)
    chooses, is_point = file.chooses, file.is_point
    for default in file.defaults:
        if isinstance(default, ConfigDefault) and default.path != "_self_":
            below, below_is_point = _read(repository, f"{file.group}/{default.path}")
            chooses = below | chooses
            is_point = is_point or below_is_point
    return chooses, is_point
