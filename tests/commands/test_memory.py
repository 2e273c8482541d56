"""What will not fit into memory is refused before there is a run directory, with what would fit."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, launch
from torch import nn

from betasigma.commands import memory
from betasigma.networks.mlp import MLP
from betasigma.networks.ncsnpp import NCSNpp
from betasigma.networks.refinenet import RefineNet
from betasigma.networks.unet import UNet
from betasigma.options.base import parse_component

GIB = 2**30


@pytest.fixture
def small_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of 2 GiB, and without a GPU."""
    monkeypatch.setattr(memory, "_limits", lambda: iter([64 * GIB, 2 * GIB]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return here


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "batch_size=100000",
            r"batch_size=100000 needs at least [\d.]+ GB for a micro-batch of 100000, and this "
            r"machine has 2 GB: batch_size=\d+ would fit, or a larger training\.accumulate",
        ),
        (
            "network.channels=20000",
            r"network\.channels=20000 needs at least [\d,.]+ [GT]B .*: take a smaller network or",
        ),
        (
            "data.image_size=4096",
            r"data\.image_size=4096 needs at least 22.5 GB for 1437 im",
        ),
        (
            "hardware=cpu hardware.devices=16",
            r"hardware\.devices=16 needs at least 3.12 GB for",
        ),
        ("steps=1000000000000", r"steps=1000000000000 must be at most 1000000000"),
        ("sampler.steps=1000000000000", r"sampler\.steps=1000000000000 must be at most 1000000"),
        ("beta.steps=1000000000000", r"beta\.steps=1000000000000 must be at most 1000000"),
        ("network.blocks=1000000000", r"network\.blocks=1000000000 must be at most 1000"),
        ("data.workers=1000000000", r"data\.workers=1000000000 must be at most 1024"),
        (
            "sampler=annealed_langevin sampler.inner_steps=100000",
            r"sampler\.inner_steps=100000 at each of 1000 noise levels are more than 1,000,000 "
            r"steps: give sampler\.inner_steps=1000 or fewer",
        ),
    ],
)
def test_training(small_machine: Path, words: str, sentence: str) -> None:
    kept = [word for word in TINY if not word.startswith("sampler.steps")]
    refused = launch("train", *kept, "network.channels=32", "network.blocks=2", *words.split())
    assert refused.status == 1
    assert re.match(f"error: {sentence}", refused.err), refused.err
    assert refused.err.count("\n") == 1
    assert not list(small_machine.iterdir())


def test_what_is_said_to_fit_is_not_refused(small_machine: Path) -> None:
    words = [word for word in TINY if not word.startswith("batch_size")]
    refused = launch("train", *words, "network.channels=64", "batch_size=100000")
    fits = re.search(r"(batch_size=\d+) would fit", refused.err)
    assert fits, refused.err
    other = launch("train", *words, "network.channels=64", fits[1], "steps=0")
    assert other.err.startswith("error: steps=0"), other.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "sample n=6000000 hardware=ddp hardware.accelerator=cpu",
            r"drawing 6,000,000 samples .* needs at least .* among several processes, .* save=fold",
        ),
        (
            "sample n=10000000",
            r"drawing 10,000,000 samples .* save=folder",
        ),
        ("sample n=10000000 save=folder batch_size=10000000", r"batch_size=10000000 needs at leas"),
        ("sample n=1000000000000", r"n=1000000000000 must be at most 10000000"),
        ("evaluate n=1000000000000", r"n=1000000000000 must be at most 10000000"),
        (
            "evaluate n=10000000 evaluation.batch_size=10000000",
            r"evaluation\.batch_size=10000000 needs at least",
        ),
    ],
)
def test_drawing(small_machine: Path, ddpm_run: Path, words: str, sentence: str) -> None:
    app, *keys = words.split()
    refused = launch(app, f"run={ddpm_run}", *keys)
    assert refused.status == 1
    assert re.match(f"error: {sentence}", refused.err), refused.err
    assert not list(small_machine.iterdir())


UNET = {"multipliers": [1, 2, 2], "blocks": 2, "attention": [], "channels": 32}
NETWORKS: list[tuple[type[nn.Module], str, dict[str, Any]]] = [
    (UNet, "betasigma.networks.unet.UNet", UNET),
    (UNet, "betasigma.networks.unet.UNet", {**UNET, "blocks": 1, "attention": [8]}),
    (UNet, "betasigma.networks.unet.UNet", {**UNET, "resampling": "residual", "channels": 64}),
    (NCSNpp, "betasigma.networks.ncsnpp.NCSNpp", {**UNET, "blocks": 4}),
    pytest.param(
        RefineNet,
        "betasigma.networks.refinenet.RefineNet",
        {"channels": 32},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("network", "target", "arguments"), NETWORKS)
def test_an_estimate_is_a_bound_from_below(
    network: type[nn.Module], target: str, arguments: dict[str, Any]
) -> None:
    """Against what PyTorch keeps of one example more, on a device that holds no numbers."""
    shape = (3, 32, 32)
    more = {"levels": 10} if network is RefineNet else {}
    with torch.device("meta"):
        made = network(in_channels=3, image_size=32, **arguments, **more)
    weights = sum(p.numel() for p in made.parameters())
    found = parse_component("network", {"_target_": target, **arguments}).size(shape)
    assert weights / 4 < found.weights <= weights

    def kept(examples: int) -> int:
        numbers = dict[int, int]()

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()  # several views of one are kept once
            numbers[storage._cdata] = storage.nbytes() // tensor.itemsize
            alive.append(storage)
            return tensor

        alive: list[torch.UntypedStorage] = []
        x = torch.zeros(examples, *shape, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            made(x, torch.zeros(examples, device="meta")).sum()
        return sum(numbers.values())

    an_example = kept(3) - kept(2)
    assert an_example / 4 < found.kept <= an_example
    assert 2 * found.widest < an_example


def test_points() -> None:
    target = {"_target_": "betasigma.networks.mlp.MLP", "width": 64, "depth": 3}
    found = parse_component("network", target).size((2,))
    weights = sum(p.numel() for p in MLP(2, width=64, depth=3).parameters())
    assert weights / 4 < found.weights <= weights


def test_the_limits_of_this_machine_are_read() -> None:
    found = list(memory._limits())
    assert all(limit > 0 for limit in found)
    assert math.log2(min(found)) > 28
