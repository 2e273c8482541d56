r"""Log-likelihood by the probability-flow ODE (Song et al. 2021, "Score-based generative modeling
through SDEs", D.2).

In the variance-exploding view x̃ = x_t/α, σ̃ = σ/α every Gaussian process follows the same
deterministic flow, with u = log σ̃ for the time,

    dx̃/du = σ̃·ε̂(x̃, σ̃),        d log p(x̃)/du = −∇·(σ̃·ε̂),

so that log p at the smallest noise is log p of where the flow ends, under the prior at t = 1, plus
the integrated divergence. It is the likelihood of the model's q_{σ_min}, data with the smallest
noise on it, taken at the (uniformly dequantised) data: not a bound, and not the likelihood of
noiseless data.

The divergence is exact (one backward pass per dimension) or Hutchinson's estimate v·∇(v·σ̃ε̂) with
one Rademacher vector v per example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torchdiffeq import odeint

from betasigma.denoiser import DenoiserLike
from betasigma.derivatives import jacobian_trace
from betasigma.likelihood.terms import Examples, Terms
from betasigma.options.likelihoods import Trace, check_flow_trace, check_levels
from betasigma.prior import GaussianPrior
from betasigma.randomness import Stream


@dataclass(frozen=True)
class FlowLikelihood:
    """Log-likelihood by an adaptive solver (dopri5).

    Args:
        trace: ``hutchinson`` or ``exact``.
        tolerance: relative and absolute tolerance of the solver. Steps are chosen for the whole
            batch.
        seed: of the Rademacher vectors.
    """

    name: ClassVar[str] = "flow"

    trace: Trace = "hutchinson"
    tolerance: float = 1e-5
    seed: int = 0

    def log_prob(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        prior: GaussianPrior | None = None,
        indices: Tensor | None = None,
        y: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """log density of q_{σ_min} at x in nats, and the number of network evaluations.

        Args:
            denoiser: the model, in float32 or float64 (bf16 is too coarse for a derivative).
            x: ``(B, *sample_shape)`` in the model's value range.
            prior: of x_1; ``None`` for N(0, prior_std²·I).
            indices: of the examples, for their Rademacher vectors; ``None`` for 0 … B−1.
            y: class labels.

        Returns:
            Shape ``(B,)``, float64 on the CPU, and NFE.

        Raises:
            UserError: for a schedule of one level, or the exact trace in more than 256 dimensions.
        """
        check_levels(denoiser.schedule.levels)
        dim = x[0].numel()
        if self.trace == "exact":
            check_flow_trace(dim)
        schedule = denoiser.schedule
        ends = -torch.stack([schedule.log_snr(schedule.t_min), schedule.log_snr(1.0)]) / 2
        chosen = torch.arange(len(x)) if indices is None else indices
        rng = Stream("hutchinson", self.seed, indices=chosen, device=x.device)
        probe = rng.uniform(x.shape[1:], torch.float32).sub_(0.5).sign_().to(x)
        nfe = 0

        def flow(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal nfe
            nfe += denoiser.evaluations_per_call
            log_snr = (-2 * u.double().cpu()).clamp(float(-2 * ends[1]), float(-2 * ends[0]))
            t = schedule.t_of_log_snr(log_snr)
            with torch.enable_grad():
                point = state[0].detach().requires_grad_(True)
                eps = denoiser(point * schedule.alpha(t).item(), t, y).eps
                velocity = eps * math.exp(float(u))
                divergence = self._divergence(velocity, point, probe)
            return velocity.detach(), divergence.detach()

        start = (x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
        # a step must end at t = 1: there is no curve beyond it to step onto and interpolate from
        path, divergence = odeint(
            flow,
            start,
            ends.to(x),
            rtol=self.tolerance,
            atol=self.tolerance,
            method="dopri5",
            options={"dtype": torch.float64, "step_t": ends[1:].to(x)},
        )
        alpha = schedule.alpha(1.0).item()
        chosen_prior = prior or GaussianPrior.standard(schedule)
        # the prior is of x_1 = α·x̃: a density in x̃ gains log α per dimension
        end = chosen_prior.log_prob(alpha * path[-1].cpu()) + dim * math.log(alpha)
        return end + divergence[-1].double().cpu(), nfe

    @property
    def settings(self) -> str:
        """What a value depends on, for the record."""
        return f"trace={self.trace} tolerance={self.tolerance:g}"

    def fitted_to(self, denoiser: DenoiserLike, batches: Iterable[Examples]) -> Self:
        """Itself: there is nothing to fit."""
        return self

    def terms(
        self, denoiser: DenoiserLike, examples: Examples, prior: GaussianPrior | None = None
    ) -> Terms:
        """Bits per dimension of 8-bit data, by their uniformly dequantised values; of points, those
        of the density itself.
        """
        x = examples.dequantized
        log_prob, nfe = self.log_prob(denoiser, x, prior, examples.indices, examples.y)
        bits = examples.unit_bits - log_prob / x[0].numel() / math.log(2)
        return Terms({"total": bits}, torch.empty(len(x), 0, dtype=torch.float64), nfe)

    def _divergence(self, velocity: Tensor, point: Tensor, probe: Tensor) -> Tensor:
        if self.trace == "hutchinson":
            (gradient,) = torch.autograd.grad((velocity * probe).sum(), point)
            return (gradient * probe).flatten(1).sum(1)
        return jacobian_trace(velocity, point)
