"""The contract of an objective: a function of (seed, step, index), least at the exact denoiser.

The last is what makes it an objective of this framework: whatever it weighs and however it draws
its times, no denoiser may score better in expectation than E[x_0 | x_t]. It is tested on a mixture
of Gaussians, where that is known: the gradient of the expected loss there is zero to Monte Carlo
error along three directions, and going along any of them costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from betasigma.denoiser import Denoiser
from betasigma.networks.mlp import MLP
from betasigma.objectives import LossTerms, Objective
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule
from betasigma.testing.contract import (
    TOLERANCE,
    difference,
    generator_untouched,
    kind_of,
    of_kind,
    require,
    require_equal,
    shape,
)
from betasigma.testing.probes import SCHEDULES, BesideTheTruth, mixture, told

ROUNDS, BATCH = 48, 64
"""Batches of the Monte Carlo estimate of the slope, and their size."""
COMPARED = 16
"""Of them, those whose losses beside the minimum are compared with the one there."""
ERRORS = 5.0
"""Standard errors that an estimate may be off: once in a million by chance."""
STEP = 0.3
"""How far to go from the exact denoiser, in units of ε."""


def check_objective(
    objective: Objective | Callable[[GaussianMixture], Objective],
    *,
    schedules: Sequence[NoiseSchedule] = SCHEDULES,
    num_classes: int = 0,
    minimised_by_the_truth: bool = True,
) -> None:
    """Assert the contract of an objective, on points in the plane.

    Args:
        objective: one, or a function that makes one from the ground truth, for an objective that
            needs the true score.
        schedules: what it is tried on; by default one of each family.
        num_classes: 2 for an objective that needs labels, else 0.
        minimised_by_the_truth: False for an objective that has another minimiser on purpose.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    for schedule in schedules:
        truth = mixture(schedule, (2,), labelled=num_classes > 0)
        expected = "a betasigma.objectives.Objective, or a function that makes one of the truth"
        chosen = of_kind(objective, Objective, "objective.type", expected, truth)
        _check_terms(chosen, truth)
        _check_counter(chosen, truth)
        if minimised_by_the_truth:
            _check_minimiser(chosen, truth)


def _untrained(truth: GaussianMixture) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(2, 4, width=16, depth=1, num_classes=truth.num_classes)
        for weight in network.parameters():  # those that start at zero hide what lies behind them
            torch.nn.init.normal_(weight, std=0.1)
    return _denoiser(network, truth, Preconditioning("epsilon", "log_sigma"))


def _denoiser(
    network: torch.nn.Module, truth: GaussianMixture, preconditioning: Preconditioning
) -> Denoiser:
    classes = truth.num_classes
    return Denoiser(
        network, truth.schedule, preconditioning, (2,), num_classes=classes, trained_on="continuous"
    )


def _data(truth: GaussianMixture, indices: range) -> tuple[Tensor, Tensor | None]:
    y = torch.tensor([i % 2 for i in indices]) if truth.num_classes else None
    return truth.draw(Stream("kit data", indices=indices), y=y), y


def _check_terms(objective: Objective, truth: GaussianMixture) -> None:
    denoiser, n = _untrained(truth), 32
    x0, y = _data(truth, range(n))
    given, asked = x0.float(), list[Tensor]()

    def listen(_: Any, arguments: Any, named: Any) -> None:
        time = named["t"] if "t" in named else arguments[1]
        # of several times of each example in one call, each is heard
        asked.extend(torch.as_tensor(time).double().reshape(-1).split(n))

    denoiser.register_forward_pre_hook(listen, with_kwargs=True)
    terms = objective.loss(denoiser, given, y, Stream("train", 0, 0, indices=range(n)))
    require(
        isinstance(terms, LossTerms),
        "objective.terms",
        "the terms of the loss, a betasigma.objectives.LossTerms",
        f"it is {kind_of(terms)}",
    )
    require(
        torch.equal(given, x0.float()),
        "objective.inputs",
        "the objective to leave x0 as it is",
        "it changed x0 in place",
    )
    require(
        terms.loss.ndim == 0 and terms.loss.requires_grad and bool(terms.loss.isfinite()),
        "objective.loss",
        "a finite scalar loss with a gradient",
        f"it is {shape(terms.loss)}, value {told(terms.loss.detach().mean())}, "
        f"requires_grad={terms.loss.requires_grad}",
    )
    require(
        terms.per_sample.shape == (n,) and not terms.per_sample.requires_grad,
        "objective.per_sample",
        f"per_sample of shape ({n},), detached",
        f"it is {shape(terms.per_sample)}, requires_grad={terms.per_sample.requires_grad}",
    )
    require(
        difference(terms.per_sample.mean(), terms.loss) <= TOLERANCE,
        "objective.mean",
        "the loss to be the mean of per_sample",
        f"they are {told(terms.loss.detach())} and {told(terms.per_sample.mean())}",
    )
    t, t_min = terms.t, truth.schedule.t_min
    require(
        t.shape == (n,) and t.dtype == torch.float64 and t.device.type == "cpu",
        "objective.times",
        f"times t in float64 on the CPU, of shape ({n},)",
        f"they are {shape(t)} on {t.device}",
    )
    require(
        bool((t >= t_min * (1 - EXACT)).all() and (t <= 1 + EXACT).all()),
        "objective.times",
        f"times in [t_min={t_min:g}, 1]",
        f"they reach from {told(t.min())} to {told(t.max())}",
    )
    require(
        not asked or any(len(a) in (1, n) and bool((a - t).abs().max() < 1e-9) for a in asked),
        "objective.times",
        "t to be the times that the denoiser was asked at",
        f"the first is {told(t[0])}, and it was asked at {told(asked[0][0]) if asked else ''}",
    )
    terms.loss.backward()
    gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
    reached = any(bool(g.any()) for g in gradients)
    finite = all(bool(g.isfinite().all()) for g in gradients)
    require(
        reached and finite,
        "objective.gradient",
        "a finite gradient that reaches the network",
        "there is none" if not reached else "it is not finite",
    )


