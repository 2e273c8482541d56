"""A likelihood."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from betasigma.denoiser import DenoiserLike
from betasigma.likelihood import Examples, FlowLikelihood, GaussianPrior, Terms


@dataclass(frozen=True)
class AveragedFlow:
    """The likelihood of the probability-flow ODE, its divergence averaged over several probes.

    Args:
        probes: random vectors of Hutchinson's estimate.
        tolerance: of the solver.
        seed: given by betasigma.
    """

    name: ClassVar[str] = "averaged_flow"

    probes: int = 4
    tolerance: float = 1e-4
    seed: int = 0

    @property
    def settings(self) -> str:
        return f"probes={self.probes} tolerance={self.tolerance:g}"

    def fitted_to(self, denoiser: DenoiserLike, batches: Iterable[Examples]) -> Self:
        return self

    def terms(
        self, denoiser: DenoiserLike, examples: Examples, prior: GaussianPrior | None = None
    ) -> Terms:
        """Bits per dimension of these examples."""
        flows = [
            FlowLikelihood(tolerance=self.tolerance, seed=1000 * self.seed + k)
            for k in range(self.probes)
        ]
        found = [flow.terms(denoiser, examples, prior) for flow in flows]
        total = torch.stack([terms.bits["total"] for terms in found]).mean(0)
        return Terms({"total": total}, found[0].per_level, sum(terms.nfe for terms in found))
