"""List the jobs of a sweep before it starts.

Hydra's own sweeper runs every combination, so all jobs are known. Other sweepers (Optuna, Ax, …)
choose values while they run. Of these sweeps, jobs with each value of a choice and both ends of an
interval are listed, and every job is checked again when it starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


class Expansion(NamedTuple):
    """The jobs of a sweep."""

    jobs: list[list[str]]
    """Overrides of each job; of a sweeper that searches, of examples."""
    swept: list[str]
    """Keys that differ between jobs."""
    complete: bool
    """Whether the list has all jobs."""


def is_basic(sweeper: Any) -> bool:
    """Whether a config's ``hydra.sweeper`` is Hydra's own."""
    return bool(sweeper.get("_target_") == BASIC)


def expand(sweeper: DictConfig, typed: list[str], loader: ConfigLoader) -> Expansion:
    """List the jobs of a sweep.

    Args:
        sweeper: ``hydra.sweeper``. Its ``params`` come before the overrides.
        typed: overrides on the command line.
        loader: resolves ``glob(*)``.
    """
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *typed])
    last = {override.get_key_element(): override for override in parsed}
    if is_basic(sweeper):
        jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        swept = [key for key, override in last.items() if len(_values(override)) > 1]
        return Expansion(jobs, swept, complete=True)
    values = {key: _values(override) for key, override in last.items()}
    swept = [key for key, known in values.items() if len(known) > 1]
    return Expansion(list(_samples(values)), swept, complete=False)


def _values(override: Override) -> list[str]:
    """Return the known values of one override."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return list(dict.fromkeys(override.sweep_string_iterator()))


def _samples(values: dict[str, list[str]]) -> Iterable[list[str]]:
    """Yield jobs that cover every known value, changing one key at a time."""
    first = {key: known[0] for key, known in values.items()}
    yield [f"{key}={value}" for key, value in first.items()]
    for key, known in values.items():
        for other in known[1:]:
            yield [f"{k}={value}" for k, value in {**first, key: other}.items()]
