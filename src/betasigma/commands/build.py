"""From a config to objects.

``_target_`` names a class. Configs come from the command line, but also from the checkpoint of a
stranger, so only classes and functions that this project itself defines (and optimizers of
torch.optim) are made: the name is resolved and what it resolves to must live there, not merely be
reachable from there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from betasigma.commands.schema import EXPLICIT, learns_variance, trains
from betasigma.data import toy
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.modules import MeasuredModule
from betasigma.objectives import Objective
from betasigma.oracles import EmpiricalDenoiser, ExactDenoiser, GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import Sampler
from betasigma.schedules import NoiseSchedule

Config = dict[str, Any]


def make(node: Config, **extra: Any) -> Any:
    """What ``_target_`` names, called with the node's other keys and ``extra``.

    Raises:
        UserError: where it is not one of the project's own or an optimizer of torch.optim.
    """
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    return _locate(str(node["_target_"]))(**arguments, **extra)


def _locate(target: str) -> Callable[..., Any]:
    """Class or function ``package.module.name``, found without walking through foreign modules."""
    module_name, _, name = target.rpartition(".")
    found = None
    if module_name.partition(".")[0] == "betasigma" or module_name == "torch.optim":
        with suppress(ImportError):
            found = getattr(importlib.import_module(module_name), name, None)
    owner = getattr(found, "__module__", None) or ""
    own = owner.partition(".")[0] == "betasigma" or owner.startswith("torch.optim")
    if not own or not (inspect.isclass(found) or inspect.isfunction(found)):
        raise UserError(
            f"_target_={target} is not a class of betasigma (or an optimizer of torch.optim); "
            f"nothing else is run from a config or a checkpoint"
        )
    return found


def make_data(config: Config) -> ImageDataModule:
    """The datamodule, in the model's value range."""
    return make(
        config["data"],
        batch_size=config["batch_size"],
        seed=config["seed"],
        value_range=config["model"]["value_range"],
    )


def make_oracle(config: Config, data: ImageDataModule) -> ExactDenoiser:
    """The exact denoiser of a mixture, or the ideal one of the training images, mirrored ones
    too where training would see them; its classes are those of ``network.num_classes``.

    Raises:
        UserError: where the images are not held in memory.
    """
    schedule: NoiseSchedule = make(config["schedule"])
    labelled = bool(config["network"]["num_classes"])
    if not data.has_pixels:
        truth = toy.mixture(config["data"]["mixture"])
        parameters = (truth.weights, truth.means, truth.covariances)
        return GaussianMixture(*parameters, schedule, data.value_range, labelled)
    images = data.from_uint8(data.tensor("train"))
    labels = data.labels("train") if labelled else None
    if data.flip:
        images = torch.cat([images, images.flip(-1)])
        labels = None if labels is None else labels.repeat(2)
    return EmpiricalDenoiser(images, schedule, labels, data.value_range)


def make_denoiser(
    config: Config,
    sample_shape: tuple[int, ...],
    value_range: tuple[float, float],
    precision: torch.dtype | None = None,
) -> Denoiser:
    """An untrained denoiser; its weights are a function of ``seed``."""
    schedule: NoiseSchedule = make(config["schedule"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = _make_network(config["network"], sample_shape, learns_variance(config))
    return Denoiser(
        network,
        schedule,
        Preconditioning(**config["preconditioning"], levels=schedule.levels),
        sample_shape=sample_shape,
        value_range=value_range,
        num_classes=config["network"]["num_classes"],
        trained_on="levels" if config["objective"]["times"] == "levels" else "continuous",
        off_levels=config["denoiser"]["off_levels"],
        precision=precision,
    )


def _make_network(node: Config, sample_shape: tuple[int, ...], doubled: bool) -> nn.Module:
    size = sample_shape[0]
    if len(sample_shape) == 1:
        return make(node, dim=size, **({"out_dim": 2 * size} if doubled else {}))
    outputs = {"out_channels": 2 * size} if doubled else {}
    return make(node, in_channels=size, image_size=sample_shape[1], **outputs)


def make_sampler(node: Config) -> Sampler:
    """The sampler of a config's ``sampler`` node."""
    return make(node)


def make_objective(config: Config, schedule: NoiseSchedule) -> Objective:
    """The training objective; explicit score matching is given the mixture's true score."""
    node = config["objective"]
    if node["_target_"] != EXPLICIT:
        return make(node)
    truth = toy.mixture(config["data"]["mixture"])
    oracle = GaussianMixture(truth.weights, truth.means, truth.covariances, schedule)

    def true_score(x_t: Tensor, t: Tensor) -> Tensor:
        return oracle.to(x_t.device)(x_t, t).score

    return make(node, true_score=true_score)


def make_module(config: Config, denoiser: Denoiser | ExactDenoiser) -> MeasuredModule:
    """The LightningModule that trains ``denoiser``, or holds it where there is nothing to train."""
    if not trains(config):
        return make({"_target_": config["model"]["_target_"]}, denoiser=denoiser)
    optimizer = config["optimizer"]
    fused = {"fused": True} if optimizer["_target_"] in FUSED else {}
    return make(
        {"_target_": config["model"]["_target_"]},
        denoiser=denoiser,
        objective=make_objective(config, denoiser.schedule),
        optimizer=lambda parameters: make({**optimizer, **fused}, params=list(parameters)),
        seed=config["seed"],
        warmup=config["training"]["warmup"],
        decay=config["ema"]["decay"],
        compile=config["hardware"]["compile"],
    )


FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")
"""Optimizers with a fused kernel on CPUs and GPUs alike."""
