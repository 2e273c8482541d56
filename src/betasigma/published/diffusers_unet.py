"""``UNet2DModel`` of diffusers, with the config of its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from betasigma.errors import UserError
from betasigma.published.config_nodes import Node, ddpm_config, schedule_node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.unet_weights import Tensors, UNetShape, Weights, cosines_first
from betasigma.published.weight_file import WeightFile

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "shift",
    "norm2": "norm2",
    "conv2": "conv2",
}
"""Layers of a residual block, and our names."""

LAYERS = {
    "conv_in": "enter",
    "time_embedding.linear_1": "conditioning.hidden",
    "time_embedding.linear_2": "conditioning.out",
    "conv_norm_out": "leave.0",
    "conv_out": "leave.2",
}
"""The first and the last layers, and our names."""

BLOCKS = (
    *("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    *("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
"""Kinds of a level."""

ATTENTION = (
    {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "attention.out"},
    {"query": "q", "key": "k", "value": "v", "proj_attn": "attention.out"},
)
"""Projections of attention as they are named now and were before version 0.15, and our names."""

FIXED: Settings = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "class_embed_type": None,
}
"""Settings of the U-Net that ours has no other value for."""

DEFAULTS: Settings = {
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
    "in_channels": 3,
    "out_channels": 3,
}
"""What diffusers takes where an older config says nothing."""

SCHEDULER: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
    "_class_name": "DDPMScheduler",
}
"""The same of a scheduler, DDPM's where there is none."""

DETERMINISTIC = ("DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler")
"""Schedulers in whose place DDIM samples."""

