"""Nodes of a run's config that say what a published DDPM is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Node = dict[str, Any]


def ddpm_config(
    network: Node,
    schedule: Node,
    variance: str,
    clip: bool,
    prediction: str = "epsilon",
    timestep_scale: float = 1.0,
) -> Node:
    """All nodes of a DDPM that samples by its ancestral sampler."""
    objective = "Hybrid" if variance == "learned" else "Denoising"
    return {
        "network": network,
        "schedule": schedule,
        "preconditioning": {
            "_target_": "betasigma.preconditioning.Preconditioning",
            "prediction": prediction,
            "timestep_scale": timestep_scale,
        },
        "objective": {"_target_": f"betasigma.objectives.{objective}"},
        "sampler": {"_target_": "betasigma.samplers.Ancestral", "variance": variance, "clip": clip},
    }


def sde_config(network: Node, kind: str, steps: int, start: float, end: float) -> Node:
    """All nodes of a model of the VP or the sub-VP SDE with the rates β(0) and β(1), trained on
    every t (Song et al. 2021).
    """
    return {
        "network": network,
        "schedule": schedule_node(kind, steps, start, end),
        "preconditioning": {
            "_target_": "betasigma.preconditioning.Preconditioning",
            "conditioning": "scaled_time",
        },
        "objective": {"_target_": "betasigma.objectives.Denoising", "times": "continuous"},
        "sampler": {
            "_target_": "betasigma.samplers.PredictorCorrector",
            "predictor": "euler_maruyama",
            "corrector_steps": 0,
        },
    }


def schedule_node(kind: str, steps: int, start: float = 0.0, end: float = 0.0) -> Node:
    """The node ``schedule``; a cosine has no start and no end."""
    ends = {} if kind == "cosine" else {"start": start, "end": end}
    return {"_target_": f"betasigma.schedules.{kind}", "steps": steps, **ends}


def ncsn_config(
    network: Node,
    levels: int,
    sigma_max: float,
    sigma_min: float,
    sampler: Node,
    prediction: str = "score",
    conditioning: str = "log_sigma",
    continuous: bool = False,
    value_range: Sequence[float] = (0.0, 1.0),
) -> Node:
    """All nodes of an NCSN on a geometric ladder, σ in the units of ``value_range``; a
    ``continuous`` one has seen what lies between its levels.
    """
    return {
        "model": {
            "_target_": "betasigma.modules.NCSN",
            "name": "ncsn",
            "family": "ncsn",
            "value_range": list(value_range),
        },
        "network": network,
        "schedule": {
            "_target_": "betasigma.schedules.geometric",
            "levels": levels,
            "max": sigma_max,
            "min": sigma_min,
        },
        "preconditioning": {
            "_target_": "betasigma.preconditioning.Preconditioning",
            "prediction": prediction,
            "conditioning": conditioning,
        },
        "objective": {
            "_target_": "betasigma.objectives.Denoising",
            "reduction": "half_sum",
            "times": "continuous" if continuous else "levels",
        },
        "sampler": sampler,
    }
