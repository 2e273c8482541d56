"""examples/rectified_flow: a third family, without a line in src/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch, quick

import betasigma
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.networks.mlp import MLP
from betasigma.options import plugins
from betasigma.oracles import GaussianMixture
from betasigma.runs.header import read_header
from betasigma.samplers import DDIM, AdaptiveODE, DPMSolver, Euler, Heun
from betasigma.schedules import linear
from betasigma.testing import (
    check_module,
    check_objective,
    check_preconditioning,
    check_sampler,
    check_schedule,
)
from rectified_flow.noise import StraightPath, Velocity
from rectified_flow.training import FlowMatching, RectifiedFlow

PACKAGE = ROOT / "examples" / "rectified_flow"
CHOSEN = ("plugins=[rectified_flow]", "model=rectified_flow")
SMALL = (
    *("network.channels=8", "network.multipliers=[1]", "hardware.precision=32", "batch_size=16"),
    *("data.val_size=20", "training.num_samples=4", "training.log_every=2", "training.warmup=2"),
    *("evaluation.extractor=identity", "evaluation.metrics=[fd,kid]", "evaluation.n=16"),
    *("sampler.steps=4", "logger=none"),
)
ODE = {
    "ddim": DDIM(steps=8, clip=False),
    "euler": Euler(steps=8, grid="uniform_log_snr"),
    "heun": Heun(steps=6),
    "dpm_solver": DPMSolver(steps=8),
    "adaptive_ode": AdaptiveODE(),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of six steps, made where the package lies, as a user would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_allowed", {})
        patch.chdir(ROOT / "examples")
        where = tmp_path_factory.mktemp("flow") / "run"
        outcome = launch("train", *CHOSEN, *SMALL, "steps=6", f"hydra.run.dir={where}")
        assert outcome.status == 0, outcome.err
        yield where


def test_it_is_small_and_outside() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines <= 150
    inside = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert "StraightPath" not in inside
    assert "FlowMatching" not in inside


def test_the_path_is_straight() -> None:
    schedule = StraightPath(levels=50, end=0.98)
    tau = torch.arange(1, 51).double() / 50 * 0.98
    torch.testing.assert_close(schedule.alpha(schedule.times()), 1 - tau)
    torch.testing.assert_close(schedule.sigma(schedule.times()), tau)
    with pytest.raises(UserError, match=r"schedule\.end=1\.0 must be below 1"):
        StraightPath(end=1.0)


def test_the_velocity_is_eps_minus_x0() -> None:
    schedule = StraightPath()
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    for t in (0.001, 0.4, 1.0):
        alpha, sigma, _ = schedule.at(t)
        _, skip, out, _ = Velocity()(torch.tensor(t), alpha, sigma)
        x_t = alpha * x0 + sigma * eps
        torch.testing.assert_close(skip * x_t + out * (eps - x0), x0)


def test_it_passes_the_conformance_kit() -> None:
    check_schedule(StraightPath)
    check_preconditioning(Velocity(), StraightPath())
    check_objective(FlowMatching(), schedules=[StraightPath(), linear()])

    def build() -> RectifiedFlow:
        network = MLP(2, width=16, depth=1)
        denoiser = Denoiser(network, StraightPath(), Velocity(), (2,), trained_on="continuous")
        return RectifiedFlow(denoiser, FlowMatching(), torch.optim.Adam)

    check_module(build)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODE)
def test_every_ode_sampler_keeps_its_contract_on_the_straight_path(name: str) -> None:
    fine = {"steps": 400} if name == "euler" else None
    check_sampler(ODE[name], schedules=[StraightPath()], adaptive=name == "adaptive_ode", fine=fine)


def test_between_the_levels_it_is_as_straight() -> None:
    schedule = StraightPath(levels=4, end=0.8)
    t = torch.linspace(0.25, 1, 31, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(t), 0.8 * t)
    torch.testing.assert_close(schedule.t_of_log_snr(schedule.log_snr(t)), t)
    with pytest.raises(ValueError, match="outside the schedule's range"):
        schedule.t_of_log_snr(50.0)


def test_one_step_of_euler_reaches_a_single_point() -> None:
    """From anywhere on the way to one point, the velocity leads straight to it."""
    point = torch.full((1, 2), 0.3)
    oracle = GaussianMixture(torch.ones(1), point, 1e-8 * torch.eye(2)[None], StraightPath())
    x = Euler(steps=2, dtype="float64").sample(oracle, 8).x
    torch.testing.assert_close(x, point.expand(8, 2), atol=1e-3, rtol=0)


def test_it_is_trained_and_measured(run: Path) -> None:
    header = read_header(run / "checkpoints" / "last.ckpt")
    assert header["config"]["model"]["family"] == "rectified_flow"
    assert header["plugins"] == {"rectified_flow": "1.0"}
    table = {row[0]: row[1] for row in json.loads((run / "summary.json").read_text())["table"]}
    assert {"fd_identity", "kid_identity", "val/denoising_error"} <= table.keys()


@pytest.mark.parametrize("name", quick(ODE, "euler", "heun"))
def test_every_ode_sampler_draws_from_it(run: Path, here: Path, name: str) -> None:
    few = () if name == "adaptive_ode" else ("sampler.steps=3",)
    words = (f"run={run}", "n=3", "save=npz", f"sampler={name}", *few, "hydra.run.dir=drawn")
    outcome = launch("sample", *CHOSEN[:1], *words)
    assert outcome.status == 0, outcome.err
    drawn = np.load("drawn/samples.npz")
    assert drawn[drawn.files[0]].shape[0] == 3


def test_its_likelihood_is_measured(run: Path, here: Path) -> None:
    words = ("error_curve=8", "evaluation.metrics=[]", "likelihood=flow")
    more = ("likelihood.n=2", "likelihood.tolerance=1e-3", "hydra.run.dir=measured")
    outcome = launch("evaluate", *CHOSEN[:1], f"run={run}", *words, *more)
    assert outcome.status == 0, outcome.err
    assert "bits_per_dim/flow" in outcome.out


def test_a_resumed_run_equals_one_that_never_stopped(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # PYTHONPATH
    half = ("steps=3", "hydra.run.dir=half")
    assert launch("train", *CHOSEN, *SMALL, *half).status == 0
    outcome = launch("train", "plugins=[rectified_flow]", "resume=half", "steps=6")
    assert outcome.status == 0, outcome.err
    whole, resumed = (betasigma.load(path, plugins=["rectified_flow"])[0] for path in (run, "half"))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("schedule.end=1.5", "schedule.end=1.5 must be below 1"),
        (
            "objective.weighting=vlb",
            "objective.weighting=vlb does not fit the objective that was chosen",
        ),
        ("preconditioning.scale=abc", "preconditioning.scale=abc must be a valid number"),
        ("+preconditioning.scael=3", "preconditioning.scael=3 is unknown: Velocity takes scale"),
        ("schedule=strait", "did you mean schedule=straight?"),
    ],
)
def test_its_options_are_checked_as_ours(
    here: Path, monkeypatch: pytest.MonkeyPatch, override: str, sentence: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    outcome = launch("train", *CHOSEN, override)
    assert outcome.status == 1
    assert sentence in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert not (here / "outputs").exists()


def test_a_module_s_own_arguments_reach_it_and_others_are_refused(here: Path) -> None:
    (here / "own.py").write_text(
        "from rectified_flow.training import RectifiedFlow\n"
        "class Own(RectifiedFlow):\n"
        "    def __init__(self, *, weight: float = 1.0, **given):\n"
        "        super().__init__(**given)\n"
        "        print('weight', weight)\n"
    )
    words = ("plugins=[rectified_flow,own]", "model=rectified_flow", "model._target_=own.Own")
    outcome = launch("train", *words, "+model.weight=2", *SMALL, "evaluation=none", "steps=1")
    assert outcome.status == 0, outcome.err
    assert "weight 2.0" in outcome.out
    for target in ("own.Own", "rectified_flow.training.RectifiedFlow"):
        refused = launch("train", *words[:2], f"model._target_={target}", "+model.decay=5")
        assert "model.decay=5 cannot be chosen here: every model is given its decay" in refused.err
