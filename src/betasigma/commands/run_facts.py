"""What a dashboard shows of a run beside its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from betasigma.build import Config
from betasigma.denoiser import Denoiser
from betasigma.devices import uses_gpu
from betasigma.networks.cost import count_flop
from betasigma.oracles import ExactDenoiser
from betasigma.runs.directory import SWEEP


def cost_of(denoiser: Denoiser | ExactDenoiser) -> dict[str, int]:
    """Parameters of the network, and what one image costs in it: ``forward_flop`` of an evaluation
    and ``backward_flop`` of a training step besides, where they can be told (see
    :func:`~betasigma.networks.cost.count_flop`); to be asked before it is compiled.
    """
    cost = {"parameters": sum(p.numel() for p in denoiser.parameters())}
    if isinstance(denoiser, Denoiser):
        flop = count_flop(denoiser.network, denoiser.sample_shape, denoiser.num_classes)
        if flop is not None:
            cost |= {
                "forward_flop_per_image": flop.forward,
                "backward_flop_per_image": flop.backward,
            }
    return cost


def gpu_name(content: Config) -> str | None:
    """What the GPU is called that a run computes on."""
    return torch.cuda.get_device_name() if uses_gpu(content["hardware"]) else None


def shown_config(content: Mapping[str, Any], run: Path, environment: Mapping[str, Any]) -> Config:
    """The config as a dashboard is sent it: with the sweep that the run is a job of, and ``run``:
    its directory, commit, GPU and cost (see :func:`cost_of`).
    """
    git, cost = (environment.get(key) or {} for key in ("git", "cost"))
    facts = {"git_commit": git.get("commit"), "gpu": environment.get("gpu"), **cost}
    facts = {"directory": str(run.absolute()), **facts}
    return {**content, SWEEP: environment.get(SWEEP), "run": facts}
