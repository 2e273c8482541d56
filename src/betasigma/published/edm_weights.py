"""EDM: its networks as plain tensors (Karras et al. 2022).

EDM publishes pickles that carry their code. ``convert=edm`` writes what they hold as plain tensors
and settings (:mod:`betasigma.commands.convert_edm`); that file is read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from betasigma.errors import UserError
from betasigma.options.base import in_words
from betasigma.published import config_nodes
from betasigma.published.config_nodes import Node
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.score_sde import FREQUENCIES
from betasigma.published.unet_weights import (
    NCSNppShape,
    Tensors,
    UNetShape,
    Weights,
    as_linear,
    attending,
    cosines_first,
)
from betasigma.published.weight_file import WeightFile

EDM = "edm"
"""Of the format, and of ``convert=…``."""

BLOCK = {"norm0": "norm1", "conv0": "conv1", "affine": "shift", "norm1": "norm2", "conv1": "conv2"}
"""Layers of a residual block, and our names."""

INPUTS = {"standard": "none", "skip": "skip", "residual": "residual"}
OUTPUTS = {"standard": "none", "skip": "skip"}
HEAD = 64
"""Channels of a head of ``DhariwalUNet``; ``SongUNet`` has one head."""

FILTERS = {(1, 1): "box", (1, 3, 3, 1): "fir"}

_FORTY: Settings = {"sampler": {"steps": 40}}
_IMAGENET: Settings = {
    "sampler": {"steps": 256, "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
}
_RUNS: dict[str, Settings] = {
    "cifar10-32x32-cond": {"data": "cifar10"},
    "cifar10-32x32-uncond": {"data": "cifar10"},
    "ffhq-64x64-uncond": _FORTY,
    "afhqv2-64x64-uncond": _FORTY,
}
"""Sampling of each of their data sets, in 18 steps where nothing is said."""
_KINDS, _NETWORKS = ("edm", "baseline"), ("vp", "ve")


class EDMWeights(ModelFormat):
    """``SongUNet`` and ``DhariwalUNet`` in ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` or
    ``iDDPMPrecond``.
    """

    name = EDM
    origin = "https://github.com/NVlabs/edm"
    licence = "CC-BY-NC-SA-4.0"
    published: ClassVar[Mapping[str, Settings]] = {
        **{f"{k}-{run}-{n}": s for k in _KINDS for run, s in _RUNS.items() for n in _NETWORKS},
        "edm-imagenet-64x64-cond-adm": _IMAGENET,
        "baseline-imagenet-64x64-cond-adm": {"licence": "MIT"},  # trained by Dhariwal & Nichol
        # trained by Song et al.
        **{
            f"baseline-cifar10-32x32-uncond-{n}": {"data": "cifar10", "licence": "Apache-2.0"}
            for n in _NETWORKS
        },
    }

    def detect(self, source: WeightFile) -> bool:
        content = source.content
        return isinstance(content, dict) and content.get("format") == EDM

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        outer, inner = _Said(source, "preconditioning"), _Said(source, "network")
        inner.need("channel_mult_emb", Literal[4])
        kind = inner.need("class", Literal["SongUNet", "DhariwalUNet"])
        tensors = Tensors(source.content["weights"], source)
        layers = (_SongLayers if kind == "SongUNet" else _DhariwalLayers)(inner, tensors)
        network, weights = layers.network(), layers.weights()
        tensors.finish()
        size = inner.need("img_resolution", PositiveInt)
        notes = ("the layer of augmentation labels, which sampling leaves out, is left out",)
        return PublishedModel(
            _diffusion(network, outer, settings),
            weights,
            (size, size),
            notes=notes if layers.augmented else (),
        )


Sizes = Annotated[list[PositiveInt], Field(min_length=1)]


class _Said:
    """Plain settings of one of the classes in a file."""

    def __init__(self, source: WeightFile, part: str) -> None:
        self._said: dict[str, Any] = source.content[part]
        self._named = source.named

    def need(self, key: str, kind: Any) -> Any:
        """The setting, which must be of this type."""
        value = self._said.get(key)
        try:
            return TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            within = "".join(f"[{number}]" for number in first["loc"])
            raise UserError(
                f"{self._named} has {key}{within}={first['input']}, which {in_words(first['msg'])}"
            ) from None


def _diffusion(network: Node, outer: _Said, settings: Settings) -> Node:
    """All nodes of the config, by the class that the network is in.

    ``VEPrecond`` tells log(σ/2) for images in [−1, 1], which is log σ for images in [0, 1].
    """
    kind = outer.need("class", Literal["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
    if kind == "iDDPMPrecond":  # the cosine of Nichol & Dhariwal
        outer.need("M", Literal[1000])
        outer.need("C_1", Annotated[float, Field(ge=0.001, le=0.001)])
        outer.need("C_2", Annotated[float, Field(ge=0.008, le=0.008)])
        cosine = {**config_nodes.schedule_node("cosine", 1000), "offset": 0.008, "max_beta": 0.999}
        return config_nodes.ddpm_config(network, cosine, variance="learned", clip=False)
    if kind == "VPPrecond":
        outer.need("M", Literal[1000])  # c_noise is (M − 1)·t
        start, rise = (outer.need(key, NonNegativeFloat) for key in ("beta_min", "beta_d"))
        return config_nodes.sde_config(network, "vp_sde", 1000, start, start + rise)
    if kind == "VEPrecond":
        low, high = (outer.need(f"sigma_{end}", NonNegativeFloat) / 2 for end in ("min", "max"))
        sampler = {"_target_": "betasigma.samplers.PredictorCorrector"}
        return config_nodes.ncsn_config(network, 1000, high, low, sampler, continuous=True)
    sampler = {"_target_": "betasigma.samplers.Heun", **settings.get("sampler", {})}
    config = config_nodes.ncsn_config(
        network,
        1000,
        sigma_max=80.0,
        sigma_min=0.002,
        sampler=sampler,
        prediction="edm",
        continuous=True,
        value_range=(-1.0, 1.0),
    )
    config["preconditioning"]["sigma_data"] = outer.need("sigma_data", NonNegativeFloat)
    return config


class _EDMLayers:
    """Layers by their names, which both networks share."""

    def __init__(self, said: _Said, tensors: Tensors) -> None:
        self._said, self._left = said, tensors
        self._size = said.need("img_resolution", PositiveInt)
        self._channels = said.need("model_channels", PositiveInt)
        self._multipliers = said.need("channel_mult", Sizes)
        self._blocks = said.need("num_blocks", PositiveInt)
        self._sides = said.need("attn_resolutions", Sizes)
        self._classes = said.need("label_dim", NonNegativeInt)
        self._dropout = said.need("dropout", NonNegativeFloat)
        one = torch.tensor(self._taps(), dtype=torch.float32)
        expected = torch.outer(one, one)[None, None] / one.sum() ** 2
        for name in [name for name in tensors if name.endswith(".resample_filter")]:
            value = tensors.take(name)
            if value.shape != expected.shape or not torch.allclose(value, expected):
                raise UserError(f"{name} is not the filter {self._taps()}")
        self.augmented = "map_augment.weight" in tensors

    def _taps(self) -> tuple[int, ...]:
        """Resampling filter."""
        return (1, 1)

    def _first(self) -> Weights:
        """Of the noise level and the image."""
        found: Weights = {}
        for theirs, ours in (("map_layer0", "hidden"), ("map_layer1", "out")):
            found |= self._left.layer(theirs, f"conditioning.{ours}")
        if self.augmented:
            self._left.take("map_augment.weight")
        return found | self._left.layer(f"enc.{self._size}x{self._size}_conv", "enter")

    def _block(self, prefix: str, head_channels: int | None) -> Weights:
        """A residual block; with channels of a head, one that attends."""
        found = self._left.block(prefix, BLOCK, "skip")
        if head_channels is None:
            return found
        found |= self._left.layer(f"{prefix}.norm2", "attention.norm")
        # rows by head, then by channel, in turns of q, k and v; for ours all of q, then k, then v
        for name, value in as_linear(self._left.layer(f"{prefix}.qkv", "attention.qkv")).items():
            parts = value.reshape(-1, head_channels, 3, *value.shape[1:])
            found[name] = parts.movedim(2, 0).reshape(value.shape)
        return found | as_linear(self._left.layer(f"{prefix}.proj", "attention.out"))

    def _prefix(self, side: str, level: int, name: str) -> str:
        size = self._size >> max(level, 0)
        return f"{side}.{size}x{size}_{name}"


class _SongLayers(_EDMLayers):
    """``SongUNet``: DDPM++ and NCSN++."""

    def __init__(self, said: _Said, tensors: Tensors) -> None:
        super().__init__(said, tensors)
        embedding = said.need("embedding_type", Literal["positional", "fourier"])
        self._fourier = embedding == "fourier"
        said.need("channel_mult_noise", Literal[2] if self._fourier else Literal[1])
        self._shape = NCSNppShape(
            self._size,
            self._channels,
            self._multipliers,
            self._blocks,
            self._sides,
            progressive_input=INPUTS[said.need("encoder_type", Literal[tuple(INPUTS)])],
            progressive_output=OUTPUTS[said.need("decoder_type", Literal[tuple(OUTPUTS)])],
        )

    def _taps(self) -> tuple[int, ...]:
        taps = tuple(self._said.need("resample_filter", Sizes))
        if taps not in FILTERS:
            raise UserError(f"resample_filter={taps} is none of {', '.join(map(str, FILTERS))}")
        return taps

    def network(self) -> Node:
        """The node ``network``."""
        return self._shape.network(
            dropout=self._dropout,
            embedding="radians" if self._fourier else "positional",
            resample_filter=FILTERS[self._taps()],
            num_classes=self._classes,
        )

    def weights(self) -> Weights:
        """All weights of the network."""
        weights = self._first()
        if self._fourier:
            weights[FREQUENCIES] = 2 * math.pi * self._left.take("map_noise.freqs")
        if self._classes:
            # a label is a vector of length √classes for them, and no label is zero
            columns, bias = (self._left.take(f"map_label.{kind}") for kind in ("weight", "bias"))
            rows = torch.cat([columns.T * self._classes**0.5, torch.zeros(1, len(columns))])
            weights["conditioning.labels.weight"] = rows + bias
        return weights | self._shape.weights(self._part)

    def _part(self, side: str, level: int, block: int | None) -> Weights:
        if side == "outputs":
            norm = self._left.layer(self._prefix("dec", level, "aux_norm"), "0")
            return norm | self._left.layer(self._prefix("dec", level, "aux_conv"), "2")
        if side == "inputs":
            return self._left.layer(
                self._prefix("enc", level + 1, f"aux_{self._shape.progressive_input}"), "conv"
            )
        prefix = {
            "down": self._prefix("enc", level, f"block{block}"),
            "shrink": self._prefix("enc", level + 1, "down"),
            "middle": self._prefix("dec", level, f"in{block}"),
            "up": self._prefix("dec", level, f"block{block}"),
            "grow": self._prefix("dec", level - 1, "up"),
        }[side]
        width = self._channels * self._multipliers[level]
        return self._block(prefix, width if self._shape.attends(side, level, block) else None)


class _DhariwalLayers(_EDMLayers):
    """``DhariwalUNet``: ADM."""

    def __init__(self, said: _Said, tensors: Tensors) -> None:
        super().__init__(said, tensors)
        self._shape = UNetShape(
            self._size,
            widths=[self._channels * m for m in self._multipliers],
            blocks=self._blocks,
            attending=attending(self._size, len(self._multipliers), self._sides),
        )

    def network(self) -> Node:
        """The node ``network``."""
        return self._shape.network(
            head_channels=HEAD,
            dropout=self._dropout,
            num_classes=self._classes,
            group_width=4,
            norm_eps=1e-5,
            scale_shift=True,
            resampling="residual",
            embedding_channels=self._channels,
            frequency_shift=0.0,
        )

    def weights(self) -> Weights:
        """All weights of the network."""
        weights = self._first()
        weights |= cosines_first(weights)
        if self._classes:
            columns = self._left.take("map_label.weight")  # no label is zero
            rows = torch.cat([columns.T, torch.zeros(1, len(columns))])
            weights["conditioning.labels.weight"] = rows
        weights |= self._shape.weights(self._part)
        return (
            weights
            | self._left.layer("out_norm", "leave.0")
            | self._left.layer("out_conv", "leave.2")
        )

    def _part(self, side: str, level: int, block: int | None) -> Weights:
        if side == "middle":
            last = len(self._shape.widths) - 1
            return self._block(self._prefix("dec", last, f"in{block}"), None if block else HEAD)
        code = {"down": "enc", "up": "dec"}[side]
        if block is None:
            between = level + 1 if side == "down" else level - 1
            return self._block(self._prefix(code, between, side), None)
        attends = HEAD if self._shape.attending[level] else None
        return self._block(self._prefix(code, level, f"block{block}"), attends)
