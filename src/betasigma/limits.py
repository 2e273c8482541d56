"""What an objective or a likelihood can be asked for, checked without importing torch.

The command line calls these functions before anything heavy is imported; objectives and
likelihoods call them again, so that a notebook gets the same sentence.
"""

from __future__ import annotations

from betasigma.errors import UserError

TRACE_LIMIT = 256
"""Largest number of dimensions for which the exact trace of a Jacobian is taken."""


def check_weighting(weighting: str, sigma_power: float, times: str) -> None:
    """Refuse weightings of the noise levels that contradict each other.

    Raises:
        UserError: for a power of σ beside another weighting, or for the weights of the discrete
        bound off its levels.
    """
    if weighting != "sigma_power" and sigma_power != 2:
        raise UserError(
            f"objective.sigma_power={sigma_power:g} is the knob of objective.weighting=sigma_power "
            f"and has no part in weighting={weighting}; leave it at 2"
        )
    if weighting == "vlb" and times != "levels":
        raise UserError(
            f"objective.weighting=vlb weighs the model's own levels; objective.times={times} must "
            f"be levels"
        )


def check_hybrid(weighting: str, times: str) -> None:
    """Refuse what the hybrid objective's bound cannot be combined with.

    Raises:
        UserError: for times off the levels, or the bound's weight on the simple part too.
    """
    if times != "levels":
        raise UserError(
            f"objective=hybrid has a bound over the model's own levels; objective.times={times} "
            f"must be levels"
        )
    if weighting == "vlb":
        raise UserError(
            "objective.weighting=vlb does not fit objective=hybrid, which adds the bound itself: "
            "choose sigma_power or min_snr for its simple part"
        )


def check_label_dropout(probability: float) -> None:
    """Refuse what is no probability, or would hide every label.

    Raises:
        UserError: see above.
    """
    if not 0 <= probability < 1:
        raise UserError(f"objective.label_dropout={probability} must be at least 0 and below 1")


def check_trace(dim: int) -> None:
    """Refuse implicit score matching in many dimensions, with what it would cost.

    Raises:
        UserError: for more than ``TRACE_LIMIT`` dimensions.
    """
    if dim > TRACE_LIMIT:
        raise UserError(
            f"implicit score matching in {dim} dimensions would take {dim} backward passes a step; "
            f"it is meant for at most {TRACE_LIMIT}: use sliced or denoising score matching "
            f"(objective=sliced_vr or denoising)"
        )


def check_exact_trace(dim: int) -> None:
    """Refuse the exact trace of a flow in many dimensions, with what it would cost.

    Raises:
        UserError: for more than ``TRACE_LIMIT`` dimensions.
    """
    if dim > TRACE_LIMIT:
        raise UserError(
            f"likelihood.trace=exact would take {dim} backward passes at each of some hundred "
            f"evaluations; it is meant for at most {TRACE_LIMIT} dimensions: use "
            f"likelihood.trace=hutchinson"
        )


def check_levels(levels: int) -> None:
    """Refuse the likelihood of a model without a path from noise to data.

    Raises:
        UserError: for a single noise level.
    """
    if levels < 2:
        raise UserError(
            "a likelihood needs at least 2 noise levels (sigma.levels or beta.steps); this model "
            "has 1"
        )