SCHEDULERS = (
    *DETERMINISTIC,
    *("DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
"""Schedulers of models with DDPM's noise levels. Consistency models, flows and EDM have the same
U-Net, and others.
"""

SCHEDULES = {"linear": "linear", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned_range": "learned",
}


class DiffusersUNet(ModelFormat):
    """A folder with ``config.json`` of a ``UNet2DModel``, or a pipeline's with ``unet`` and
    ``scheduler``.
    """

    name = "diffusers"
    origin = "https://github.com/huggingface/diffusers"
    licence = "Apache-2.0"
    published: ClassVar = {
        f"ddpm-{ema}{what}-{size}": {"licence": "Apache-2.0", **({"data": data} if data else {})}
        for what, size, data in (
            ("cifar10", 32, "cifar10"),
            ("celebahq", 256, None),
            ("bedroom", 256, None),
            ("church", 256, None),
            ("cat", 256, None),
        )
        for ema in ("", "ema-")
    }

    def detect(self, source: WeightFile) -> bool:
        return source.settings.get("config", {}).get("_class_name") == "UNet2DModel"

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        config = {**FIXED, **DEFAULTS, **source.settings["config"]}
        scheduler = {**SCHEDULER, **source.settings.get("scheduler_config", {})}
        sides = _sides(config)
        known: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in FIXED.items()}
        known["act_fn"] = ("silu", "swish")
        known["attn_norm_num_groups"] = (config["norm_num_groups"], None)
        known["resnet_time_scale_shift"] = ("default", "scale_shift")
        for key, values in known.items():
            _check(source, "config", key, config.get(key), values)
        for key in ("down_block_types", "up_block_types"):
            for kind in config[key]:
                _check(source, "config", key, kind, BLOCKS)
        tensors = Tensors(source.content, source)
        layers = _DiffusersLayers(config, min(sides), tensors)
        network, weights = layers.network(), layers.weights()
        tensors.finish()
        note = "there is no scheduler_config.json: DDPM's linear schedule of 1000 steps is taken"
        return PublishedModel(
            _diffusion(source, scheduler, config, network),
            weights,
            sides,
            notes=() if "scheduler_config" in source.settings else (note,),
        )


class _DiffusersLayers:
    """Which layers the file has, and what ours are called."""

    def __init__(self, config: Settings, size: int, tensors: Tensors) -> None:
        self._config, self._tensors = config, tensors
        widths = list(config["block_out_channels"])
        levels = range(len(widths))
        down = ["Attn" in kind for kind in config["down_block_types"]]
        up = ["Attn" in kind for kind in config["up_block_types"]][::-1]
        self._shape = UNetShape(
            size,
            widths,
            int(config["layers_per_block"]),
            attending=[down[level] or up[level] for level in levels],
            middle=bool(config.get("add_attention", True)),
        )
        between = {
            f"{side}.{level}": f"{self._prefix(side, level)}.{side}samplers.0.conv1.weight"
            in tensors
            for side in ("down", "up")
            for level in (levels[:-1] if side == "down" else levels[1:])
        }
        self._residual = any(between.values())
        if self._residual and not all(between.values()):
            raise UserError(
                "the model resamples inside residual blocks at some resolutions and between them "
                "at others; ours has one of the two everywhere"
            )

    def network(self) -> Node:
        """The node ``network``."""
        config = self._config
        labels = config["num_class_embeds"]
        return self._shape.network(
            head_channels=config["attention_head_dim"],
            dropout=float(config["dropout"]),
            num_classes=labels or 0,
            null_class=labels is None,
            norm_groups=config["norm_num_groups"],
            norm_eps=float(config["norm_eps"]),
            scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
            resampling="residual" if self._residual else "convolution",
            padding="both" if config["downsample_padding"] else "end",
            frequency_shift=float(config["freq_shift"]),
        )

    def weights(self) -> Weights:
        """All weights of the network."""
        tensors = self._tensors
        weights = tensors.layers("", LAYERS)
        if self._config["flip_sin_to_cos"]:
            weights |= cosines_first(weights)
        if "class_embedding.weight" in tensors:
            weights |= tensors.layer("class_embedding", "conditioning.labels")
        return weights | self._shape.weights(self._part)

    def _part(self, side: str, level: int, block: int | None) -> Weights:
        prefix = self._prefix(side, level)
        if block is None:
            sampler = f"{prefix}.{side}samplers.0"
            if self._residual:
                return self._block(sampler)
            return self._tensors.layer(f"{sampler}.conv", "conv")
        return self._block(f"{prefix}.resnets.{block}") | self._attention(
            f"{prefix}.attentions.{block}"
        )

    def _prefix(self, side: str, level: int) -> str:
        if side == "middle":
            return "mid_block"
        index = level if side == "down" else len(self._shape.widths) - 1 - level
        return f"{side}_blocks.{index}"

    def _block(self, prefix: str) -> Weights:
        return self._tensors.block(prefix, BLOCK, "conv_shortcut")

    def _attention(self, prefix: str) -> Weights:
        for names in ATTENTION:
            if f"{prefix}.{next(iter(names))}.weight" in self._tensors:
                layers = {**names, "group_norm": "attention.norm"}
                return self._tensors.joined(self._tensors.layers(f"{prefix}.", layers))
        return {}


def _sides(config: Mapping[str, Any]) -> tuple[int, int]:
    size = config.get("sample_size")
    sides: list[Any] = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise UserError(f"config.json has sample_size={size}, and the size of images is needed")
    return sides[0], sides[1]


def _diffusion(
    source: WeightFile, scheduler: Settings, config: Settings, network: dict[str, Any]
) -> dict[str, Any]:
    steps, kind = scheduler["num_train_timesteps"], scheduler["beta_schedule"]
    if scheduler["_class_name"] not in SCHEDULERS:
        raise UserError(
            f"{source.named} is of diffusers' {scheduler['_class_name']}, whose noise levels are "
            f"not DDPM's: those of {', '.join(SCHEDULERS)} are read"
        )
    for key in ("trained_betas", "rescale_betas_zero_snr", "thresholding", "use_flow_sigmas"):
        _check(source, "scheduler_config", key, scheduler[key] or None, (None, False))
    if scheduler["clip_sample"]:
        clipped = scheduler.get("clip_sample_range", 1)
        _check(source, "scheduler_config", "clip_sample_range", clipped, (1,))
    for key, known in (
        ("beta_schedule", SCHEDULES),
        ("prediction_type", PREDICTIONS),
        ("variance_type", VARIANCES),
    ):
        _check(source, "scheduler_config", key, scheduler[key], tuple(known))
    variance = VARIANCES[scheduler["variance_type"]]
    channels = config["in_channels"] * (2 if variance == "learned" else 1)
    _check(source, "config", "out_channels", config["out_channels"], (channels,))
    nodes = ddpm_config(
        network,
        schedule_node(SCHEDULES[kind], steps, scheduler["beta_start"], scheduler["beta_end"]),
        variance,
        bool(scheduler["clip_sample"]),
        PREDICTIONS[scheduler["prediction_type"]],
    )
    if scheduler["_class_name"] in DETERMINISTIC:
        sampler = {"_target_": "betasigma.samplers.DDIM", "clip": nodes["sampler"]["clip"]}
        nodes["sampler"] = sampler
    return nodes


def _check(source: WeightFile, file: str, key: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if value not in accepted:
        shown = f"a list of {len(value)}" if isinstance(value, list) else value
        raise UserError(
            f"{source.named} has {key}={shown} in {file}.json, and this package computes only "
            f"{key}={' or '.join(map(str, accepted))}"
        )
