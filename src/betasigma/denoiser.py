r"""Denoisers: a network, a schedule and a preconditioning, spoken to in one language.

Everything that samples or scores calls ``denoiser(x_t, t, y)`` and reads from the
:class:`Prediction` whichever of the equivalent quantities it needs:

    x̂_0,   ε̂ = (x_t − α·x̂_0)/σ,   score = (α·x̂_0 − x_t)/σ² = −ε̂/σ.

All three are affine in x_t and in the network's output F; their coefficients are formed in float64
and applied once, so that ε̂ of an ε-network is its output to the last bit and never a difference of
two large numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from betasigma.errors import UserError
from betasigma.options.objectives import TrainedOn
from betasigma.options.plugins import Component
from betasigma.options.samplers import only_levels
from betasigma.options.training import DenoiserOptions, GuidedOptions, OffLevels
from betasigma.preconditioning import Preconditioning
from betasigma.prior import DataMoments
from betasigma.schedules import NoiseSchedule, Times

DENSE = 100
"""With this many levels, what lies between them is not worth a warning."""


def expand(coefficient: Tensor, like: Tensor) -> Tensor | float:
    """float64 coefficient of shape ``()`` or ``(B,)`` → something that multiplies ``like`` of shape
    ``(B, …)``.

    A scalar stays a Python number, so that no copy to the device is made for it.
    """
    if coefficient.ndim == 0:
        return coefficient.item()
    value = coefficient.to(like.dtype).to(like.device, non_blocking=True)
    return value.reshape(-1, *[1] * (like.ndim - 1))


def refuse_not_finite(output: Tensor, t: float) -> None:
    """Refuse a network's output by which no adaptive solver can choose a step. Waits for the
    device.

    Raises:
        UserError: where a value of it is infinite or not a number.
    """
    if not bool(output.isfinite().all()):
        raise UserError(
            f"the model's output is not finite at t={t:.6g}: its training has diverged, or it was "
            f"given a state far from those that it was trained on"
        )


@contextmanager
def refusing_steep_flow(tolerance: str, remedy: str) -> Iterator[None]:
    """Refuse a flow in whose integration torchdiffeq's steps become 0 or infinite in this block.

    Args:
        tolerance: to which it is followed, for the message.
        remedy: what may help beside more training, for the message.

    Raises:
        UserError: where that happens. What else is raised, by a network of one's own say, passes.
    """
    try:
        yield
    except (AssertionError, OverflowError) as error:
        if isinstance(error, AssertionError) and not str(error).startswith(SOLVER_GIVES_UP):
            raise
        raise UserError(
            f"the flow of this model is too steep to be followed to {tolerance}: train it further, "
            f"or give {remedy}"
        ) from None


SOLVER_GIVES_UP = ("underflow in dt", "non-finite values in state")
"""How torchdiffeq's assertions begin."""


