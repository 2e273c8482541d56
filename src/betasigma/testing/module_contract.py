"""The contract of a LightningModule of one's own, a third family: it trains, averages and resumes
as the two that are built in.

A run that was stopped and resumed equals the one that never was, bit for bit, because everything
random is a function of (seed, step, index) and the checkpoint has all the rest. The averaged
weights are the model: without gradients, in evaluation mode, following the raw ones as the ramp
says.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from betasigma.modules import DiffusionModule
from betasigma.modules.averaging import ramped_decay
from betasigma.randomness import Stream
from betasigma.testing.contract import kind_of, require, require_equal

STEPS, BATCH = 4, 8


def check_module(build: Callable[[], DiffusionModule]) -> None:
    """Assert the contract of a module, by training it on noise on the CPU.

    Args:
        build: makes the module; called anew for each run, with torch's global generator seeded.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    module = _built(build)
    require(
        isinstance(module, DiffusionModule),
        "module.type",
        "a betasigma.modules.DiffusionModule",
        f"it is {kind_of(module)}",
    )
    require(
        isinstance(type(module).family, str) and bool(type(module).family),
        "module.family",
        "the class to name its family (family = 'rectified_flow')",
        f"family is {type(module).family!r}",
    )
    _check_average(module)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        _check_step(build)
        _check_resume(build, Path(folder))


class NoiseBatches(pl.LightningDataModule):
    """Batches of noise, a function of the step."""

    def __init__(self, module: DiffusionModule) -> None:
        super().__init__()
        denoiser = module.denoiser
        self.shape, self.num_classes = denoiser.sample_shape, denoiser.num_classes

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return _Steps(self, self.trainer)

    def batch(self, step: int) -> dict[str, Any]:
        index = torch.arange(BATCH)
        x = Stream("kit batch", step, indices=index).normal(self.shape)
        batch = {"x": x.clamp(-1, 1), "index": index, "step": step, "augment": True}
        return batch | ({"label": index % self.num_classes} if self.num_classes else {})


class _Steps:
    """An endless loader that starts at the trainer's step."""

    def __init__(self, data: NoiseBatches, trainer: pl.Trainer) -> None:
        self.data, self.trainer = data, trainer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.trainer.global_step
        while True:
            yield self.data.batch(step)
            step += 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of devices and loggers."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _built(build: Callable[[], DiffusionModule]) -> DiffusionModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _trained(
    build: Callable[[], DiffusionModule],
    steps: int,
    save: Path | None = None,
    resume: Path | None = None,
) -> DiffusionModule:
    module = _built(build)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with torch.random.fork_rng(devices=[]):
        trainer.fit(module, datamodule=NoiseBatches(module), ckpt_path=resume)
    if save is not None:
        trainer.save_checkpoint(save)
    return module


def _weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _check_average(module: DiffusionModule) -> None:
    require(
        not module.average.training
        and not any(p.requires_grad for p in module.average.parameters()),
        "module.average",
        "the averaged model in evaluation mode and without gradients",
        "it is in training mode or asks for gradients",
    )


def _check_step(build: Callable[[], DiffusionModule]) -> None:
    before, module = _built(build), _trained(build, 1)
    start, trained = _weights(before.denoiser), _weights(module.denoiser)
    require(
        bool(trained.isfinite().all()) and not torch.equal(start, trained),
        "module.trains",
        "one optimizer step to change the weights, to finite ones",
        "they are not finite" if not bool(trained.isfinite().all()) else "they are what they were",
    )
    mean = _weights(module.average)
    decay = ramped_decay(module._decay, 0)
    wanted = decay * start + (1 - decay) * trained
    expected = f"the average after one step to be {decay:.4g}·before + {1 - decay:.4g}·after"
    require_equal(mean, wanted, "module.average", expected, "it is off", 1e-6)


def _check_resume(build: Callable[[], DiffusionModule], folder: Path) -> None:
    whole = _trained(build, STEPS)
    _trained(build, STEPS // 2, save=folder / "half_way")
    resumed = _trained(build, STEPS, resume=folder / "half_way")
    for name in ("denoiser", "average"):
        require_equal(
            _weights(getattr(resumed, name)),
            _weights(getattr(whole, name)),
            "module.resume",
            f"a run resumed after {STEPS // 2} of {STEPS} steps to equal one that never stopped, "
            f"bit for bit",
            f"its {name} is off",
            tolerance=0,
        )
