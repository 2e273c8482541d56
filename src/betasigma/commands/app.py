"""How an app starts: Hydra composes, bad input ends in one sentence, and nothing heavy is imported
for either.

``train.py`` and ``scripts/*.py`` are a decorator and a call; what they do is imported inside the
call, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from betasigma.errors import UserError
from betasigma.training.runs import new_directory

TRACEBACK = "HYDRA_FULL_ERROR"
"""Environment variable that asks for tracebacks (Hydra's own)."""

_wanted = os.environ.get(TRACEBACK) == "1"


def tracebacks_wanted() -> bool:
    """Whether the user asked for tracebacks of bad input too (``HYDRA_FULL_ERROR=1``)."""
    return _wanted


def app(config_name: str, config_path: str) -> Callable[[Callable[[DictConfig], Any]], Any]:
    """Make a function of a config an app of its own.

    Args:
        config_name: the primary config, e.g. ``train``.
        config_path: of the config tree, relative to the file of the function.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        folder = (Path(task.__code__.co_filename).parent / config_path).resolve()
        run = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(task)

        @wraps(task)
        def main() -> None:
            register_resolvers()
            if {"-m", "--multirun"} & set(sys.argv):
                sys.argv[1:] = [as_choice(word) for word in sys.argv[1:]]
            os.environ[TRACEBACK] = "1"  # errors come here instead of being printed by Hydra
            try:
                run()
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if tracebacks_wanted():
                    raise
                fail(error, folder, config_name)
            except KeyboardInterrupt:
                sys.exit(130)
            finally:
                if not tracebacks_wanted():
                    os.environ.pop(TRACEBACK, None)

        return main

    return decorate


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


def fail(error: Exception, folder: Path, config_name: str) -> None:
    """Print what is wrong in one sentence and end with status 1."""
    from betasigma.commands.explain import explain

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
