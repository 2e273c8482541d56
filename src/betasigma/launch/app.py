"""How an app starts: Hydra composes, bad input ends in one sentence, and nothing heavy is imported
for either.

The apps themselves are in :mod:`betasigma.launch.apps`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from betasigma.commands.checks import CHECKS, AppChecks
from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.launch import search_path
from betasigma.launch.sweeps import JobFailed, Sweep, closing, conclude, left_behind, report
from betasigma.runs.directory import new_directory
from betasigma.runs.status import recorded, summary

TRACEBACK = "HYDRA_FULL_ERROR"
"""Environment variable that asks for tracebacks (Hydra's own)."""

ASKED = "BETASIGMA_TRACEBACKS"
"""Environment variable that tells a run's other processes whether the user asked for them."""

HELP = {"-h", "--help"}

_wanted = os.environ.get(ASKED, os.environ.get(TRACEBACK)) == "1"

_sweeps: list[Sweep] = []
"""The sweep that this process started, if any."""


def tracebacks_wanted() -> bool:
    """Whether the user asked for tracebacks of bad input too (``HYDRA_FULL_ERROR=1``)."""
    return _wanted


def app(
    config_name: str, folder: Path | None = None, checks: AppChecks | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config an app of its own.

    Args:
        config_name: the primary config, e.g. ``train``.
        folder: where it is; groups that are not there are betasigma's. ``None``: betasigma's tree.
        checks: what is checked before it starts, for an app outside this package.
    """
    if checks is not None:
        CHECKS[config_name] = checks

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        search_path.register()
        tree = folder or conf_directory()
        start = hydra.main(version_base="1.3", config_path=str(tree), config_name=config_name)
        run = start(in_directory(task))

        @wraps(task)
        def main() -> None:
            register_resolvers()
            helping = bool(HELP & set(sys.argv[1:]))
            if helping:
                sys.argv[1:] = [*overrides_of(sys.argv[1:]), "--cfg", "job"]
            sys.argv[1:] = [as_name(word, tree) for word in sys.argv[1:]]
            if {"-m", "--multirun"} & set(sys.argv):
                sys.argv[1:] = [as_choice(word) for word in sys.argv[1:]]
            os.environ[ASKED] = "1" if tracebacks_wanted() else "0"
            os.environ[TRACEBACK] = "1"  # errors come here instead of being printed by Hydra
            try:
                with explained(tree, config_name) if helping else nullcontext():
                    run()
                if _sweeps:
                    fail_sweep()
                    print(closing(_sweeps[-1]), file=sys.stderr)
                    conclude(_sweeps[-1])
            except Exception as error:
                if tracebacks_wanted():
                    raise
                fail_sweep(error)
                if not is_refusal(error):
                    raise
                fail(error, tree, config_name)
            except KeyboardInterrupt:
                note = left_behind(_sweeps[-1]) if _sweeps else None
                if note:
                    print(note, file=sys.stderr)
                sys.exit(130)
            finally:
                _sweeps.clear()
                os.environ.pop(ASKED)
                if not tracebacks_wanted():
                    os.environ.pop(TRACEBACK)

        return main

    return decorate


@contextmanager
def explained(folder: Path, config_name: str) -> Iterator[None]:
    """Print what helps to read a config around the config that is printed inside.

    Args:
        folder: the config tree.
        config_name: the app's primary config.
    """
    from betasigma.launch.help import FOOTER, opening

    with redirect_stdout(StringIO()) as config:  # a refusal prints nothing but itself
        yield
    print(opening(folder, config_name), config.getvalue(), FOOTER, sep="\n", end="")


def overrides_of(words: list[str]) -> list[str]:
    """The overrides of a command line, without its options and their values."""
    valued = {"--cfg", "-c", "--package", "-p", "--info", "-i"}
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value = before in valued and "=" not in word
        if not (word.startswith("-") or value):
            kept.append(word)
    return kept


def in_directory(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """``task`` with its fate recorded in the directory that Hydra has made for it."""

    @wraps(task)
    def run(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        try:
            with recorded(Path(hydra_config.runtime.output_dir)):
                return task(config)
        except Exception as error:
            if hydra_config.mode == RunMode.MULTIRUN:
                raise JobFailed(summary(error)) from None
            raise

    return run


def begin_sweep(sweep: Sweep) -> None:
    """Say what runs, so that its end can be told."""
    _sweeps.append(sweep)


def fail_sweep(error: Exception | None = None) -> None:
    """Where a sweep's jobs have failed, print which and end with status 1."""
    text = report(_sweeps[-1], error) if _sweeps else None
    if text:
        conclude(_sweeps[-1])
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)


def as_name(word: str, folder: Path) -> str:
    """``group=0,1`` with its numbers as the names of files, which Hydra wants for a group.

    Args:
        word: of the command line.
        folder: the config tree.
    """
    key, _, value = word.partition("=")
    group = key and any((tree / key).is_dir() for tree in search_path.trees(folder))
    if not (group and re.fullmatch(r"\d+(,\d+)*", value)):
        return word
    return f"{key}=" + ",".join(f"'{number}'" for number in value.split(","))


def as_choice(word: str) -> str:
    """A sweep's ``node.key=value`` as a choice of one value.

    Hydra composes a sweep's common config without the choices that are swept, so that
    ``sampler=ddim,ancestral sampler.steps=10`` would be refused for the default sampler's sake; a
    choice is applied in each job, after the group it belongs to.
    """
    key, equals, value = word.partition("=")
    plain = re.fullmatch(r"[a-z]\w*(\.\w+)+", key) and not key.startswith("hydra.")
    swept = "(" in value or re.search(r",(?![^\[{]*[\]}])", value)
    return f"{key}=choice({value})" if equals and plain and not swept else word


def is_refusal(error: Exception) -> bool:
    """Whether an error says that the input was bad, rather than that the program is."""
    if isinstance(error, UserError | HydraException | OmegaConfBaseException):
        return True
    return isinstance(error, ValueError) and str(error).startswith("Config group override")


def fail(error: Exception, folder: Path, config_name: str) -> None:
    """Print what is wrong in one sentence and end with status 1."""
    from betasigma.launch.explain import explain

    cause = error
    while not isinstance(cause, UserError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    text = str(cause) if isinstance(cause, UserError) else explain(error, folder, config_name)
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def register_resolvers() -> None:
    """Interpolations that the config tree uses: ``run_directory``."""
    OmegaConf.register_new_resolver(
        "run_directory", lambda name: new_directory(name), replace=True, use_cache=True
    )
