"""Start an app: Hydra composes its config, and bad input ends in one sentence.

Nothing heavy is imported for either.

The apps themselves are in :mod:`betasigma.launch.scripts`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import wraps
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, TypeGuard

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from betasigma.commands.checks import CHECKS, AppChecks
from betasigma.config_tree import conf_directory
from betasigma.cpus import look_for_idle_cpus
from betasigma.errors import Stopped, UserError, plain_warning, printed
from betasigma.launch import command_line, consent
from betasigma.launch.configs import Configs
from betasigma.launch.image_network import fitting_network
from betasigma.launch.overrides import as_choice, as_name, first_value
from betasigma.launch.planning import add_place, is_basic
from betasigma.launch.snapshot import refuse_changed
from betasigma.launch.sweeps import JobFailed, end_here, forget_sweep, left_behind, this_sweep
from betasigma.runs.directory import keep_kernels, new_directory, short
from betasigma.runs.files import DISK_ERRORS
from betasigma.runs.lock import locked
from betasigma.runs.start import Start, remembered_words
from betasigma.runs.status import process_rank, recorded, summary
from betasigma.runs.sweep_record import number_of
from betasigma.training.stop_signals import caught_signals, queue_again

TRACEBACK = "HYDRA_FULL_ERROR"
"""Hydra's environment variable that asks for tracebacks."""

PASSED_ON = "BETASIGMA_TRACEBACKS"
"""Environment variable by which the other ranks know whether the user asked for tracebacks."""

HELP = {"-h", "--help"}

SHORT = {"compare": {"--csv": "to=csv", "--latex": "to=latex"}}
"""Options of an app that are short for a key."""

_wanted = os.environ.get(PASSED_ON, os.environ.get(TRACEBACK)) == "1"


def tracebacks_wanted() -> bool:
    """Whether the user asked for tracebacks, also for bad input (``HYDRA_FULL_ERROR=1``)."""
    return _wanted


def make_printable() -> None:
    """Print a warning in one line. Where a terminal knows only ASCII, print σ as a question mark
    instead of ending the run.
    """
    warnings.formatwarning = plain_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


Task = Callable[[DictConfig, Start], Any]
"""What an app does: a function of its config and of how it was started."""


def app(
    config_name: str,
    folder: Path | None = None,
    checks: AppChecks | None = None,
    always: Sequence[str] = (),
) -> Callable[[Task], Callable[[], None]]:
    """Turn a function into an app: a ``main`` that composes a config and calls the function.

    Args:
        config_name: the primary config, e.g. ``train``.
        folder: folder of that config. Missing groups are taken from betasigma's tree, which is also
            the default.
        checks: what an app outside this package checks before it starts.
        always: overrides before those that are typed.
    """
    if checks is not None:
        CHECKS[config_name] = checks

    def decorate(task: Task) -> Callable[[], None]:
        consent.register_search_path()
        tree = folder or conf_directory()
        start = hydra.main(version_base="1.3", config_path=str(tree), config_name=config_name)
        run = start(in_directory(task))

        @wraps(task)
        @remembered_words()
        @printed()
        @caught_signals()
        def main() -> None:
            register_resolvers()
            os.environ[PASSED_ON] = "1" if tracebacks_wanted() else "0"
            os.environ[TRACEBACK] = "1"  # errors come here instead of being printed by Hydra
            logging.raiseExceptions = False  # log.txt on a full disk; the run says it itself
            make_printable()
            keep_kernels()
            configs = Configs(tree, config_name, command_line.CommandLine({}, []))
            try:
                short = SHORT.get(config_name, {})
                sys.argv[1:] = [short.get(word, word) for word in sys.argv[1:]]
                line = command_line.with_key(
                    command_line.read_command_line(sys.argv[1:]), config_name
                )
                consent.allow_typed(sys.argv[1:])
                line = fetch_named(add_place(line))
                line = line._replace(overrides=[*always, *line.overrides])
                configs = replace(configs, line=line)
                line = as_hydra_takes_it(line, configs)
                if configs.extended:
                    consent.refuse_foreign_hydra(replace(configs, line=line).composed())
                sys.argv[1:] = line.words()
                with explained(configs) if configs.line.asks_for_help else nullcontext():
                    run()
                end_here()
            except Exception as error:
                if tracebacks_wanted():
                    raise
                end_here(error)
                if not is_refusal(error, configs):
                    raise
                fail(error, configs)
            except (KeyboardInterrupt, Stopped) as stop:
                sweep = this_sweep()
                if sweep is not None:
                    print(left_behind(sweep), file=sys.stderr)
                elif config_name != "train":  # which says how to go on
                    say_stopped(stop)
                if isinstance(stop, Stopped):
                    if sweep is None and config_name == "train" and not always:
                        queue_again(stop)
                    raise
                sys.exit(130)
            finally:
                forget_sweep()
                os.environ.pop(PASSED_ON)
                if not tracebacks_wanted():
                    os.environ.pop(TRACEBACK)

        return main

    return decorate


