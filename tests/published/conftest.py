"""Public models with random weights, and what our network makes of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from betasigma.commands.assemble import make_denoiser
from betasigma.commands.import_model import read_published, write_run
from betasigma.commands.load import Loaded, load_run
from betasigma.denoiser import Denoiser
from betasigma.options.apps import Import

PUBLIC_CODE = "BETASIGMA_PUBLIC_CODE"
"""Environment variable: a folder with clones of public repositories, under their names."""


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Loaded]:
    """``imported(path, flags=…)``: what ``betasigma import`` makes of it, loaded again."""

    def load(path: Path, **asked: object) -> Loaded:
        directory = tmp_path / "run"
        write_run(read_published(Import.parse({"from": str(path), **asked})), directory, [])
        return load_run(directory)

    return load


@pytest.fixture
def converted() -> Callable[..., Denoiser]:
    """``converted(path, flags=…)``: the same, without a run directory."""

    def load(path: Path, **asked: object) -> Denoiser:
        readable = read_published(Import.parse({"from": str(path), **asked}))
        model, config = readable.model, readable.config
        denoiser = make_denoiser(config, model.sample_shape, readable.value_range)
        denoiser.network.load_state_dict(model.weights)
        return denoiser.requires_grad_(False).eval()

    return load


@pytest.fixture
def public_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """``public_code("improved-diffusion")``: a public repository, on Python's path for this test.

    The test is skipped where it is not at hand.
    """
    before = set(sys.modules)

    def find(repository: str) -> Path:
        folder = os.environ.get(PUBLIC_CODE)
        if folder is None:
            pytest.skip(f"compares with {repository}: {PUBLIC_CODE} names no folder of clones")
        path = Path(folder) / repository
        if not path.is_dir():
            pytest.skip(f"compares with {repository}, which {PUBLIC_CODE}={folder} does not have")
        monkeypatch.syspath_prepend(str(path))
        return path

    yield find
    for name in set(sys.modules) - before:  # these repositories share names: models, utils
        if str(os.environ.get(PUBLIC_CODE)) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
