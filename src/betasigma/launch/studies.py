"""A study is a group of configs whose files set ``study``: runs to be compared, point by point.

A point stands for a whole model. So a point together with another word that chooses the model would
leave open which of them wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import ConfigDefault

from betasigma.errors import UserError
from betasigma.launch.configs import load_file


class ChosenFile(NamedTuple):
    """A file of a config group that the command line names.

    Attributes:
        word: as it was typed, without quotes: ``model=ncsn``.
        group: its group.
        chooses: what it, with the files that it is made from, chooses of other groups.
        is_point: whether it is a point of a study.
    """

    word: str
    group: str
    chooses: dict[str, str]
    is_point: bool


def check_studies(overrides: Sequence[str], repository: IConfigRepository) -> None:
    """Refuse a point of a study together with another choice of the same model.

    What chooses nothing of other groups (a sampler, say) may be set for all points alike.

    Args:
        overrides: of one run.
        repository: where config files are found.

    Raises:
        UserError: where two words choose the same.
    """
    typed = [_choice(override, repository) for override in overrides]
    choices = [choice for choice in typed if choice is not None]
    for point in choices:
        if not point.is_point:
            continue
        for group, name in point.chooses.items():
            if not _read(repository, f"{group}/{name}")[0]:
                continue
            for other in choices:
                if other is not point and group in (other.group, *other.chooses):
                    raise UserError(
                        f"{point.word} and {other.word} both choose the {group}; leave one out"
                    )


def _choice(override: str, repository: IConfigRepository) -> ChosenFile | None:
    """What an override chooses; ``None`` where it is a value, or chooses nothing."""
    group, _, name = override.lstrip("+").partition("=")
    name = name.strip("'")
    if name == "null" or not repository.config_exists(f"{group}/{name}"):
        return None
    chooses, is_point = _read(repository, f"{group}/{name}")
    return ChosenFile(f"{group}={name}", group, chooses, is_point)


def _read(repository: IConfigRepository, path: str) -> tuple[dict[str, str], bool]:
    """What a file, with those it is made from, chooses of other groups, and whether it sets
    ``study``.
    """
    file = load_file(repository, path)
    chooses, is_point = file.chooses, file.is_point
    for default in file.defaults:
        if isinstance(default, ConfigDefault) and default.path != "_self_":
            below, below_is_point = _read(repository, f"{file.group}/{default.path}")
            chooses = below | chooses
            is_point = is_point or below_is_point
    return chooses, is_point
