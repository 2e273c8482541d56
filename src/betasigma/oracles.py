r"""Ground truth: distributions whose denoiser is known in closed form.

x_t = α·x_0 + σ·ε has the density q_t = ∫ q(x_0)·N(x_t; α·x_0, σ²·I) dx_0, and the best denoiser is
the posterior mean x̂_0 = E[x_0 | x_t]; score and ε̂ follow from it by Tweedie's formula (equation
2.21),

    ∇ log q_t(x) = (α·x̂_0 − x)/σ².

**Mixture of Gaussians**, q = Σ_k w_k·N(μ_k, Σ_k). A Gaussian stays one under the kernel,

    q_t = Σ_k w_k·N(α·μ_k, C_k),        C_k = α²·Σ_k + σ²·I,

and given the component, x_0 and x_t are jointly Gaussian with covariance Cov(x_0, x_t) = α·Σ_k, so

    E[x_0 | x_t, k] = μ_k + α·Σ_k·C_k⁻¹·(x_t − α·μ_k),
    ∇ log q_t(x) = −Σ_k r_k·C_k⁻¹·(x − α·μ_k),       E[x_0 | x_t] = Σ_k r_k·E[x_0 | x_t, k],

with the responsibilities r_k ∝ w_k·N(x_t; α·μ_k, C_k). With Σ_k = U·diag(λ)·Uᵀ, C_k = U·diag(α²λ +
σ²)·Uᵀ for every (α, σ): one decomposition serves all noise levels, and none of it degenerates at σ
= 0.

**A finite data set**, q = 1/n·Σ_i δ(x_0 − y_i), is the mixture with Σ_i = 0:

    E[x_0 | x_t] = Σ_i p_i·y_i,      p = softmax_i(−‖x_t − α·y_i‖²/(2σ²))
                                       = softmax_i((α·x_t·y_i − α²·‖y_i‖²/2)/σ²).

It is the minimiser of the training loss on that set (Karras et al. 2022, appendix B.3): what a
network would become that memorised it.

Both are denoisers as samplers, likelihoods and metrics know them, computing in float64 whatever the
dtype of x_t. Their class labels are the mixture's components or the labels of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from betasigma.denoiser import Prediction
from betasigma.errors import UserError
from betasigma.options.training import OffLevels
from betasigma.prior import DataMoments
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, Times

Level = Tensor | float
"""α or σ: a number, or float64 of shape ``(B,)``."""

HIDDEN = -1e300
"""Log-weight of what a label excludes: 0 after a softmax, and finite, so that no difference of two
is NaN.
"""

QUADRATURE_LIMIT = 20_000_000
"""Largest number of points at which a density is evaluated for an integral."""


class ExactDenoiser(nn.Module):
    """What both oracles share: they answer as a denoiser, exactly and for one evaluation.

    Args:
        schedule: the noise levels.
        sample_shape: shape of one example.
        value_range: least and greatest value of clean data, for samplers that clip.
        num_classes: number of labels; label ``num_classes`` means "no label".
    """

    evaluations_per_call = 1
    """Evaluations (NFE) that one call counts as."""

    precision: torch.dtype | None = None
    """Of autocast, which an oracle has no use for."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        sample_shape: tuple[int, ...],
        value_range: tuple[float, float],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.sample_shape = tuple(sample_shape)
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.num_classes = num_classes

    @property
    def device(self) -> torch.device:
        """Where samplers should put x_t."""
        return next(self.buffers()).device

    @property
    def moments(self) -> DataMoments:
        """Mean and variance of clean data in each dimension."""
        raise NotImplementedError

    @contextmanager
    def between_levels(self, policy: OffLevels) -> Iterator[None]:
        """As :meth:`betasigma.denoiser.Denoiser.between_levels`; an oracle needs no policy, it
        knows every noise level.
        """
        yield

    def keep(self, **values: Tensor | None) -> None:
        """Register what the oracle knows: moved with the module, and not weights to be saved."""
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        """E[x_0 | x_t] as a prediction, from which ε̂ and score follow.

        Args:
            x_t: shape ``(B, *sample_shape)``.
            t: time in [t_min, 1], one for the batch or one per example (``(B,)``).
            y: class labels, int64 of shape ``(B,)``, or ``None``.

        Raises:
            UserError: where labels are given to an oracle without classes.
        """
        if y is not None and not self.num_classes:
            raise UserError("labels were given to an oracle that has no classes")
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        alpha, sigma, _ = self.schedule.at(time)
        x0 = self.posterior_mean(x_t, alpha, sigma, y).to(x_t.dtype)
        return Prediction(x_t, x0, alpha, sigma, torch.zeros_like(alpha), torch.ones_like(alpha))

    def posterior_mean(
        self, x: Tensor, alpha: Level, sigma: Level, y: Tensor | None = None
    ) -> Tensor:
        """E[x_0 | x_t = x], float64 of the shape of ``x``; arguments as in :meth:`forward`, with
        the kernel itself for the time.
        """
        raise NotImplementedError


