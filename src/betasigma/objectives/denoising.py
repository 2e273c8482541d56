r"""Learning to denoise: DDPM's simple loss and NCSN's multi-σ denoising score matching are one
objective.

Vincent's identity (2.18–2.23 of docs/equations.md) turns the score of the perturbed density q_σ,
which nobody knows, into the score of the kernel, −ε/σ. Song & Ermon (2019, equation 6) weigh the
levels by λ(σ) and average:

    ½·E λ(σ)·‖s(x̃, σ) + ε/σ‖²   =   ½·E λ(σ)/σ²·‖ε − ε̂‖²,        ε̂ = −σ·s,

so that with their λ(σ) = σ² it is ½·E‖ε − ε̂‖². Ho et al. (2020, equation 14; 2.10 here) minimise
E‖ε − ε̂‖² averaged over pixels. What is left between them are knobs: how the times are drawn, a
weight as a function of the noise level, and whether the squares are averaged over dimensions
(``mean``) or summed and halved (``half_sum``).

Every weighting w(t) multiplies ‖ε − ε̂‖² = SNR·‖x_0 − x̂_0‖², whatever the network's output means:

| ``weighting``  | w(t)                                    | of ‖x_0 − x̂_0‖²         |
|----------------|-----------------------------------------|-------------------------|
| `sigma_power`  | σ^(p−2), i.e. λ(σ) = σ^p                | SNR·σ^(p−2)             |
| `vlb`          | L·(SNR_s/SNR_t − 1), 1·L at level 1     | L·(SNR_s − SNR_t)       |
| `likelihood`   | g²/σ² = −d log-SNR/dt                   | g²/σ²·SNR               |
| `min_snr`      | min(SNR, γ)/SNR                         | min(SNR, γ)             |
| `edm`          | (σ̃² + σ_d²)/σ_d²,  σ̃ = σ/α              | (σ̃² + σ_d²)/(σ̃·σ_d)²    |

*vlb* is (2.9), the denoising-matching term of the bound: with c_x0 and β̃ of the posterior (2.6,
2.7), the divergence ½·c_x0²/β̃·‖x_0 − x̂_0‖² of the step from t to s is ½·(SNR_s −
SNR_t)·‖x_0 − x̂_0‖², for any Gaussian schedule, and L times its mean over the levels is their sum.
Level 1 has a decoder instead of a divergence; a Gaussian of standard deviation σ/α around x̂_0
gives it ½·‖ε − ε̂‖². *likelihood* is the same of infinitely many levels: Song et al. (2021, "Maximum
likelihood training of score-based diffusion models", theorem 1) weigh ‖score error‖² by g², hence
‖ε − ε̂‖² by g²/σ², and with ``times=continuous`` half of it is the integral of the continuous bound.
*edm* is Karras et al. (2022, table 1), made for σ̃ drawn from a log-normal distribution:
``times=log_normal``. *min_snr* is Hang et al. (2023, "Efficient diffusion training via min-SNR
weighting strategy"): min(SNR, γ) on the error of x_0, hence min(SNR, γ)/SNR on that of ε and
min(SNR, γ)/(SNR + 1) on that of v, which is the same loss thrice. Its SNR is that of data in
[−1, 1], so that γ means the same in both families.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser, Prediction, expand, perturb
from betasigma.errors import UserError
from betasigma.options.objectives import (
    DenoisingOptions,
    ObjectiveOptions,
    Reduction,
    TrainedOn,
    Weighting,
)
from betasigma.options.plugins import Component
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule


class LossTerms(NamedTuple):
    """What an objective returns."""

    loss: Tensor
    """Scalar to minimise."""
    per_sample: Tensor
    """Loss of each example, shape ``(B,)``, detached; ``loss`` is its mean."""
    t: Tensor
    """Time of each example, float64 on the CPU, shape ``(B,)``."""
    error: Tensor | None = None
    """‖ε − ε̂‖²/d of each example, ``(B,)``, detached; ``None`` where the objective has none."""


def draw_times(
    schedule: NoiseSchedule,
    sampling: TrainedOn,
    rng: Stream,
    log_mean: float = -1.2,
    log_std: float = 1.2,
) -> Tensor:
    """Times uniform on the discrete levels, uniform on the whole curve [t_min, 1], or with log σ/α
    normal within the curve's range; float64, ``(B,)``.
    """
    if sampling == "levels":
        return rng.integers(1, schedule.levels + 1).double() / schedule.levels
    if sampling == "log_normal":
        ends = torch.stack([schedule.ratio(schedule.t_min), schedule.ratio(1.0)]).log()
        low, high = torch.special.ndtr((ends - log_mean) / log_std)
        share = low + (high - low) * rng.uniform(device="cpu")
        log_ratio = (log_mean + log_std * torch.special.ndtri(share)).clamp(*ends.tolist())
        return schedule.t_of_log_snr(-2 * log_ratio)
    return schedule.t_min + (1 - schedule.t_min) * rng.uniform(device="cpu")


def drop_labels(y: Tensor | None, null: int, probability: float, rng: Stream) -> Tensor | None:
    """Replace labels by the null label with this probability (Ho & Salimans 2021, algorithm 1)."""
    if y is None or probability == 0:
        return y
    dropped = (rng.uniform(device="cpu") < probability).to(y.device, non_blocking=True)
    return torch.where(dropped, null, y)


def bound_weight(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Weight of ‖ε − ε̂‖² that makes ½·Σ over dimensions, averaged over the levels, the bound's
    diffusion term in nats (2.9); float64, the shape of ``t``, which must be levels.
    """
    s = (t * schedule.levels - 1).round() / schedule.levels
    growth = torch.expm1(schedule.log_snr(s) - schedule.log_snr(t))
    return schedule.levels * torch.where(s == 0, 1.0, growth)


