"""Train from a notebook or another script: what ``betasigma train`` does, in this process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from betasigma.commands.checks import CHECKS
from betasigma.commands.finished import FinishedRun
from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.launch import app
from betasigma.launch.command_line import read_command_line
from betasigma.launch.configs import Configs
from betasigma.launch.consent import allow_typed, register_search_path
from betasigma.launch.planning import loader_of_hydra
from betasigma.launch.preflight import prepare_run
from betasigma.runs.directory import LOG
from betasigma.runs.start import Start


def train(*overrides: str) -> FinishedRun:
    """Train a model in this process, on one device, and leave a complete run directory.

        run = betasigma.train("model=ncsn", "sigma.levels=10")
        images = run.sampler.sample(run.denoiser, 64, seed=0).x
        run.metrics["val/denoising_error"], run.directory

    Args:
        overrides: as on the command line of ``betasigma train``.

    Raises:
        betasigma.errors.UserError: for bad input, before a run directory exists.
    """
    for word in overrides:
        if not isinstance(word, str):
            raise UserError(
                f"{word} is no text: betasigma.train takes key=value, each an argument of its own "
                f'("model=ncsn", "steps=500"; a list as *words)'
            )
    line = read_command_line(list(overrides))
    if line.options:
        raise UserError(
            f"{' '.join(line.options)} is for the command line: betasigma.train takes key=value"
        )
    allow_typed(line.overrides)
    register_search_path()
    app.register_resolvers()
    configs = Configs(conf_directory(), "train", line, several="call betasigma.train")
    try:
        words = app.as_hydra_takes_it(line, configs).overrides
        with initialize_config_dir(str(configs.folder), job_name="train", version_base="1.3"):
            return _run(words)
    except Exception as error:
        if isinstance(error, UserError) or not app.is_refusal(error, configs):
            raise
        raise UserError(app.sentence(error, configs)) from error


def _run(words: list[str]) -> FinishedRun:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    config = hydra.compose_config(
        "train", [*words, "hydra.mode=RUN"], run_mode=RunMode.RUN, with_log_configuration=False
    )
    _use_one_device(config)
    loader = loader_of_hydra()
    prepare_run(config, CHECKS["train"])
    with _logged(Path(config.hydra.run.dir) / LOG), _warnings_as_before():
        done = run_job(
            app.in_directory(_train),
            config,
            "hydra.run.dir",
            None,
            HydraContext(loader, Callbacks(config)),
            configure_logging=False,
        )
    if done.status == JobStatus.FAILED:
        raise done._return_value
    finished: FinishedRun = done.return_value
    return finished


def _train(config: DictConfig, start: Start) -> FinishedRun:
    # PyTorch comes after what it reads of the environment, and where the run records what fails
    from betasigma.commands.train import train as command

    return command(config, start)


def _use_one_device(config: DictConfig) -> None:
    """Refuse several devices: each of their processes would run the notebook or script again."""
    hardware = config.hardware
    if hardware.devices == "auto":
        hardware.devices = 1
    if hardware.devices != 1 or hardware.nodes != 1:
        raise UserError(
            f"hardware.devices={hardware.devices} needs processes of its own: betasigma.train "
            f"trains in this one, on one device; for several use the command betasigma train"
        )


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write log messages to the run's log file."""
    logger = logging.getLogger("betasigma")
    level, propagate = logger.level, logger.propagate
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _warnings_as_before() -> Iterator[None]:
    """Restore how the notebook shows warnings."""
    shown = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            yield
    finally:
        warnings.formatwarning = shown
