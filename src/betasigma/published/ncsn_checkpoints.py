"""NCSN and NCSNv2: their checkpoints, and RefineNet (Song & Ermon 2019, 2020)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.options.networks import Pooling
from betasigma.published.config_nodes import Node, ncsn_config
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.unet_weights import Tensors, Weights
from betasigma.published.weight_file import WeightFile, checked_tensors

PREFIX = "module."
"""Of the names, by ``DataParallel``."""

STAGES = ("res1", "res2", "res3", "res31", "res4", "res5")
REFINEMENTS = ("refine1", "refine2", "refine31", "refine3", "refine4", "refine5")
"""Their names in the order in which they compute; the three networks have 4, 5 and 6 of each."""

BLOCK = {"normalize1": "norm1", "conv1": "conv1", "normalize2": "norm2", "conv2": "conv2"}
"""Layers of a residual block, and our names."""


class NCSNCheckpoint(ModelFormat):
    """``CondRefineNetDilated`` of ermongroup/ncsn, also ``NCSN`` of ermongroup/ncsnv2."""

    name = "ncsn"
    origin = "https://github.com/ermongroup/ncsn"
    licence = "GPL-3.0"
    defaults: ClassVar[Settings] = {
        "image_size": 32,
        "sigma_begin": 1.0,
        "sigma_end": 0.01,
        "n_steps_each": 100,
        "step_lr": 2e-5,
    }
    published: ClassVar[Mapping[str, Settings]] = {
        "mnist": {"image_size": 28, "data": "mnist"},
        "cifar10": {"data": "cifar10"},
        "celeba": {"data": "celeba"},
    }

    def detect(self, source: WeightFile) -> bool:
        return f"{PREFIX}res1.0.normalize1.embed.weight" in _states(source)

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        raw = checked_tensors(_states(source), source)
        structure = _RefineNetWeights({k.removeprefix(PREFIX): v for k, v in raw.items()}, source)
        levels = structure.rows
        config = ncsn_config(
            structure.network("average", conditional=True),
            levels,
            settings["sigma_begin"],
            settings["sigma_end"],
            _langevin(settings, denoise=False),
            prediction="raw_score",
            conditioning="level_number",
        )
        step = re.search(r"_(\d+)$", source.path.stem)
        return structure.model(config, settings, int(step[1]) if step else 0)


def _settings(image_size: int, n_steps_each: int, step_lr: float) -> Settings:
    return {"image_size": image_size, "n_steps_each": n_steps_each, "step_lr": step_lr}


class NCSNv2Checkpoint(ModelFormat):
    """``NCSNv2``, ``NCSNv2Deeper`` and ``NCSNv2Deepest`` of ermongroup/ncsnv2."""

    name = "ncsnv2"
    origin = "https://github.com/ermongroup/ncsnv2"
    licence = "MIT"
    defaults: ClassVar[Settings] = {
        "image_size": 32,
        "n_steps_each": 5,
        "step_lr": 6.2e-6,
        "denoise": True,
    }
    published: ClassVar[Mapping[str, Settings]] = {
        "cifar10": {"data": "cifar10"},
        "celeba": {**_settings(64, 5, 3.3e-6), "data": "celeba"},
        "church": _settings(64, 4, 4.9e-6),
        "bedroom": _settings(128, 3, 1.8e-6),
        "tower": _settings(128, 3, 1.8e-6),
        "ffhq": _settings(256, 3, 9e-7),
    }

    def detect(self, source: WeightFile) -> bool:
        return f"{PREFIX}res1.0.normalize1.alpha" in _states(source)

    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        states = checked_tensors(_states(source), source)
        raw = {name.removeprefix(PREFIX): value for name, value in states.items()}
        sigmas = raw.pop("sigmas", None)
        if sigmas is None or sigmas.ndim != 1 or len(sigmas) < 2:
            raise UserError(f"{source.named} has no sigmas, its noise levels")
        levels, first, last = len(sigmas), _round(sigmas[0]), _round(sigmas[-1])
        ladder = torch.linspace(0, 1, levels, dtype=torch.float64)
        falls = 0 < last < first
        if not falls or not torch.allclose(
            sigmas.double(), first * (last / first) ** ladder, rtol=1e-4, atol=0
        ):
            raise UserError(f"{source.named} has sigmas that are no falling geometric ladder")
        averaged = {**raw, **self._averages(source, raw)}
        structure = _RefineNetWeights(averaged, source)
        config = ncsn_config(
            structure.network("max", conditional=False),
            levels,
            first,
            last,
            _langevin({**settings, "sigma_end": last}, settings["denoise"]),
            conditioning="none",
        )
        step = source.content[3] if len(source.content) > 3 else 0
        return structure.model(config, settings, step if isinstance(step, int) else 0)

    @staticmethod
    def _averages(source: WeightFile, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The averaged parameters, last in the list; none where none were kept."""
        if len(source.content) < 5:
            return {}
        averages = source.content[4]
        if not isinstance(averages, dict) or averages.keys() != raw.keys():
            raise UserError(f"{source.named} has averages of other weights than its own")
        checked = checked_tensors(averages, source)
        for name, value in checked.items():
            if value.shape != raw[name].shape:
                raise UserError(f"{source.named} has an average of {name} of another shape")
        return checked


