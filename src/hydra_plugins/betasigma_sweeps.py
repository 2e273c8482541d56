"""How Hydra launches the jobs of a sweep of ours: those that it is given, each to its end.

Hydra makes sweepers and launchers of this package only, and imports it in every app, so that
nothing of ours is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf


class ListedJobs(Sweeper):
    """Launches the jobs that the sweep of this process lists, rather than every combination.

    Args:
        max_batch_size: most jobs that a launcher is given at once; ``None`` for no limit.
    """

    def __init__(self, max_batch_size: int | None = None) -> None:
        self._most = max_batch_size

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        from betasigma.launch.sweeps import this_sweep
        from betasigma.runs.files import write_text

        sweep = this_sweep()
        assert sweep is not None
        assert self.config is not None
        write_text(
            Path(self.config.hydra.sweep.dir) / "multirun.yaml", OmegaConf.to_yaml(self.config)
        )
        size = self._most or len(sweep.launched)
        done: list[JobReturn] = []
        for first in range(0, len(sweep.launched), size):
            part = sweep.launched[first : first + size]
            done += self._launcher.launch(part, initial_job_idx=first)
        return done


class SlurmJobs(SlurmLauncher):
    """Submits jobs to SLURM, and waits until each has ended, however the others do."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from betasigma.launch.submitting import submit, wait_for

        assert self.config is not None
        jobs = submit(self, self.params, job_overrides, initial_job_idx)
        return wait_for(jobs)

    def __call__(self, *call: Any) -> JobReturn:
        """Run a job, on its node. Its signals are ours from here, not submitit's."""
        from betasigma.errors import Stopped
        from betasigma.training.stop_signals import caught_signals, queue_again

        try:
            with caught_signals():
                return super().__call__(*call)
        except Stopped as stop:
            queue_again(stop)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What a job needs of this: not what it was submitted with."""
        return {**self.__dict__, "params": {}}
