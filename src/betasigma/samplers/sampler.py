"""What every sampler shares: the start, the time grid, per-sample noise, the count of network
evaluations.

A sampler integrates from noise, at t = 1 or somewhat below, to data along a falling grid of times;
a subclass says what one ``step`` from t to s < t does, or overrides ``trajectory`` where a step
needs to remember the one before. It speaks to a Denoiser and never asks which family that is.

Sample i is a function of (seed, i): its start and every later draw come from its own stream (see
``betasigma.randomness``), so the same picture appears whatever the batch size or the number of
devices.

Every trajectory ends with one step from t_min to clean data, s = 0. The curve has nothing to
integrate there (α = 1, σ = 0 is an end point of its own), and the methods agree on what to do: the
state becomes x̂_0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self, TypedDict

import torch
from torch import Tensor

from betasigma.denoiser import DenoiserLike, Prediction
from betasigma.errors import UserError
from betasigma.options.plugins import Component
from betasigma.options.samplers import (
    DRAWN_AT_ONCE,
    Dtype,
    Grid,
    GridOptions,
    SamplerOptions,
    Start,
    Steps,
    check_levels_taken,
    sections,
    stride_of,
)
from betasigma.prior import DataMoments, GaussianPrior
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule

FAR_START = 1e-3
"""Bits per dimension between the start and the data there, from which a warning says so. DDPM's
10⁻⁵ is far below, NCSN's at σ_max = 1 a hundred times above."""


class Noise(Protocol):
    """Where a step takes its random numbers from: a :class:`~betasigma.randomness.Stream`, or
    numbers written down beforehand.
    """

    def normal(self, shape: Sequence[int], dtype: torch.dtype = ...) -> Tensor:
        """Standard normal numbers, shape ``(n, *shape)``."""
        ...


class Samples(NamedTuple):
    """Samples and what they cost."""

    x: Tensor
    """In the model's value range, float32 of shape ``(n, *sample_shape)``, on the CPU."""
    nfe: int
    """Network evaluations that each sample took; the largest of the batches where they differ."""
    batch_size: int
    """How many were integrated at once, at most: what was asked for, or what memory allowed."""


def count_not_finite(x: Tensor) -> int:
    """Number of samples, of ``(n, *sample_shape)``, with a value that is not finite: as images they
    would be arbitrary bytes.
    """
    return int((~x.flatten(1).isfinite().all(1)).sum())


def time_grid(
    schedule: NoiseSchedule,
    steps: Steps,
    grid: Grid,
    rho: float = 7.0,
    ratio_max: float | None = None,
) -> list[float]:
    """Falling times t_1 > … > t_steps = t_min.

    Args:
        schedule: the noise levels; one that has a single level has a single time, t = 1.
        steps: how many; ``None`` for the schedule's own number of levels; a list for as many levels
            of each of its equal sections, the cleanest first (iDDPM's ``space_timesteps``).
        grid: ``levels`` takes the model's own levels, evenly spaced by index (where more steps than
            levels are asked for, times between them); ``strided`` takes levels 1, 1+k, 1+2k, …
            (DDIM's code: 0, 20, …, 980 are 50 of its 1000); ``uniform_t`` and ``uniform_log_snr``
            are even in t and in log-SNR; ``karras`` is even in (σ/α)^(1/ρ) (Karras et al. 2022,
            equation 5).
        rho: ρ > 0 of ``karras``; 1 is even in σ/α, and as ρ grows it becomes even in log-SNR.
        ratio_max: largest σ/α. ``None``: the schedule's end, and on the grids that are even in
            noise its ``ratio_max``, beyond which they would spend their steps on pure noise.

    Raises:
        UserError: where ``steps`` < 1, ``rho`` ≤ 0, ``ratio_max`` is no noise of the schedule, or
            the grid is unknown or takes levels that there are not.
    """
    GridOptions.check(steps=steps, grid=grid, rho=rho, ratio_max=ratio_max)
    in_noise = grid in ("uniform_log_snr", "karras")
    if schedule.levels == 1:
        return [1.0]
    first, last = start_time(schedule, ratio_max, in_noise), schedule.t_min
    if grid in ("levels", "strided"):
        ladder = max(int(first * schedule.levels + 1e-9), 1)
        if steps is None or isinstance(steps, list) or grid == "strided" or steps <= ladder:
            chosen = _levels_taken(steps, grid, ladder)
            return [level / schedule.levels for level in reversed(chosen)]
    assert not isinstance(steps, list)
    count = schedule.levels if steps is None else steps
    if count == 1:
        return [first]
    if in_noise:
        low, high = schedule.log_snr(first).item(), schedule.log_snr(last).item()
        if grid == "uniform_log_snr":
            log_snr = _even(low, high, count)
        else:
            roots = _even(math.exp(-low / (2 * rho)), math.exp(-high / (2 * rho)), count)
            log_snr = -2 * rho * torch.log(roots)
        # the ends are met exactly, not up to the rounding of a root
        return [first, *schedule.t_of_log_snr(log_snr[1:-1]).tolist(), last]
    return _even(first, last, count).tolist()


