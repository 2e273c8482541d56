"""NCSN and NCSNv2: their checkpoints, and RefineNet (Song & Ermon 2019, 2020)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from betasigma.errors import UserError
from betasigma.options.networks import Pooling
from betasigma.published.config_nodes import Node, ncsn_config
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.unet_weights import Weights
from betasigma.published.weight_file import WeightFile, checked_averages, checked_tensors

PREFIX = "module."
"""Of the names, by ``DataParallel``."""

STAGES = ("res1", "res2", "res3", "res31", "res4", "res5")
REFINEMENTS = ("refine1", "refine2", "refine31", "refine3", "refine4", "refine5")
"""Their names in the order in which they compute; the three networks have 4, 5 and 6 of each."""


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
        weights = _refine_net_weights(_raw(source))
        config = ncsn_config(
            _refine_net(weights, "average", conditional=True),
            len(weights["norm.rows"]),
            settings["sigma_begin"],
            settings["sigma_end"],
            _langevin(settings, denoise=False),
            prediction="raw_score",
            conditioning="level_number",
        )
        step = re.search(r"_(\d+)$", source.path.stem)
        sides = (settings["image_size"], settings["image_size"])
        return PublishedModel(config, weights, sides, int(step[1]) if step else 0)


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
        raw = _raw(source)
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
        # the averaged parameters are last in the list, where some were kept
        averages = source.content[4] if len(source.content) > 4 else raw
        weights = _refine_net_weights(checked_averages(averages, raw, source))
        config = ncsn_config(
            _refine_net(weights, "max", conditional=False),
            levels,
            first,
            last,
            _langevin({**settings, "sigma_end": last}, settings["denoise"]),
            conditioning="none",
        )
        step = source.content[3] if len(source.content) > 3 else 0
        sides = (settings["image_size"], settings["image_size"])
        return PublishedModel(config, weights, sides, step if isinstance(step, int) else 0)


def _refine_net_weights(tensors: Mapping[str, Tensor]) -> Weights:
    """Weights of a RefineNet under our names; a name that is not known stays."""
    stages = [s for s in STAGES if f"{s}.0.conv1.weight" in tensors]
    refinements = [r for r in REFINEMENTS if f"{r}.crp.convs.0.weight" in tensors]
    weights: Weights = {}
    norms: dict[str, Weights] = {}
    for theirs, value in tensors.items():
        first, dot, rest = theirs.partition(".")
        if first in stages:
            first = f"down.{stages.index(first)}"
        elif first in refinements:
            first = f"refine.{refinements.index(first)}"
        ours = first + dot + rest
        for pattern, name in RENAMED:
            ours = re.sub(pattern, name, ours)
        norm, _, kind = ours.rpartition(".")
        if kind in NORM:
            norms.setdefault(norm, {})[kind] = value.float()
        else:
            weights[ours] = value.float()
    for norm, parts in norms.items():
        weights[f"{norm}.rows"] = torch.cat([parts[kind] for kind in NORM])[None]
    return weights


def _unit(found: re.Match[str]) -> str:
    """A layer of residual units: ``2_1_conv`` is the convolution 2, counted from 0."""
    unit, layer, kind = found.groups()
    return f".{kind}s.{2 * (int(unit) - 1) + int(layer) - 1}"


NORM = ("gamma", "alpha", "beta")
"""Vectors of an unconditional normalisation, in the order of ours."""

RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^begin_conv\.", "enter."),
    (r"^end_conv\.", "leave."),
    (r"^normalizer\.", "norm."),
    (r"\.embed\.weight$", ".rows"),
    (r"\.normalize(\d)\.", r".norm\1."),
    (r"\.(conv\d|shortcut)\.conv\.", r".\1."),  # of a layer that pools afterwards
    (r"\.adapt_convs\.", ".adapt."),
    (r"\.output_convs\.", ".out."),
    (r"\.(\d)_(\d)_(conv|norm)(?=\.)", _unit),
    (r"\.msf\.", ".fuse."),
    (r"\.crp\.", ".pool."),
)
"""Parts of their names, and ours."""


def _refine_net(weights: Weights, pooling: Pooling, conditional: bool) -> Node:
    """The node ``network``."""
    first, stages = len(weights["enter.weight"]), range(len(STAGES))
    last = [f"down.{stage}.1.conv2.weight" for stage in stages]
    widths = [len(weights[name]) for name in last if name in weights]
    if any(width % first for width in widths):
        raise UserError(
            f"the stages have {', '.join(map(str, widths))} channels; ours are multiples of the "
            f"first convolution's {first}"
        )
    return {
        "_target_": "betasigma.networks.refinenet.RefineNet",
        "channels": first,
        "multipliers": [width // first for width in widths],
        "pooling": pooling,
        "conditional": conditional,
    }


def _states(source: WeightFile) -> Mapping[Any, Any]:
    """The first of the list that both codes save: the state dict of the model."""
    content = source.content
    first = content[0] if isinstance(content, list) and content else None
    return first if isinstance(first, dict) else {}


def _raw(source: WeightFile) -> dict[str, Tensor]:
    found = checked_tensors(_states(source), source)
    return {name.removeprefix(PREFIX): value for name, value in found.items()}


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
