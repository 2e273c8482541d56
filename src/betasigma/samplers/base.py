"""What every sampler shares: the start, the time grid, per-sample noise, the count of network
evaluations.

A sampler integrates from noise at t = 1 to data along a falling grid of times; a subclass says what
one ``step`` from t to s < t does, or overrides ``trajectory`` where a step needs to remember the
one before. It speaks to a Denoiser and never asks which family that is.

Sample i is a function of (seed, i): its start and every later draw come from its own stream (see
``betasigma.randomness``), so the same picture appears whatever the batch size or the number of
devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from betasigma.denoiser import Prediction
from betasigma.errors import UserError
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, Times

Grid = Literal["levels", "uniform_t", "uniform_log_snr"]
Start = Literal["prior", "uniform"]
GRIDS = ("levels", "uniform_t", "uniform_log_snr")
STARTS = ("prior", "uniform")


class DenoiserLike(Protocol):
    """What a sampler needs of a denoiser: a trained one, a guided one or a closed form."""

    schedule: NoiseSchedule
    sample_shape: tuple[int, ...]
    value_range: tuple[float, float]
    evaluations_per_call: int

    @property
    def device(self) -> torch.device: ...

    def __call__(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction: ...


class Samples(NamedTuple):
    """Samples and what they cost."""

    x: Tensor
    """In the model's value range, shape ``(n, *sample_shape)``, on the CPU."""
    nfe: int
    """Network evaluations that each sample took."""


def time_grid(schedule: NoiseSchedule, steps: int | None, grid: Grid) -> list[float]:
    """Falling times 1 = t_1 > … > t_steps = t_min.

    Args:
        schedule: the noise levels.
        steps: how many; ``None`` for the schedule's own number of levels.
        grid: ``levels`` takes the model's own levels, evenly spaced by index (where more steps than
            levels are asked for, times between them); ``uniform_t`` and ``uniform_log_snr`` are
            even in t and in log-SNR.

    Raises:
        UserError: where ``steps`` < 1 or the grid is unknown.
    """
    if grid not in GRIDS:
        raise UserError(f"sampler.grid={grid} is unknown; choose from {', '.join(GRIDS)}")
    count = schedule.levels if steps is None else steps
    if count < 1:
        raise UserError(f"sampler.steps={steps} must be at least 1")
    if grid == "uniform_log_snr":
        ends = (float(schedule.log_snr(1.0)), float(schedule.log_snr(schedule.t_min)))
        times = schedule.t_of_log_snr(torch.linspace(*ends, count, dtype=torch.float64))
    else:
        times = torch.linspace(1.0, schedule.t_min, count, dtype=torch.float64)
        if grid == "levels" and count <= schedule.levels:
            times = (times * schedule.levels).round() / schedule.levels
    return times.tolist()


class Counted:
    """A denoiser that counts the network evaluations made through it."""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self._denoiser = denoiser
        self.nfe = 0

    def __call__(self, x_t: Tensor, t: Times, y: Tensor | None = None) -> Prediction:
        self.nfe += self._denoiser.evaluations_per_call
        return self._denoiser(x_t, t, y)


