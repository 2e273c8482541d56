"""What depends on the machine: its GPUs, and what has started processes on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from omegaconf import DictConfig, OmegaConf

from betasigma.errors import UserError
from betasigma.launch.preflight import check_machine, fit_processes
from betasigma.runs.checkpoint import HEADER, read, save
from betasigma.runs.status import TORCHRUN, StartedBy, read_status


def config(**hardware: Any) -> DictConfig:
    """The hardware of ``hardware=ddp``, and what else is given."""
    return OmegaConf.create(
        {"hardware": {"accelerator": "auto", "devices": 2, "nodes": 1, **hardware}}
    )


@pytest.mark.parametrize(("nodes", "devices"), [(1, 8), (2, 4)])
def test_torchrun_says_how_many_devices_there_are(nodes: int, devices: int) -> None:
    found = config(nodes=nodes)
    words = ["hardware=ddp", f"hardware.nodes={nodes}"]
    assert fit_processes(found, StartedBy("torchrun", 8), words) == [f"hardware.devices={devices}"]
    assert found.hardware.devices == devices


def test_a_number_that_is_typed_must_be_that_of_the_processes() -> None:
    with pytest.raises(UserError, match=r"hardware\.devices=2 and .* torchrun has started 8: make"):
        fit_processes(config(), StartedBy("torchrun", 8), ["hardware.devices=2"])


def test_torchrun_may_start_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TORCHRUN, "tests")
    found = config()
    fit_processes(found, None, ["hardware=ddp"])
    assert found.hardware.devices == 1


def test_a_run_is_continued_by_as_many_processes_as_there_are(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_status(ddpm_run)
    monkeypatch.setenv(TORCHRUN, "tests")
    monkeypatch.setenv("WORLD_SIZE", "3")
    refused = launch("train", f"resume={ddpm_run}", "steps=1000")
    assert refused.err.startswith("error: batch_size=")
    assert "on each of 3 devices" in refused.err
    assert read_status(ddpm_run) == before


def test_a_run_of_several_machines_is_continued_on_as_many(
    copy_of_ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = copy_of_ddpm_run / "checkpoints" / "last.ckpt"
    content = read(last)
    content[HEADER]["config"]["hardware"] |= {"nodes": 2, "devices": 2}
    save(content, last)
    monkeypatch.setenv(TORCHRUN, "tests")
    monkeypatch.setenv("WORLD_SIZE", "6")
    refused = launch("train", f"resume={copy_of_ddpm_run}", "steps=1000")
    assert refused.err.startswith("error: batch_size=")
    assert "on each of 6 devices" in refused.err


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
def test_more_devices_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    check_machine(config(devices=3, accelerator=accelerator))
    sentence = r"hardware\.devices=4 are more GPUs than .* give hardware\.devices=3 or fewer, or gi"
    with pytest.raises(UserError, match=sentence):
        check_machine(config(devices=4, accelerator=accelerator))
    monkeypatch.setenv(TORCHRUN, "tests")  # which decides how many there are
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="than this machine has: have torchrun start 3 or fewer on"):
        check_machine(config(devices=4, accelerator=accelerator))


def test_the_cpu_has_as_many_processes_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_machine(config(devices=4))
