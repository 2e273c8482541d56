"""Build the objects of a run from its config: data, denoiser, sampler, objective, module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from betasigma.build import Config, make
from betasigma.commands.config import learns_variance, trains
from betasigma.data import toy
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError, first_line
from betasigma.modules import DiffusionModule, MeasuredModule
from betasigma.modules.learning_rate import LearningRate, after_warmup
from betasigma.objectives import Objective
from betasigma.options.base import parse_component
from betasigma.options.plugins import locate, not_arguments, other_signature, takes
from betasigma.oracles import EmpiricalDenoiser, ExactDenoiser, GaussianMixture
from betasigma.samplers import Sampler
from betasigma.schedules import NoiseSchedule


def make_data(config: Config) -> ImageDataModule:
    """Make the datamodule, with images in the model's value range."""
    return make(
        config["data"],
        "data",
        batch_size=config["batch_size"],
        seed=config["seed"],
        value_range=config["model"]["value_range"],
    )


def open_data(config: Config) -> ImageDataModule:
    """Make the datamodule, with what it fetches at hand and its splits open."""
    data = make_data(config)
    data.prepare_data()
    data.setup()
    return data


def make_oracle(config: Config, data: ImageDataModule) -> ExactDenoiser:
    """Make the exact denoiser of a mixture, or the ideal denoiser of the training images.

    With ``data.flip`` the mirrored images count as training images too. The denoiser knows class
    labels if ``network.num_classes`` is set.

    Raises:
        UserError: if the images are not held in memory.
    """
    schedule = make_schedule(config["schedule"])
    labelled = bool(config["network"]["num_classes"])
    if data.facts.has_density:
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
    """Make an untrained denoiser. Its weights are a function of ``seed``."""
    schedule = make_schedule(config["schedule"])
    options = parse_component("network", config["network"])
    offered = {
        "levels": schedule.levels,
        "value_range": value_range,
        **options.shape_arguments(sample_shape, learns_variance(config)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = make(config["network"], "network", offered=offered, kind=nn.Module)
    if signature := other_signature(network.forward, "x", "c_noise", "y"):
        raise UserError(
            f"network._target_={config['network']['_target_']} has forward{signature}, and a "
            f"network is called as forward(x, c_noise, y): images or points, a number each, labels "
            f"or None"
        )
    objective = parse_component("objective", config["objective"])
    return Denoiser(
        network,
        schedule,
        make(config["preconditioning"], "preconditioning", offered={"levels": schedule.levels}),
        sample_shape=sample_shape,
        value_range=value_range,
        num_classes=options.num_classes,
        trained_on="levels" if objective.times == "levels" else "continuous",
        off_levels=config["denoiser"]["off_levels"],
        precision=precision,
    )


def make_schedule(node: Config) -> NoiseSchedule:
    """Make the noise schedule of a ``schedule`` node."""
    return make(node, "schedule", kind=NoiseSchedule)


def make_sampler(node: Config) -> Sampler:
    """Make the sampler of a ``sampler`` node."""
    return make(node, "sampler", kind=Sampler)


def make_objective(config: Config, schedule: NoiseSchedule) -> Objective:
    """Make the training objective. One with an argument ``true_score`` gets the mixture's."""
    offered = {}
    if config["data"]["name"] == "mixture":
        truth = toy.mixture(config["data"]["mixture"])
        oracle = GaussianMixture(truth.weights, truth.means, truth.covariances, schedule)

        def true_score(x_t: Tensor, t: Tensor) -> Tensor:
            return oracle.to(x_t.device)(x_t, t).score

        offered["true_score"] = true_score
    return make(config["objective"], "objective", offered=offered, kind=Objective)


def make_module(config: Config, denoiser: Denoiser | ExactDenoiser) -> MeasuredModule:
    """The LightningModule that trains ``denoiser``, or holds it where there is nothing to train."""
    read = not_arguments("model")
    node = {key: value for key, value in config["model"].items() if key not in read}
    if not trains(config):
        return make(node, "model", denoiser=denoiser)
    if not any(parameter.requires_grad for parameter in denoiser.parameters()):
        network = config["network"]["_target_"]
        raise UserError(f"network._target_={network} has no parameters to train")
    return make(
        node,
        "model",
        denoiser=denoiser,
        objective=make_objective(config, denoiser.schedule),
        optimizer=lambda parameters: make_optimizer(config["optimizer"], list(parameters)),
        seed=config["seed"],
        warmup=config["training"]["warmup"],
        decay=config["ema"]["decay"],
        compile=False if config["hardware"]["compile"] == "auto" else config["hardware"]["compile"],
        offered={"lr_schedule": make_lr_schedule(config)},
        kind=DiffusionModule,
    )


def make_optimizer(node: Config, parameters: list[nn.Parameter]) -> Optimizer:
    """Make the optimizer of these parameters."""
    offered = {"fused": True} if node["_target_"] in FUSED else {}
    try:
        return make(node, "optimizer", offered=offered, params=parameters)
    except ValueError as error:  # its own: it does not take such parameters, or such a rate
        raise UserError(
            f"optimizer._target_={node['_target_']} cannot be made: {first_line(error)}"
        ) from error


def make_lr_schedule(config: Config) -> LearningRate:
    """The schedule of the learning rate, its warm-up included."""
    node, warmup = config["lr_schedule"], config["training"]["warmup"]
    length = parse_component("lr_schedule", node).length_in(config["steps"], warmup)

    def schedule(optimizer: Optimizer) -> LRScheduler:
        return make(
            {**node, **length},
            "lr_schedule",
            offered={"warmup": warmup},
            kind=LRScheduler,
            optimizer=optimizer,
        )

    if takes(locate(node["_target_"], "lr_schedule"), "warmup"):
        return lambda optimizer, _: schedule(optimizer)
    return after_warmup(schedule)


FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")
"""Optimizers with a fused kernel on CPUs and GPUs alike."""
