"""score_sde_pytorch: its checkpoints, and its ``DDPM`` (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar

from torch import Tensor

from betasigma.errors import UserError
from betasigma.published import config_nodes
from betasigma.published.config_nodes import Node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings, integers
from betasigma.published.unet_weights import Tensors, UNetShape, Weights, attending
from betasigma.published.weight_file import WeightFile, checked_averages, checked_tensors

PREFIX = "module."
"""Of the names, by ``DataParallel``."""

BUFFERS = ("sigmas",)
"""Tensors of the model that are no parameters."""

SDES = {"vpsde": "vp_sde", "subvpsde": "sub_vp_sde"}
"""Schedules of models that were trained on every t."""

OF_CIFAR10_VE: Settings = {
    "sde": "vesde",
    "centered": False,
    "scale_by_sigma": True,
    "data": "cifar10",
}
"""What its models of the VE SDE on CIFAR-10 have in common."""

FIXED = ("all_modules.0.W",)
"""Parameters that are not trained, of which no average is kept: Fourier frequencies."""

FREQUENCIES = "conditioning.features.frequencies"
"""Our name for them."""

FIRST = ("conditioning.hidden", "conditioning.out", "enter")
"""Our names of the first layers, in the order of the model."""

BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "shift",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
}
"""Layers of a residual block, and our names."""


def is_score_sde(source: WeightFile) -> bool:
    """Whether a file is a checkpoint of score_sde_pytorch, of whatever model."""
    content = source.content
    return (
        isinstance(content, dict)
        and isinstance(content.get("model"), dict)
        and isinstance(content.get("ema"), dict)
        and any(str(name).startswith(f"{PREFIX}all_modules.") for name in content["model"])
    )


def averaged_weights(source: WeightFile) -> dict[str, Tensor]:
    """The averaged parameters by their names in the model, without ``module.``.

    A checkpoint has them as a list, in the order of the model's trained parameters.

    Raises:
        UserError: where the two do not fit each other.
    """
    model = checked_tensors(source.content["model"], source)
    raw = {k.removeprefix(PREFIX): v for k, v in model.items()}
    fixed = {name: raw.pop(name) for name in FIXED if name in raw}
    raw = {name: value for name, value in raw.items() if name not in BUFFERS}
    averages = source.content["ema"].get("shadow_params")
    if not isinstance(averages, list) or len(averages) != len(raw):
        raise UserError(
            f"{source.named} has {len(raw)} parameters, and "
            f"{len(averages) if isinstance(averages, list) else 'no'} averages of them"
        )
    return checked_averages(dict(zip(raw, averages, strict=True)), raw, source) | fixed


def trained_steps(source: WeightFile) -> int:
    """The step that a checkpoint has written down."""
    step = source.content.get("step")
    return step if isinstance(step, int) else 0


class ScoreSdeDDPM(ModelFormat):
    """The U-Net of Ho et al. by score_sde_pytorch, on DDPM's levels, on the VP SDE or on the levels
    of the VE SDE.
    """

    name = "score_sde-ddpm"
    origin = "https://github.com/yang-song/score_sde_pytorch"
    licence = "Apache-2.0"
    defaults: ClassVar[Settings] = {
        "image_size": 32,
        "nf": 128,
        "ch_mult": "1,2,2,2",
        "num_res_blocks": 2,
        "attn_resolutions": "16",
        "dropout": 0.1,
        "centered": True,
        "scale_by_sigma": False,
        "sde": "vpsde",
        "continuous": False,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "snr": 0.16,
        "num_scales": 1000,
    }
    _LARGE: ClassVar[Settings] = {"image_size": 256, "ch_mult": "1,1,2,2,4,4", "dropout": 0.0}
    _CONTINUOUS: ClassVar[Settings] = {"continuous": True, "data": "cifar10"}
    published: ClassVar[Mapping[str, Settings]] = {
        "vp/ddpm/cifar10": {"data": "cifar10"},
        "vp/cifar10_ddpm": {"data": "cifar10"},
        "vp/ddpm/cifar10_continuous": _CONTINUOUS,
        "vp/cifar10_ddpm_continuous": _CONTINUOUS,
        "subvp/cifar10_ddpm_continuous": {**_CONTINUOUS, "sde": "subvpsde"},
        "ve/cifar10_ddpm": OF_CIFAR10_VE,
        "vp/ddpm/celebahq": _LARGE,
        "vp/ddpm/bedroom": _LARGE,
        "vp/ddpm/church": _LARGE,
    }

    def detect(self, source: WeightFile) -> bool:
        if not is_score_sde(source):
            return False
        names = source.content["model"]
        first = names.get(f"{PREFIX}all_modules.0.weight")
        resampled = any(str(name).endswith(".Conv_2.weight") for name in names)
        return isinstance(first, Tensor) and first.ndim == 2 and not resampled

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        sdes = tuple(SDES) if settings["continuous"] else ("vpsde", "vesde")
        explodes = settings["sde"] == "vesde"
        read = {"sde": sdes, "centered": (not explodes,), "scale_by_sigma": (explodes,)}
        refuse_others(self.name, settings, read)
        size, multipliers = settings["image_size"], integers("ch_mult", settings["ch_mult"])
        sides = integers("attn_resolutions", settings["attn_resolutions"])
        shape = UNetShape(
            size,
            widths=[settings["nf"] * m for m in multipliers],
            blocks=settings["num_res_blocks"],
            attending=attending(size, len(multipliers), sides),
        )
        tensors = Tensors(averaged_weights(source), source)
        weights = _weights(shape, tensors)
        tensors.finish()
        network = shape.network(dropout=settings["dropout"])
        config = (_ve_config if explodes else vp_config)(network, settings)
        return PublishedModel(config, weights, (size, size), trained_steps(source))


def refuse_others(name: str, settings: Settings, read: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse settings that ours does not compute."""
    for key, values in read.items():
        if settings[key] not in values:
            raise UserError(
                f"flags.{key}={settings[key]} of {name} is not read: only "
                f"{' or '.join(map(str, values))}, with sde={settings['sde']} and "
                f"continuous={settings['continuous']}"
            )