class _RefineNetWeights:
    """Weights of a RefineNet under our names."""

    def __init__(self, tensors: Mapping[str, Tensor], source: WeightFile) -> None:
        self._all = tensors
        self._left = Tensors(tensors, source.named)
        self._named = source.named
        self._stages = [s for s in STAGES if f"{s}.0.conv1.weight" in tensors]
        self._refinements = [r for r in REFINEMENTS if f"{r}.crp.convs.0.weight" in tensors]
        self._entry = self._shape("begin_conv.weight", 4)
        self._widths = [self._shape(f"{stage}.1.conv2.weight", 4)[0] for stage in self._stages]

    @property
    def rows(self) -> int:
        """Noise levels that have a normalisation of their own."""
        return self._shape("normalizer.embed.weight", 2)[0]

    def network(self, pooling: Pooling, conditional: bool) -> Node:
        """The node ``network``."""
        first = self._entry[0]
        if not first or any(width % first for width in self._widths):
            raise UserError(
                f"{self._named} has stages of {', '.join(map(str, self._widths))} channels; ours "
                f"are multiples of the first convolution's {first}"
            )
        return {
            "_target_": "betasigma.networks.refinenet.RefineNet",
            "channels": first,
            "multipliers": [width // first for width in self._widths],
            "pooling": pooling,
            "conditional": conditional,
        }

    def model(self, config: Node, settings: Settings, step: int) -> PublishedModel:
        """The model with this config; every tensor has found its place."""
        weights = self._weights()
        self._left.finish()
        size = settings["image_size"]
        shape = (self._entry[1], size, size)
        return PublishedModel(config, weights, shape, step, settings.get("data"))

    def _weights(self) -> Weights:
        take = self._left.layer
        weights = take("begin_conv", "enter") | take("end_conv", "leave")
        weights |= self._norm("normalizer", "norm")
        for place, stage in enumerate(self._stages):
            for block in range(2):
                weights |= self._block(f"{stage}.{block}", f"down.{place}.{block}")
        for place, refinement in enumerate(self._refinements):
            weights |= self._refinement(refinement, f"refine.{place}")
        return weights

    def _block(self, theirs: str, ours: str) -> Weights:
        found: Weights = {}
        layers = {**BLOCK, "shortcut": "shortcut"} if self._has(f"{theirs}.shortcut") else BLOCK
        for name, our_name in layers.items():
            if name.startswith("normalize"):
                found |= self._norm(f"{theirs}.{name}", f"{ours}.{our_name}")
            else:  # a layer that pools afterwards has its convolution one deeper
                pools = f"{theirs}.{name}.conv.weight" in self._left
                place = f"{theirs}.{name}.conv" if pools else f"{theirs}.{name}"
                found |= self._left.layer(place, f"{ours}.{our_name}")
        return found

    def _refinement(self, theirs: str, ours: str) -> Weights:
        inputs = 2 if self._has(f"{theirs}.adapt_convs.1") else 1
        found: Weights = {}
        for i in range(inputs):
            found |= self._units(f"{theirs}.adapt_convs.{i}", f"{ours}.adapt.{i}", 2)
        if inputs > 1:
            found |= self._pairs(f"{theirs}.msf", f"{ours}.fuse")
        found |= self._pairs(f"{theirs}.crp", f"{ours}.pool")
        last = theirs == self._refinements[-1]
        return found | self._units(f"{theirs}.output_convs", f"{ours}.out", 3 if last else 1)

    def _units(self, theirs: str, ours: str, units: int) -> Weights:
        found: Weights = {}
        for i in range(2 * units):
            name = f"{theirs}.{i // 2 + 1}_{i % 2 + 1}"
            found |= self._left.layer(f"{name}_conv", f"{ours}.convs.{i}")
            if self._has(f"{name}_norm"):
                found |= self._norm(f"{name}_norm", f"{ours}.norms.{i}")
        return found

    def _pairs(self, theirs: str, ours: str) -> Weights:
        """Two convolutions, and their normalisations where they have some."""
        found: Weights = {}
        for i in range(2):
            found |= self._left.layer(f"{theirs}.convs.{i}", f"{ours}.convs.{i}")
            if self._has(f"{theirs}.norms.{i}"):
                found |= self._norm(f"{theirs}.norms.{i}", f"{ours}.norms.{i}")
        return found

    def _norm(self, theirs: str, ours: str) -> Weights:
        if self._has(f"{theirs}.embed"):
            return {f"{ours}.rows": self._left.take(f"{theirs}.embed.weight")}
        parts = [self._left.take(f"{theirs}.{part}") for part in ("gamma", "alpha", "beta")]
        return {f"{ours}.rows": torch.cat(parts)[None]}

    def _has(self, place: str) -> bool:
        return any(name.startswith(f"{place}.") for name in self._all)

    def _shape(self, name: str, ndim: int) -> tuple[int, ...]:
        tensor = self._all.get(name)
        if tensor is None or tensor.ndim != ndim:
            raise UserError(f"{self._named} has no {name} of {ndim} dimensions")
        return tuple(tensor.shape)


def _states(source: WeightFile) -> Mapping[Any, Any]:
    """The first of the list that both codes save: the state dict of the model."""
    content = source.content
    first = content[0] if isinstance(content, list) and content else None
    return first if isinstance(first, dict) else {}


def _langevin(settings: Settings, denoise: bool) -> Node:
    return {
        "_target_": "betasigma.samplers.AnnealedLangevin",
        "inner_steps": settings["n_steps_each"],
        "step": settings["step_lr"] / settings["sigma_end"] ** 2,
        "denoise": denoise,
        "start": "uniform",
    }


def _round(sigma: Tensor) -> float:
    """A number that was rounded to float32, as it was typed."""
    return float(f"{sigma.item():.6g}")
