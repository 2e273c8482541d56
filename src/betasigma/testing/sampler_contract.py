"""The contract of a sampler: noise to data with any denoiser, each sample by (seed, index) alone.

A sampler speaks to a :class:`~betasigma.denoiser.DenoiserLike` and knows of its family nothing: the
same numbers from a schedule of an unknown class must give the same samples. What it costs is
counted, what it draws is addressed, and on data whose law is known it arrives there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from betasigma.oracles import GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import Sampler
from betasigma.schedules import NoiseSchedule
from betasigma.testing.contract import (
    TOLERANCE,
    generator_untouched,
    kind_of,
    require,
    require_equal,
    shape,
)
from betasigma.testing.probes import SCHEDULES, BareDenoiser, mixture, points, told

SHAPE = (1, 4, 4)
N = 512
"""Samples whose moments are compared."""
ERRORS = 5.0
"""Standard errors that a moment may be off by chance."""
BIAS = {"deterministic": 0.03, "stochastic": 0.12}
"""What a sampler's fine grid may leave of the standard deviation: integrators converge to the law
itself, Langevin steps of a finite size to one a few per cent wider.
"""


def check_sampler(
    sampler: Sampler,
    *,
    schedules: Sequence[NoiseSchedule] = SCHEDULES,
    adaptive: bool = False,
    fine: dict[str, Any] | None = None,
    bias: float | None = None,
) -> None:
    """Assert the contract of a sampler.

    Args:
        sampler: with few steps; that makes the check quick.
        schedules: what it is tried on; by default one of each family.
        adaptive: whether steps are chosen for the whole batch, so that samples and their cost
            agree between batches to a tolerance (of 1 %) only.
        fine: attributes that make the sampler accurate; ``{"steps": 100}`` where it has steps.
        bias: what may be off in mean and standard deviation, in units of the latter, when it is;
            by default 0.03 for a deterministic sampler and 0.12 for a stochastic one.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    expected = "a betasigma.samplers.Sampler"
    require(isinstance(sampler, Sampler), "sampler.type", expected, f"it is {kind_of(sampler)}")
    for schedule in schedules:
        truth = mixture(schedule, SHAPE)
        _check_result(sampler, truth)
        _check_start(sampler, truth)
        _check_seed_and_batch(sampler, truth, 0.01 if adaptive else TOLERANCE)
        _check_cost(sampler, truth)
        _check_states(sampler, truth)
        _check_family(sampler, truth)
        settings = fine if fine is not None else {"steps": 100} if sampler.steps else {}
        best = _with(sampler, **settings)
        _check_labels(best, schedule)
        _check_clip(best, schedule)
        _check_law(sampler, best, truth, bias)


def _with(sampler: Sampler, **settings: Any) -> Sampler:
    """A copy with other settings."""
    chosen = copy.copy(sampler)
    for name, value in settings.items():
        setattr(chosen, name, value)
    return chosen


def _check_result(sampler: Sampler, truth: GaussianMixture) -> None:
    x = sampler.sample(truth, 5).x
    require(
        x.shape == (5, *SHAPE) and x.dtype == torch.float32 and x.device.type == "cpu",
        "sampler.result",
        f"five samples in float32 on the CPU, of shape {(5, *SHAPE)}",
        f"they are {shape(x)} on {x.device}",
    )
    require(
        bool(x.isfinite().all()) and not x.requires_grad,
        "sampler.result",
        "samples that are finite and carry no gradient",
        f"the largest is {x.abs().max():g}, requires_grad={x.requires_grad}",
    )
    none = sampler.sample(truth, 0)
    require(
        none.x.shape == (0, *SHAPE) and none.nfe == 0,
        "sampler.none",
        f"no samples for n=0, of shape {(0, *SHAPE)}, at no cost",
        f"they are {shape(none.x)} for nfe={none.nfe}",
    )
    shares: list[float] = []
    sampler.sample(truth, 5, batch_size=2, progress=shares.append)
    require(
        abs(sum(shares) - 1) < 1e-6,
        "sampler.progress",
        "progress to be told of shares that sum to 1",
        f"{len(shares)} of them sum to {sum(shares):g}",
    )


def _check_start(sampler: Sampler, truth: GaussianMixture) -> None:
    parameters = inspect.signature(type(sampler)).parameters.values()
    if not any(p.name == "start" or p.kind is p.VAR_KEYWORD for p in parameters):
        return
    one, other = (
        _with(sampler, start=start).begin(truth, Stream("kit", 0, indices=range(5)))
        for start in ("prior", "uniform")
    )
    require(
        not torch.equal(one, other) and bool((other.abs() <= 1).all()),
        "sampler.start",
        "start=uniform, which its constructor takes, to begin on the value range [−1, 1]",
        "it begins as by start=prior" if torch.equal(one, other) else f"at {told(other.max())}",
    )


def _check_seed_and_batch(sampler: Sampler, truth: GaussianMixture, tolerance: float) -> None:
    whole = sampler.sample(truth, 7, seed=3).x
    why = ", which a training draws from"
    with generator_untouched("sampler.seeded", why, "sampling"):
        again = sampler.sample(truth, 7, seed=3).x
    expected = "one sample from one seed: every number drawn from the sample's own stream"
    require_equal(again, whole, "sampler.seeded", expected, "that of a second call differs", 0)
    other = sampler.sample(truth, 7, seed=4).x
    require(
        not torch.equal(other, whole),
        "sampler.seed",
        "other samples from another seed",
        "they are the same",
    )
    for size in (1, 3):
        parts = sampler.sample(truth, 7, seed=3, batch_size=size).x
        expected = f"sample i to be the same in batches of {size} as in one of 7"
        require_equal(parts, whole, "sampler.batch_size", expected, tolerance=tolerance)
    wanted = [6, 0, 4]
    some = sampler.sample(truth, indices=wanted, seed=3).x
    expected = f"each of samples {wanted}, asked for by index, to be that of the whole"
    require_equal(some, whole[wanted], "sampler.indices", expected, tolerance=tolerance)