def vp_config(network: Node, settings: Settings) -> Node:
    """The discrete levels of DDPM; or, of a continuous model, the VP or the sub-VP SDE, whose time
    it is told.
    """
    steps, low, high = settings["num_scales"], settings["beta_min"], settings["beta_max"]
    if settings["continuous"]:
        return config_nodes.sde_config(network, SDES[settings["sde"]], steps, low, high)
    schedule = config_nodes.schedule_node("linear", steps, low / steps, high / steps)
    return config_nodes.ddpm_config(network, schedule, variance="beta", clip=False)


def ve_config(network: Node, settings: Settings, **others: Any) -> Node:
    """A model of the VE SDE, sampled as they do."""
    sampler = {"_target_": "betasigma.samplers.PredictorCorrector", "snr": settings["snr"]}
    told = {
        "sigma_max": settings["sigma_max"],
        "sigma_min": settings["sigma_min"],
        "conditioning": "log_sigma" if settings["continuous"] else "level_number",
    }
    return config_nodes.ncsn_config(
        network, settings["num_scales"], sampler=sampler, **{**told, **others}
    )


def _ve_config(network: Node, settings: Settings) -> Node:
    """Images in [0, 1] that the network sees as 2x − 1: images in [−1, 1] at twice the noise."""
    ends = {f"sigma_{end}": 2 * settings[f"sigma_{end}"] for end in ("max", "min")}
    return ve_config(network, settings, value_range=(-1.0, 1.0), **ends)


def _weights(shape: UNetShape, tensors: Tensors) -> Weights:
    """All weights of the network; the layers are numbered as they compute."""
    layers = numbered_layers()

    def part(side: str, level: int, block: int | None) -> Weights:
        layer = next(layers)
        if block is None:
            return tensors.layer(f"{layer}.Conv_0", "conv")
        found = tensors.layers(f"{layer}.", BLOCK)
        if f"{layer}.NIN_0.W" in tensors:
            found |= _one_by_one(tensors, f"{layer}.NIN_0", "shortcut", (1, 1))
        # on the way up, one layer attends at each resolution: the last
        attends = {
            "down": shape.attending[level],
            "middle": block == 0,
            "up": shape.attending[level] and block == shape.blocks,
        }[side]
        return found | attention_weights(tensors, next(layers)) if attends else found

    weights: Weights = {}
    for name in FIRST:
        weights |= tensors.layer(next(layers), name)
    weights |= shape.weights(part)
    for name in ("leave.0", "leave.2"):
        weights |= tensors.layer(next(layers), name)
    return weights


def numbered_layers() -> Iterator[str]:
    """Names of layers in the order in which they compute."""
    return (f"all_modules.{number}" for number in count())


def attention_weights(tensors: Tensors, layer: str) -> Weights:
    """Weights of ``AttnBlock`` and ``AttnBlockpp``."""
    found = tensors.layer(f"{layer}.GroupNorm_0", "attention.norm")
    for i, ours in enumerate(("q", "k", "v", "attention.out")):
        found |= _one_by_one(tensors, f"{layer}.NIN_{i}", ours)
    return tensors.joined(found)


def _one_by_one(tensors: Tensors, layer: str, ours: str, pixel: tuple[int, ...] = ()) -> Weights:
    """A matrix on channels, whose transpose is a linear layer or a convolution of a pixel."""
    weight = tensors.take(f"{layer}.W").T.contiguous()
    return {
        f"{ours}.weight": weight.reshape(*weight.shape, *pixel),
        f"{ours}.bias": tensors.take(f"{layer}.b"),
    }
