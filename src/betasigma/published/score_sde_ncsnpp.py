"""score_sde_pytorch: DDPM++ and NCSN++ (Song et al. 2021), of the VP and the VE SDE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from betasigma.published import score_sde
from betasigma.published.config_nodes import Node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings, integers
from betasigma.published.unet_weights import NCSNppShape, Tensors, Weights
from betasigma.published.weight_file import WeightFile

INPUTS = {"none": "none", "input_skip": "skip", "residual": "residual"}
OUTPUTS = {"none": "none", "output_skip": "skip"}

_FIR: Settings = {"fir": True, "progressive_input": "residual"}
_CONTINUOUS: Settings = {"continuous": True}
_DEEP: Settings = {**_CONTINUOUS, "num_res_blocks": 8}
_VP: Settings = {"data": "cifar10"}
_SUB_VP: Settings = {**_VP, **_CONTINUOUS, "sde": "subvpsde"}
_VE: Settings = {**_FIR, **score_sde.OF_CIFAR10_VE}
_VE_CONTINUOUS: Settings = {**_VE, **_CONTINUOUS, "embedding_type": "fourier"}
_PYRAMIDS: Settings = {
    **_VE_CONTINUOUS,
    "dropout": 0.0,
    "num_scales": 2000,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "data": None,
}
_256: Settings = {
    **_PYRAMIDS,
    "image_size": 256,
    "ch_mult": "1,1,2,2,2,2,2",
    "num_res_blocks": 2,
    "snr": 0.075,
}
_1024: Settings = {
    **_PYRAMIDS,
    "image_size": 1024,
    "nf": 16,
    "ch_mult": "1,2,4,8,16,32,32,32",
    "num_res_blocks": 1,
    "sigma_max": 1348.0,
    "snr": 0.15,
}


class ScoreSdeNCSNpp(ModelFormat):
    """``NCSNpp`` of score_sde_pytorch, which DDPM++ is too."""

    name = "score_sde-ncsnpp"
    origin = "https://github.com/yang-song/score_sde_pytorch"
    licence = "Apache-2.0"
    defaults: ClassVar[Settings] = {
        **score_sde.ScoreSdeDDPM.defaults,
        "num_res_blocks": 4,
        "resblock_type": "biggan",
        "skip_rescale": True,
        "fir": False,
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
        "embedding_type": "positional",
    }
    published: ClassVar[Mapping[str, Settings]] = {
        "vp/cifar10_ddpmpp": _VP,
        "vp/cifar10_ddpmpp_continuous": {**_VP, **_CONTINUOUS},
        "vp/cifar10_ddpmpp_deep_continuous": {**_VP, **_DEEP},
        "vp/cifar10_ncsnpp": {**_VP, **_FIR},
        "vp/cifar10_ncsnpp_continuous": {**_VP, **_FIR, **_CONTINUOUS},
        "vp/cifar10_ncsnpp_deep_continuous": {**_VP, **_FIR, **_DEEP},
        "subvp/cifar10_ddpmpp_continuous": {**_SUB_VP},
        "subvp/cifar10_ddpmpp_deep_continuous": {**_SUB_VP, **_DEEP},
        "subvp/cifar10_ncsnpp_continuous": {**_SUB_VP, **_FIR},
        "subvp/cifar10_ncsnpp_deep_continuous": {**_SUB_VP, **_FIR, **_DEEP},
        "ve/cifar10_ncsnpp": _VE,
        "ve/cifar10_ncsnpp_continuous": _VE_CONTINUOUS,
        "ve/cifar10_ncsnpp_deep_continuous": {**_VE_CONTINUOUS, **_DEEP},
        "ve/celeba_ncsnpp": {
            **_VE,
            "image_size": 64,
            "sigma_max": 90.0,
            "snr": 0.17,
            "data": "celeba",
        },
        "ve/bedroom_ncsnpp_continuous": {**_256, "sigma_max": 378.0},
        "ve/church_ncsnpp_continuous": {**_256, "sigma_max": 380.0},
        "ve/celebahq_256_ncsnpp_continuous": {**_256, "sigma_max": 348.0},
        "ve/ffhq_256_ncsnpp_continuous": {**_256, "sigma_max": 348.0},
        "ve/celebahq_ncsnpp_continuous": _1024,
        "ve/ffhq_ncsnpp_continuous": _1024,
        "ve/ffhq_1024_ncsnpp_continuous": _1024,
    }

    def detect(self, source: WeightFile) -> bool:
        return score_sde.is_score_sde(source) and any(
            str(name).endswith(".Conv_2.weight") for name in source.content["model"]
        )

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        self._check(settings)
        shape = NCSNppShape(
            size=settings["image_size"],
            channels=settings["nf"],
            multipliers=integers("ch_mult", settings["ch_mult"]),
            blocks=settings["num_res_blocks"],
            sides=integers("attn_resolutions", settings["attn_resolutions"]),
            progressive_input=INPUTS[settings["progressive_input"]],
            progressive_output=OUTPUTS[settings["progressive"]],
        )
        network = shape.network(
            dropout=settings["dropout"],
            embedding=settings["embedding_type"],
            resample_filter="fir" if settings["fir"] else "box",
        )
        tensors = Tensors(score_sde.averaged_weights(source), source)
        weights = _weights(shape, tensors, settings["embedding_type"] == "fourier")
        tensors.finish()
        config, step = _diffusion(network, settings), score_sde.trained_steps(source)
        return PublishedModel(config, weights, (shape.size, shape.size), step)

    def _check(self, settings: Settings) -> None:
        """Refuse what ours does not compute."""
        exploding = settings["sde"] == "vesde"
        sines = "fourier" if exploding and settings["continuous"] else "positional"
        read: dict[str, tuple[Any, ...]] = {
            "sde": (*(score_sde.SDES if settings["continuous"] else ("vpsde",)), "vesde"),
            "resblock_type": ("biggan",),
            "skip_rescale": (True,),
            "progressive": tuple(OUTPUTS),
            "progressive_input": tuple(INPUTS),
            "progressive_combine": ("sum",),
            "embedding_type": (sines,),
            "scale_by_sigma": (True, False) if exploding else (False,),
        }
        score_sde.refuse_others(self.name, settings, read)


def _diffusion(network: Node, settings: Settings) -> Node:
    """All nodes of the config."""
    value_range = [-1.0, 1.0] if settings["centered"] else [0.0, 1.0]
    if settings["sde"] == "vesde":
        return score_sde.ve_config(
            network,
            settings,
            prediction="score" if settings["scale_by_sigma"] else "raw_score",
            continuous=settings["continuous"],
            value_range=value_range,
        )
    return {**score_sde.vp_config(network, settings), "model": {"value_range": value_range}}


def _weights(shape: NCSNppShape, tensors: Tensors, fourier: bool) -> Weights:
    """All weights of the network; the layers are numbered as they compute."""
    layers = score_sde.numbered_layers()

    def part(side: str, level: int, block: int | None) -> Weights:
        layer = next(layers)
        if side == "inputs":
            one = "Conv_0" if shape.progressive_input == "skip" else "Conv2d_0"
            return tensors.layer(f"{layer}.{one}", "conv")
        if side == "outputs":
            return tensors.layer(layer, "0") | tensors.layer(next(layers), "2")
        found = tensors.block(layer, score_sde.BLOCK, "Conv_2")
        if not shape.attends(side, level, block):
            return found
        return found | score_sde.attention_weights(tensors, next(layers))

    weights: Weights = {}
    if fourier:
        weights[score_sde.FREQUENCIES] = tensors.take(f"{next(layers)}.W")
    for name in score_sde.FIRST:
        weights |= tensors.layer(next(layers), name)
    return weights | shape.weights(part)
