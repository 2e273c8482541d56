"""What public code computes, for tests where it is not at hand.

    BETASIGMA_PUBLIC_CODE=/path/to/clones python tests/published/record.py

writes ``recorded/*.json``: names and shapes of a small model's tensors, whose random values follow
from the names, and its outputs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from equality import images, randomised
from torch import Tensor, nn

RECORDED = Path(__file__).parent / "recorded"

STEPS = (1, 400, 1000)
"""DDPM's steps at which a model is asked."""


@dataclass(frozen=True)
class Case:
    """A small model of a public code.

    Attributes:
        repository: whose code.
        flags: its settings, as a user types them.
        build: makes it.
        call: its output for images and the number of a step that a network is told.
        labels: of the images, where it has classes.
    """

    repository: str
    flags: dict[str, Any]
    build: Callable[[dict[str, Any]], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]
    labels: list[int] = field(default_factory=list)


def _of_openai(package: str) -> Callable[[dict[str, Any]], nn.Module]:
    def build(flags: dict[str, Any]) -> nn.Module:
        util = import_module(f"{package}.script_util")
        model, _ = util.create_model_and_diffusion(
            **{**util.model_and_diffusion_defaults(), **flags}
        )
        return model

    return build


def _of_score_sde(flags: dict[str, Any]) -> nn.Module:
    data = SimpleNamespace(image_size=flags["image_size"], centered=True, num_channels=3)
    model = SimpleNamespace(
        nf=flags["nf"],
        ch_mult=tuple(int(word) for word in flags["ch_mult"].split(",")),
        num_res_blocks=flags["num_res_blocks"],
        attn_resolutions=(int(flags["attn_resolutions"]),),
        dropout=0.1,
        resamp_with_conv=True,
        conditional=True,
        scale_by_sigma=False,
        nonlinearity="swish",
        sigma_max=50,
        sigma_min=0.01,
        num_scales=1000,
    )
    return import_module("models.ddpm").DDPM(SimpleNamespace(data=data, model=model))


def _of_pytorch_diffusion(flags: dict[str, Any]) -> nn.Module:
    return import_module("pytorch_diffusion.model").Model(
        ch=32,
        out_ch=3,
        in_channels=3,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        resolution=flags["resolution"],
    )


def _plainly(model: nn.Module, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    return model(x, t)


def _with_labels(model: nn.Module, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    return model(x, t, y=y)


CASES = {
    "pytorch_diffusion": Case(
        "pytorch_diffusion", {"resolution": 16}, _of_pytorch_diffusion, _plainly
    ),
    "score_sde-ddpm": Case(
        "score_sde_pytorch",
        {
            "image_size": 16,
            "nf": 32,
            "ch_mult": "1,2",
            "num_res_blocks": 1,
            "attn_resolutions": "8",
        },
        _of_score_sde,
        _plainly,
    ),
    "improved-diffusion": Case(
        "improved-diffusion",
        {
            "image_size": 32,
            "num_channels": 32,
            "num_res_blocks": 1,
            "num_heads": 2,
            "learn_sigma": True,
            "attention_resolutions": "8",
        },
        _of_openai("improved_diffusion"),
        _plainly,
    ),
    "guided-diffusion": Case(
        "guided-diffusion",
        {
            "image_size": 16,
            "num_channels": 32,
            "channel_mult": "1,2",
            "num_res_blocks": 1,
            "num_head_channels": 16,
            "class_cond": True,
            "learn_sigma": True,
            "resblock_updown": True,
            "attention_resolutions": "8",
        },
        _of_openai("guided_diffusion"),
        _with_labels,
        labels=[3, 999],
    ),
}


def probes(output: Tensor) -> list[float]:
    """Some values of an output, spread over it."""
    flat = output.flatten()
    return flat[:: max(1, len(flat) // 16)].tolist()


def recorded(case: Case) -> Iterator[tuple[str, Any]]:
    """What is written of a case."""
    model = randomised(case.build(case.flags))
    size = case.flags.get("image_size", case.flags.get("resolution"))
    x = images(2, (3, size, size))
    y = torch.tensor(case.labels) if case.labels else None
    yield "flags", case.flags
    yield "labels", case.labels
    yield "shapes", {name: list(value.shape) for name, value in model.named_parameters()}
    outputs = []
    for step in STEPS:
        with torch.no_grad():
            found = case.call(model, x, torch.full((2,), step - 1), y)
        outputs.append({"step": step, "largest": found.abs().max().item(), "at": probes(found)})
    yield "outputs", outputs


def main() -> None:
    """Write the outputs of every case."""
    folder = Path(os.environ["BETASIGMA_PUBLIC_CODE"])
    RECORDED.mkdir(exist_ok=True)
    for name, case in CASES.items():
        sys.path.insert(0, str(folder / case.repository))
        (RECORDED / f"{name}.json").write_text(json.dumps(dict(recorded(case))) + "\n")
        sys.path.pop(0)


if __name__ == "__main__":
    main()
