"""``python train.py -m resume=outputs/SWEEP``: which jobs of a sweep are launched once more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from betasigma.errors import UserError
from betasigma.launch.command_line import CommandLine
from betasigma.runs.header import CHECKPOINTS
from betasigma.runs.sweep_record import (
    SWEEP,
    SweepRecord,
    check_words,
    chooses_place,
    of_the_job,
    place_of,
    read_sweep,
)

KEY = "resume="


class Continued(NamedTuple):
    """A sweep that is continued."""

    directory: Path
    record: SweepRecord


def add_place(line: CommandLine) -> CommandLine:
    """Add to ``-m resume=SWEEP`` the words that say where the sweep's jobs run, unless the command
    line says it.

    Raises:
        UserError: where one of them would run code.
    """
    named = [word for word in line.overrides if word.startswith(KEY)]
    if not line.sweeps or len(named) != 1 or chooses_place(line.overrides):
        return line
    directory = Path(named[0].removeprefix(KEY).strip("'\""))
    record = read_sweep(directory)
    if record is None:
        return line
    place = place_of(record, directory, line.overrides)
    return line._replace(overrides=[*place, *line.overrides])


def sweep_to_continue(resume: str) -> Continued | None:
    """The sweep that ``resume`` names; ``None`` where it names a run.

    Raises:
        UserError: where it names neither, or a sweep whose jobs are not recorded.
    """
    directory = Path(resume).expanduser()
    record = read_sweep(directory)
    if record is None:
        if directory.is_file() or (directory / CHECKPOINTS).is_dir():
            return None
        raise UserError(
            f"resume={resume} is no sweep, which has a {SWEEP}, and no run, which has "
            f"{CHECKPOINTS}; with -m give the directory of a sweep or of runs"
        )
    if record.search:
        raise UserError(
            f"resume={resume} is a search, whose jobs its sweeper chooses: continue it with the "
            f"sweeper's own storage (of Optuna hydra.sweeper.storage and hydra.sweeper.study_name)"
        )
    check_words(record, directory)
    return Continued(directory, record)


def changed(recorded: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The words of a job, with those that are typed in the place of those recorded."""
    new = of_the_job(typed)
    keys = {_key(word) for word in new}
    return [*(word for word in recorded if _key(word) not in keys), *new]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
