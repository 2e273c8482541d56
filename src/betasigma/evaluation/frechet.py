r"""Streaming moments, and the Fréchet distance between two Gaussians.

**Moments.** With count n, mean m and scatter S = Σ (x − m)(x − m)ᵀ of each of two sets, those of
their union are (Chan, Golub & LeVeque 1979)

    n = n_a + n_b,   δ = m_b − m_a,   m = m_a + δ·n_b/n,   S = S_a + S_b + δδᵀ·n_a·n_b/n.

A batch is a set too, so the same rule streams a data set through (dim² numbers of memory however
many images) and merges what several processes have seen. No large sums are subtracted from one
another, as they would be in Σxxᵀ − n·mmᵀ; everything is float64.

**Distance.** The squared Fréchet (2-Wasserstein) distance between N(m_a, A) and N(m_b, B) is
(Dowson & Landau 1982; as "FID" on Inception features: Heusel et al. 2017)

    d² = |m_a − m_b|² + tr A + tr B − 2 tr (A^½ B A^½)^½.

The last trace is the sum of √λ over the eigenvalues of A^½ B A^½. These are the non-zero
eigenvalues of AB, and for *any* factor A = F Fᵀ also those of Fᵀ B F (XY and YX share non-zero
eigenvalues; take X = F, Y = Fᵀ B). So no matrix square root is needed: F comes from Cholesky's
factorisation, for a singular covariance with pivoting: that of n < dim images stops at its rank
r ≤ n−1, and Fᵀ B F is a symmetric r×r matrix whose eigenvalues are real, non-negative and
well-conditioned. The usual √(AB), or the eigenvalues of the unsymmetric AB, costs 3–6 times as much
and adds √(rounding) per direction where A or B is singular.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor


class FeatureMoments:
    """Count, mean and scatter of a stream of vectors, in float64.

    Args:
        dim: length of a vector.
        device: where the sums are kept.
        packed: ``(dim + 1, dim + 1)``, moments so far, which further vectors change in place. All
            three are one tensor, so that a metric can hold, copy and gather them as one state.
    """

    def __init__(
        self, dim: int, device: torch.device | str = "cpu", packed: Tensor | None = None
    ) -> None:
        if packed is None:
            packed = torch.zeros(dim + 1, dim + 1, dtype=torch.float64, device=device)
        self.packed = packed

    @property
    def count(self) -> int:
        """Number of vectors so far."""
        return int(self.packed[0, 0])

    @property
    def mean(self) -> Tensor:
        """Their mean, ``(dim,)``."""
        return self.packed[0, 1:]

    @property
    def scatter(self) -> Tensor:
        """Sum of outer products of their deviations from it, ``(dim, dim)``."""
        return self.packed[1:, 1:]

    @torch.no_grad()
    def update(self, features: Tensor) -> FeatureMoments:
        """Take in vectors, any floating dtype, ``(b, dim)``; returns itself."""
        if len(features) == 0:
            return self
        x = features.to(self.packed.device, torch.float64)
        mean = x.mean(0)
        deviations = x - mean
        self._shift(len(x), mean)
        self.scatter.addmm_(deviations.T, deviations)
        return self

    @torch.no_grad()
    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Take in what another has seen; returns itself."""
        if other.count == 0:
            return self
        self._shift(other.count, other.mean.to(self.packed.device))
        self.scatter.add_(other.scatter.to(self.packed.device))
        return self

    def to(self, device: torch.device | str) -> FeatureMoments:
        """A copy on that device."""
        return FeatureMoments(len(self.mean), packed=self.packed.to(device, copy=True))

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance S/(n−1), ``(dim, dim)``.

        Raises:
            ValueError: of fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance takes at least 2 vectors, not {self.count}")
        return self.scatter / (self.count - 1)

    def _shift(self, count: int, mean: Tensor) -> None:
        before = self.packed[0, 0].clone()  # a tensor: nothing is read back from a GPU
        total = before + count
        delta = mean - self.mean
        self.scatter.addmm_((delta * (before * count / total))[:, None], delta[None])
        self.mean.add_(delta * (count / total))
        self.packed[0, 0] = total


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Fréchet distance between the Gaussians with these moments.

    Returns:
        d² ≥ 0 up to rounding; NaN where the moments are not finite.

    Raises:
        ValueError: of fewer than two vectors.
    """
    return gaussian_distance(a.mean, a.cov, b.mean, b.cov)


def gaussian_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """d² between N(mean_a, cov_a) and N(mean_b, cov_b).

    Covariances ``(dim, dim)`` are positive semidefinite and may be singular. The one of lower rank
    is the one whose factor is used: the smaller eigenvalue problem, and the fewer zeros in it.
    """
    mean_a, cov_a, mean_b, cov_b = (x.double().cpu() for x in (mean_a, cov_a, mean_b, cov_b))
    constant = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()
    if not bool(constant.isfinite()):
        return float("nan")
    factor, other = cholesky_factor(cov_a), cholesky_factor(cov_b)
    if other.shape[1] < factor.shape[1]:
        factor, cov_b = other, cov_a
    inner = factor.T @ (cov_b @ factor)
    # by NumPy, in about 0.7 of PyTorch's time
    roots = np.sqrt(np.linalg.eigvalsh(inner.numpy()).clip(min=0))
    return float(constant) - 2 * float(roots.sum())


def cholesky_factor(matrix: Tensor) -> Tensor:
    """F ``(dim, rank)`` with ``matrix = F Fᵀ`` to rounding.

    Without pivoting where that meets no pivot below dim·ε times the largest variance; else by
    LAPACK's pstrf (Higham 1990), at more than twice the time: rows are taken by decreasing
    remaining variance, until it falls below a bound of that order. Rounding can hide a direction
    without variance from either: then F has a column more, and the distance an error of the order
    √(dim·ε) times the standard deviations.

    Args:
        matrix: float64, symmetric positive semidefinite, ``(dim, dim)``.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    bound = len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal().max()
    if not failed and bool((pivots > bound).all()):
        return factor
    lower, order, rank, _ = lapack.dpstrf(matrix.numpy(), lower=1)
    factor = torch.empty(len(matrix), rank, dtype=matrix.dtype)
    factor[torch.from_numpy(order.astype(np.int64)) - 1] = torch.from_numpy(lower[:, :rank]).tril()
    return factor