EXACT = 1e-12


def _check_counter(objective: Objective, truth: GaussianMixture) -> None:
    denoiser, n = _untrained(truth), 24
    x0, y = _data(truth, range(n))

    def values(rows: list[int], step: int = 0, y: Tensor | None = y) -> tuple[Tensor, Tensor]:
        chosen = None if y is None else y[rows]
        rng = Stream("train", 0, step, indices=rows)
        terms = objective.loss(denoiser, x0[rows].float(), chosen, rng)
        return terms.per_sample, terms.t

    whole, t = values(list(range(n)))
    why = ", which dropout draws from"
    with generator_untouched("objective.seeded", why, "the objective"):
        again, _ = values(list(range(n)))
    expected = "the same loss from the same rng: every number drawn from it and none from elsewhere"
    require_equal(again, whole, "objective.seeded", expected, "that of a second call differs", 0)
    rows = [17, 3, *range(18, 24), 5]
    some, t_some = values(rows)
    require(
        torch.equal(t_some, t[rows]) and difference(some, whole[rows]) <= TOLERANCE,
        "objective.micro_batch",
        "the loss of an example to be the same in any micro-batch",
        f"in another it differs by {difference(some, whole[rows]):.2g} of its size, its time by "
        f"{(t_some - t[rows]).abs().max():.2g}",
    )
    if y is not None:
        others, _ = values(list(range(n)), y=1 - y)
        require(
            not torch.equal(others, whole),
            "objective.labels",
            "the loss to depend on the labels",
            "with every label another it is the same",
        )
    other, _ = values(list(range(n)), step=1)
    require(
        not torch.equal(other, whole),
        "objective.step",
        "other times and noise at another step",
        "the losses are the same",
    )


def _check_minimiser(objective: Objective, truth: GaussianMixture) -> None:
    network = BesideTheTruth(truth)
    denoiser = _denoiser(network, truth, Preconditioning("x0", "log_sigma"))
    gradients, costs = [], []
    for k in range(ROUNDS):
        x0, y = _data(truth, range(k * BATCH, (k + 1) * BATCH))

        def loss(weights: Tensor, x0: Tensor = x0, y: Tensor | None = y, step: int = k) -> Tensor:
            with torch.no_grad():
                network.weights.copy_(weights)
            rng = Stream("train", 1, step, indices=range(BATCH))
            return objective.loss(denoiser, x0, y, rng).loss

        here = loss(torch.zeros(3))
        (gradient,) = torch.autograd.grad(here, network.weights)
        gradients.append(gradient)
        if k >= COMPARED:
            continue
        along = STEP * torch.eye(3, dtype=torch.float64)
        both_ways = [(loss(way) + loss(-way)).detach() / 2 for way in along]
        costs.append(torch.stack(both_ways) - here.detach())
    slope, error = _estimate(gradients)
    worst = (slope.abs() / error).argmax()
    require(
        bool((slope.abs() <= ERRORS * error).all()),
        "objective.stationary",
        "no slope of the mean loss at the exact denoiser E[x_0 | x_t]",
        f"along {DIRECTIONS[int(worst)]} it is {told(slope[worst])} ± {told(error[worst])}",
    )
    cost, error = _estimate(costs)
    worst = cost.argmin()
    require(
        bool((cost > 0).all()),
        "objective.minimum",
        f"the mean loss to rise {STEP} in ε away from the exact denoiser",
        f"to both sides along {DIRECTIONS[int(worst)]} it changes by {told(cost[worst])} ± "
        f"{told(error[worst])}",
    )


DIRECTIONS = ("a constant", "ε̂ itself", "tanh of x_t")


def _estimate(draws: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and its standard error."""
    values = torch.stack(draws)
    return values.mean(0), values.std(0) / len(draws) ** 0.5
