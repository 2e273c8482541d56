"""What is fetched where there is a network is all that a run without one needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, TINY, launch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from betasigma.runs.directory import kernel_folder

MEASURED = (
    "evaluation=default",
    "evaluation.n=20",
    "evaluation.n_reference=60",
    "evaluation.metrics=[fd]",
)


def offline() -> list[str]:
    """Begins a command that has no network; skips the test where that needs more rights."""
    begin = ["unshare", "--net"] if not os.getuid() else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*begin, "true"], check=False).returncode:
        pytest.skip("a process without a network cannot be started here (unshare)")
    return begin


@pytest.mark.slow
def test_a_run_without_a_network_needs_nothing_more(here: Path) -> None:
    words = [word for word in TINY if word != "evaluation=none"]
    fetched = launch("prefetch", *words, *MEASURED, "evaluation.download=false")
    assert fetched.status == 0, fetched.err
    assert "digits: 1437 train, 360 test examples" in fetched.out
    assert fetched.out.count("to be kept 60/60") == 2
    kept = sorted(Path(os.environ["BETASIGMA_CACHE"], "references").glob("*.pt"))
    assert len(kept) >= 3  # of 60 training images, 60 test images, and the floor's 20

    done = subprocess.run(
        [*offline(), sys.executable, str(ROOT / "train.py"), *words, *MEASURED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fd_efficientnet_lite0" in done.stdout
    assert "to be kept" not in done.stdout
    assert sorted(Path(os.environ["BETASIGMA_CACHE"], "references").glob("*.pt")) == kept


@pytest.mark.slow
def test_a_run_compiles_nothing_that_was_compiled_before(here: Path) -> None:
    small = ("network.width=8", "network.depth=1", "batch_size=16", "evaluation=none")
    few = ("steps=1", "data.val_size=16", "training.num_samples=16", "logger=none")
    words = ("data=mixture", *small, *few, "hardware=cpu", "hardware.compile=true")
    fetched = launch("prefetch", *words)
    assert fetched.status == 0, fetched.err
    assert "kernels   for the CPU, in" in fetched.out
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert launch("train", *words, "sampler=ddim", "sampler.steps=2").status == 0
    counted = torch._dynamo.utils.counters["inductor"]
    assert counted["fxgraph_cache_hit"] > 0
    assert counted["fxgraph_cache_miss"] == 0


def test_kernels_are_kept_in_the_project_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert kernel_folder() == Path("/elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("BETASIGMA_CACHE", "/scratch")
    assert kernel_folder() == Path("/scratch/compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as import torchvision does
    assert kernel_folder() == Path("/scratch/compiled")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_where_gpus_are_is_not_where_runs_are_prepared(here: Path) -> None:
    """As on a login node."""
    fetched = launch("prefetch", *TINY, "hardware=gpu")
    assert fetched.status == 0, fetched.err
    assert "kernels   none: there is no GPU here" in fetched.out


def test_a_run_that_is_too_short_to_measure_is_told_from_one_that_asks_for_nothing(
    here: Path,
) -> None:
    words = [word for word in TINY if word not in ("evaluation=none", "sampler.steps=2")]
    fetched = launch("prefetch", *words, "sampler.steps=50", "steps=1", "hardware.compile=false")
    assert fetched.status == 0, fetched.err
    assert "metrics   none: so short a training ends with none (evaluation.n=500" in fetched.out


def test_what_cannot_be_fetched_is_said(here: Path) -> None:
    refused = launch("prefetch", *TINY, "data=image_folder", "data.root=nowhere")
    assert refused.status == 1
    assert refused.err.startswith("error: data.root=nowhere")
    assert refused.err.count("\n") == 1
