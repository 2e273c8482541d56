"""Tiny runs: seconds on one core, real in every other respect."""

from __future__ import annotations

import gc
import getpass
import io
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from launching import TINY, Finished, Launch, Outcome, files_read_once, launch

from betasigma.options import plugins

if TYPE_CHECKING:  # PyTorch takes the process that starts the workers 2 s, and they wait for it
    from torch import Tensor


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """A million objects, of which none is garbage: they are not searched, now or by the tests."""
    gc.disable()
    import hypothesis  # noqa: F401  (imported later, it would search for what trio gives it)

    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture(scope="session", autouse=True)
def _away_from_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No account, no caches and no data of whoever runs the tests; one thread for each worker; no
    waiting for the disk, since processes are killed here and machines are not; each config file
    is parsed once.
    """
    import torch

    home = tmp_path_factory.mktemp("home")
    # a shell has what it starts in the background ignore Ctrl-C, and the tests press it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch, files_read_once():
        patch.setenv("HOME", str(home))
        patch.setattr(os, "fsync", lambda descriptor: None)
        if "PYTEST_XDIST_WORKER" in os.environ:
            torch.set_num_threads(1)
        # a number of its own for each process, by what is idle, would change the last bits
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        patch.setenv("BETASIGMA_CACHE", str(home / "betasigma"))
        patch.setenv("TORCH_HOME", str(home / "torch"))
        # what was compiled by earlier tests need not be compiled again
        kernels = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", kernels))
        patch.setenv("NETRC", str(home / "netrc"))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "BETASIGMA_DATA"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A command may change its process: signals, warnings, threads, its arguments, the packages
    that were let in and where they are found.
    """
    import torch

    argv, shown, threads = sys.argv, warnings.formatwarning, torch.get_num_threads()
    let_in, path = dict(plugins._allowed), list(sys.path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    sys.argv, warnings.formatwarning = argv, shown
    sys.path[:] = path
    plugins._allowed.clear()
    plugins._allowed.update(let_in)
    torch.set_num_threads(threads)
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, below which ``outputs/`` appears."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(here: Path) -> Launch:
    """``train(override, …)``: a tiny run in this process, which must succeed."""

    def run(*overrides: str) -> Outcome:
        outcome = launch("train", *TINY, *overrides)
        assert outcome.status == 0, outcome.err
        return outcome

    return run


def _shared(tmp_path_factory: pytest.TempPathFactory, *overrides: str) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shared"))
        outcome = launch("train", *TINY, *overrides)
        assert outcome.status == 0, outcome.err
        return Finished(outcome.run, outcome.out)


@pytest.fixture(scope="session")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished DDPM run and what it said."""
    return _shared(tmp_path_factory)


@pytest.fixture(scope="session")
def ddpm_run(ddpm: Finished) -> Path:
    """Directory of a finished DDPM run, not to be written to."""
    return ddpm.run


@pytest.fixture
def copy_of_ddpm_run(here: Path, ddpm_run: Path) -> Path:
    """The same to be written to, in this test's ``outputs/``."""
    return Path(shutil.copytree(ddpm_run, here / "outputs" / ddpm_run.name))


@pytest.fixture(scope="session")
def ncsn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished NCSN run, not to be written to."""
    return _shared(tmp_path_factory, "model=ncsn").run


@pytest.fixture(scope="session")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished run with class labels and guidance, not to be written to."""
    return _shared(
        tmp_path_factory,
        "network.num_classes=10",
        "objective.label_dropout=0.1",
        "training.guidance=2",
    ).run


@pytest.fixture(scope="session")
def inception_tensors() -> dict[str, Tensor]:
    """Random weights under the names of torch-fidelity's own module, which is made here without
    its download."""
    import torch
    from torch import nn
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            return None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    generator = torch.Generator().manual_seed(0)
    network = Unloaded("inception-v3-compat", ["2048"], empty)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.8, 1.2, generator=generator)
            layer.bias.normal_(0, 0.1, generator=generator)
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    network.fc.weight.normal_(0, 0.05, generator=generator)
    return network.state_dict()


@pytest.fixture(scope="session")
def inception_file(
    inception_tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file of random weights under the name of torch-fidelity's."""
    import torch

    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(inception_tensors, path)
    return path
