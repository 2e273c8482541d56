"""The contract of a preconditioning: coefficients from which x_0 can be recovered at every level.

With x̂_0 = c_skip·x_t + c_out·F a network that answers right must be able to say x_0: c_in and c_out
are nowhere 0, and nothing overflows between the least noise and the most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser
from betasigma.objectives.denoising import perturb
from betasigma.preconditioning import Coefficients
from betasigma.schedules import NoiseSchedule
from betasigma.testing.contract import require, require_equal, shape

Coefficient = Callable[[Tensor, Tensor, Tensor], Coefficients]


class _RightAnswer(nn.Module):
    """A network that says the F it was given, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.empty(0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return self.output


def check_preconditioning(preconditioning: Coefficient, schedule: NoiseSchedule) -> None:
    """Assert the contract of a preconditioning on a schedule that it is meant for.

    Args:
        preconditioning: ``(t, alpha, sigma)`` → c_in, c_skip, c_out, c_noise.
        schedule: the noise levels; their number is that of the preconditioning, where it has one.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    levels = schedule.times()
    t = torch.cat([levels, levels[:-1] + 0.4 * levels.diff()]).unique()
    kernel = schedule.at(t)
    found = preconditioning(t, kernel.alpha, kernel.sigma)
    for name, value in zip(Coefficients._fields, found, strict=True):
        require(
            value.dtype == torch.float64 and value.shape == t.shape,
            "preconditioning.shape",
            f"{name} in float64, in the shape {tuple(t.shape)} of t",
            f"it is {shape(value)}",
        )
        require(
            bool(value.isfinite().all()),
            "preconditioning.finite",
            f"{name} to be finite at every noise level",
            f"it is {value[~value.isfinite()][:1].sum()} at t={t[~value.isfinite()][:1].sum():g}",
        )
    one = preconditioning(t[0], kernel.alpha[0], kernel.sigma[0])
    require(
        all(torch.equal(a, b[0]) for a, b in zip(one, found, strict=True)),
        "preconditioning.shape",
        "the same coefficients for one time as for a vector of them",
        f"they are {[float(a) for a in one]} and {[float(b[0]) for b in found]} at t={t[0]:g}",
    )
    steps = found.c_noise.diff()
    require(
        bool((steps > 0).all() or (steps < 0).all() or (steps == 0).all()),
        "preconditioning.c_noise",
        "c_noise to tell every two noise levels apart, or none",
        f"it neither rises nor falls at t={t[1:][steps == 0][:1].sum():g}"
        if bool((steps == 0).any())
        else "it rises and falls",
    )
    _check_recovery(preconditioning, schedule, t, found)


def _check_recovery(
    preconditioning: Coefficient, schedule: NoiseSchedule, t: Tensor, found: Coefficients
) -> None:
    for name, what in (("c_in", "would see nothing"), ("c_out", "would not be heard")):
        zero = getattr(found, name) == 0
        require(
            not bool(zero.any()),
            "preconditioning.recovers",
            f"{name} to be nowhere 0, where the network {what}",
            f"it is 0 at t={t[zero][:1].sum():g}",
        )
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(len(t), 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = perturb(schedule, x0, t, eps)
    network = _RightAnswer()
    network.output = (x0 - found.c_skip[:, None] * x_t) / found.c_out[:, None]
    # Denoiser asks for no more than a call with these arguments
    denoiser = Denoiser(network, schedule, preconditioning, (3,), trained_on="continuous")  # type: ignore[arg-type]
    predicted = denoiser(x_t, t)
    for name, value, truth in (
        ("x̂_0", predicted.x0, x0),
        ("ε̂", predicted.eps, eps),
        ("σ·score", predicted.score * schedule.sigma(t)[:, None], -eps),
    ):
        expected = f"the right network output to give {name} exactly"
        require_equal(value, truth, "preconditioning.recovers", expected, "it is off", 1e-6)
