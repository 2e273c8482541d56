"""The bridge: seven runs from NCSN to DDPM, each of which differs from the last in one thing."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from launching import ROOT, TINY, launch, quick
from torch import Tensor, nn

from betasigma.build import make
from betasigma.commands.assemble import make_sampler
from betasigma.commands.checks import check_run
from betasigma.denoiser import Denoiser, perturb
from betasigma.launch.app import register_resolvers
from betasigma.networks.mlp import MLP
from betasigma.preconditioning import Preconditioning
from betasigma.runs.record import Record
from betasigma.schedules import NoiseSchedule

POINTS = range(7)
BUDGET = (
    *("steps=600", "evaluation.n=200", "training.num_samples=25"),
    "likelihood=continuous_bound",
)
"""What a point of the bridge takes by itself, to be given to the models it is compared with."""
BOOKKEEPING = {"name", "logger.group", "study", "study.name", "study.point", "study.label"}
FOLLOWING = {"objective.sigma_data"}
"""Follow from the same key of another group, by interpolation."""

NAMES = {"model._target_", "model.name", "model.family"}
"""Of the LightningModule: DDPM and NCSN differ in nothing but these."""

CHANGES = {
    1: {"model.value_range", "sigma.max", "sigma.min", "schedule.max", "schedule.min"},
    2: {"preconditioning.input_scaling", "preconditioning.sigma_data"},
    3: {"preconditioning.conditioning"},
    4: {
        *("sigma.levels", "sigma.max", "sigma.min", "beta.start", "beta.end", "beta.steps"),
        *(f"schedule.{key}" for key in ("_target_", "levels", "max", "min")),
        *(f"schedule.{key}" for key in ("start", "end", "steps")),
        "sampler.inner_steps",
        *("preconditioning.input_scaling", "preconditioning.sigma_data"),
        *NAMES,
    },
    5: {"preconditioning.prediction", "objective.reduction"},
    6: {
        *(f"sampler.{key}" for key in ("_target_", "clip", "variance")),
        *(f"sampler.{key}" for key in ("inner_steps", "step", "denoise")),
    },
}
"""All that each step changes."""


@cache
def content(*overrides: str) -> dict[str, Any]:
    """The complete config of a command line."""
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return check_run(compose("train", list(overrides))).content


def point(number: int) -> dict[str, Any]:
    return content(f"bridge='{number}'")


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """Keys that only one of two configs has, or that differ."""
    first, second = flat(a), flat(b)
    absent = object()
    keys = first.keys() | second.keys()
    differing = {key for key in keys if first.get(key, absent) != second.get(key, absent)}
    # what a family hands on shows in the groups that take it
    return {key for key in differing if not key.startswith("model.defaults.")} - (
        BOOKKEEPING | FOLLOWING
    )


def preconditioning(number: int, levels: int) -> Preconditioning:
    return make(point(number)["preconditioning"], "preconditioning", levels=levels)


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("number", CHANGES)
def test_a_step_changes_one_thing(number: int) -> None:
    assert differences(point(number - 1), point(number)) == CHANGES[number]


ENDS = [(0, ["model=ncsn"]), (6, ["model=ddpm", "sampler=ancestral"])]


@pytest.mark.parametrize(("number", "model"), ENDS)
def test_the_ends_are_the_two_models(number: int, model: list[str]) -> None:
    assert differences(point(number), content(*model, *BUDGET)) == set()


def test_the_steps_are_told_where_a_user_looks() -> None:
    told = launch("train", "--help").out
    for number in POINTS:
        study = point(number)["study"]
        assert study["point"] == number
        assert re.search(rf"^bridge={number} +{study['label']}: ", told, re.MULTILINE)
    assert re.search(r"^-m bridge=0,1,2,3,4,5,6 ", told, re.MULTILINE)


# ---------------------------------------------------------------- what the steps mean


class Seen(nn.Module):
    """A network that answers nothing and keeps what it was shown and told."""

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return torch.zeros_like(x)


def schedule_of(number: int) -> NoiseSchedule:
    return make(point(number)["schedule"], "schedule")


def shown(number: int, x0: Tensor, eps: Tensor, t: Tensor) -> Seen:
    """What the network of a point is shown of data ``x0`` in its own value range."""
    schedule = schedule_of(number)
    network = Seen()
    denoiser = Denoiser(
        network,
        schedule,
        preconditioning(number, schedule.levels),
        sample_shape=tuple(x0.shape[1:]),
        value_range=tuple(point(number)["model"]["value_range"]),
    )
    denoiser(perturb(schedule, x0, t, eps), t).x0  # noqa: B018 - computed when it is asked for
    return network


@pytest.fixture
def draws() -> tuple[Tensor, Tensor, Tensor]:
    """Data in [0, 1], noise, and every level of a ladder of ten."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(10, 2, generator=generator)
    return x0, torch.randn(10, 2, generator=generator), torch.arange(1, 11).double() / 10


