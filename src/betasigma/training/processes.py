"""The other processes of a run on several devices.

On one machine Lightning starts them: it runs the command line again, in the run directory. That
command line must mean this run and no other. A sweep's would start the whole sweep again, and
``resume=auto`` might find another run. The processes must end with the run, because the next job of
a sweep starts its own. On a cluster SLURM starts and ends them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write
from pytorch_lightning import Trainer

from betasigma.devices import THREADS
from betasigma.runs.command import subcommand
from betasigma.runs.start import Start

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", THREADS)
"""Environment variables that tell Lightning's processes their rank, world size and threads."""

EXIT_TIMEOUT = 60.0
"""Seconds that the other processes have to end by themselves."""


@contextmanager
def launched_processes(trainer: Trainer, start: Start, resume: str | None) -> Iterator[None]:
    """Inside the block ``trainer`` may start the run's other processes; at its end they end.

    Args:
        trainer: of this process.
        start: how the run was started.
        resume: the checkpoint that is continued.
    """
    arguments, variables = sys.argv, {name: os.environ.get(name) for name in VARIABLES}
    sys.argv = [arguments[0], *subcommand(), *_words_of_this_run(start.words, resume)]
    _set_run_directory(start.directory)
    os.environ[THREADS] = str(torch.get_num_threads())  # else Lightning counts, without a quota
    try:
        yield
        trainer.strategy.barrier()
    except BaseException:
        _end_processes(trainer, terminate=True)
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _end_processes(trainer)
        sys.argv = arguments
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _words_of_this_run(words: list[str], resume: str | None) -> list[str]:
    """The words that start this run and no other."""
    if resume is None:
        return words
    return [*(word for word in words if not word.startswith("resume=")), f"resume={resume}"]


def _set_run_directory(run: Path) -> None:
    """Set the run directory in Hydra's config, where Lightning reads it."""
    if HydraConfig.initialized():
        config: Any = HydraConfig.instance().cfg
        with read_write(config.hydra):
            config.hydra.run.dir = str(run)


def _end_processes(trainer: Trainer, terminate: bool = False) -> None:
    """Wait until the processes that this one has started end; ``terminate`` asks them to."""
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    others = list(started)
    started.clear()  # Lightning watches this list and would end this process with them
    for process in others:
        if terminate:
            process.terminate()
    for process in others:
        try:
            process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
