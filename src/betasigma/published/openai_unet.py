"""``UNetModel`` of improved-diffusion and guided-diffusion (ADM).

Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021. A file holds tensors only; the settings that
their scripts take as flags, and their defaults, are those of ``script_util.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from betasigma.errors import UserError
from betasigma.published.config_nodes import Node, ddpm_config, schedule_node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings, integers
from betasigma.published.unet_weights import (
    Tensors,
    UNetShape,
    Weights,
    as_linear,
    attending,
    cosines_first,
)
from betasigma.published.weight_file import WeightFile

BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "shift",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
"""Layers of a residual block, and our names."""

ATTENTION = {"norm": "attention.norm", "qkv": "attention.qkv", "proj_out": "attention.out"}

LAYERS = {
    "input_blocks.0.0": "enter",
    "time_embed.0": "conditioning.hidden",
    "time_embed.2": "conditioning.out",
    "out.0": "leave.0",
    "out.2": "leave.2",
}
"""The first and the last layers, and our names."""

MULTIPLIERS = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""``channel_mult`` where it is not given, by image size."""


class ImprovedDiffusion(ModelFormat):
    """Convolutions between resolutions; ``rescale_timesteps`` is on by default."""

    name = "improved-diffusion"
    origin = "https://github.com/openai/improved-diffusion"
    licence = "MIT"
    defaults: ClassVar[Settings] = {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "attention_resolutions": "16,8",
        "dropout": 0.0,
        "learn_sigma": False,
        "sigma_small": False,
        "class_cond": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "predict_xstart": False,
        "rescale_timesteps": True,
        "use_scale_shift_norm": True,
    }
    training = (
        *("use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas", "lr", "batch_size"),
        *("microbatch", "ema_rate", "weight_decay", "schedule_sampler", "data_dir"),
    )
    _CIFAR10: ClassVar[Settings] = {
        "image_size": 32,
        "num_res_blocks": 3,
        "learn_sigma": True,
        "dropout": 0.3,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "data": "cifar10",
        "step": 500_000,
    }
    _IMAGENET64: ClassVar[Settings] = {
        "num_res_blocks": 3,
        "learn_sigma": True,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "step": 1_500_000,
    }
    _LSUN: ClassVar[Settings] = {
        "image_size": 256,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
        "rescale_timesteps": False,
    }
    published: ClassVar[Mapping[str, Settings]] = {
        "cifar10_uncond_50M_500K": _CIFAR10,
        "cifar10_uncond_vlb_50M_500K": _CIFAR10,
        "imagenet64_uncond_100M_1500K": _IMAGENET64,
        "imagenet64_uncond_vlb_100M_1500K": _IMAGENET64,
        "imagenet64_cond_270M_250K": {
            **_IMAGENET64,
            "num_channels": 192,
            "class_cond": True,
            "rescale_timesteps": False,
            "step": 250_000,
        },
        "lsun_uncond_100M_1200K_bs128": {**_LSUN, "step": 1_200_000},
        "lsun_uncond_100M_2400K_bs64": {**_LSUN, "step": 2_400_000},
    }

    def detect(self, source: WeightFile) -> bool:
        return _is_unet(source) and _has_strided_convolutions(source)

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        tensors = Tensors(source.content, source)
        layers = _OpenAILayers(settings, tensors)
        weights = layers.weights()
        tensors.finish()
        return PublishedModel(
            _diffusion(settings, layers.network(weights)),
            weights,
            (settings["image_size"], settings["image_size"]),
            step=settings.get("step", _step(source)),
            notes=self._notes(settings),
        )

    def _notes(self, settings: Settings) -> tuple[str, ...]:
        steps, scaled = settings["diffusion_steps"], settings["rescale_timesteps"]
        # of 1000 steps the scaled number is the number itself, and published models have their step
        if steps == 1000 or "step" in settings:
            return ()
        told = f"{1000 / steps:g} times the number of" if scaled else "the number of"
        others = "guided-diffusion" if self.name == "improved-diffusion" else "improved-diffusion"
        return (
            f"read as {self.name}, with rescale_timesteps={scaled}: the network is told {told} "
            f"each of {steps} steps; {others} may write the same file, and has another default",
        )


class GuidedDiffusion(ImprovedDiffusion):
    """Resampling inside residual blocks, heads of a given width, two orders of q, k and v."""

    name = "guided-diffusion"
    origin = "https://github.com/openai/guided-diffusion"
    defaults: ClassVar[Settings] = {
        **{k: v for k, v in ImprovedDiffusion.defaults.items() if k != "sigma_small"},
        "num_head_channels": -1,
        "channel_mult": "",
        "resblock_updown": False,
        "use_new_attention_order": False,
        "rescale_timesteps": False,
    }
    _ADM: ClassVar[Settings] = {
        "attention_resolutions": "32,16,8",
        "class_cond": True,
        "learn_sigma": True,
        "num_channels": 256,
        "num_head_channels": 64,
        "resblock_updown": True,
    }
    _LSUN: ClassVar[Settings] = {**_ADM, "image_size": 256, "class_cond": False, "dropout": 0.1}
    published: ClassVar[Mapping[str, Settings]] = {
        "64x64_diffusion": {
            **_ADM,
            "image_size": 64,
            "num_channels": 192,
            "num_res_blocks": 3,
            "dropout": 0.1,
            "noise_schedule": "cosine",
            "use_new_attention_order": True,
        },
        "128x128_diffusion": {**_ADM, "image_size": 128, "num_heads": 4, "num_head_channels": -1},
        "256x256_diffusion": {**_ADM, "image_size": 256},
        "256x256_diffusion_uncond": {**_ADM, "image_size": 256, "class_cond": False},
        "512x512_diffusion": {**_ADM, "image_size": 512},
        "lsun_bedroom": _LSUN,
        "lsun_cat": _LSUN,
        "lsun_horse": _LSUN,
        "lsun_horse_nodropout": {**_LSUN, "dropout": 0.0},
    }

    def detect(self, source: WeightFile) -> bool:
        return _is_unet(source) and not _has_strided_convolutions(source)


