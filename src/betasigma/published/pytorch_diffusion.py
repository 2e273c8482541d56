"""pytorch_diffusion: the original weights of Ho et al. 2020, converted from TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar

from torch import Tensor

from betasigma.errors import UserError
from betasigma.published.config_nodes import ddpm_config, schedule_node, unet_node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.unet_weights import Tensors, Weights, as_linear, joined, unet_weights
from betasigma.published.weight_file import WeightFile, checked_tensors

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "shift",
    "norm2": "norm2",
    "conv2": "conv2",
}
"""Layers of a residual block, and our names."""

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
        tensors = Tensors(checked_tensors(source.content, source), source.named)
        structure = _NamedWeights(source.content)
        weights = structure.weights(tensors)
        tensors.finish()
        variance = settings["model_var_type"]
        if variance not in VARIANCES:
            raise UserError(f"flags.model_var_type={variance} must be {' or '.join(VARIANCES)}")
        size = settings["resolution"]
        config = ddpm_config(
            structure.network(size, settings["dropout"]),
            schedule_node(
                "linear",
                settings["num_diffusion_timesteps"],
                settings["beta_start"],
                settings["beta_end"],
            ),
            VARIANCES[variance],
            clip=True,
        )
        shape = (weights["enter.weight"].shape[1], size, size)
        step = re.fullmatch(r"model-(\d+)", source.path.stem)
        return PublishedModel(
            config, weights, shape, step=int(step[1]) if step else 0, data=settings.get("data")
        )


class _NamedWeights:
    """Which layers a file has, by the names of its tensors."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._levels = _count(content, r"down\.(\d+)\.block\.0\.norm1\.weight")
        self._blocks = _count(content, r"down\.0\.block\.(\d+)\.norm1\.weight")
        self._widths = [
            _rows(content, f"down.{level}.block.0.conv1.weight") for level in range(self._levels)
        ]
        self._attending = [
            f"down.{level}.attn.0.q.weight" in content for level in range(self._levels)
        ]
        # in the middle there is attention always
        if not any(self._attending):
            self._attending[-1] = True

    def network(self, size: int, dropout: float) -> dict[str, Any]:
        """The network node of the config, for images of this size."""
        widths, blocks, attending = self._widths, self._blocks, self._attending
        return unet_node(size, widths, blocks, attending, dropout=dropout)

    def weights(self, tensors: Tensors) -> Weights:
        """All weights of the network."""
        weights = tensors.layers(
            "",
            {
                "conv_in": "enter",
                "temb.dense.0": "conditioning.hidden",
                "temb.dense.1": "conditioning.out",
                "norm_out": "leave.0",
                "conv_out": "leave.2",
            },
        )

        def part(side: str, level: int, block: int | None) -> Weights:
            if block is None:
                return tensors.layer(f"{side}.{level}.{side}sample.conv", "conv")
            place = (
                f"mid.block_{block + 1}" if side == "middle" else f"{side}.{level}.block.{block}"
            )
            attention = "mid.attn_1" if side == "middle" else f"{side}.{level}.attn.{block}"
            found = tensors.block(place, BLOCK, "nin_shortcut")
            if (side, block) == ("middle", 1) or f"{attention}.q.weight" not in tensors:
                return found
            projections = [tensors.layer(f"{attention}.{name}", name) for name in "qkv"]
            return found | as_linear(
                joined(projections, "attention.qkv")
                | tensors.layer(f"{attention}.proj_out", "attention.out")
                | tensors.layer(f"{attention}.norm", "attention.norm")
            )

        return weights | unet_weights(self._widths, self._blocks, self._attending, True, part)


def _count(content: Mapping[str, Any], pattern: str) -> int:
    """How many numbers a name has."""
    return len({found[1] for name in content if (found := re.fullmatch(pattern, str(name)))})


def _rows(content: Mapping[str, Any], name: str) -> int:
    tensor = content.get(name)
    if not isinstance(tensor, Tensor) or tensor.ndim != 4:
        raise UserError(f"the file has no convolution {name}")
    return len(tensor)
