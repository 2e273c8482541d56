r"""Learning to denoise: DDPM's simple loss and NCSN's multi-σ denoising score matching are one
objective.

Vincent's identity (equations 2.18–2.23) turns the score of the perturbed density q_σ, which nobody
knows, into the score of the kernel, −ε/σ. Song & Ermon (2019, equation 6) weigh the levels by λ(σ)
and average:

    ½·E λ(σ)·‖s(x̃, σ) + ε/σ‖²   =   ½·E λ(σ)/σ²·‖ε − ε̂‖²,        ε̂ = −σ·s,

so that with their λ(σ) = σ² it is ½·E‖ε − ε̂‖². Ho et al. (2020, equation 14; 2.10 here) minimise
E‖ε − ε̂‖² averaged over pixels. What is left between them are knobs: how the times are drawn, a
weight as a function of the noise level, and whether the squares are averaged over dimensions
(``mean``) or summed and halved (``half_sum``).

Every weighting multiplies ‖ε − ε̂‖²; it is written for w(t) relative to ε-prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser, expand
from betasigma.errors import UserError
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule

TimeSampling = Literal["levels", "continuous"]
Reduction = Literal["mean", "half_sum"]


class LossTerms(NamedTuple):
    """What an objective returns."""

    loss: Tensor
    """Scalar to minimise."""
    per_sample: Tensor
    """Loss of each example, shape ``(B,)``, detached; ``loss`` is its mean."""
    t: Tensor
    """Time of each example, float64 on the CPU, shape ``(B,)``."""


def draw_times(schedule: NoiseSchedule, sampling: TimeSampling, rng: Stream) -> Tensor:
    """Times uniform on the discrete levels, or uniform on the whole curve [t_min, 1]; float64,
    ``(B,)``.
    """
    if sampling == "levels":
        return rng.integers(1, schedule.levels + 1).double() / schedule.levels
    return schedule.t_min + (1 - schedule.t_min) * rng.uniform(device="cpu")


def perturb(schedule: NoiseSchedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = α_t·x_0 + σ_t·ε (equations 2.2 and 2.17); ``t`` float64 of shape ``()`` or ``(B,)``."""
    return x0 * expand(schedule.alpha(t), x0) + eps * expand(schedule.sigma(t), x0)


def drop_labels(y: Tensor | None, null: int, probability: float, rng: Stream) -> Tensor | None:
    """Replace labels by the null label with this probability (Ho & Salimans 2021, algorithm 1)."""
    if y is None or probability == 0:
        return y
    dropped = (rng.uniform(device="cpu") < probability).to(y.device, non_blocking=True)
    return torch.where(dropped, null, y)


@dataclass(frozen=True)
class Denoising:
    """E w(t)·‖ε − ε̂(x_t, t)‖², the training objective of both families.

    Args:
        times: ``levels`` draws t uniformly from the discrete levels {1, …, L}/L, ``continuous``
            from [t_min, 1].
        sigma_power: λ(σ) = σ^p of multi-σ DSM, i.e. w = σ^(p−2); 2 is both papers' choice.
        reduction: ``mean`` over dimensions (DDPM's code) or ``half_sum``, ½·Σ over dimensions
            (NCSN).
        label_dropout: probability of hiding an example's label, for classifier-free guidance.
    """

    times: TimeSampling = "levels"
    sigma_power: float = 2.0
    reduction: Reduction = "mean"
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise UserError(
                f"objective.label_dropout={self.label_dropout} must be at least 0 and below 1"
            )

    def loss(self, denoiser: Denoiser, x0: Tensor, y: Tensor | None, rng: Stream) -> LossTerms:
        """Loss of clean data.

        Args:
            denoiser: the model.
            x0: clean data in the model's value range, shape ``(B, *sample_shape)``.
            y: class labels ``(B,)`` or ``None``.
            rng: the numbers of these examples at this step.
        """
        t = draw_times(denoiser.schedule, self.times, rng)
        eps = rng.normal(x0.shape[1:]).to(x0)
        y = drop_labels(y, denoiser.num_classes, self.label_dropout, rng)
        predicted = denoiser(perturb(denoiser.schedule, x0, t, eps), t, y).eps
        squares = (eps - predicted).square().flatten(1)
        error = squares.mean(1) if self.reduction == "mean" else squares.sum(1) / 2
        per_sample = error * self._weight(denoiser.schedule, t, error)
        return LossTerms(per_sample.mean(), per_sample.detach(), t)

    def _weight(self, schedule: NoiseSchedule, t: Tensor, like: Tensor) -> Tensor | float:
        if self.sigma_power == 2:
            return 1.0
        return expand(schedule.sigma(t) ** (self.sigma_power - 2), like)
