"""``schedule=geometric_auto``: a ladder found from the data, settled before anything is built."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from launching import ROOT, TINY, Outcome, launch
from omegaconf import OmegaConf
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits

import betasigma
from betasigma.commands.assemble import make_data
from betasigma.commands.auto import resolve_auto
from betasigma.commands.checks import check_run
from betasigma.data import catalog
from betasigma.display import Display
from betasigma.launch.app import register_resolvers
from betasigma.runs.header import read_header

AUTO = ("model=ncsn", "schedule=geometric_auto", "sampler=annealed_langevin", "sampler.steps=null")
QUICK = ("sampler.inner_steps=1", "training.num_samples=2")


def composed(*overrides: str) -> dict[str, Any]:
    """The checked config of a command line."""
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return check_run(compose("train", list(overrides))).content


def settled(*overrides: str) -> dict[str, Any]:
    content = composed(*overrides)
    return resolve_auto(content, make_data(content), Display(quiet=True)).config


@pytest.mark.parametrize(
    ("data", "sigma_max", "levels", "epsilon"),
    [("cifar10", 50, 232, 6.2e-6), ("celeba", 90, 500, 3.3e-6)],
)
def test_the_published_settings_follow(
    monkeypatch: pytest.MonkeyPatch, data: str, sigma_max: int, levels: int, epsilon: float
) -> None:
    monkeypatch.setattr(catalog, "check", lambda *_: None)
    network = f"network=unet_{64 if data == 'celeba' else 32}"
    words = ("model=ncsn_v2", "schedule=geometric_auto", f"data={data}", network)
    found = settled(*words, f"sigma.max={sigma_max}")
    assert abs(found["schedule"]["levels"] - levels) <= 1
    assert float(f"{found['sampler']['step'] * found['schedule']['min'] ** 2:.1e}") == epsilon


def largest_of_the_digits() -> float:
    """Between two training images with values in [0, 1], by scipy."""
    digits = load_digits()
    order = np.argsort(digits.target, kind="stable")
    training = np.delete(order, np.s_[1::5])
    return pdist(np.rint(digits.data[training] * (255 / 16)) / 255).max()


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run with a ladder of its own, not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("auto"))
        outcome = launch("train", *TINY, *AUTO, *QUICK)
        assert outcome.status == 0, outcome.err
        out = outcome.out.replace("run directory ", f"run directory {Path.cwd()}/")
        return Outcome(0, out, "")


def test_a_run_has_numbers_only_and_says_how_they_were_found(auto: Outcome) -> None:
    config: Any = OmegaConf.load(auto.run / "config.yaml")
    assert config.schedule.max == pytest.approx(largest_of_the_digits(), rel=1e-12)
    assert config.sigma.max == config.schedule.max
    assert config.sigma.found == ["levels", "max"]
    saved = read_header(auto.run / "checkpoints" / "last.ckpt")["config"]
    assert saved["schedule"] == dict(config.schedule)
    denoiser, sampler = betasigma.load(auto.run)
    assert denoiser.schedule.levels == config.sigma.levels == config.schedule.levels
    assert sampler.step_size == config.sampler.step  # type: ignore[attr-defined]
    for told in ("two of 1437 training examples", "C = 0.567", "Technique 4"):
        assert told in auto.out
    record = json.loads((auto.run / "ladder.json").read_text())
    assert record["largest_distance"] == config.sigma.max
    assert all(reason in auto.out for reason in record["reasons"])


def test_what_is_given_is_kept() -> None:
    found = settled(*AUTO, "sigma.levels=10", "sampler.step=0.3")
    assert found["schedule"]["levels"] == found["sigma"]["levels"] == 10
    assert found["sampler"]["step"] == 0.3
    assert found["sigma"]["found"] == ["max"]
    other = settled("model=ncsn", "sampler.step=auto")  # also on a ladder of one's own
    assert other["sigma"] == composed("model=ncsn")["sigma"]
    assert 0 < other["sampler"]["step"] < 1
    assert settled("model=ddpm") == composed("model=ddpm")


def test_the_units_are_the_model_s() -> None:
    one, two = (
        settled(*AUTO, f"model.value_range={values}")["schedule"]["max"]
        for values in ("[0.0,1.0]", "[-1.0,1.0]")
    )
    assert two == pytest.approx(2 * one, rel=1e-12)


def test_it_resumes_with_the_numbers_it_had(auto: Outcome, here: Path) -> None:
    run = here / "outputs" / auto.run.name
    shutil.copytree(auto.run, run)
    before: Any = OmegaConf.load(run / "config.yaml")
    words = [word for word in (*TINY, *AUTO, *QUICK) if not word.startswith("steps=")]
    outcome = launch("train", *words, "resume=auto", "steps=7")
    assert outcome.status == 0, outcome.err
    assert outcome.run == run
    after: Any = OmegaConf.load(run / "config.yaml")
    assert (after.sigma, after.schedule) == (before.sigma, before.schedule)
    refused = launch("train", *words, f"resume={run}", "steps=12", "sigma.overlap=0.5")
    assert "sigma.overlap=0.5 would make another run" in refused.err
    bare = launch("train", f"resume={run}", "steps=8", "sampler=annealed_langevin_v2")
    assert bare.status == 0, bare.err
    after = OmegaConf.load(run / "config.yaml")
    assert (after.sigma, after.schedule) == (before.sigma, before.schedule)
    assert after.sampler.inner_steps == 5
    assert after.sampler.step not in (0.062, before.sampler.step)


def test_a_sweep_gives_each_job_its_own_ladder(here: Path) -> None:
    words = ("training.validate_every=9", "steps=1", "sigma.overlap=0.3,0.567")
    outcome = launch("train", "-m", *TINY, "model=ncsn", "schedule=geometric_auto", *words)
    assert outcome.status == 0, outcome.err
    configs: list[Any] = [OmegaConf.load(path) for path in here.glob("outputs/*/*/config.yaml")]
    levels = {config.sigma.overlap: config.schedule.levels for config in configs}
    assert levels[0.3] < levels[0.567]


def test_a_ladder_that_the_data_do_not_allow(here: Path) -> None:
    outcome = launch("train", *TINY, "model=ncsn", "schedule=geometric_auto", "sigma.min=20")
    assert outcome.status == 1
    assert "sigma.min=20 must be below the largest distance" in outcome.err
    assert "Traceback" not in outcome.err


def test_another_sampler_for_a_trained_model_finds_its_step(auto: Outcome, here: Path) -> None:
    words = ("sampler=annealed_langevin", "sampler.step=auto", "sampler.inner_steps=1")
    outcome = launch("sample", f"run={auto.run}", "n=2", "hardware.precision=32", *words)
    assert outcome.status == 0, outcome.err
    assert "sampler.step = " in outcome.out


def test_ladder_of_the_run_is_the_rule_s(auto: Outcome) -> None:
    """C(γ) of the paper, by hand, at the ladder's own ratio."""
    config: Any = OmegaConf.load(auto.run / "config.yaml")
    ratio = (config.sigma.max / config.sigma.min) ** (1 / (config.sigma.levels - 1))
    middle = math.sqrt(2 * 64) * (ratio - 1)
    c = (math.erf((middle + 3 * ratio) / 2**0.5) - math.erf((middle - 3 * ratio) / 2**0.5)) / 2
    assert c == pytest.approx(0.567, abs=0.03)


def test_off_the_ladder_is_said_once_in_one_line(
    auto: Outcome, here: Path, recwarn: pytest.WarningsRecorder
) -> None:
    grid = ("sampler=heun", "sampler.steps=3", "batch_size=2", "hardware.precision=32")
    outcome = launch("sample", f"run={auto.run}", "n=4", *grid)
    assert outcome.status == 0, outcome.err
    (told,) = [w for w in recwarn if "between them the network" in str(w.message)]
    shown = warnings.formatwarning(told.message, told.category, told.filename, told.lineno)
    assert re.fullmatch(
        r"warning: the model was trained on \d+ .*off_levels=interpolate\)\n", shown
    )