def _is_unet(source: WeightFile) -> bool:
    names = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
    return isinstance(source.content, dict) and all(name in source.content for name in names)


def _has_strided_convolutions(source: WeightFile) -> bool:
    return any(name.endswith(".0.op.weight") for name in source.content)


def _step(source: WeightFile) -> int:
    """The step in a name that their training gives: ``ema_0.9999_500000``, ``model500000``."""
    found = re.fullmatch(r"(?:ema_[\d.]+_|model)(\d+)", source.path.stem)
    return int(found[1]) if found else 0


class _OpenAILayers:
    """Which layers the settings describe, and what ours are called."""

    def __init__(self, settings: Settings, tensors: Tensors) -> None:
        self._settings, self._tensors = settings, tensors
        size, text = settings["image_size"], settings.get("channel_mult", "")
        multipliers = integers("channel_mult", text) if text else MULTIPLIERS.get(size)
        if multipliers is None:
            raise UserError(
                f"flags.image_size={size} has no channel_mult: it must be one of "
                f"{', '.join(map(str, MULTIPLIERS))}, or channel_mult be given"
            )
        if settings["num_heads_upsample"] not in (-1, settings["num_heads"]):
            raise UserError(
                f"flags.num_heads_upsample={settings['num_heads_upsample']} must be num_heads: "
                f"ours has as many on the way up as on the way down"
            )
        sides = integers("attention_resolutions", settings["attention_resolutions"])
        self._shape = UNetShape(
            size,
            widths=[int(m * settings["num_channels"]) for m in multipliers],
            blocks=settings["num_res_blocks"],
            attending=attending(size, len(multipliers), sides),
        )

    def weights(self) -> Weights:
        """All weights of the network."""
        weights = self._tensors.layers("", LAYERS)
        weights |= cosines_first(weights)
        if self._settings["class_cond"]:
            weights |= self._tensors.layer("label_emb", "conditioning.labels")
        return weights | self._shape.weights(self._part)

    def network(self, weights: Weights) -> Node:
        """The node ``network``; the rows of labels say how many classes there are."""
        settings = self._settings
        heads = settings.get("num_head_channels", -1)
        classes = len(weights.get("conditioning.labels.weight", ()))
        return self._shape.network(
            heads=settings["num_heads"] if heads == -1 else 1,
            head_channels=None if heads == -1 else heads,
            dropout=settings["dropout"],
            num_classes=classes,
            null_class=not classes,
            norm_eps=1e-5,
            scale_shift=settings["use_scale_shift_norm"],
            resampling="residual" if settings.get("resblock_updown") else "convolution",
            padding="both",
            embedding_channels=settings["num_channels"],
            frequency_shift=0.0,
        )

    def _part(self, side: str, level: int, block: int | None) -> Weights:
        blocks, levels = self._shape.blocks, len(self._shape.widths)
        if side == "middle":
            found = self._block(f"middle_block.{2 * (block or 0)}")
            return found if block else found | self._attention("middle_block.1", levels - 1)
        attends = self._shape.attending[level]
        passed = (level if side == "down" else levels - 1 - level) * (blocks + 1)
        number = passed + (blocks if block is None else block)
        prefix = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        if block is not None:
            found = self._block(f"{prefix}.0")
            return found | self._attention(f"{prefix}.1", level) if attends else found
        last = f"{prefix}.0" if side == "down" else f"{prefix}.{2 if attends else 1}"
        if self._settings.get("resblock_updown"):
            return self._block(last)
        return self._tensors.layer(f"{last}.{'op' if side == 'down' else 'conv'}", "conv")

    def _block(self, prefix: str) -> Weights:
        return self._tensors.block(prefix, BLOCK, "skip_connection")

    def _attention(self, prefix: str, level: int) -> Weights:
        found = as_linear(self._tensors.layers(f"{prefix}.", ATTENTION))
        if self._settings.get("use_new_attention_order"):
            return found
        width = self._settings.get("num_head_channels", -1)
        heads = self._settings["num_heads"] if width == -1 else self._shape.widths[level] // width
        for kind in ("weight", "bias"):
            name = f"attention.qkv.{kind}"
            found[name] = _by_head(found[name], heads)
        return found


def _by_head(qkv: Tensor, heads: int) -> Tensor:
    """Rows in the order (q, k, v), head, channel, from head, (q, k, v), channel."""
    if len(qkv) % (3 * heads):
        raise UserError(f"flags.num_heads={heads} does not divide an attention of {len(qkv) // 3}")
    return qkv.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _diffusion(settings: Settings, network: Node) -> Node:
    steps, kind = settings["diffusion_steps"], settings["noise_schedule"]
    if kind not in ("linear", "cosine"):
        raise UserError(f"flags.noise_schedule={kind} must be linear or cosine")
    scale = 1000 / steps
    fixed = "posterior" if settings.get("sigma_small") else "beta"
    return ddpm_config(
        network,
        schedule_node(kind, steps, 1e-4 * scale, 0.02 * scale),
        variance="learned" if settings["learn_sigma"] else fixed,
        clip=True,
        prediction="x0" if settings["predict_xstart"] else "epsilon",
        timestep_scale=scale if settings["rescale_timesteps"] else 1.0,
    )