class Sampler:
    """Integrates noise to data in a given number of steps.

    Args:
        steps: number of times on the grid; ``None`` for every level of the model.
        grid: how the times are spaced (see :func:`time_grid`).
        start: ``prior`` is N(0, prior_std²·I) of the schedule; ``uniform`` is U[low, high] of the
            value range, where NCSN began.
        clip: clip every x̂_0 to the value range before it is used.
        dtype: of the state; the network computes in its own.
    """

    name = ""

    def __init__(
        self,
        steps: int | None = None,
        grid: Grid = "levels",
        start: Start = "prior",
        clip: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        if steps is not None and steps < 1:
            raise UserError(f"sampler.steps={steps} must be at least 1")
        if grid not in GRIDS:
            raise UserError(f"sampler.grid={grid} is unknown; choose from {', '.join(GRIDS)}")
        if start not in STARTS:
            raise UserError(f"sampler.start={start} is unknown; choose from {', '.join(STARTS)}")
        self.steps, self.grid, self.start, self.clip = steps, grid, start, clip
        self.dtype = torch.float64 if dtype == "float64" else torch.float32

    def sample(
        self,
        denoiser: DenoiserLike,
        n: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        y: Tensor | None = None,
        batch_size: int = 256,
        progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """Draw samples.

        Args:
            denoiser: the model.
            n: draw samples 0 … n−1 of this seed; or
            indices: draw these.
            seed: with the index it determines a sample completely.
            y: class label of each sample, int64 ``(n,)``, or ``None``.
            batch_size: how many are integrated at once; changes speed and memory only.
            progress: called with the share of the whole work that each step was.

        Raises:
            UserError: where neither or both of ``n`` and ``indices`` are given, or an option does
            not fit the model.
        """
        if (n is None) == (indices is None):
            raise UserError("give either n, the number of samples, or their indices")
        wanted = list(range(n)) if n is not None else [int(i) for i in indices or ()]
        times = self.times(denoiser.schedule)
        share = len(wanted) * max(1, self.calls(times))
        parts, nfe = [], 0
        for first in range(0, len(wanted), batch_size):
            chunk = wanted[first : first + batch_size]
            labels = None if y is None else y[first : first + batch_size].to(denoiser.device)
            x, nfe = self._sample_batch(denoiser, chunk, seed, labels, times, share, progress)
            parts.append(x)
        shape = (0, *denoiser.sample_shape)
        return Samples(torch.cat(parts) if parts else torch.empty(shape), nfe)

    def times(self, schedule: NoiseSchedule) -> list[float]:
        """The falling times at which this sampler visits the model."""
        return time_grid(schedule, self.steps, self.grid)

    def calls(self, times: list[float]) -> int:
        """How many states ``trajectory`` yields for these times."""
        return len(times)

    @torch.inference_mode()
    def _sample_batch(
        self,
        denoiser: DenoiserLike,
        indices: list[int],
        seed: int,
        y: Tensor | None,
        times: list[float],
        share: int,
        progress: Callable[[float], None] | None,
    ) -> tuple[Tensor, int]:
        counted = Counted(denoiser)
        rng = Stream("sample", seed, indices=indices, device=denoiser.device)
        bound = _Bound(self, denoiser, counted, y)
        x = start = self.begin(denoiser, rng)
        for x in self.trajectory(bound, start, times, rng):  # noqa: B007 - the last one counts
            if progress is not None:
                progress(len(indices) / share)
        return x.float().cpu(), counted.nfe

    def begin(self, denoiser: DenoiserLike, rng: Stream) -> Tensor:
        """State at t = 1, shape ``(n, *sample_shape)``."""
        if self.start == "uniform":
            low, high = denoiser.value_range
            return low + (high - low) * rng.uniform(denoiser.sample_shape, self.dtype)
        return rng.normal(denoiser.sample_shape, self.dtype) * denoiser.schedule.prior_std

    def trajectory(
        self, model: _Bound, x: Tensor, times: list[float], rng: Stream
    ) -> Iterator[Tensor]:
        """States after each step; the last is the sample. The last step ends at clean data, s =
        0.
        """
        for t, s in zip(times, [*times[1:], 0.0], strict=True):
            x = self.step(model, x, t, s, rng)
            yield x

    def step(self, model: _Bound, x: Tensor, t: float, s: float, rng: Stream) -> Tensor:
        """State at s < t from the state x at t."""
        raise NotImplementedError


class _Bound:
    """A denoiser with the sampler's clipping and the batch's labels bound to it: what a step talks
    to.
    """

    def __init__(
        self, sampler: Sampler, denoiser: DenoiserLike, counted: Counted, y: Tensor | None
    ) -> None:
        self.schedule = denoiser.schedule
        self._range = denoiser.value_range if sampler.clip else None
        self._counted, self._y = counted, y

    def __call__(self, x: Tensor, t: float) -> Prediction:
        prediction = self._counted(x, t, self._y)
        return prediction.clipped(*self._range) if self._range else prediction
