r"""Score matching: three ways to fit s(x, σ) to ∇ log q_σ(x) without ever normalising a density.

All are taken on the *perturbed* density q_σ (2.16), with ½ throughout, and all are, up to constants
that do not depend on the model, the explicit objective (2.14, 2.18)

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

The levels are weighted by λ(σ) = σ^p like there. An energy network (2.12, 2.13) is trained by any
of these: see :class:`betasigma.networks.energy.EnergyNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser, expand
from betasigma.errors import UserError
from betasigma.objectives.denoising import LossTerms, TimeSampling, draw_times, perturb
from betasigma.randomness import Stream

TRACE_LIMIT = 256
"""Largest number of dimensions for which the exact trace is taken."""


def jacobian_trace(field: Tensor, point: Tensor, create_graph: bool = False) -> Tensor:
    """tr ∂field/∂point of each example, ``(B,)``, exactly: one backward pass per dimension."""
    flat = field.flatten(1)
    trace = torch.zeros_like(flat[:, 0])
    for k in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(
            flat[:, k].sum(), point, create_graph=create_graph, retain_graph=True
        )
        trace = trace + gradient.flatten(1)[:, k]
    return trace


@dataclass(frozen=True)
class ScoreMatching:
    """What the objectives share: times, perturbation and weighting λ(σ) = σ^p.

    Args:
        times: ``levels`` or ``continuous``.
        sigma_power: p; 0 leaves the levels unweighted, 2 makes them comparable.
    """

    times: TimeSampling = "levels"
    sigma_power: float = 2.0

    def loss(self, denoiser: Denoiser, x0: Tensor, y: Tensor | None, rng: Stream) -> LossTerms:
        """Loss of clean data; arguments as :meth:`betasigma.objectives.Denoising.loss`."""
        t = draw_times(denoiser.schedule, self.times, rng)
        eps = rng.normal(x0.shape[1:]).to(x0)
        x_t = perturb(denoiser.schedule, x0, t, eps)
        terms = self.terms(denoiser, x_t, t, y, rng)
        per_sample = terms * expand(denoiser.schedule.sigma(t) ** self.sigma_power, terms)
        return LossTerms(per_sample.mean(), per_sample.detach(), t)

    def terms(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | None, rng: Stream
    ) -> Tensor:
        """Unweighted objective of each example, shape ``(B,)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExplicitScoreMatching(ScoreMatching):
    """½·‖s − ∇ log q_σ‖² (2.14, 2.18), where the true score is known.

    Args:
        true_score: ``true_score(x_t, t)`` → ∇ log q_t(x_t), the shape of ``x_t``.
    """

    true_score: Callable[[Tensor, Tensor], Tensor] | None = None

    def terms(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | None, rng: Stream
    ) -> Tensor:
        if self.true_score is None:
            raise UserError("explicit score matching needs the true score of the data")
        difference = denoiser(x_t, t, y).score - self.true_score(x_t, t)
        return difference.square().flatten(1).sum(1) / 2


@dataclass(frozen=True)
class ImplicitScoreMatching(ScoreMatching):
    """½·‖s‖² + tr ∇s (2.15; Hyvärinen 2005), with the exact trace; for at most 256 dimensions."""

    def terms(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | None, rng: Stream
    ) -> Tensor:
        dim = x_t[0].numel()
        if dim > TRACE_LIMIT:
            raise UserError(
                f"implicit score matching in {dim} dimensions would take {dim} backward passes a "
                f"step; it is meant for at most {TRACE_LIMIT}: use sliced or denoising score "
                f"matching"
            )
        point = x_t.detach().requires_grad_(True)
        score = denoiser(point, t, y).score
        trace = jacobian_trace(score, point, create_graph=True)
        return score.square().flatten(1).sum(1) / 2 + trace


@dataclass(frozen=True)
class SlicedScoreMatching(ScoreMatching):
    """vᵀ∇s v plus a square, averaged over projections (Song et al. 2019, equations 7 and 8).

    Args:
        projections: Rademacher vectors per example.
        variance_reduced: take ½·‖s‖² (equation 8) instead of ½·(vᵀs)².
    """

    projections: int = 1
    variance_reduced: bool = True

    def terms(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | None, rng: Stream
    ) -> Tensor:
        point = x_t.detach().requires_grad_(True)
        score = denoiser(point, t, y).score
        total = torch.zeros_like(score.flatten(1)[:, 0])
        for _ in range(self.projections):
            v = rng.uniform(x_t.shape[1:], torch.float32).sub_(0.5).sign_().to(x_t)
            along = (v * score).flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(along.sum(), point, create_graph=True)
            total = total + (v * gradient).flatten(1).sum(1)
            if not self.variance_reduced:
                total = total + along.square() / 2
        total = total / self.projections
        if self.variance_reduced:
            total = total + score.square().flatten(1).sum(1) / 2
        return total
