"""pytorch_diffusion: the original weights of Ho et al. 2020, converted from TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import ClassVar

from torch import Tensor

from betasigma.errors import UserError
from betasigma.published.config_nodes import ddpm_config, schedule_node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.unet_weights import Tensors, UNetShape, Weights, as_linear
from betasigma.published.weight_file import WeightFile

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "shift",
    "norm2": "norm2",
    "conv2": "conv2",
}
"""Layers of a residual block, and our names."""

ATTENTION = {
    "norm": "attention.norm",
    "q": "q",
    "k": "k",
    "v": "v",
    "proj_out": "attention.out",
}
"""Layers of an attention, and our names."""

LAYERS = {
    "conv_in": "enter",
    "temb.dense.0": "conditioning.hidden",
    "temb.dense.1": "conditioning.out",
    "norm_out": "leave.0",
    "conv_out": "leave.2",
}
"""The first and the last layers, and our names."""

VARIANCES = {"fixedlarge": "beta", "fixedsmall": "posterior"}


class PytorchDiffusion(ModelFormat):
    """``Model`` of pytorch_diffusion, also that of ermongroup/ddim, which has the same layers."""

    name = "pytorch_diffusion"
    origin = "https://github.com/pesser/pytorch_diffusion"
    licence = "MIT"
    defaults: ClassVar[Settings] = {
        "resolution": 32,
        "dropout": 0.0,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "num_diffusion_timesteps": 1000,
        "model_var_type": "fixedsmall",
    }
    _HO: ClassVar[dict[str, Settings]] = {
        "cifar10": {"dropout": 0.1, "model_var_type": "fixedlarge", "data": "cifar10"},
        "celebahq": {"resolution": 256},
        "lsun_bedroom": {"resolution": 256},
        "lsun_cat": {"resolution": 256},
        "lsun_church": {"resolution": 256},
    }
    published: ClassVar[Mapping[str, Settings]] = {
        f"{ema}diffusion_{name}_model": settings
        for ema, (name, settings) in product(("", "ema_"), _HO.items())
    }

    def detect(self, source: WeightFile) -> bool:
        names = ("temb.dense.0.weight", "mid.attn_1.q.weight", "conv_out.weight")
        return isinstance(source.content, dict) and all(name in source.content for name in names)

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        tensors = Tensors(source.content, source)
        shape = _shape(source.content, settings["resolution"])
        weights = _weights(shape, tensors)
        tensors.finish()
        variance = settings["model_var_type"]
        if variance not in VARIANCES:
            raise UserError(f"flags.model_var_type={variance} must be {' or '.join(VARIANCES)}")
        config = ddpm_config(
            shape.network(dropout=settings["dropout"]),
            schedule_node(
                "linear",
                settings["num_diffusion_timesteps"],
                settings["beta_start"],
                settings["beta_end"],
            ),
            VARIANCES[variance],
            clip=True,
        )
        step = re.fullmatch(r"model-(\d+)", source.path.stem)
        return PublishedModel(
            config, weights, (shape.size, shape.size), int(step[1]) if step else 0
        )


def _shape(content: Mapping[str, Tensor], size: int) -> UNetShape:
    """Which layers a file has, by the names of its tensors."""

    def count(pattern: str) -> int:
        return len({found[1] for name in content if (found := re.fullmatch(pattern, name))})

    levels = range(count(r"down\.(\d+)\.block\.0\.norm1\.weight"))
    return UNetShape(
        size,
        widths=[len(content[f"down.{level}.block.0.conv1.weight"]) for level in levels],
        blocks=count(r"down\.0\.block\.(\d+)\.norm1\.weight"),
        attending=[f"down.{level}.attn.0.q.weight" in content for level in levels],
    )


def _weights(shape: UNetShape, tensors: Tensors) -> Weights:
    def part(side: str, level: int, block: int | None) -> Weights:
        if block is None:
            return tensors.layer(f"{side}.{level}.{side}sample.conv", "conv")
        prefix = f"mid.block_{block + 1}" if side == "middle" else f"{side}.{level}.block.{block}"
        attention = "mid.attn_1" if side == "middle" else f"{side}.{level}.attn.{block}"
        found = tensors.block(prefix, BLOCK, "nin_shortcut")
        if (side, block) == ("middle", 1) or f"{attention}.q.weight" not in tensors:
            return found
        return found | as_linear(tensors.joined(tensors.layers(f"{attention}.", ATTENTION)))

    return tensors.layers("", LAYERS) | shape.weights(part)