def start_time(schedule: NoiseSchedule, ratio_max: float | None, in_noise: bool) -> float:
    """Time where a trajectory begins.

    Args:
        schedule: the noise levels.
        ratio_max: σ/α there; ``None`` for 1, or for the schedule's own bound if
        in_noise: steps are even in noise.

    Raises:
        UserError: where ``ratio_max`` leaves no noise of the schedule.
    """
    least, greatest = schedule.ratio(schedule.t_min).item(), schedule.ratio(1.0).item()
    ratio = (schedule.ratio_max if in_noise else greatest) if ratio_max is None else ratio_max
    if ratio <= least:
        raise UserError(
            f"sampler.ratio_max={ratio:g} must be above {least:.3g}, sigma/alpha at the smallest "
            f"noise of the schedule (its largest is {greatest:.5g})"
        )
    return 1.0 if ratio >= greatest else schedule.t_of_ratio(ratio).item()


def _levels_taken(steps: Steps, grid: Grid, levels: int) -> list[int]:
    """Rising numbers of the levels that a grid takes of 1 … ``levels``."""
    check_levels_taken(steps, grid, levels)
    if steps is None or steps == levels:
        return list(range(1, levels + 1))
    if grid == "strided":
        assert isinstance(steps, int)
        return list(range(1, levels + 1, stride_of(steps, levels)))
    if steps == 1:
        return [levels]
    counts = steps if isinstance(steps, list) else [steps]
    chosen, first = list[int](), 1
    for size, count in zip(sections(levels, len(counts)), counts, strict=True):
        # added up as iDDPM does, so that halves round alike
        position, stride = 0.0, (size - 1) / (count - 1) if count > 1 else 1.0
        for _ in range(count):
            chosen.append(first + round(position))
            position += stride
        first += size
    return chosen