class GaussianMixture(ExactDenoiser):
    """Σ_k w_k·N(μ_k, Σ_k) in any number of dimensions, exactly, at every noise level.

    Args:
        weights: w, shape ``(K,)``, positive; scaled to sum 1.
        means: μ, shape ``(K, *sample_shape)``; with sample_shape flattened to d numbers,
        covariances: Σ, shape ``(K, d, d)``, symmetric and positive semi-definite.
        schedule: the noise levels.
        value_range: least and greatest value of clean data, for samplers that clip.
        labelled: let the components be class labels; otherwise there are none.

    Raises:
        ValueError: where the parameters are not those of a mixture.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(
        self,
        weights: np.ndarray | Tensor,
        means: np.ndarray | Tensor,
        covariances: np.ndarray | Tensor,
        schedule: NoiseSchedule,
        value_range: tuple[float, float] = (-1.0, 1.0),
        labelled: bool = False,
    ) -> None:
        w, mu, cov = (
            torch.as_tensor(p, dtype=torch.float64) for p in (weights, means, covariances)
        )
        if w.ndim != 1 or len(w) < 1 or len(mu) != len(w) or not bool((w > 0).all()):
            raise ValueError("a mixture needs as many positive weights as means")
        super().__init__(schedule, tuple(mu.shape[1:]), value_range, len(w) if labelled else 0)
        flat = mu.flatten(1)
        k, d = flat.shape
        if cov.shape != (k, d, d) or not torch.allclose(cov, cov.mT):
            raise ValueError(
                f"covariances must be {k} symmetric {d}×{d} matrices, not of shape "
                f"{tuple(cov.shape)}"
            )
        variances, axes = torch.linalg.eigh(cov)
        if bool((variances < -1e-12 * variances.abs().max()).any()):
            raise ValueError("a covariance has a negative eigenvalue")
        log_weights = torch.log(w / w.sum())
        self.keep(log_weights=log_weights, means=flat, variances=variances.clamp(min=0), axes=axes)

    @property
    def moments(self) -> DataMoments:
        """Mean and variance of clean data in each dimension."""
        weights = self.log_weights.exp()
        own = torch.einsum("kij,kj->ki", self.axes.square(), self.variances)
        mean = weights @ self.means
        variance = weights @ (own + (self.means - mean).square())
        return DataMoments(*(m.reshape(self.sample_shape).cpu() for m in (mean, variance)))

    def log_density(
        self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0, y: Tensor | None = None
    ) -> Tensor:
        """log q_t(x), float64 of shape ``(B,)``; by default that of clean data.

        Args:
            x: shape ``(B, *sample_shape)``.
            alpha, sigma: the kernel, one for the batch or one per example.
            y: components, int64 ``(B,)``, for the density given the component (K: any of them);
                or ``None``.
        """
        joint, _, _ = self._components(x, alpha, sigma, y)
        return torch.logsumexp(joint, dim=1)

    def score(
        self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0, y: Tensor | None = None
    ) -> Tensor:
        """∇ log q_t(x), float64 of the shape of ``x``."""
        joint, along, total = self._components(x, alpha, sigma, y)
        pulls = torch.einsum("kij,bkj->bki", self.axes, along / total)
        return -self._mix(joint, pulls).reshape(x.shape)

    def posterior_mean(
        self, x: Tensor, alpha: Level, sigma: Level, y: Tensor | None = None
    ) -> Tensor:
        """E[x_0 | x_t = x], float64 of the shape of ``x``."""
        joint, along, total = self._components(x, alpha, sigma, y)
        gain = _column(alpha, x)[..., None] * self.variances / total
        estimates = self.means + torch.einsum("kij,bkj->bki", self.axes, gain * along)
        return self._mix(joint, estimates).reshape(x.shape)

    def draw(
        self, rng: Stream, alpha: float = 1.0, sigma: float = 0.0, y: Tensor | None = None
    ) -> Tensor:
        """Exact samples of q_t, float64 of shape ``(n, *sample_shape)``; by default clean data.

        Args:
            rng: random numbers of n examples.
            alpha, sigma: the kernel.
            y: component of each, int64 ``(n,)``, or ``None`` to draw it by its weight.
        """
        edges = self.log_weights.exp().cumsum(0)[:-1]
        chosen = torch.bucketize(rng.uniform().to(edges), edges, right=True)
        if y is not None:
            chosen = torch.where(y == len(self.log_weights), chosen, y)
        deviation = (alpha**2 * self.variances + sigma**2).sqrt()[chosen]
        along = deviation * rng.normal(self.means.shape[1:], torch.float64)
        x = alpha * self.means[chosen] + torch.einsum("bij,bj->bi", self.axes[chosen], along)
        return x.reshape(-1, *self.sample_shape)

    def entropy(self, alpha: float = 1.0, sigma: float = 0.0) -> float:
        """−∫ q_t·log q_t in nats, by the trapezoidal rule, in one or two dimensions.

        The grid reaches ten standard deviations beyond every mean and takes four steps to the
        narrowest component's conditional standard deviation along each axis: for functions as
        smooth as Gaussians the rule's error then is far below 1e-8.

        Raises:
            ValueError: in more dimensions, where q_t has no density, or where components of very
                different widths would need too many points.
        """
        d = self.means.shape[1]
        if d > 2:
            raise ValueError(f"entropy by quadrature is for one or two dimensions, not {d}")
        total = alpha**2 * self.variances + sigma**2
        if not bool((total > 0).all()):
            raise ValueError("a mixture with a singular component has no density at σ = 0")
        covariance = torch.einsum("kij,kj,klj->kil", self.axes, total, self.axes)
        reach = 10 * covariance.diagonal(dim1=1, dim2=2).sqrt()
        low = (alpha * self.means - reach).amin(0)
        high = (alpha * self.means + reach).amax(0)
        precision = torch.einsum("kij,kj,klj->kil", self.axes, 1 / total, self.axes)
        step = precision.diagonal(dim1=1, dim2=2).rsqrt().amin(0) / 4
        counts = ((high - low) / step).ceil().long() + 1
        if int(counts.prod()) > QUADRATURE_LIMIT:
            raise ValueError(
                f"this mixture's entropy would take {int(counts.prod())} points: its components "
                f"differ too much in width"
            )
        first, *rest = (
            low_i + step_i * torch.arange(int(n), dtype=torch.float64, device=low.device)
            for low_i, step_i, n in zip(low, step, counts, strict=True)
        )
        integral = torch.zeros((), dtype=torch.float64, device=low.device)
        for rows in first.split(max(1, 200_000 // (len(rest[0]) if rest else 1))):
            points = torch.cartesian_prod(rows, *rest).reshape(-1, d)
            log_q = self.log_density(points.reshape(-1, *self.sample_shape), alpha, sigma)
            integral -= (log_q.exp() * log_q).sum()
        return (integral * step.prod()).item()

    def _components(
        self, x: Tensor, alpha: Level, sigma: Level, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k·N(x; α·μ_k, C_k), shape ``(B, K)``; x − α·μ_k along the axes of component k and
        its variances α²λ + σ² there, both of shape ``(B, K, d)``.
        """
        alpha, sigma = _column(alpha, x)[..., None], _column(sigma, x)[..., None]
        away = x.double().flatten(1)[:, None] - alpha * self.means
        along = torch.einsum("kji,bkj->bki", self.axes, away)
        total = (alpha**2 * self.variances + sigma**2).expand_as(along)
        terms = along**2 / total + total.log() + math.log(2 * math.pi)
        log_weights = self.log_weights.expand(len(x), -1)
        if y is not None:
            components = torch.arange(len(self.log_weights), device=x.device)
            other = (components != y[:, None]) & (y[:, None] != len(components))
            log_weights = log_weights.masked_fill(other, HIDDEN)
        return log_weights - terms.sum(2) / 2, along, total

    @staticmethod
    def _mix(joint: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bk,bki->bi", joint.softmax(1), values)


class EmpiricalDenoiser(ExactDenoiser):
    """The ideal denoiser of a finite data set.

    The softmax over the data runs in chunks with a running maximum, so the memory it takes is that
    of the data and of ``chunk`` × B numbers: 60,000 MNIST images and any batch fit.

    Args:
        data: y_1 … y_n in the model's value range, shape ``(n, *sample_shape)``.
        schedule: the noise levels.
        labels: class of each, int64 ``(n,)``, or ``None``.
        value_range: least and greatest value of clean data, for samplers that clip.
        chunk: how many data points are compared at once; changes speed and memory only.

    Raises:
        UserError: where there are no data, or a class has none.
    """

    data: Tensor
    labels: Tensor | None

    def __init__(
        self,
        data: Tensor,
        schedule: NoiseSchedule,
        labels: Tensor | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        chunk: int = 4096,
    ) -> None:
        if len(data) == 0:
            raise UserError("the ideal denoiser of a data set needs at least one example")
        counts = torch.zeros(0) if labels is None else torch.bincount(labels)
        if labels is not None and (len(labels) != len(data) or not bool(counts.all())):
            raise UserError(
                f"labels must name the classes 0 … {len(counts) - 1} of the {len(data)} examples, "
                f"none of them empty"
            )
        super().__init__(schedule, tuple(data.shape[1:]), value_range, len(counts))
        self.chunk = chunk
        self.keep(data=data.flatten(1), labels=labels)

    @cached_property
    def moments(self) -> DataMoments:
        """Mean and variance of the data in each dimension."""
        return DataMoments.of(
            c.reshape(-1, *self.sample_shape) for c in self.data.split(self.chunk)
        )

    def posterior_mean(
        self, x: Tensor, alpha: Level, sigma: Level, y: Tensor | None = None
    ) -> Tensor:
        """E[x_0 | x_t = x], float64 of the shape of ``x``; σ > 0."""
        alpha, sigma = _column(alpha, x), _column(sigma, x)
        flat = x.double().flatten(1)
        largest = torch.full_like(flat[:, :1], -math.inf)
        weight = torch.zeros_like(largest)
        total = torch.zeros_like(flat)
        for first in range(0, len(self.data), self.chunk):
            points = self.data[first : first + self.chunk].double()
            half_norms = points.square().sum(1) / 2
            logits = (alpha * (flat @ points.mT) - alpha**2 * half_norms) / sigma**2
            if y is not None and self.labels is not None:
                labels = self.labels[first : first + self.chunk]
                other = (labels != y[:, None]) & (y[:, None] != self.num_classes)
                logits = logits.masked_fill(other, HIDDEN)
            new = torch.maximum(largest, logits.amax(1, keepdim=True))
            shares = torch.exp(logits - new)
            fade = torch.exp(largest - new)
            weight = fade * weight + shares.sum(1, keepdim=True)
            total = fade * total + shares @ points
            largest = new
        return (total / weight).reshape(x.shape)


def _column(level: Level, x: Tensor) -> Tensor:
    """α or σ as float64 of shape ``(B, 1)`` or ``(1, 1)`` on the device of ``x``."""
    return torch.as_tensor(level, dtype=torch.float64, device=x.device).reshape(-1, 1)
