"""Gaussian mixtures in the plane whose density, score and denoiser are known in closed form.

Each is given by its parameters, so that samples and exact values use the same numbers. Five
standard deviations of each stay within [−1, 1]², the range that noise schedules for images assume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from betasigma.options import DataOptions


@dataclass(frozen=True)
class Mixture:
    """Parameters of Σ_k w_k N(μ_k, Σ_k), all float64.

    Attributes:
        weights: shape ``(K,)``, positive, sum 1.
        means: shape ``(K, 2)``.
        covariances: shape ``(K, 2, 2)``.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def ring() -> Mixture:
    """Eight equal Gaussians of standard deviation 0.05 on a circle of radius 0.7."""
    angle = 2 * np.pi * np.arange(8) / 8
    return _round(np.full(8, 1 / 8), 0.7 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.05)


def two() -> Mixture:
    """1/5·N((−5, −5), I) + 4/5·N((5, 5), I) in units of ten.

    The example of Song & Ermon (2019, section 3.2.2) where Langevin dynamics without annealing
    mistakes the weights.
    """
    return _round(np.array([0.2, 0.8]), np.array([[-0.5, -0.5], [0.5, 0.5]]), 0.1)


def grid() -> Mixture:
    """25 equal Gaussians of standard deviation 0.03 on a 5×5 grid from −0.8 to 0.8."""
    axis = np.linspace(-0.8, 0.8, 5)
    means = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return _round(np.full(25, 1 / 25), means, 0.03)


BY_NAME: dict[str, Callable[[], Mixture]] = {made.__name__: made for made in (ring, two, grid)}


def mixture(name: str) -> Mixture:
    """The toy distribution ``name``, a :data:`~betasigma.options.data.MixtureName`.

    Raises:
        UserError: for another name.
    """
    DataOptions.check(mixture=name)
    return BY_NAME[name]()


def sample(
    distribution: Mixture, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``n`` points: float64 of shape ``(n, 2)``, and their components, int64 ``(n,)``."""
    component = generator.choice(len(distribution.weights), size=n, p=distribution.weights)
    noise = generator.standard_normal((n, 2))
    root = np.linalg.cholesky(distribution.covariances)
    spread = np.einsum("nij,nj->ni", root[component], noise)
    return distribution.means[component] + spread, component.astype(np.int64)


def _round(weights: np.ndarray, means: np.ndarray, deviation: float) -> Mixture:
    covariances = np.broadcast_to(deviation**2 * np.eye(2), (len(weights), 2, 2)).copy()
    return Mixture(weights, means, covariances)