def perturb(schedule: NoiseSchedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = α_t·x_0 + σ_t·ε (2.2, 2.17 of docs/equations.md); ``t`` float64, ``()`` or ``(B,)``."""
    alpha, sigma, _ = schedule.at(t)
    return x0 * expand(alpha, x0) + eps * expand(sigma, x0)


class Prediction:
    """What a denoiser says about x_0 given x_t, in whichever coordinates the caller asks for.

    Args:
        x_t: noisy data, shape ``(B, *sample_shape)``.
        output: network output F of the same shape.
        alpha, sigma, c_skip, c_out: float64 CPU coefficients of shape ``()`` or ``(B,)``; x̂_0 =
            c_skip·x_t + c_out·F.
        interpolation: what the network says of the reverse variance, where it has learned one: −1
            for β̃, 1 for β (see :meth:`log_variance`); the shape of ``x_t``.
    """

    def __init__(
        self,
        x_t: Tensor,
        output: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        c_skip: Tensor,
        c_out: Tensor,
        interpolation: Tensor | None = None,
    ) -> None:
        self.x_t, self.output, self.interpolation = x_t, output, interpolation
        self.alpha, self.sigma = alpha, sigma
        self._c_skip, self._c_out = c_skip, c_out

    @cached_property
    def x0(self) -> Tensor:
        """Estimate of E[x_0 | x_t], shape ``(B, *sample_shape)``."""
        return self._affine(self._c_skip, self._c_out)

    @cached_property
    def eps(self) -> Tensor:
        """Estimate of E[ε | x_t], the same shape."""
        skip = 1 - self.alpha * self._c_skip
        # 1 − α·(1/α) is zero up to the rounding of one product
        skip = torch.where(skip.abs() < 1e-12, 0.0, skip)
        return self._affine(skip / self.sigma, -self.alpha * self._c_out / self.sigma)

    @cached_property
    def score(self) -> Tensor:
        """Estimate of ∇ log q_t(x_t), the same shape."""
        return self.eps * expand(-1 / self.sigma, self.eps)

    def clipped(self, low: float, high: float) -> Prediction:
        """The same prediction with x̂_0 clipped to [low, high]; ε̂ and score follow from the
        clipped x̂_0.
        """
        zero, one = torch.zeros_like(self._c_skip), torch.ones_like(self._c_out)
        x0 = self.x0.clamp(low, high)
        return Prediction(self.x_t, x0, self.alpha, self.sigma, zero, one, self.interpolation)

    def log_variance(self, low: Tensor, high: Tensor) -> Tensor:
        """Log of the reverse step's variance: between log β̃ and log β as the network says (Nichol &
        Dhariwal 2021, equation 15), the shape of ``x_t``.

        Args:
            low, high: log β̃ and log β of the step, float64 of shape ``()`` or ``(B,)``
                (:func:`~betasigma.schedules.reverse_log_variances`).

        Raises:
            UserError: where the model has not learned one.
        """
        if self.interpolation is None:
            raise UserError(
                "variance=learned needs a network that returns one, with twice as many outputs "
                "(of your own: out_channels or out_dim), trained with objective=hybrid; "
                "or take variance=beta or posterior"
            )
        share = (self.interpolation + 1) / 2
        return share * expand(high - low, share) + expand(low, share)

    def _affine(self, skip: Tensor, out: Tensor) -> Tensor:
        output = self.output if bool((out == 1).all()) else self.output * expand(out, self.output)
        if not bool(skip.any()):
            return output
        return self.x_t * expand(skip, self.x_t) + output


class DenoiserLike(Protocol):
    """What samplers, likelihoods and metrics need of a denoiser: a trained one, a guided one or a
    closed form.
    """

    schedule: NoiseSchedule
    sample_shape: tuple[int, ...]
    value_range: tuple[float, float]
    num_classes: int
    evaluations_per_call: int

    @property
    def device(self) -> torch.device: ...

    @property
    def moments(self) -> DataMoments | None: ...

    def __call__(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction: ...


class Denoiser(Component, nn.Module):
    """A network that has been given a schedule and a meaning.

    Args:
        network: ``network(x, c_noise, y) -> output`` of the shape of x, or with twice the channels
            where a variance is learned.
        schedule: the noise levels.
        preconditioning: how input and output relate to x_t and x̂_0.
        sample_shape: shape of one example, e.g. ``(1, 28, 28)`` or ``(2,)``.
        value_range: least and greatest value of clean data.
        num_classes: number of class labels; 0 for an unconditional model. Label ``num_classes``
            means "no label".
        trained_on: ``levels`` where training saw the discrete levels only, ``continuous`` where it
            saw every t.
        off_levels: what to tell a network ``trained_on=levels`` between its levels: the nearest
            level (``snap``), the interpolated number (``interpolate``), or nothing (``refuse``).
        precision: dtype of the network's arithmetic under autocast; ``None`` for the dtype of its
            weights.

    Attributes:
        moments: of the training data, where they are known: for a start of sampling, or a prior of
            likelihoods, that matches them.
    """

    config_group = "denoiser"
    moments: DataMoments | None

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        preconditioning: Preconditioning,
        sample_shape: tuple[int, ...],
        value_range: tuple[float, float] = (-1.0, 1.0),
        num_classes: int = 0,
        trained_on: TrainedOn = "levels",
        off_levels: OffLevels = DenoiserOptions.DEFAULTS["off_levels"],
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        DenoiserOptions.check(off_levels=off_levels)
        self.network = network
        self.schedule = schedule
        self.preconditioning = preconditioning
        self.sample_shape = tuple(sample_shape)
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.num_classes = num_classes
        self.trained_on = trained_on
        self.off_levels = off_levels
        self.precision = precision
        self.moments = None
        self._warned = False

    evaluations_per_call = 1
    """Network evaluations (NFE) that one call costs."""

    @contextmanager
    def between_levels(self, policy: OffLevels) -> Iterator[None]:
        """Another policy off the levels for a while, without a warning: for measurements that are
        made there on purpose.
        """
        kept = self.off_levels, self._warned
        self.off_levels, self._warned = policy, True
        try:
            yield
        finally:
            self.off_levels, self._warned = kept

    @property
    def device(self) -> torch.device:
        """Where samplers should put x_t."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        """Predict from noisy data.

        Args:
            x_t: shape ``(B, *sample_shape)``.
            t: time = step/levels in [t_min, 1], one for the batch or one per example (``(B,)``), on
                the CPU: step 10 of DDPM's 1000 is t = 0.01, and ``schedule.times()`` lists all.
            y: class labels, int64 of shape ``(B,)``; ``None`` for no label.

        Raises:
            UserError: where t is no time of the schedule (a step's number, say), or is between the
                levels and the denoiser's policy is ``refuse``, or the network's output has another
                shape.
        """
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        alpha, sigma, _ = self.schedule.at(time)
        c_in, c_skip, c_out, c_noise = self.preconditioning(time, alpha, sigma)
        seen = self._time_shown(time)
        if seen is not time:
            at_seen = self.schedule.at(seen)
            c_noise = self.preconditioning(seen, at_seen.alpha, at_seen.sigma).c_noise
        output = self._run(x_t, c_in, c_noise, y)
        channels = self.sample_shape[0]
        interpolation = None
        if output.shape == (x_t.shape[0], 2 * channels, *x_t.shape[2:]):
            output, interpolation = output.split(channels, dim=1)
        return Prediction(x_t, output, alpha, sigma, c_skip, c_out, interpolation)

    def _run(self, x_t: Tensor, c_in: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
        parameter = next(self.network.parameters(), None)
        dtype = x_t.dtype if parameter is None else parameter.dtype
        x = (x_t if bool((c_in == 1).all()) else x_t * expand(c_in, x_t)).to(dtype)
        if x.ndim == 4 and self._channels_last:
            x = x.to(memory_format=torch.channels_last)
        noise = c_noise.to(dtype).to(x.device, non_blocking=True).expand(x.shape[0])
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            output = self.network(x, noise, y)
        self._check_output(output, x_t)
        return output.to(x_t.dtype)

    def _check_output(self, output: object, x_t: Tensor) -> None:
        """Refuse what is not of the input's shape: broadcasting would train on it in silence."""
        batch, channels, *sides = x_t.shape
        doubled = (batch, 2 * channels, *sides)
        if isinstance(output, Tensor) and output.shape in (x_t.shape, doubled):
            return
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"network={type(self.network).__name__} returned {found} for an input of shape "
            f"{tuple(x_t.shape)}; it must return a tensor of that shape, or {doubled} where it "
            f"learns a variance"
        )

    @property
    def _channels_last(self) -> bool:
        for weight in self.network.parameters():
            if weight.ndim == 4:
                last = weight.is_contiguous(memory_format=torch.channels_last)
                if last != weight.is_contiguous():  # one of a single channel is both
                    return last
        return False

    def _time_shown(self, t: Tensor) -> Tensor:
        """The time that the network is told for ``t``: itself on the levels, by policy between
        them.
        """
        if self.trained_on == "continuous":
            return t
        level = (t * self.schedule.levels).round()
        nearest = level / self.schedule.levels
        if bool(((t - nearest).abs() < 1e-9).all()):
            return t
        if self.off_levels == "refuse":
            raise UserError(
                f"this model was trained on {self.schedule.levels} noise levels only, and "
                f"{only_levels(self.schedule.levels)}"
            )
        if not self._warned and self.schedule.levels < DENSE:
            self._warned = True
            what = "the nearest one" if self.off_levels == "snap" else "the number between them"
            warnings.warn(
                f"the model was trained on {self.schedule.levels} noise levels; between them the "
                f"network is told {what} (denoiser.off_levels={self.off_levels})",
                stacklevel=2,
            )
        return nearest if self.off_levels == "snap" else t