@dataclass(eq=False)
class Noised:
    """Clean data and what has been made of them.

    Attributes:
        found: the last error that was asked for, detached: an objective that asks is logged in
            units that it shares with every other.
    """

    x0: Tensor
    x_t: Tensor
    t: Tensor
    eps: Tensor
    y: Tensor | None
    found: Tensor | None = field(default=None, init=False)

    def error(self, predicted: Prediction) -> Tensor:
        """‖ε − ε̂‖²/d of the prediction at ``x_t``, ``(B,)``."""
        error = (self.eps - predicted.eps).square().flatten(1).mean(1)
        self.found = error.detach()
        return error


@dataclass(frozen=True)
class Objective(Component):
    """What objectives share: times, noise, the weighting of the levels and the reduction.

    Args:
        times: ``levels`` draws t uniformly from the discrete levels {1, …, L}/L, ``continuous``
            from [t_min, 1], ``log_normal`` so that log σ/α is normal.
        weighting: ``sigma_power``, ``vlb``, ``likelihood``, ``min_snr`` or ``edm``, see above.
        sigma_power: λ(σ) = σ^p of multi-σ DSM, i.e. w = σ^(p−2); 2 is both papers' choice.
        gamma: γ of ``min_snr``; the paper takes 5.
        sigma_data: σ_d of ``edm``, in the units of the data.
        log_mean, log_std: of log σ/α under ``log_normal``; EDM's −1.2 and 1.2 are for images in
            [−1, 1].
        reduction: ``mean`` over dimensions (DDPM's code) or ``half_sum``, ½·Σ over dimensions
            (NCSN): d/2 times as much.
        label_dropout: probability of hiding an example's label, for classifier-free guidance.

    Raises:
        UserError: where the knobs contradict each other.
    """

    config_group = "objective"

    options: ClassVar[type[ObjectiveOptions]] = DenoisingOptions

    times: TrainedOn = "levels"
    weighting: Weighting = "sigma_power"
    sigma_power: float = 2.0
    gamma: float = 5.0
    sigma_data: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    reduction: Reduction = "mean"
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        type(self).options.check_own(vars(self))

    def loss(self, denoiser: Denoiser, x0: Tensor, y: Tensor | None, rng: Stream) -> LossTerms:
        """Loss of clean data.

        Args:
            denoiser: the model.
            x0: clean data in the model's value range, shape ``(B, *sample_shape)``.
            y: class labels ``(B,)`` or ``None``.
            rng: the numbers of these examples at this step.
        """
        t = draw_times(denoiser.schedule, self.times, rng, self.log_mean, self.log_std)
        eps = rng.normal(x0.shape[1:]).to(x0)
        y = drop_labels(y, denoiser.num_classes, self.label_dropout, rng)
        noised = Noised(x0, perturb(denoiser.schedule, x0, t, eps), t, eps, y)
        per_sample = self.value(denoiser, noised, rng)
        if per_sample.shape != t.shape:
            raise UserError(
                f"objective={type(self).__name__} returned a loss of shape "
                f"{tuple(per_sample.shape)} for {len(t)} examples; value must return one of each, "
                f"of shape ({len(t)},)"
            )
        if self.reduction == "half_sum":
            per_sample = per_sample * (x0[0].numel() / 2)
        return LossTerms(per_sample.mean(), per_sample.detach(), t, noised.found)

    def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        """Weighted loss of each example, ``(B,)``, per dimension and in units of ‖ε − ε̂‖²."""
        raise NotImplementedError(f"{type(self).__name__} must define value(denoiser, noised, rng)")

    def weighted(self, denoiser: Denoiser, t: Tensor, error: Tensor) -> Tensor:
        """w(t)·error, ``(B,)``."""
        if self.weighting == "sigma_power" and self.sigma_power == 2:
            return error
        return error * expand(self.weight(denoiser, t), error)

    def weight(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """w(t) of ‖ε − ε̂‖², float64, the shape of ``t``."""
        schedule = denoiser.schedule
        if self.weighting == "vlb":
            return bound_weight(schedule, t)
        if self.weighting == "likelihood":
            return -schedule.log_snr_slope(t)
        if self.weighting == "edm":
            return (schedule.ratio(t) / self.sigma_data) ** 2 + 1
        if self.weighting == "min_snr":
            low, high = denoiser.value_range
            snr = torch.exp(schedule.log_snr(t)) * ((high - low) / 2) ** 2
            return (self.gamma / snr).clamp(max=1)
        return schedule.sigma(t) ** (self.sigma_power - 2)


@dataclass(frozen=True)
class Denoising(Objective):
    """E w(t)·‖ε − ε̂(x_t, t)‖², the training objective of both families.

    Args: see :class:`Objective`.
    """

    def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        predicted = denoiser(noised.x_t, noised.t, noised.y)
        return self.weighted(denoiser, noised.t, noised.error(predicted))
