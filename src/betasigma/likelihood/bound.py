r"""Variational bounds on −log p(x_0) in bits per dimension, for any Gaussian schedule.

Equation 2.4 of docs/equations.md splits the bound in three, which are always reported separately:

    −log p(x_0) ≤ KL(q(x_1 | x_0) ‖ p(x_1))  +  Σ_t KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t))  +  E[−log
    p(x_0 | x_{t_min})]
                        prior                               diffusion
                        decoder

*Discrete* (Ho et al. 2020, equation 5). Both Gaussians of a step have the posterior's form (2.5),
one around x_0 and one around x̂_0, with variances β̃ and v, so that per dimension

    KL = ½·[β̃/v − 1 − log(β̃/v) + c_x0²·(x_0 − x̂_0)²/v].

With v = β̃ only the square remains: that is (2.9). With v = β_t the rest is a constant that (2.9)
leaves out. A learned v (Nichol & Dhariwal 2021) is the network's, pixel by pixel.

*Continuous* (Kingma et al. 2021, "Variational diffusion models", equation 15). As the steps become
infinitely fine the sum becomes an integral over log-SNR λ that depends on the schedule only through
its end points,

    ½·∫_{λ(1)}^{λ(t_min)} E‖ε − ε̂‖² dλ,

which puts β-schedules and σ-ladders on the same footing.

*Decoder.* p(x_0 | x_{t_min}) integrates a Gaussian around the denoiser's own estimate x̂_0 over
each of the 256 bins (Ho et al. 2020, equation 13). Its standard deviation is either the kernel's,
σ/α at t_min (β_1 of DDPM by the paper), the ``posterior``'s √β̃_2, which its code takes there
instead (0.0074 for 0.01), the network's where it has ``learned`` one, or ``fitted``: the root mean
square error of x̂_0 there. At σ_min = 0.01 on [0, 1], 2.55 grey levels, the kernel's costs over two
bits per dimension that the denoiser does not deserve, and models would be ranked by their σ_min.
*Protocol of the published numbers.* Ho et al.'s code, and iDDPM's, bound with x̂_0 clipped to the
value range and the decoder's √β̃_2: ``DiscreteBound(decoder_std="posterior", clip=True)``,
``likelihood=ddpm_bound`` in a config.

A decoder that is fitted to the images it scores bounds nothing: measure it on training images by
:meth:`VariationalBound.fitted_to`. (Without that it is each batch's own error.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike, Prediction, perturb
from betasigma.gaussian import discretized_gaussian_bits, divergence
from betasigma.likelihood.terms import Examples, Terms
from betasigma.options.likelihoods import DecoderStd
from betasigma.options.noise_schedules import check_path
from betasigma.options.plugins import Component
from betasigma.options.samplers import Variance
from betasigma.prior import GaussianPrior
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, posterior, reverse_log_variances

SMALLEST_STD = 1e-6
"""Of a fitted decoder: a denoiser that is exact would ask for none at all."""


@dataclass(frozen=True)
class Bound:
    """A bound in bits per dimension, term by term, each of shape ``(B,)``, float64 on the CPU.

    Attributes:
        prior, diffusion, decoder: the three terms.
        per_level: diffusion term of each level, ``(B, levels − 1)``, from level 2 up; empty for the
            continuous bound.
    """

    prior: Tensor
    diffusion: Tensor
    decoder: Tensor
    per_level: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, ``(B,)``."""
        return self.prior + self.diffusion + self.decoder