def say_stopped(stop: KeyboardInterrupt | Stopped) -> None:
    """Say which signal stopped a command, unless its output is no longer read."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    if number != signal.SIGPIPE and process_rank() == 0:
        print(f"stopped by {Stopped(number)}", file=sys.stderr)


def as_hydra_takes_it(line: command_line.CommandLine, configs: Configs) -> command_line.CommandLine:
    """Rewrite the command line so that Hydra reads it as the user means it."""
    overrides = [as_name(word, configs) for word in line.overrides]
    network = fitting_network(overrides, configs) if configs.config_name == "train" else None
    if network is not None:
        overrides.append(f"network={network}")
        if not line.only_shows:
            print(
                f"network={network} is taken, for images of this size; network=… takes another",
                flush=True,
            )
    if line.asks_for_help:  # Hydra composes and prints the config; the rest of the help is ours
        if line.sweeps:  # there is one config in it
            overrides = [first_value(word) for word in overrides]
        kept = {name: line.options[name] for name in command_line.PLACES if name in line.options}
        return command_line.CommandLine({**kept, "--cfg": "job"}, overrides)
    return line._replace(overrides=[as_choice(word) if line.sweeps else word for word in overrides])


def fetch_named(line: command_line.CommandLine) -> command_line.CommandLine:
    """Fetch the checkpoints that ``run=wandb:…`` names, and name their paths."""
    if line.asks_for_help or not any("wandb:" in word for word in line.overrides):
        return line
    from betasigma.commands.wandb_checkpoint import with_fetched  # imports PyTorch

    return line._replace(
        overrides=[command_line.as_path(with_fetched(word)) for word in line.overrides]
    )


@contextmanager
def explained(configs: Configs) -> Iterator[None]:
    """Print the help around the config that Hydra prints inside this block."""
    from betasigma.launch.help import footer, opening, with_meanings

    with redirect_stdout(StringIO()) as config:  # a refusal prints nothing but itself
        yield
    described = with_meanings(config.getvalue(), configs.config_name)
    print(opening(configs), described, footer(configs.config_name), sep="\n")


def in_directory(task: Task) -> Callable[[DictConfig], Any]:
    """Wrap ``task`` so that the run directory records how it ends."""

    @wraps(task)
    def run(config: DictConfig) -> Any:
        look_for_idle_cpus()  # a sweep may run its jobs in one process, for hours each
        keep_kernels()
        start = this_start()
        name = HydraConfig.get().callbacks["preflight"].app
        if not CHECKS[name].writes:
            return task(config, start)
        try:
            # of several processes the first holds the lock of the run directory
            held = locked(start.directory) if process_rank() == 0 else nullcontext()
            with held, recorded(start.directory, start.job), printed():
                # again: a cluster's worker has not seen the command line
                consent.allow_typed(start.overrides)
                consent.check_consent(config)
                if HydraConfig.get().job.chdir:
                    make_absolute(config, start.here)
                if start.job is not None:
                    refuse_changed(start.directory)
                    # its sweeper may have chosen values that nobody checked
                    CHECKS[name].check(config, start.overrides)
                    CHECKS[name].enter(config, start.overrides, start.directory)
                return _done(task, config, start)
        except Exception as error:
            if start.job is not None:
                raise JobFailed(summary(error)) from None
            raise

    return run


def _done(task: Task, config: DictConfig, start: Start) -> Any:
    """Return what the task returns. PyTorch may raise the death of a worker anywhere in the task:
    any command says it in one sentence.
    """
    try:
        return task(config, start)
    except RuntimeError as error:
        from betasigma.data.loading import worker_failure  # the task has imported PyTorch

        raise worker_failure(error) or error from None


def this_start() -> Start:
    """Describe how Hydra's current run was started."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    here, directory = Path(hydra_config.runtime.cwd), Path(hydra_config.runtime.output_dir)
    if hydra_config.mode != RunMode.MULTIRUN:
        return Start(_shown(directory, here), overrides, sys.argv[1:], here)
    options = {k: v for k, v in _line().options.items() if k in command_line.PLACES}
    number = number_of(directory)  # a launcher counts those alone that it has launched now
    where = [w for w in hydra_config.overrides.hydra if w.startswith("hydra.searchpath=")]
    return Start(
        _shown(directory, here),
        overrides,
        command_line.CommandLine(options, [*where, *overrides]).words(),
        here,
        searched=not is_basic(hydra_config.sweeper),
        job=int(hydra_config.job.num) if number is None else number,
        sweep=Path(hydra_config.sweep.dir).name,
    )


