r"""Log-likelihood by the probability-flow ODE (Song et al. 2021, "Score-based generative modeling
through SDEs", D.2).

With u = log(σ/α) for the time, every Gaussian process follows

    dx_t/du = (d log α/du)·x_t + σ·ε̂(x_t, t),        d log p(x_t)/du = −∇·(dx_t/du),

so that log p at the smallest noise is log p of where the flow ends, under the prior at t = 1, plus
the integrated divergence. The solver's time is asinh(σ/α), du = dσ̃/σ̃ with σ̃ = σ/α: at large noise
it is the logarithm, at small noise σ̃ itself, along which paths become straight lines (Karras et al.
2022, section 3). The state x_t stays of the size of the data and of the noise. Among x_t and x_t/α
along log σ̃, asinh σ̃, arctan σ̃ and t, this pair took the fewest network evaluations on a trained
model and few on mixtures. It is the likelihood of the model's q_{σ_min}, data with the smallest
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

from betasigma.denoiser import DenoiserLike, refuse_not_finite, refusing_steep_flow
from betasigma.derivatives import jacobian_trace
from betasigma.likelihood.terms import Examples, Terms
from betasigma.options.likelihoods import Trace, check_flow_trace
from betasigma.options.noise_schedules import check_path
from betasigma.options.plugins import Component
from betasigma.prior import GaussianPrior
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule

CALLS = 150
"""Of the denoiser, that the solver takes on trained models, about."""

DIFFERENTIATED = 3
"""Forward passes that one with its derivative counts as."""


@dataclass(frozen=True)
class FlowLikelihood(Component):
    """Log-likelihood by an adaptive solver (dopri5).

    Args:
        trace: ``hutchinson`` or ``exact``.
        tolerance: relative and absolute tolerance of the solver. Steps are chosen for the whole
            batch.
        seed: of the Rademacher vectors.
    """

    config_group = "likelihood"

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
            UserError: for a schedule of one level, the exact trace in more than 256 dimensions, or
                a model whose flow is too steep for the solver or whose output is not finite.
        """
        check_path(denoiser.schedule.levels, "a likelihood")
        dim = x[0].numel()
        if self.trace == "exact":
            check_flow_trace(dim)
        schedule = denoiser.schedule
        low, high = (schedule.log_snr(t).item() for t in (1.0, schedule.t_min))
        ends = torch.tensor(
            [math.asinh(math.exp(-end / 2)) for end in (high, low)], dtype=torch.float64
        )
        chosen = torch.arange(len(x)) if indices is None else indices
        rng = Stream("hutchinson", self.seed, indices=chosen, device=x.device)
        probe = rng.uniform(x.shape[1:], torch.float32).sub_(0.5).sign_().to(x)
        nfe = 0

        def flow(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal nfe
            nfe += denoiser.evaluations_per_call
            ratio = math.sinh(float(time))
            t = schedule.t_of_log_snr(min(max(-2 * math.log(ratio), low), high))
            pace = math.hypot(1, ratio) / ratio  # du of a unit of time
            drift = -2 * pace * schedule.log_alpha_slope(t).item()  # log-SNR is −2u
            diffusion = pace * schedule.sigma(t).item()
            with torch.enable_grad():
                point = state[0].detach().requires_grad_(True)
                eps = denoiser(point, t, y).eps
                refuse_not_finite(eps, t.item())
                velocity = drift * point + diffusion * eps
                divergence = self._divergence(velocity, point, probe)
            return velocity.detach(), divergence.detach()

        first = schedule.alpha(schedule.t_min).item()
        start = (first * x, torch.zeros(len(x), dtype=x.dtype, device=x.device))
        # a step must end at t = 1: there is no curve beyond it to step onto and interpolate from
        key = "likelihood.tolerance"
        with refusing_steep_flow(f"{key}={self.tolerance:g}", f"a larger {key}"):
            path, divergence = odeint(
                flow,
                start,
                ends.to(x),
                rtol=self.tolerance,
                atol=self.tolerance,
                method="dopri5",
                options={"dtype": torch.float64, "step_t": ends[1:].to(x)},
            )
        chosen_prior = prior or GaussianPrior.standard(schedule)
        # the density is of x, which the flow begins at α·x of: it gains log α per dimension
        end = chosen_prior.log_prob(path[-1].cpu()) + dim * math.log(first)
        return end + divergence[-1].double().cpu(), nfe

    @property
    def settings(self) -> str:
        """What a value depends on, for the record."""
        return f"trace={self.trace} tolerance={self.tolerance:g}"

    def cost(self, schedule: NoiseSchedule) -> int:
        """What an example takes, in forward passes: a guess, since the solver is adaptive, and in
        many dimensions the exact trace takes more.
        """
        return CALLS * DIFFERENTIATED

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