@dataclass(frozen=True, kw_only=True)
class VariationalBound(Component):
    """What both bounds share.

    Args:
        decoder_std: of the decoder's Gaussian: ``kernel``, ``posterior``, ``fitted``, ``learned``
            where the network has one, or a number.
        clip: clip every x̂_0 to the value range.
        seed: of noise and levels; with the example's index it determines every draw.
    """

    config_group = "likelihood"

    name: ClassVar[str] = ""
    stream: ClassVar[str] = ""
    """Of the random numbers."""

    decoder_std: DecoderStd | float
    clip: bool = False
    seed: int = 0

    @property
    def settings(self) -> str:
        """What a value depends on, for the record."""
        return f"decoder={self.decoder_std}{' clip=true' if self.clip else ''}"

    def fitted_to(self, denoiser: DenoiserLike, batches: Iterable[Examples]) -> Self:
        """With ``decoder_std=fitted``, the same bound with the root mean square error of x̂_0 at
        t_min over all these examples for it: one number, whatever the batches.

        Args:
            denoiser: the model; one network evaluation per example.
            batches: training examples; the result is a bound on any others.
        """
        if self.decoder_std != "fitted":
            return self
        squares, count = 0.0, 0
        for examples in batches:
            rng = _stream("decoder", self.seed, examples.x0, examples.indices)
            predicted = self.predict(
                denoiser, examples.x0, denoiser.schedule.t_min, examples.y, rng
            )
            error = examples.x0.double() - predicted.x0.double()
            squares, count = squares + error.square().sum().item(), count + error.numel()
        return replace(self, decoder_std=max(math.sqrt(squares / count), SMALLEST_STD))

    def terms(
        self, denoiser: DenoiserLike, examples: Examples, prior: GaussianPrior | None = None
    ) -> Terms:
        """The bound on 8-bit data and its three terms.

        Raises:
            UserError: for a schedule of one level.
        """
        found = self.bits_per_dim(denoiser, examples.x0, prior, examples.indices, examples.y)
        bits = {
            "total": found.total,
            "prior": found.prior,
            "diffusion": found.diffusion,
            "decoder": found.decoder,
        }
        nfe = self.cost(denoiser.schedule) * denoiser.evaluations_per_call
        return Terms(bits, found.per_level, nfe)

    def calls(self, schedule: NoiseSchedule) -> int:
        """Calls of the denoiser that the diffusion term takes."""
        raise NotImplementedError

    def cost(self, schedule: NoiseSchedule) -> int:
        """What an example takes, in forward passes."""
        return self.calls(schedule) + 1

    @torch.no_grad()
    def bits_per_dim(
        self,
        denoiser: DenoiserLike,
        x0: Tensor,
        prior: GaussianPrior | None = None,
        indices: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Bound:
        """Bound on clean 8-bit data.

        Args:
            denoiser: the model.
            x0: ``(B, *sample_shape)`` in the model's value range, on the denoiser's device.
            prior: ``None`` for N(0, prior_std²·I).
            indices: of the examples, for their noise; ``None`` for 0 … B−1.
            y: class labels.

        Raises:
            UserError: for a schedule of one level.
        """
        check_path(denoiser.schedule.levels, "a likelihood")
        rng = _stream(self.stream, self.seed, x0, indices)
        diffusion, per_level = self.diffusion(denoiser, x0, y, rng)
        return Bound(
            _prior_bits(denoiser, x0, prior),
            diffusion,
            self.decoder(denoiser, x0, y, rng),
            per_level,
        )

    def predict(
        self, denoiser: DenoiserLike, x0: Tensor, t: float, y: Tensor | None, rng: Stream
    ) -> Prediction:
        """What the model says of x_t that is made of x_0."""
        time = torch.tensor(t, dtype=torch.float64)
        eps = rng.normal(x0.shape[1:], torch.float32).to(x0)
        predicted = denoiser(perturb(denoiser.schedule, x0, time, eps), time, y)
        return predicted.clipped(*denoiser.value_range) if self.clip else predicted

    def decoder(self, denoiser: DenoiserLike, x0: Tensor, y: Tensor | None, rng: Stream) -> Tensor:
        """E[−log₂ p(x_0 | x_{t_min})] per dimension, ``(B,)``: a Gaussian around x̂_0, integrated
        over bins.
        """
        schedule, std = denoiser.schedule, self.decoder_std
        predicted = self.predict(denoiser, x0, schedule.t_min, y, rng)
        bounds = reverse_log_variances(schedule, schedule.t_min, 0.0)
        spread: Tensor | float
        if std == "fitted":
            error = x0.double() - predicted.x0.double()
            spread = max(error.square().mean().sqrt().item(), SMALLEST_STD)
        elif std == "learned":
            spread = torch.exp(predicted.log_variance(*bounds).double() / 2)
        elif std == "posterior":
            spread = torch.exp(bounds[0] / 2).item()
        elif std == "kernel":
            spread = schedule.ratio(schedule.t_min).item()
        else:
            spread = float(std)
        return discretized_gaussian_bits(x0, predicted.x0, spread, denoiser.value_range).cpu()

    def diffusion(
        self, denoiser: DenoiserLike, x0: Tensor, y: Tensor | None, rng: Stream
    ) -> tuple[Tensor, Tensor]:
        """Bits per dimension of the diffusion term, float64 ``(B,)``, and of each of its levels
        ``(B, levels)``, where it has any.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DiscreteBound(VariationalBound):
    """The variational bound over the model's own levels (Ho et al. 2020, equation 5).

    Args:
        variance: v of the reverse steps: ``beta``, ``posterior``, or ``learned`` where the network
            has one.
    """

    name: ClassVar[str] = "discrete_bound"
    stream: ClassVar[str] = "bound"

    variance: Variance = "beta"
    decoder_std: DecoderStd | float = "kernel"

    @property
    def settings(self) -> str:
        return f"variance={self.variance} {super().settings}"

    def calls(self, schedule: NoiseSchedule) -> int:
        return schedule.levels - 1

    def diffusion(
        self, denoiser: DenoiserLike, x0: Tensor, y: Tensor | None, rng: Stream
    ) -> tuple[Tensor, Tensor]:
        schedule, levels = denoiser.schedule, []
        for s, t in pairwise(schedule.times().tolist()):
            predicted = self.predict(denoiser, x0, t, y, rng)
            low, high = reverse_log_variances(schedule, t, s)
            if self.variance == "learned":
                log_v = predicted.log_variance(low, high).double()
            else:
                log_v = low if self.variance == "posterior" else high
            gap = posterior(schedule, t, s).c_x0.item() * (x0 - predicted.x0).double()
            kl = divergence(low - log_v, gap.square() * torch.exp(-log_v))
            levels.append(kl.flatten(1).mean(1).cpu())
        per_level = torch.stack(levels, dim=1) / math.log(2)
        return per_level.sum(1), per_level


@dataclass(frozen=True, kw_only=True)
class ContinuousBound(VariationalBound):
    """The bound of infinitely many steps (Kingma et al. 2021), by stratified draws of log-SNR.

    Args:
        draws: noise levels drawn for each example, one in each of as many equal parts of the range
            of log-SNR; one network evaluation each.
    """

    name: ClassVar[str] = "continuous_bound"
    stream: ClassVar[str] = "continuous bound"

    draws: int = 32
    decoder_std: DecoderStd | float = "fitted"

    def calls(self, schedule: NoiseSchedule) -> int:
        return self.draws

    def diffusion(
        self, denoiser: DenoiserLike, x0: Tensor, y: Tensor | None, rng: Stream
    ) -> tuple[Tensor, Tensor]:
        schedule = denoiser.schedule
        low = float(schedule.log_snr(1.0))
        width = float(schedule.log_snr(schedule.t_min)) - low
        total = torch.zeros(len(x0), dtype=torch.float64)
        for part in range(self.draws):
            place = (part + rng.uniform(device="cpu")) / self.draws
            t = schedule.t_of_log_snr(low + width * place)
            eps = rng.normal(x0.shape[1:], torch.float32).to(x0)
            predicted = denoiser(perturb(schedule, x0, t, eps), t, y)
            if self.clip:
                predicted = predicted.clipped(*denoiser.value_range)
            total += (eps - predicted.eps).double().square().flatten(1).mean(1).cpu()
        none = torch.empty(len(x0), 0, dtype=torch.float64)
        return total / self.draws * width / 2 / math.log(2), none


def _prior_bits(denoiser: DenoiserLike, x0: Tensor, prior: GaussianPrior | None) -> Tensor:
    chosen = prior or GaussianPrior.standard(denoiser.schedule)
    return chosen.kl(denoiser.schedule, x0.cpu()) / x0[0].numel() / math.log(2)


def _stream(what: str, seed: int, x0: Tensor, indices: Tensor | None) -> Stream:
    chosen = torch.arange(len(x0)) if indices is None else indices
    return Stream(what, seed, indices=chosen, device=x0.device)
