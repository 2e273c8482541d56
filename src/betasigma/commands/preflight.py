"""Everything that can be refused is refused before a directory is made, a job sent or PyTorch
imported.

Hydra calls ``Preflight`` at the start of a run or of a sweep, when the config is composed and
nothing has happened. It swallows ordinary exceptions of callbacks, so what is wrong is printed here
and the process ends.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from betasigma.commands.app import fail, tracebacks_wanted
from betasigma.commands.checks import CHECKS
from betasigma.errors import UserError


class Preflight(Callback):
    """Checks a run's config, or every config of a sweep, before anything starts.

    Args:
        app: which app's checks apply: ``train``, ``sample`` or ``evaluate``.
    """

    def __init__(self, app: str) -> None:
        self._app = CHECKS[app]

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending(config):
            directory = self._app.check(config, list(config.hydra.overrides.task))
            for key, value in self._app.decide(config).items():
                OmegaConf.update(config, key, value)
            if directory is not None:
                _set(config, "hydra.run.dir", str(directory))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending(config):
            loader = GlobalHydra.instance().config_loader()
            task = list(config.hydra.overrides.task)
            decided: dict[str, Any] = {}
            for overrides in _jobs(task):
                job = loader.load_sweep_config(config, overrides)
                if OmegaConf.select(job, "resume") is not None:
                    raise UserError(
                        f"resume={job.resume} continues one run; leave out -m (--multirun)"
                    )
                self._app.check(job, overrides)
                decided = decided or self._app.decide(job)
            # one decision for the whole sweep, so that its jobs can be compared
            given = {override.partition("=")[0] for override in task}
            extra = [f"{key}={value}" for key, value in decided.items() if key not in given]
            _set(config, "hydra.overrides.task", [*task, *extra])


def _jobs(task: list[str]) -> list[list[str]]:
    """Overrides of each job of a sweep, as Hydra's own sweeper will make them."""
    parsed = OverridesParser.create().parse_overrides(task)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _set(config: DictConfig, key: str, value: Any) -> None:
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config, key, value, force_add=True)


@contextmanager
def _ending(config: DictConfig) -> Iterator[None]:
    """Print what is wrong in one sentence and end, unless tracebacks were asked for."""
    try:
        yield
    except (UserError, HydraException) as error:
        if tracebacks_wanted():
            traceback.print_exc()
            raise SystemExit(1) from None
        sources = [s.path for s in config.hydra.runtime.config_sources if s.provider == "main"]
        fail(error, Path(sources[0]), config.hydra.job.config_name)
    except Exception:
        traceback.print_exc()  # Hydra would only warn of it and go on
        raise SystemExit(1) from None
