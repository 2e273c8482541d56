"""A run's other processes, where it has several devices.

On one machine Lightning starts them by running the command line again, in the run's directory. What
is run again must be this run and nothing else: a sweep's command line would start the sweep again,
and ``resume=auto`` could find another run. When the run is over they must be too, since the next
job of a sweep starts its own. (On a cluster SLURM starts and ends them.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import read_write
from pytorch_lightning import Trainer

from betasigma.runs.command import subcommand

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Of the environment, by which Lightning's processes know their place."""

EXIT_TIMEOUT = 60.0
"""Seconds that the others have to end by themselves."""


@contextmanager
def launched_processes(trainer: Trainer, run: Path, resume: str | None) -> Iterator[None]:
    """Let ``trainer`` start this run's other processes inside, and be alone again afterwards.

    Args:
        trainer: of this process.
        run: directory of the run.
        resume: checkpoint that is continued.
    """
    arguments, places = sys.argv, {name: os.environ.get(name) for name in VARIABLES}
    sys.argv = [arguments[0], *subcommand(), *_words(resume)]
    _name_directory(run)
    try:
        yield
        trainer.strategy.barrier()
    except BaseException:
        _dismiss(trainer, kill=True)
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _dismiss(trainer)
        sys.argv = arguments
        for name, value in places.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _words(resume: str | None) -> list[str]:
    """The command line of this run alone."""
    words = sys.argv[1:]
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        words = list(HydraConfig.get().overrides.task)
    if resume is not None:
        words = [word for word in words if not word.startswith("resume=")] + [f"resume='{resume}'"]
    return words


def _name_directory(run: Path) -> None:
    """Say in Hydra's config where the run is: Lightning looks there."""
    config: Any = HydraConfig.instance().cfg
    with read_write(config.hydra):
        config.hydra.run.dir = str(run)


def _dismiss(trainer: Trainer, kill: bool = False) -> None:
    """Wait for the processes that this one has started, or end them."""
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    others = list(started)
    started.clear()  # Lightning watches this list, and would end this process with them
    for process in others:
        if kill:
            process.terminate()
    for process in others:
        try:
            process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
