"""``hardware.strategy=fsdp`` trains to the same weights, and its checkpoints are any run's."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import launch, typed
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn

from betasigma.denoiser import Denoiser
from betasigma.modules import DDPM
from betasigma.modules.averaging import is_in_parts, whole
from betasigma.networks.refinenet import RefineNet
from betasigma.networks.unet import UNet
from betasigma.objectives import Denoising
from betasigma.preconditioning import Preconditioning
from betasigma.runs.checkpoint import read
from betasigma.runs.header import LAST, PREVIOUS
from betasigma.schedules import linear
from betasigma.training.fully_sharded import FullySharded, blocks

ROOT = Path(__file__).resolve().parents[2]

WORDS = (
    "network.channels=8",
    "network.blocks=1",
    "network.attention=[4]",
    "batch_size=32",
    "hardware.precision=32",
    "hardware.accelerator=cpu",
    "training.validate_every=2",
    "training.log_every=2",
    "training.sample_every=2",
    "training.num_samples=4",
    "training.warmup=2",
    "ema.decay=0.5",
    "sampler=ddim",
    "sampler.steps=2",
    "data.val_size=33",  # shared unevenly
    "evaluation.extractor=identity",
    "evaluation.n=71",
    "logger=none",
)
ONE, TWO = ("hardware.devices=1",), ("hardware.strategy=fsdp", "hardware.devices=2")


def train(run: Path, *words: str) -> dict:
    """The last checkpoint of ``python train.py`` in this run directory, here where it is one
    process.
    """
    own = (f"hydra.run.dir={run}", *WORDS, *words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("BETASIGMA_CACHE", str(run.parent / "cache"))
        done = launch("train", *own) if set(ONE) <= set(words) else typed(*own)
    assert done.status == 0, done.out + done.err
    return read(run / "checkpoints" / "last.ckpt")


def assert_equal(a, b, exact: bool) -> None:
    """The weights, and all that the optimizer keeps of them."""
    assert a["state_dict"].keys() == b["state_dict"].keys()
    (one,), (other,) = a["optimizer_states"], b["optimizer_states"]
    assert one["state"].keys() == other["state"].keys()
    pairs = [(a["state_dict"][name], b["state_dict"][name], name) for name in a["state_dict"]]
    pairs += [
        (value, other["state"][number][key], f"{key} of {number}")
        for number, state in one["state"].items()
        for key, value in state.items()
    ]
    for mine, theirs, what in pairs:
        assert type(theirs) is torch.Tensor
        close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(mine, theirs, **close, msg=what)


@pytest.mark.slow
def test_parts_train_as_the_whole_and_go_on_exactly(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", *ONE, "steps=4")
    shared = train(tmp_path / "shared", *TWO, "steps=4", "training.checkpoint_every=2")
    assert_equal(alone, shared, exact=False)
    for name in ("stopped", "fewer"):  # after two steps
        checkpoints = Path(shutil.copytree(tmp_path / "shared", tmp_path / name)) / "checkpoints"
        (checkpoints / PREVIOUS).replace(checkpoints / LAST)
    # another command than before: both processes must see that they save at other steps now
    again = train(tmp_path / "stopped", *TWO, "steps=4")
    assert_equal(shared, again, exact=True)
    on_one = train(tmp_path / "fewer", *ONE, "steps=4")
    assert_equal(alone, on_one, exact=False)


def test_weights_are_in_parts_before_they_move_to_the_device_and_validate_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet = UNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=())
    model = Denoiser(unet, linear(steps=100), Preconditioning(levels=100), sample_shape=(1, 8, 8))
    module = DDPM(model, Denoising(), partial(torch.optim.Adam, lr=1e-3))
    expected = copy.deepcopy(module.state_dict())
    cpu = torch.device("cpu")
    strategy = FullySharded(accelerator=CPUAccelerator(), parallel_devices=[cpu])
    strategy.connect(module)
    seen: list[bool] = []

    def move(self: DDPStrategy, trainer: object) -> None:
        seen.extend(is_in_parts(p) for p in unet.parameters())

    monkeypatch.setattr(DDPStrategy, "setup", move)  # moves what it finds
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        strategy.setup(trainer)
        monkeypatch.undo()
        trainer.state.fn = TrainerFn.VALIDATING  # as after the last step of a run that was killed
        strategy.setup(trainer)
        found = {name: whole(value) for name, value in module.state_dict().items()}
    finally:
        torch.distributed.destroy_process_group()
    assert seen
    assert all(seen)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_blocks_are_what_computes_between_the_ends() -> None:
    unet = UNet(1, 8, channels=8, multipliers=(1, 2), blocks=1, attention=())
    found = blocks(unet)
    assert found
    assert not any(isinstance(block, nn.ModuleList) for block in found)
    inside = sum(p.numel() for block in found for p in block.parameters())
    assert inside > 0.8 * sum(p.numel() for p in unet.parameters())
    nested = blocks(RefineNet(1, 8, channels=8))
    assert not any(isinstance(block, nn.ModuleList) for block in nested)