def _line() -> command_line.CommandLine:
    """Read the command line of this process. A worker of a cluster has none of ours."""
    try:
        return command_line.read_command_line(sys.argv[1:])
    except UserError:
        return command_line.CommandLine({}, [])


def _shown(directory: Path, here: Path) -> Path:
    """Shorten ``directory`` to a path that the user can paste where they stand."""
    return short(directory) if here.resolve() == Path.cwd() else directory


def make_absolute(config: DictConfig, here: Path) -> None:
    """Make the paths in a config absolute."""

    def absolute(path: Any) -> Any:
        if not isinstance(path, str) or (not path or path == "auto"):
            return path
        return str(here / Path(path).expanduser())

    for key in command_line.PATHS:
        if key == "to" and "from" not in config:
            continue  # betasigma export names a format
        value = OmegaConf.select(config, key)
        if isinstance(value, ListConfig):
            OmegaConf.update(config, key, [absolute(path) for path in value])
        elif value is not None:
            OmegaConf.update(config, key, absolute(value))


def is_refusal(error: Exception, configs: Configs) -> bool:
    """Whether an error is about bad input. Any other error is a bug."""
    if isinstance(error, UnicodeDecodeError):
        return configs.not_utf8() is not None
    if isinstance(error, UserError | HydraException | OmegaConfBaseException | MarkedYAMLError):
        return True
    if _is_of_the_disk(error):
        return True
    return isinstance(error, ValueError) and str(error).startswith("Config group override")


def _is_of_the_disk(error: Exception) -> TypeGuard[OSError]:
    """Whether the disk is full, read-only or gone. (Hydra's missing configs are OSErrors too.)"""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def fail(error: Exception, configs: Configs) -> None:
    """Print what is wrong in one sentence and exit with status 1."""
    print(f"error: {sentence(error, configs)}", file=sys.stderr)
    sys.exit(1)


def sentence(error: Exception, configs: Configs) -> str:
    """Return what is wrong, in one sentence."""
    from betasigma.launch.explain import explain

    if _is_of_the_disk(error):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    cause = error
    while not isinstance(cause, UserError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    try:
        return str(cause) if isinstance(cause, UserError) else explain(error, configs)
    except MarkedYAMLError as broken:  # in a file that was looked at to explain the error
        return explain(broken, configs)


def register_resolvers() -> None:
    """Register the resolver of ``${run_directory:…}``, which the config tree uses."""
    OmegaConf.register_new_resolver(
        "run_directory", lambda name: new_directory(name), replace=True, use_cache=True
    )