def _even(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


class StartArguments(TypedDict, total=False):
    """Arguments that a sampler with a grid of its own hands on to :class:`Sampler`."""

    rho: float
    start: Start
    dtype: Dtype
    ratio_max: float | None


class GridArguments(StartArguments, total=False):
    """Arguments that every other sampler on a time grid hands on to :class:`Sampler`."""

    grid: Grid


class Sampler(Component):
    """Integrates noise to data in a given number of steps.

    Args:
        steps: number of times on the grid; ``None`` for every level of the model.
        clip: clip every x̂_0 to the value range before it is used.
        grid, rho, ratio_max: how the times are spaced, and where they begin (see
            :func:`time_grid`).
        start: ``prior`` is N(0, std²·I), the schedule's Gaussian at the first time; ``uniform`` is
            U[low, high] of the value range, where NCSN began; ``moments`` is the Gaussian with the
            mean and variance that the data have there in each dimension.
        dtype: of the state; the network computes in its own.

    Raises:
        UserError: where an option is out of range.
    """

    config_group = "sampler"

    name = ""
    repeatable = SamplerOptions.repeatable
    adaptive = SamplerOptions.adaptive
    first: float | None = None
    """Time at which the sampler begins; ``None`` for that of its grid."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not vars(cls).get("name"):  # not that of another sampler which it is made from
            cls.name = cls.__name__

    def __init__(
        self,
        steps: Steps = None,
        clip: bool = False,
        grid: Grid = "levels",
        rho: float = 7.0,
        start: Start = "prior",
        dtype: Dtype = "float32",
        ratio_max: float | None = None,
    ) -> None:
        GridOptions.check_own(locals())
        self.steps, self.grid, self.rho, self.start, self.clip = steps, grid, rho, start, clip
        self.ratio_max = ratio_max
        self.dtype = torch.float64 if dtype == "float64" else torch.float32

    @property
    def settings(self) -> dict[str, Any]:
        """Every option by name, which begins with no underscore: what tells two samplers of one
        name apart.
        """
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**own, "dtype": str(self.dtype).removeprefix("torch.")}

    def sample(
        self,
        denoiser: DenoiserLike,
        n: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        y: Tensor | None = None,
        batch_size: int = DRAWN_AT_ONCE,
        progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """Draw samples.

        Args:
            denoiser: the model.
            n: draw samples 0 … n−1 of this seed; or
            indices: draw these.
            seed: with the index it determines a sample completely.
            y: class label of each sample, int64 ``(n,)``, or ``None``.
            batch_size: how many are integrated at once, at most: halved as often as the device runs
                out of memory. Changes speed and memory only.
            progress: called with the share of the whole work that each step was; with what was
                lost, below 0, where a batch is begun anew.

        Raises:
            UserError: where neither or both of ``n`` and ``indices`` are given, or an option does
            not fit the model.
            torch.OutOfMemoryError: where there is no memory for one sample.
        """
        if (n is None) == (indices is None):
            raise UserError("give either n, the number of samples, or their indices")
        self._say_start(denoiser)
        wanted = list(range(n)) if n is not None else [int(i) for i in indices or ()]
        share = len(wanted) * len(self.reached(self.times(denoiser.schedule)))

        def part(rows: slice) -> tuple[Tensor, int]:
            labels = None if y is None else y[rows].to(denoiser.device)
            return self._sample_batch(denoiser, wanted[rows], seed, labels, share, progress)

        return in_batches(part, len(wanted), batch_size, denoiser.sample_shape)

    @torch.no_grad()
    def states(
        self, denoiser: DenoiserLike, x: Tensor, rng: Noise, y: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The trajectory from a state of one's own: the state after every step, in its own dtype.

        Args:
            denoiser: the model.
            x: state at the first of :meth:`times`, shape ``(n, *sample_shape)``.
            rng: random numbers for these n.
            y: class labels, int64 ``(n,)``, or ``None``.
        """
        yield from self.trajectory(CountingDenoiser(denoiser, self.clip, y), x, rng)

    def begun_at(self, t: float) -> Self:
        """This sampler for a state at t instead of 1: it visits t and then what of its grid lies
        below.

        Args:
            t: time in [t_min, 1].
        """
        later = copy(self)
        later.first = t
        return later

    def times(self, schedule: NoiseSchedule) -> list[float]:
        """The falling times at which this sampler visits the model."""
        return self.from_first(time_grid(schedule, self.steps, self.grid, self.rho, self.ratio_max))

    def from_first(self, times: list[float]) -> list[float]:
        """A grid of falling times, from where :meth:`begun_at` says this sampler begins."""
        first = self.first
        return times if first is None else [first, *(t for t in times if t < first)]

    def reached(self, times: list[float]) -> list[float]:
        """The time that each state of ``trajectory`` has come to, falling to 0 (clean data)."""
        return [*times[1:], 0.0]

    @torch.inference_mode()
    def _sample_batch(
        self,
        denoiser: DenoiserLike,
        indices: list[int],
        seed: int,
        y: Tensor | None,
        share: int,
        progress: Callable[[float], None] | None,
    ) -> tuple[Tensor, int]:
        rng = Stream("sample", seed, indices=indices, device=denoiser.device)
        model = CountingDenoiser(denoiser, self.clip, y)
        x = start = self.begin(denoiser, rng)
        told = 0.0
        try:
            for x in self.trajectory(model, start, rng):  # noqa: B007 - the last one counts
                if progress is not None:
                    progress(len(indices) / share)
                    told += len(indices) / share
            if x.shape != start.shape:
                raise UserError(
                    f"sampler={self.name} ends at a state of shape {tuple(x.shape)}, and began at "
                    f"{tuple(start.shape)}: step and trajectory must keep the shape"
                )
            return x.float().cpu(), model.nfe
        except torch.OutOfMemoryError:
            if progress is not None:
                progress(-told)
            raise

    def begin(self, denoiser: DenoiserLike, rng: Stream) -> Tensor:
        """State at the first time, shape ``(n, *sample_shape)``. It is drawn on the CPU, so that a
        sample starts from the same noise on every device.

        Raises:
            UserError: where it should match moments that the model does not know.
        """
        if self.start == "uniform":
            low, high = denoiser.value_range
            uniform = rng.uniform(denoiser.sample_shape, self.dtype, device="cpu")
            return low + (high - low) * uniform.to(denoiser.device)
        noise = rng.normal(denoiser.sample_shape, self.dtype, device="cpu")
        return self._start(denoiser).draw(noise.to(denoiser.device))

    def _start(self, denoiser: DenoiserLike) -> GaussianPrior:
        """The Gaussian that the trajectory starts from, or with the moments of what it does."""
        schedule, first = denoiser.schedule, self.times(denoiser.schedule)[0]
        if self.start == "uniform":
            moments = DataMoments.uniform(*denoiser.value_range)
            return GaussianPrior(moments.mean, moments.variance)
        if self.start == "prior":
            return GaussianPrior.standard(schedule, first)
        if denoiser.moments is None:
            raise UserError(
                "sampler.start=moments needs the moments of the training data, which this "
                "checkpoint does not have; use sampler.start=prior"
            )
        return GaussianPrior.matched(schedule, denoiser.moments, first)

    def _say_start(self, denoiser: DenoiserLike) -> None:
        """Warn where the start is not what the data become at the first time."""
        schedule, first = denoiser.schedule, self.times(denoiser.schedule)[0]
        moments = denoiser.moments or DataMoments.uniform(*denoiser.value_range)
        data = GaussianPrior.matched(schedule, moments, first)
        excess = self._start(denoiser).excess_bits(data)
        if excess > FAR_START:
            warnings.warn(
                f"sampling starts at sigma/alpha={schedule.ratio(first).item():.3g} from "
                f"sampler.start={self.start}, {excess:.2g} bits/dim away from the data there: "
                f"sampler.start=moments matches their mean and variance, and a schedule that ends "
                f"at more noise needs no matching",
                stacklevel=3,
            )

    def trajectory(self, model: CountingDenoiser, x: Tensor, rng: Noise) -> Iterator[Tensor]:
        """States after each step; the last is the sample. The last step ends at clean data, s =
        0.
        """
        for t, s in pairwise([*self.times(model.schedule), 0.0]):
            x = self.step(model, x, t, s, rng)
            yield x

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        """State at s < t from the state x at t."""
        raise NotImplementedError(f"{type(self).__name__} must define step(model, x, t, s, rng)")


class CountingDenoiser:
    """What a step talks to: a denoiser with the sampler's clipping and the batch's labels bound to
    it, counting the network evaluations (``nfe``) made through it.
    """

    def __init__(self, denoiser: DenoiserLike, clip: bool, y: Tensor | None) -> None:
        self.schedule = denoiser.schedule
        self.nfe = 0
        self._denoiser, self._y = denoiser, y
        self._range = denoiser.value_range if clip else None

    def __call__(self, x: Tensor, t: float) -> Prediction:
        self.nfe += self._denoiser.evaluations_per_call
        prediction = self._denoiser(x, t, self._y)
        return prediction.clipped(*self._range) if self._range else prediction


def in_batches(
    part: Callable[[slice], tuple[Tensor, int]],
    n: int,
    batch_size: int,
    sample_shape: tuple[int, ...],
) -> Samples:
    """Samples 0 … n−1, batch by batch.

    Args:
        part: gives some of them, float32 on the CPU, and the network evaluations that each took.
        n: how many.
        batch_size: at most so many at once; halved as often as the device runs out of memory.
        sample_shape: of one.

    Raises:
        torch.OutOfMemoryError: where there is no memory for one sample.
    """
    parts, first, nfe = [torch.empty(0, *sample_shape)], 0, 0
    while first < n:
        rows = slice(first, min(first + batch_size, n))
        try:
            x, cost = part(rows)
        except torch.OutOfMemoryError:
            if rows.stop - first == 1:
                raise
            batch_size = (rows.stop - first + 1) // 2
            continue
        parts.append(x)
        first, nfe = rows.stop, max(nfe, cost)
    return Samples(torch.cat(parts), nfe, batch_size)


def labels_in_turn(num_classes: int, n: int, wanted: Sequence[int] | None = None) -> Tensor | None:
    """Labels 0, 1, … (or the ``wanted`` ones) of samples 0 … n−1, in turn, int64 ``(n,)``; ``None``
    without classes.
    """
    if not num_classes:
        return None
    labels = torch.arange(num_classes) if wanted is None else torch.tensor(wanted)
    return labels[torch.arange(n) % len(labels)]
