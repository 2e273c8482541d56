"""What may be passed on to Lightning, and what is refused with which reason."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest
import pytorch_lightning.callbacks
from pytorch_lightning import Trainer

from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.networks.mlp import MLP
from betasigma.options import lightning as options
from betasigma.options.base import parse_component
from betasigma.options.lightning import TrainerOptions
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.samplers.evaluations import COUNTING_SECONDS, evaluations
from betasigma.schedules import NoiseSchedule, geometric, linear
from betasigma.training.trainer import FEATURES, Affordable

CALLBACKS = "pytorch_lightning.callbacks"


def test_every_flag_of_the_trainer_is_passed_on_or_refused() -> None:
    flags = set(inspect.signature(Trainer).parameters)
    passed_on, refused = set(TrainerOptions.model_fields), set(options.REFUSED_FLAGS)
    assert passed_on | refused == flags
    assert not passed_on & refused


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("max_steps", "it is set by steps"),
        ("precision", "it is set by hardware.precision"),
        ("accumulate_grad_batches", "it is set by training.accumulate"),
        ("overfit_batches", "use debug=overfit_one_batch"),
        ("fast_dev_run", "use debug=ten_steps"),
    ],
)
def test_a_flag_that_breaks_a_promise_is_refused(flag: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{flag}=4 cannot be passed on: .*{reason}"):
        TrainerOptions.parse({flag: 4})


def test_an_unknown_flag_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_tme=1 is unknown.*mean trainer\.max_time\?"):
        TrainerOptions.parse({"max_tme": 1})


def test_refused_callbacks_are_lightnings_own() -> None:
    for name in options.REFUSED_CALLBACKS:
        assert hasattr(pytorch_lightning.callbacks, name)


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({"_target_": f"{CALLBACKS}.ModelCheckpoint"}, "training.checkpoint_every"),
        ({"_target_": f"{CALLBACKS}.EarlyStopping"}, r"callbacks\.mine\.monitor has no value"),
        ({"_target_": f"{CALLBACKS}.Timer", "duratoin": "1"}, r"mine\.duratoin=1 is unknown.*dura"),
        ({"_target_": "mylab.Callback"}, r"callbacks\.mine\._target_=.*plugins=\[mylab\]"),
        ({"monitor": "val/objective"}, r"callbacks\.mine\._target_ has no value"),
    ],
)
def test_callbacks_that_cannot_be_used(node: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_component("callbacks", node, "callbacks.mine")


@pytest.mark.parametrize(
    ("steps", "validate_every", "batch_size", "expected"),
    [
        (20_000, 1000, 128, 1000),  # 384,000 evaluations to train, 10,000 to validate
        (100, 1000, 128, 384),
        (100, 10, 128, 38),
        (2, 1000, 64, 16),
    ],
)
def test_a_validation_costs_a_tenth_of_the_steps_before_it(
    steps: int, validate_every: int, batch_size: int, expected: int
) -> None:
    content = {
        "steps": steps,
        "batch_size": batch_size,
        "training": {"validate_every": validate_every},
    }
    assert Affordable(content, 1).validated(1000) == expected


@pytest.mark.parametrize("schedule", [linear(), geometric(10, 3.0, 0.02)], ids=["vp", "ve"])
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (Ancestral(steps=10), 0),
        (DDIM(steps=7), 0),
        (DPMSolver(steps=8), 0),
        (PredictorCorrector(steps=6), 0),
        (Ancestral(steps=300), 0),
        (Heun(steps=10), 0),
        (Heun(steps=200), 1),  # whose last step, one of Euler's, is not counted
        (AnnealedLangevin(inner_steps=3), 1),  # where the last step does nothing
        (AdaptiveODE(), 200),  # by the slope that it meets
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_evaluations_of_a_sample_are_known_before_it_is_drawn(
    sampler: Sampler, tolerance: int, schedule: NoiseSchedule
) -> None:
    denoiser = Denoiser(MLP(2), schedule, Preconditioning("score", levels=schedule.levels), (2,))
    expected = evaluations(sampler, schedule, (2,), guidance=1)
    assert abs(expected - sampler.sample(denoiser, 2).nfe) <= tolerance
    assert expected >= 6
    assert evaluations(sampler, schedule, (2,), guidance=2.5) == 2 * expected


def test_what_a_sampler_of_one_s_own_asks_of_its_own_network_counts_by_steps() -> None:
    class Own(Sampler):
        def step(self, model: Any, x: Any, t: float, s: float, rng: Any) -> Any:
            return x - (t - s) * model.velocity(x, t)

    assert evaluations(Own(steps=9), linear(), (3, 8, 8), guidance=1) == 9


def test_steps_may_take_no_evaluation_or_many() -> None:
    class Late(Sampler):
        def step(self, model: Any, x: Any, t: float, s: float, rng: Any) -> Any:
            for _ in range(int(t > 0.5)):
                x = model(x, t).x0
            return x

    assert evaluations(Late(steps=10), linear(), (2,), guidance=1) == 5

    class Idle(Late):
        def step(self, model: Any, x: Any, t: float, s: float, rng: Any) -> Any:
            return x

    assert evaluations(Idle(steps=10), linear(), (2,), guidance=1) == 1


@pytest.mark.parametrize("sampler", [AdaptiveODE(rtol=1e-13, atol=1e-13), Heun(steps=100_000)])
def test_counting_ends_soon(sampler: Sampler) -> None:
    began = time.monotonic()
    found = evaluations(sampler, geometric(10, 3.0, 0.02), (3, 256, 256), guidance=1)
    assert time.monotonic() - began < 2 * COUNTING_SECONDS
    assert found >= (2000 if sampler.adaptive else 199_000)


@pytest.mark.parametrize(
    ("steps", "nfe", "between", "last", "measured"),
    [
        (2000, 50, 64, 64, 500),
        (2000, 1000, 19, 64, 500),  # 192,000 evaluations between two grids
        (100, 50, 64, 64, 38_400 // (50 + FEATURES)),
        (20, 50, 64, 64, 0),  # 34 would be too few to be worth it
        (1, 1000, 4, 4, 0),
    ],
)
def test_samples_cost_a_tenth_of_the_training_and_their_evaluation_no_more_than_all_of_it(
    steps: int, nfe: int, between: int, last: int, measured: int
) -> None:
    content = {
        "steps": steps,
        "batch_size": 128,
        "training": {"num_samples": None, "sample_every": 500},
        "evaluation": {"n": None},
    }
    found = Affordable(content, nfe)
    assert (found.shown, found.between, found.measured) == (last, between, measured)
    asked = Affordable({**content, "training": {"num_samples": 9, "sample_every": 500}}, nfe)
    assert asked.between == asked.shown == 9
