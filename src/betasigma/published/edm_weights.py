"""EDM: its networks as plain tensors (Karras et al. 2022).

EDM publishes pickles that carry their code. ``convert=edm`` writes what they hold as plain tensors
and settings (:mod:`betasigma.commands.convert_edm`); that file is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.published.config_nodes import Node, ncsn_config, sde_config
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.ncsnpp_weights import NCSNppShape
from betasigma.published.score_sde import FREQUENCIES
from betasigma.published.unet_weights import Tensors, Weights, as_linear
from betasigma.published.weight_file import WeightFile, checked_tensors

EDM = "edm"
"""Of the format, and of ``convert=…``."""

BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "shift",
    "norm1": "norm2",
    "conv1": "conv2",
}
"""Layers of a residual block, and our names."""

INPUTS = {"standard": "none", "skip": "skip", "residual": "residual"}
OUTPUTS = {"standard": "none", "skip": "skip"}
FILTERS = {(1, 1): "box", (1, 3, 3, 1): "fir"}

_RUNS: dict[str, Settings] = {
    "cifar10-32x32-cond": {"steps": 18, "data": "cifar10"},
    "cifar10-32x32-uncond": {"steps": 18, "data": "cifar10"},
    "ffhq-64x64-uncond": {"steps": 40},
    "afhqv2-64x64-uncond": {"steps": 40},
}
"""Sampling steps of each of their data sets."""
_KINDS, _NETWORKS = ("edm", "baseline"), ("vp", "ve")


class EDMWeights(ModelFormat):
    """``SongUNet`` in ``EDMPrecond``, ``VPPrecond`` or ``VEPrecond``."""

    name = EDM
    origin = "https://github.com/NVlabs/edm"
    licence = "CC-BY-NC-SA-4.0"
    published: ClassVar[Mapping[str, Settings]] = {
        **{f"{k}-{run}-{n}": s for k in _KINDS for run, s in _RUNS.items() for n in _NETWORKS},
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
        inner.need("class", ("SongUNet",))
        fourier = inner.need("embedding_type", ("positional", "fourier")) == "fourier"
        inner.need("channel_mult_emb", (4,))
        inner.need("channel_mult_noise", (2 if fourier else 1,))
        taps = inner.need("resample_filter", tuple(map(list, FILTERS)))
        size = inner.need_number("img_resolution", int)
        shape = NCSNppShape(
            size=size,
            channels=inner.need_number("model_channels", int),
            multipliers=inner.need_integers("channel_mult"),
            blocks=inner.need_number("num_blocks", int),
            sides=inner.need_integers("attn_resolutions"),
            progressive_input=INPUTS[inner.need("encoder_type", tuple(INPUTS))],
            progressive_output=OUTPUTS[inner.need("decoder_type", tuple(OUTPUTS))],
        )
        network = shape.network(
            dropout=inner.need_number("dropout", float),
            embedding="fourier" if fourier else "positional",
            resample_filter=FILTERS[tuple(taps)],
            num_classes=inner.need_number("label_dim", int),
        )
        tensors = source.content.get("weights")
        if not isinstance(tensors, dict):
            raise UserError(f"{source.named} has no weights")
        layers = _SongLayers(shape, checked_tensors(tensors, source), source.named, taps)
        weights = layers.weights(fourier, network["num_classes"])
        notes = ("the layer of augmentation labels, which sampling leaves out, is left out",)
        return PublishedModel(
            _diffusion(network, outer, settings),
            weights,
            (weights["enter.weight"].shape[1], size, size),
            data=settings.get("data"),
            notes=notes if layers.augmented else (),
        )


class _Said:
    """Plain settings of one of the classes in a file."""

    def __init__(self, source: WeightFile, part: str) -> None:
        said = source.content.get(part)
        self._said = said if isinstance(said, dict) else {}
        self._named = source.named

    def need(self, key: str, accepted: tuple[Any, ...]) -> Any:
        """The setting, which must be one of these.

        Raises:
            UserError: if it is something else.
        """
        value = self._said.get(key)
        if not any(type(value) is type(a) and value == a for a in accepted):
            raise UserError(
                f"{self._named} has {key}={value}; what is read has "
                f"{' or '.join(map(str, accepted))}"
            )
        return value

    def need_number(self, key: str, kind: type[int] | type[float]) -> Any:
        """The setting, a number of at least 0.

        Raises:
            UserError: if it is something else.
        """
        value = self._said.get(key)
        kinds = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= 0:
            raise UserError(f"{self._named} has {key}={value}, which must be a number")
        return kind(value)

    def need_integers(self, key: str) -> list[int]:
        """The setting, a list of integers.

        Raises:
            UserError: if it is something else.
        """
        value = self._said.get(key)
        if not isinstance(value, list) or not all(type(member) is int for member in value):
            raise UserError(f"{self._named} has {key}={value}, which must be a list of integers")
        return value


def _diffusion(network: Node, outer: _Said, settings: Settings) -> Node:
    """All nodes of the config, by the class that the network is in.

    ``VEPrecond`` tells log(σ/2) for images in [−1, 1], which is log σ for images in [0, 1].
    """
    kind = outer.need("class", ("EDMPrecond", "VPPrecond", "VEPrecond"))
    if kind == "VPPrecond":
        outer.need("M", (1000,))  # c_noise is (M − 1)·t
        start, rise = (outer.need_number(key, float) for key in ("beta_min", "beta_d"))
        return sde_config(network, "vp_sde", 1000, start, start + rise)
    if kind == "VEPrecond":
        low, high = (outer.need_number(f"sigma_{end}", float) / 2 for end in ("min", "max"))
        sampler = {"_target_": "betasigma.samplers.PredictorCorrector"}
        return ncsn_config(network, 1000, high, low, sampler, continuous=True)
    sampler = {"_target_": "betasigma.samplers.Heun", "steps": settings.get("steps", 18)}
    config = ncsn_config(
        network,
        1000,
        sigma_max=80.0,
        sigma_min=0.002,
        sampler=sampler,
        prediction="edm",
        continuous=True,
        value_range=(-1.0, 1.0),
    )
    config["preconditioning"]["sigma_data"] = outer.need_number("sigma_data", float)
    return config


class _SongLayers:
    """Layers of a ``SongUNet`` by their names."""

    def __init__(
        self, shape: NCSNppShape, tensors: Mapping[str, Tensor], named: str, taps: list[int]
    ) -> None:
        self._shape, self._named = shape, named
        filters = {n: t for n, t in tensors.items() if n.endswith(".resample_filter")}
        self._left = Tensors({n: t for n, t in tensors.items() if n not in filters}, named)
        one = torch.tensor(taps, dtype=torch.float32)
        expected = torch.outer(one, one)[None, None] / one.sum() ** 2
        for name, value in filters.items():
            if value.shape != expected.shape or not torch.allclose(value.float(), expected):
                raise UserError(f"{named} has {name}, which is not the filter {taps}")
        self.augmented = "map_augment.weight" in self._left

    def weights(self, fourier: bool, classes: int) -> Weights:
        """All weights of the network."""
        size = self._shape.size
        weights: Weights = {}
        if fourier:
            weights[FREQUENCIES] = self._left.take("map_noise.freqs")
        for theirs, ours in (("map_layer0", "hidden"), ("map_layer1", "out")):
            weights |= self._left.layer(theirs, f"conditioning.{ours}")
        if classes:
            # a label is a vector of length √classes for them, and no label is zero
            label = self._left.layer("map_label", "map_label")
            columns, bias = label["map_label.weight"], label["map_label.bias"]
            rows = torch.cat([columns.T * classes**0.5, torch.zeros(1, len(columns))])
            weights["conditioning.labels.weight"] = rows + bias
        if self.augmented:
            self._left.take("map_augment.weight")
        weights |= self._left.layer(f"enc.{size}x{size}_conv", "enter")
        weights |= self._shape.weights(self._part)
        self._left.finish()
        return weights

    def _part(self, side: str, level: int, block: int | None) -> Weights:
        if side == "outputs":
            norm = self._left.layer(self._place("dec", level, "aux_norm"), "0")
            return norm | self._left.layer(self._place("dec", level, "aux_conv"), "2")
        if side == "inputs":
            return self._left.layer(
                self._place("enc", level + 1, f"aux_{self._shape.progressive_input}"), "conv"
            )
        place = {
            "down": self._place("enc", level, f"block{block}"),
            "shrink": self._place("enc", level + 1, "down"),
            "middle": self._place("dec", level, f"in{block}"),
            "up": self._place("dec", level, f"block{block}"),
            "grow": self._place("dec", level - 1, "up"),
        }[side]
        found = self._left.layers(f"{place}.", BLOCK)
        if f"{place}.skip.weight" in self._left:
            found |= self._left.layer(f"{place}.skip", "shortcut")
        if self._shape.attends(side, level, block):
            found |= self._attention(place)
        return found

    def _attention(self, place: str) -> Weights:
        found = self._left.layer(f"{place}.norm2", "attention.norm")
        # rows in turns of q, k and v, for ours all of q, then k, then v
        for name, value in self._left.layer(f"{place}.qkv", "attention.qkv").items():
            found[name] = torch.cat([value[i::3] for i in range(3)]).reshape(len(value), -1)
        found["attention.qkv.bias"] = found["attention.qkv.bias"].flatten()
        return found | as_linear(self._left.layer(f"{place}.proj", "attention.out"))

    def _place(self, side: str, level: int, name: str) -> str:
        size = self._shape.size >> max(level, 0)
        return f"{side}.{size}x{size}_{name}"