def _check_cost(sampler: Sampler, truth: GaussianMixture) -> None:
    for price in (1, 2):
        watched = BareDenoiser(truth, evaluations_per_call=price)
        samples = sampler.sample(watched, 3)
        require(
            samples.nfe == price * watched.calls,
            "sampler.nfe",
            f"nfe to count {watched.calls} call(s) of {price} network evaluation(s) each",
            f"it is {samples.nfe}",
        )


def _check_states(sampler: Sampler, truth: GaussianMixture) -> None:
    later = sampler.begun_at(0.55)
    times = later.times(truth.schedule)
    require(
        times[0] == 0.55 and all(t > s for t, s in pairwise(times)),
        "sampler.begun_at",
        "begun_at(0.55) to visit 0.55 and then what lies below, falling",
        f"it visits {', '.join(f'{t:.3g}' for t in times[:3])}{', …' if len(times) > 3 else ''}",
    )
    rng = Stream("kit", 0, indices=range(2))
    states = [rng.normal(SHAPE, sampler.dtype)]
    seen = [states[0].clone()]
    for state in sampler.states(truth, states[0], rng):
        states.append(state)
        seen.append(state.clone())
    require(
        all(map(torch.equal, states, seen)),
        "sampler.states",
        "a state of the trajectory to stay as it is when the next step is taken",
        "it was changed in place",
    )


def _check_family(sampler: Sampler, truth: GaussianMixture) -> None:
    """Besides: whatever is not in the protocol raises an AttributeError, with its traceback."""
    plain = sampler.sample(truth, 4).x
    disguised = sampler.sample(BareDenoiser(truth, disguised=True), 4).x
    expected = "the same sample whatever the class of the denoiser and of its schedule"
    require_equal(disguised, plain, "sampler.family", expected, "for an unknown class it differs")


def _check_labels(sampler: Sampler, schedule: NoiseSchedule) -> None:
    truth = points(schedule, (-0.8, 0.8), SHAPE)
    y = torch.tensor([0, 1, 1, 0, 1])
    watched = BareDenoiser(truth)
    x = sampler.sample(watched, 5, y=y, batch_size=3).x
    require(
        watched.asked <= watched.labelled,
        "sampler.labels",
        "the denoiser to be given the labels at every time that it is asked at",
        f"at {told(max(watched.asked - watched.labelled, default=0))} it was not",
    )
    wanted = truth.means[y].float().reshape(x.shape)
    room = 0.1 + 10 * schedule.ratio(schedule.t_min).item()
    off = (x - wanted).abs().max().item()
    require(
        off < room,
        "sampler.labels",
        f"samples of data that are one point a label to end there (within {room:.2g}), each at "
        f"its own label's",
        f"one is {told(off)} away",
    )


def _check_clip(sampler: Sampler, schedule: NoiseSchedule) -> None:
    truth = points(schedule, (3.0,), SHAPE)
    room = 10 * schedule.ratio(schedule.t_min).item()
    for clip in (True, False):
        x = _with(sampler, clip=clip).sample(truth, 4).x
        inside = bool((x <= 1 + room).all())
        require(
            inside == clip,
            "sampler.clip",
            f"samples of data at 3, outside [−1, 1], to {'stay inside' if clip else 'get there'} "
            f"with clip={clip}",
            f"the largest number is {told(x.max())}",
        )


def _check_law(sampler: Sampler, best: Sampler, truth: GaussianMixture, bias: float | None) -> None:
    kind = "stochastic" if _draws(sampler, truth) else "deterministic"
    allowed = BIAS[kind] if bias is None else bias
    off, error = _distance(best, truth)
    bound = allowed + ERRORS * error
    require(
        off <= bound,
        "sampler.law",
        f"a {kind} sampler on a fine grid to reach the mean and standard deviation of the data "
        f"within {told(bound)} of the latter ({allowed:g}, and the rest Monte Carlo)",
        f"it is {told(off)} off",
    )
    coarse, _ = _distance(sampler, truth)
    require(
        off <= coarse + ERRORS * error,
        "sampler.converges",
        f"no less accurate samples on a fine grid than on a coarse one ({told(coarse)} off)",
        f"they are {told(off)} off",
    )


def _draws(sampler: Sampler, truth: GaussianMixture) -> bool:
    """Whether it draws noise on the way."""
    start = torch.zeros(2, *SHAPE, dtype=sampler.dtype)
    one, two = (
        [*sampler.states(truth, start, Stream("kit", k, indices=range(2)))][-1] for k in (0, 1)
    )
    return not torch.equal(one, two)


def _distance(sampler: Sampler, truth: GaussianMixture) -> tuple[float, float]:
    """How far mean and standard deviation are off, in units of the latter, and the larger one's
    standard error.

    All dimensions have one law, so each sample gives their means.
    """
    x = sampler.sample(truth, N, batch_size=N).x.double().flatten(1)
    mean, variance = (m.mean().item() for m in (truth.moments.mean, truth.moments.variance))
    std = variance**0.5
    first = (x - mean).mean(1) / std
    second = ((x - mean) ** 2).mean(1) / variance
    errors = [first.std() / N**0.5, second.std() / 2 / N**0.5]
    off = [first.mean().abs(), (second.mean().sqrt() - 1).abs()]
    return float(max(off)), float(max(errors))
