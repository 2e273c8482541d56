"""Commands run in this process: what a user types, what comes back.

As a script it runs many, one after the other, and reports which heavy modules they imported
together: python launching.py < [[app, override, …], …] > [[status, stdout, stderr], …, modules].
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import hydra._internal.hydra
import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import InputDefault
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

from betasigma.launch.composing import SweepLoader
from betasigma.launch.configs import ConfigFile, Configs

ROOT = Path(__file__).resolve().parents[1]
UNCHANGED = (str(ROOT), "pkg://hydra", "structured://")
"""Where configs lie that no test changes."""

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "pytorch_lightning",
    "torchmetrics",
    "timm",
    "wandb",
    "rich",
)


TINY = (
    "network.channels=8",
    "network.blocks=1",
    "network.multipliers=[1]",
    "network.attention=[]",
    "hardware.precision=32",
    "batch_size=16",
    "steps=6",
    "data.val_size=16",
    "training.log_every=2",
    "training.num_samples=4",
    "sampler=ddim",
    "sampler.steps=2",
    "evaluation=none",
    "logger=none",
)
"""Overrides that make any run on the digits small."""


def quick(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Values of a parameter of which all but ``kept`` are left to the slow tests."""
    slow = pytest.mark.slow
    return [value if value in kept else pytest.param(value, marks=slow) for value in values]


class Outcome(NamedTuple):
    """What a command leaves on the terminal."""

    status: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run directory that it names."""
        found = re.search(r"^run directory (.*)$", self.out, re.MULTILINE)
        assert found, self.out + self.err
        return Path(found[1]).absolute()


Launch = Callable[..., Outcome]


class Finished(NamedTuple):
    """A run that has ended."""

    run: Path
    out: str


def command(app: str) -> Callable[[], None]:
    """The ``main`` of train.py, of scripts/<app>.py or, where it is a path, of <app>.py."""
    folder = "" if app == "train" or "/" in app else "scripts"
    path = ROOT / folder / f"{app}.py"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.main


class LoaderOfTests(SweepLoader):
    """Composes for commands that are typed in different directories."""

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        config = super()._load_configuration_impl(config_name, overrides, *args, **kwargs)
        config.hydra.runtime.cwd = os.getcwd()
        return config

    def __reduce__(self) -> tuple[Any, ...]:
        """A job in another process, which knows no tests, is given Hydra's own."""
        return ConfigLoaderImpl, (self.config_search_path,)


@contextlib.contextmanager
def files_read_once() -> Iterator[None]:
    """Have Hydra parse a config file again only where it has changed, and compose each choice of
    the repository's groups once, as it does for the jobs of a sweep: together the tests compose
    some thousand configs, and have all searched for some hundred unknown keys.
    """
    Plugins.instance()  # finds its sources of configs
    files = SourcesRegistry.instance().resolve("file")
    load, known = files.load_config, dict[tuple[object, ...], bytes]()
    loaders = dict[tuple[str, ...], LoaderOfTests]()

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            return load(self, config_path)
        state = path.stat()
        key = (self.provider, self.path, path, state.st_mtime_ns, state.st_size)
        if key not in known:
            known[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(known[key])

    def loader_of(config_search_path: ConfigSearchPath) -> ConfigLoaderImpl:
        places = tuple(str(entry.path) for entry in config_search_path.get_path())
        if not all(place.removeprefix("file://").startswith(UNCHANGED) for place in places):
            return ConfigLoaderImpl(config_search_path)
        if places not in loaders:
            loaders[places] = LoaderOfTests(config_search_path)
        return loaders[places]

    search, read = Configs.files, dict[tuple[str, ...], list[ConfigFile]]()

    def files_of(self: Configs) -> list[ConfigFile]:
        sources = self._repository.get_sources()
        places = tuple(f"{s.scheme()}://{s.path}".removeprefix("file://") for s in sources)
        if not all(place.startswith(UNCHANGED) for place in places):
            return search(self)
        if places not in read:
            read[places] = search(self)
        return read[places]

    known_choices = defaults_list._create_interpolation_map

    def known_choices_where_asked(
        overrides: defaults_list.Overrides, defaults: list[InputDefault], self_added: bool
    ) -> DictConfig | None:
        """A quarter of a composition; they are asked for where a file is chosen by ``${...}``."""
        asked = any(not one.is_self() and one.is_interpolation() for one in defaults)
        return known_choices(overrides, defaults, self_added) if asked else None

    with (
        patch.object(Configs, "files", files_of),
        patch.object(files, "load_config", load_config),
        patch.object(hydra._internal.hydra, "ConfigLoaderImpl", loader_of),
        patch.object(defaults_list, "_create_interpolation_map", known_choices_where_asked),
    ):
        yield


def composed_once(words: Sequence[str]) -> contextlib.AbstractContextManager[object]:
    """Keep Hydra from composing a config one time more, to see whether ``hydra.mode`` is said in
    it. Here it can only be typed.
    """
    if any("hydra.mode" in word for word in words):
        return contextlib.nullcontext()
    return patch.object(Hydra, "get_mode", return_value=None)


def launch(app: str, *words: str) -> Outcome:
    """Run ``python <app>.py <words>`` here."""
    sys.argv = [f"{app}.py", *words]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        composed_once(words),
    ):
        try:
            command(app)()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # a user sees a traceback
            traceback.print_exception(error)
            status = 1
    return Outcome(status, out.getvalue(), err.getvalue())


def typed(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Outcome:
    """Run ``python train.py <words>`` in a process of its own, in ``cwd``.

    Args:
        words: of the command line.
        cwd: where it is typed; here by default.
        env: the whole environment; this process's by default.
        timeout: seconds until it is given up.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def forked(
    app: str, *words: str, before: Callable[[], object] = lambda: None, said: Path | None = None
) -> int:
    """Start ``python <app>.py <words>`` in a child of this process, which has everything imported:
    a new process computes for eight seconds before it begins.

    Args:
        app, words: as for ``launch``.
        before: what the child does first.
        said: a file for what it says at its end.

    Returns:
        The child's process id; it exits with the command's status.
    """
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        file = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        before()
        outcome = launch(app, *words)
        os.write(1, (outcome.out + outcome.err).encode())
        status = outcome.status
    finally:
        os._exit(status)


def status_of(process: int) -> int:
    """Exit status of a child that ends, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _worker(
    rank: int,
    ports: Sequence[str],
    commands: Sequence[Sequence[str]],
    break_one: Callable[[], None] | None,
    results: Any,
) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if rank == 1 and break_one is not None:
        break_one()
    found = []
    for port, words in zip(ports, commands, strict=True):
        os.environ["MASTER_PORT"] = port
        found.append(tuple(launch(*words)))
    results.put((rank, found))


def together(
    *commands: Sequence[str], break_one: Callable[[], None] | None = None
) -> tuple[list[Outcome], list[Outcome]]:
    """What each of two processes says of these commands, which are started as torchrun does it."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ports = [free_port() for _ in commands]
    workers = [
        context.Process(target=_worker, args=(rank, ports, commands, break_one, results))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    first, second = ([Outcome(*outcome) for outcome in found[rank]] for rank in range(2))
    return first, second


if __name__ == "__main__":
    with files_read_once():
        report: list[object] = [launch(*words) for words in json.load(sys.stdin)]
    print(json.dumps([*report, [name for name in HEAVY if name in sys.modules]]))
