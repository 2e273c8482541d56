r"""Score matching: three ways to fit s(x, σ) to ∇ log q_σ(x) without ever normalising a density.

All are taken on the *perturbed* density q_σ (2.16 of docs/equations.md), with ½ throughout, and all
are, up to constants that do not depend on the model, the explicit objective (2.14, 2.18)

    ½·E_{q_σ} ‖s(x̃) − ∇ log q_σ(x̃)‖²,

which needs the true score and so is possible for toy distributions only. Expanding the square and
integrating the cross term by parts gives Hyvärinen's (2005) *implicit* objective (2.15), which
needs the model alone,

    E_{q_σ} [ ½·‖s(x̃)‖² + tr ∇s(x̃) ];

the trace costs one backward pass per dimension. *Sliced* score matching (Song et al. 2019, "Sliced
score matching") replaces it by projections v with E vvᵀ = I (Rademacher),

    E [ vᵀ∇s(x̃)v + ½·(vᵀs(x̃))² ],      or, with less variance,      E [ vᵀ∇s(x̃)v + ½·‖s(x̃)‖² ].

*Denoising* score matching (2.23), which costs no derivative at all, is
:class:`betasigma.objectives.Denoising`.

Times, weights and reduction are those of :class:`~betasigma.objectives.denoising.Objective`: every
form here, multiplied by 2σ²/d, is in units of ‖ε − ε̂‖² per dimension up to its constant, so that
one weight w(t) means the same for all and a run can be moved from one to another. An energy network
(2.12, 2.13) is trained by any of these: see :class:`betasigma.networks.energy.EnergyNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser, expand
from betasigma.derivatives import differentiable, jacobian_trace
from betasigma.errors import UserError
from betasigma.objectives.denoising import Noised, Objective
from betasigma.options.objectives import (
    ExplicitOptions,
    ImplicitOptions,
    Reduction,
    SlicedOptions,
    check_trace,
)
from betasigma.randomness import Stream


@dataclass(frozen=True)
class ScoreMatching(Objective):
    """Score matching on q_σ; by default in the papers' units, ½ and sums over dimensions.

    Args: see :class:`~betasigma.objectives.denoising.Objective`.
    """

    reduction: Reduction = "half_sum"

    def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        terms = self.terms(denoiser, noised, rng)
        unit = 2 * denoiser.schedule.sigma(noised.t) ** 2 / noised.x0[0].numel()
        return self.weighted(denoiser, noised.t, terms * expand(unit, terms))

    def terms(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        """The equation itself for each example, unweighted, shape ``(B,)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExplicitScoreMatching(ScoreMatching):
    """½·‖s − ∇ log q_σ‖² (2.14, 2.18), where the true score is known.

    Args:
        true_score: ``true_score(x_t, t)`` → ∇ log q_t(x_t), the shape of ``x_t``.
    """

    options = ExplicitOptions

    true_score: Callable[[Tensor, Tensor], Tensor] | None = None

    def terms(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        if self.true_score is None:
            raise UserError("explicit score matching needs the true score of the data")
        predicted = denoiser(noised.x_t, noised.t, noised.y)
        noised.error(predicted)  # for the log
        difference = predicted.score - self.true_score(noised.x_t, noised.t)
        return difference.square().flatten(1).sum(1) / 2


@dataclass(frozen=True)
class ImplicitScoreMatching(ScoreMatching):
    """½·‖s‖² + tr ∇s (2.15; Hyvärinen 2005), with the exact trace; for at most 256 dimensions."""

    options = ImplicitOptions

    def terms(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        check_trace(noised.x0[0].numel())
        training = torch.is_grad_enabled()
        with differentiable():
            point, score = _score_at(denoiser, noised)
            trace = jacobian_trace(score, point, create_graph=training)
        return score.square().flatten(1).sum(1) / 2 + trace


@dataclass(frozen=True)
class SlicedScoreMatching(ScoreMatching):
    """vᵀ∇s v plus a square, averaged over projections (Song et al. 2019, equations 7 and 8).

    Args:
        projections: Rademacher vectors per example.
        variance_reduced: take ½·‖s‖² (equation 8) instead of ½·(vᵀs)².
    """

    options = SlicedOptions

    projections: int = 1
    variance_reduced: bool = False

    def terms(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
        training = torch.is_grad_enabled()
        with differentiable():
            point, score = _score_at(denoiser, noised)
            total = torch.zeros_like(score.flatten(1)[:, 0])
            for _ in range(self.projections):
                v = rng.uniform(point.shape[1:], torch.float32).sub_(0.5).sign_().to(point)
                along = (v * score).flatten(1).sum(1)
                (gradient,) = torch.autograd.grad(
                    along.sum(), point, create_graph=training, retain_graph=True
                )
                total = total + (v * gradient).flatten(1).sum(1)
                if not self.variance_reduced:
                    total = total + along.square() / 2
            total = total / self.projections
            if self.variance_reduced:
                total = total + score.square().flatten(1).sum(1) / 2
        return total


def _score_at(denoiser: Denoiser, noised: Noised) -> tuple[Tensor, Tensor]:
    """Points that can be differentiated at, and the score there."""
    point = noised.x_t.detach().clone().requires_grad_(True)
    y = None if noised.y is None else noised.y.clone()  # an inference tensor cannot be kept
    predicted = denoiser(point, noised.t, y)
    noised.error(predicted)  # for the log
    return point, predicted.score