class DenoiserAround(nn.Module):
    """A denoiser around a denoiser, which changes nothing but what is predicted.

    Args:
        denoiser: that answers.
    """

    def __init__(self, denoiser: DenoiserLike) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule: NoiseSchedule = denoiser.schedule
        self.sample_shape, self.value_range = denoiser.sample_shape, denoiser.value_range
        self.num_classes = denoiser.num_classes
        self.evaluations_per_call = denoiser.evaluations_per_call

    @property
    def device(self) -> torch.device:
        """Where samplers should put x_t."""
        return self.denoiser.device

    @property
    def moments(self) -> DataMoments | None:
        """Of the training data."""
        return self.denoiser.moments


class Guided(Component, DenoiserAround):
    """Classifier-free guidance (Ho & Salimans 2021): a denoiser around a denoiser.

    ε̂ = ε̂(x_t, ∅) + weight·(ε̂(x_t, y) − ε̂(x_t, ∅)). Weight 1 is the plain conditional model, 0
    the unconditional one, more than 1 trades variety for agreement with the label (weight = 1 + w
    in the paper's equation 6). Outputs combine linearly in every coordinate, so the sum is taken on
    the network's output.

    Args:
        denoiser: a conditional denoiser.
        weight: guidance weight ≥ 0.

    Raises:
        UserError: where the model has no classes or the weight is negative.
    """

    config_group = "guidance"

    def __init__(self, denoiser: DenoiserLike, weight: float) -> None:
        super().__init__(denoiser)
        if denoiser.num_classes < 1:
            raise UserError(
                f"guidance={weight} needs a model trained with class labels "
                f"(network.num_classes ≥ 1 and objective.label_dropout > 0)"
            )
        GuidedOptions.check(guidance=weight)
        self.weight = weight
        self.evaluations_per_call = 2 * denoiser.evaluations_per_call

    def forward(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        """As :meth:`Denoiser.forward`; without labels there is nothing to guide towards.

        Raises:
            UserError: where ``y`` is ``None``.
        """
        if y is None:
            raise UserError("guidance needs class labels: give labels=[…] or labels=all")
        time = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            time if time.ndim == 0 else torch.cat([time, time]),
            torch.cat([torch.full_like(y, self.num_classes), y]),
        )
        n = len(x_t)
        free, given = both.output[:n], both.output[n:]
        alpha, sigma, c_skip, c_out = (
            c[:n] if c.ndim else c for c in (both.alpha, both.sigma, both._c_skip, both._c_out)
        )
        output = torch.lerp(free, given, self.weight)
        interpolation = None if both.interpolation is None else both.interpolation[n:]
        return Prediction(x_t, output, alpha, sigma, c_skip, c_out, interpolation)


def guided(denoiser: DenoiserLike, weight: float) -> DenoiserLike:
    """``denoiser`` with classifier-free guidance; itself where the weight is 1."""
    return denoiser if weight == 1 else Guided(denoiser, weight)