def test_moving_the_range_moves_the_noise_with_it(draws: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, eps, t = draws
    before, after = shown(0, x0, eps, t), shown(1, 2 * x0 - 1, eps, t)
    torch.testing.assert_close(after.x, 2 * before.x - 1)


def test_scaled_input_is_that_of_a_variance_preserving_process(
    draws: tuple[Tensor, Tensor, Tensor],
) -> None:
    x0, eps, t = draws
    log_snr = schedule_of(2).log_snr(t)[:, None]
    expected = log_snr.sigmoid().sqrt() * x0 + (-log_snr).sigmoid().sqrt() * eps
    torch.testing.assert_close(shown(2, x0, eps, t).x, expected.float())


def test_the_network_is_told_log_sigma_and_then_the_level(
    draws: tuple[Tensor, Tensor, Tensor],
) -> None:
    before, after = shown(2, *draws), shown(3, *draws)
    log_sigma = torch.linspace(0.02, 2, 2).log()
    torch.testing.assert_close(before.c_noise[[0, -1]], log_sigma)
    torch.testing.assert_close(before.c_noise.diff(), before.c_noise.diff()[:1].expand(9))
    assert after.c_noise.tolist() == list(range(10))
    assert torch.equal(before.x, after.x)


def test_the_variance_preserving_schedule_leaves_nothing_to_scale() -> None:
    schedule = schedule_of(4)
    t = schedule.times()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scaled = Preconditioning(input_scaling="unit_variance", sigma_data=1.0)(t, alpha, sigma)
    torch.testing.assert_close(scaled.c_in, torch.ones_like(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("number", quick([0, 4, 6], 4))
def test_every_sample_costs_as_much(number: int) -> None:
    """1,000 network evaluations: 10 levels of 100 steps, or 1,000 of one (the other points have the
    sampler and the number of levels of one of these).
    """
    schedule = schedule_of(number)
    settings = preconditioning(number, schedule.levels)
    network = MLP(dim=2, width=4, depth=1)
    denoiser = Denoiser(network, schedule, settings, sample_shape=(2,), value_range=(-1.0, 1.0))
    assert make_sampler(point(number)["sampler"]).sample(denoiser, 1).nfe == 1000


# ---------------------------------------------------------------- runs

OWN = [word for word in TINY if not word.startswith("sampler")]


def weights(here: Path, *overrides: str) -> tuple[dict[str, Tensor], bytes]:
    """All weights, raw and averaged, of a tiny run and the picture of its samples."""
    outcome = launch(
        "train", *OWN, "likelihood=none", "steps=3", "training.num_samples=1", *overrides
    )
    assert outcome.status == 0, outcome.err
    saved = torch.load(outcome.run / "checkpoints" / "last.ckpt", weights_only=True)
    picture = outcome.run / "samples" / "step_0000003.png"
    return saved["state_dict"], picture.read_bytes()


@pytest.mark.parametrize(("number", "model"), ENDS)
def test_the_ends_are_the_two_models_bit_for_bit(here: Path, number: int, model: list[str]) -> None:
    found, samples = weights(here, f"bridge={number}", "sampler.steps=2")
    expected, their_samples = weights(here, *model, "sampler.steps=2")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert samples == their_samples


def test_of_the_loss_only_the_reduction_matters(here: Path) -> None:
    """A network for σ·score is one for ε with its last layer negated, through all of training: the
    step from 4 to 5 is the half sum's becoming a mean.
    """
    score, samples = weights(here, "bridge=4", "objective.reduction=mean", "sampler.steps=2")
    eps, their_samples = weights(here, "bridge=5", "sampler.steps=2")
    mirrored = [name for name in eps if not torch.equal(score[name], eps[name])]
    assert len(mirrored) == 4, "weight and bias of one layer, raw and averaged"
    assert all(torch.equal(score[name], -eps[name]) for name in mirrored)
    assert samples == their_samples


# ---------------------------------------------------------------- the end of a sweep


@pytest.mark.slow
def test_a_sweep_ends_with_one_table_and_one_plot(here: Path) -> None:
    outcome = launch(
        "train",
        "-m",
        *(word for word in OWN if not word.startswith(("steps", "evaluation"))),
        *("bridge=6,0", "seed=1,2", "steps=2", "training.num_samples=1", "sampler.steps=1"),
        *("evaluation.n=4", "evaluation.n_reference=20", "evaluation.metrics=[fd]"),
        *("evaluation.extractor=identity", "likelihood.n=4", "likelihood.draws=2"),
    )
    assert outcome.status == 0, outcome.err
    (directory,) = here.glob("outputs/*_sweep_*")
    with (directory / "summary.csv").open(newline="") as file:
        first, last = csv.DictReader(file)
    assert [row["run"] for row in (first, last)] == ["0 NCSN", "6 sampler, DDPM"]
    assert [(row["seeds"], row["n"], row["NFE"]) for row in (first, last)] == [
        ("2", "4", "100"),
        ("2", "4", "1"),
    ]
    runs = [run for run in directory.glob("*bridge*0*") if run.is_dir()]
    values = [Record(run / "metrics.csv").curve("val/fd_identity")[1][-1] for run in runs]
    assert float(first["fd_identity train"]) == pytest.approx(sum(values) / 2)
    terms = [float(first[f"continuous_bound {term}"]) for term in ("prior", "diffusion", "decoder")]
    assert float(first["continuous_bound total"]) == pytest.approx(sum(terms))
    assert "0 NCSN" in outcome.out
    assert (directory / "summary.png").stat().st_size > 10_000

    again = launch("compare", f"runs=[{directory}]")
    assert again.status == 0, again.err
    (compared,) = here.glob("outputs/*_compare_*")
    assert (compared / "summary.csv").read_text() == (directory / "summary.csv").read_text()
