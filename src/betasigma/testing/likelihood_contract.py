"""The contract of a likelihood: bits per dimension of 8-bit data, right for a Gaussian.

On x_0 ~ N(μ, diag s²), known exactly, −log₂ p(x_0) per dimension is a formula. An exact likelihood
gives it; a bound may be above it, by what its author says, and never below: a value below the
entropy claims a compression that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from betasigma.data.pixels import dequantized_bits
from betasigma.denoiser import DenoiserLike
from betasigma.likelihood import Examples, Terms
from betasigma.oracles import GaussianMixture
from betasigma.prior import GaussianPrior
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, geometric, linear
from betasigma.testing.contract import generator_untouched, require, shape
from betasigma.testing.probes import BareDenoiser, mixture

SHAPE, D = (1, 2, 4), 8
N, TRAIN = 512, 512
ERRORS = 5.0
"""Standard errors that the mean may be off by chance."""
SCHEDULES = (linear(), geometric(100, 20.0, 0.01))
SLACK = 0.02
"""Bits per dimension: what rounding to bytes and the noise at t_min leave."""


class Measure(Protocol):
    """What is asked of a likelihood."""

    def fitted_to(self, denoiser: DenoiserLike, batches: Any) -> Measure: ...

    def terms(
        self, denoiser: DenoiserLike, examples: Examples, prior: GaussianPrior | None = None
    ) -> Terms: ...


def check_likelihood(
    likelihood: Measure, *, schedules: Sequence[NoiseSchedule] = SCHEDULES, gap: float = 0.0
) -> None:
    """Assert the contract of a likelihood, on the denoiser of a Gaussian.

    Args:
        likelihood: what is measured.
        schedules: what it is tried on; by default one of each family.
        gap: bits per dimension that it may be above the exact ones; 0 for one that is exact.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    for schedule in schedules:
        means = torch.linspace(-0.2, 0.2, D).reshape(1, *SHAPE)
        covariances = torch.linspace(0.03, 0.06, D).diag()[None]
        oracle = GaussianMixture(torch.ones(1), means, covariances, schedule)
        prior = GaussianPrior.matched(schedule, oracle.moments)
        fitted = likelihood.fitted_to(oracle, [_examples(oracle, N, N + TRAIN)[0]])
        _check_terms(fitted, oracle, prior)
        _check_what_it_depends_on(fitted, schedule)
        _check_value(fitted, oracle, prior, gap)


def _examples(oracle: GaussianMixture, first: int, last: int) -> tuple[Examples, Tensor]:
    """Bytes drawn from the oracle, and their exact bits per dimension."""
    low, high = oracle.value_range
    rng = Stream("kit data", indices=range(first, last))
    grey = ((oracle.draw(rng) - low) / (high - low) * 255).round().clamp(0, 255)
    spread = grey + rng.uniform(SHAPE) - 0.5
    x0, dequantized = (low + (high - low) * value / 255 for value in (grey, spread))
    unit = dequantized_bits(oracle.value_range)
    exact = unit - oracle.log_density(dequantized) / D / math.log(2)
    return Examples(x0, dequantized, unit, torch.arange(first, last)), exact


def _part(examples: Examples, rows: slice) -> Examples:
    return Examples(
        examples.x0[rows], examples.dequantized[rows], examples.unit_bits, examples.indices[rows]
    )


def _check_terms(likelihood: Measure, oracle: GaussianMixture, prior: GaussianPrior) -> None:
    examples, n = _examples(oracle, 0, 7)[0], 7
    watched = BareDenoiser(oracle, evaluations_per_call=2)
    found = likelihood.terms(watched, examples, prior)
    bits = found.bits
    require(
        "total" in bits
        and all(
            value.shape == (n,) and value.dtype == torch.float64 and bool(value.isfinite().all())
            for value in bits.values()
        ),
        "likelihood.terms",
        f"finite bits, 'total' among them, each in float64 of shape ({n},)",
        f"they are {', '.join(f'{name}: {shape(value)}' for name, value in bits.items())}",
    )
    rest = [value for name, value in bits.items() if name != "total"]
    require(
        not rest or torch.allclose(torch.stack(rest).sum(0), bits["total"], atol=1e-6),
        "likelihood.sum",
        "the terms to add up to the total",
        f"they add up to {sum(value[0].item() for value in rest):g}, not "
        f"{bits['total'][0].item():g}",
    )
    require(
        found.nfe == 2 * watched.calls,
        "likelihood.nfe",
        f"nfe to count {watched.calls} calls of 2 network evaluations each",
        f"it is {found.nfe}",
    )
    why = ", which a training draws from"
    with generator_untouched("likelihood.seeded", why, "measuring"):
        again = likelihood.terms(oracle, examples, prior).bits["total"]
    off = (again - bits["total"]).abs().max()
    require(bool(off == 0), "likelihood.seeded", "the same bits twice", f"they differ by {off:.2g}")
    rows = (slice(0, 3), slice(3, n))
    parts = [likelihood.terms(oracle, _part(examples, r), prior).bits["total"] for r in rows]
    off = (torch.cat(parts) - bits["total"]).abs().max()
    require(
        bool(off < 2e-3),
        "likelihood.batch",
        "the bits of an example to be the same in any batch (within 0.002)",
        f"they differ by {off:.2g}",
    )


def _check_what_it_depends_on(likelihood: Measure, schedule: NoiseSchedule) -> None:
    oracle = mixture(schedule, SHAPE, labelled=True)
    examples, _ = _examples(oracle, 0, 7)
    prior = GaussianPrior.matched(schedule, oracle.moments)
    far = GaussianPrior(prior.mean + 3 * prior.variance**0.5, prior.variance)
    bits = [
        likelihood.terms(oracle, examples._replace(y=torch.full((7,), y)), p).bits["total"]
        for y, p in ((0, prior), (1, prior), (0, far))
    ]
    for other, contract in ((bits[1], "likelihood.labels"), (bits[2], "likelihood.prior")):
        require(
            not torch.equal(other, bits[0]),
            contract,
            f"bits that depend on the {contract.removeprefix('likelihood.')}",
            "they are the same for another",
        )


def _check_value(
    likelihood: Measure, oracle: GaussianMixture, prior: GaussianPrior, gap: float
) -> None:
    examples, exact = _examples(oracle, 0, N)
    total = likelihood.terms(oracle, examples, prior).bits["total"]
    excess = total - exact
    error = (excess.std() / N**0.5).item()
    mean, room = excess.mean().item(), SLACK + ERRORS * error
    require(
        mean >= -room,
        "likelihood.bound",
        f"bits that are not below the exact {exact.mean():.4f} of a Gaussian",
        f"they are {-mean:.4f} below, where {room:.4f} is Monte Carlo error and rounding",
    )
    require(
        mean <= gap + room,
        "likelihood.exact",
        f"the exact {exact.mean():.4f} bits per dimension of a Gaussian, or at most gap={gap} more",
        f"they are {mean:.4f} above, where {room:.4f} is Monte Carlo error and rounding",
    )
