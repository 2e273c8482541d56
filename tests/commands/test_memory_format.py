"""Which memory format a network gets on a processor that no rule is known for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import TINY, launch

from betasigma.commands import memory_format
from betasigma.commands.memory_format import choose_memory_format
from betasigma.denoiser import Denoiser
from betasigma.networks.unet import UNet
from betasigma.preconditioning import Preconditioning
from betasigma.schedules import linear

HARDWARE = {
    **{"channels_last": "auto", "deterministic": False, "accelerator": "cpu"},
    **{"devices": 1, "nodes": 1},
}


@pytest.fixture(autouse=True)
def _avx2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BETASIGMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(memory_format, "WORTH", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What was measured: whether a training. Channels last takes half as long again."""
    asked: list[bool] = []

    def slower(denoiser: Denoiser, trains: bool) -> dict[bool, float]:
        asked.append(trains)
        return {False: 2.0, True: 3.0}

    monkeypatch.setattr(memory_format, "_measured", slower)
    return asked


def model(channels_last: bool = True, **options: int) -> Denoiser:
    network = UNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=(), **options)
    denoiser = Denoiser(network, linear(), Preconditioning(levels=1000), (1, 8, 8), **options)
    return denoiser.to(memory_format=torch.channels_last) if channels_last else denoiser


def is_last(denoiser: Denoiser) -> bool:
    weights = [p for p in denoiser.parameters() if p.ndim == 4 and p.shape[1] > 1 < p.shape[2]]
    found = {p.is_contiguous(memory_format=torch.channels_last) for p in weights}
    assert len(found) == 1
    return found.pop()


def test_it_is_measured_once_and_kept(measured: list[bool]) -> None:
    told: list[str] = []
    for _ in range(3):
        denoiser = model()
        choose_memory_format(denoiser, HARDWARE, True, told.append)
        assert not is_last(denoiser)
    assert measured == [True]
    faster = "memory format: the default one, 1.50 × as fast as channels last"
    assert told == [f"{faster}; kept for this processor"]


def test_another_network_is_another_question(measured: list[bool]) -> None:
    for options in ({}, {"num_classes": 3}, {}):
        choose_memory_format(model(**options), HARDWARE, True, lambda _: None)
    assert measured == [True, True]


@pytest.mark.parametrize(
    ("words", "capability", "trains"),
    [
        ({"channels_last": True}, "AVX2", True),
        ({"deterministic": True}, "AVX2", True),  # one format, whatever the machine did meanwhile
        ({"devices": 2}, "AVX2", True),  # whose formats must be the same
        ({}, "AVX512", True),
        ({}, "AVX2", False),
    ],
)
def test_the_rule_holds_where_there_is_one(monkeypatch, measured, words, capability, trains):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    denoiser = model()
    choose_memory_format(denoiser, {**HARDWARE, **words}, trains, lambda _: None)
    assert (measured, is_last(denoiser)) == ([], True)


def test_on_an_unknown_processor_sampling_is_measured_too(monkeypatch, measured):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    for trains in (False, True, False):
        choose_memory_format(model(), HARDWARE, trains, lambda _: None)
    assert measured == [False, True]


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("classes", [0, 3])
def test_measuring_leaves_all_as_it_was(monkeypatch, trains: bool, classes: int) -> None:
    monkeypatch.setattr(memory_format, "SECONDS", 0.0)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    denoiser, told = model(num_classes=classes), []
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    generator = torch.get_rng_state()
    choose_memory_format(denoiser, HARDWARE, trains, told.append)
    assert torch.equal(torch.get_rng_state(), generator)
    after = denoiser.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in denoiser.parameters())
    (sentence,) = told
    assert is_last(denoiser) == sentence.startswith("memory format: channels last")


def test_a_cache_that_cannot_be_written_is_no_end(monkeypatch, tmp_path, measured) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BETASIGMA_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        choose_memory_format(model(), HARDWARE, True, lambda _: None)
    assert measured == [True, True]


def test_a_command_takes_what_was_measured(here: Path, measured: list[bool]) -> None:
    words = ("hardware.precision=32", "hardware.deterministic=false")
    first, second = (launch("train", *TINY, *words) for _ in range(2))
    assert (first.status, second.status, measured) == (0, 0, [True]), first.err
    assert "memory format: the default one" in first.out
    assert "memory format" not in second.out
