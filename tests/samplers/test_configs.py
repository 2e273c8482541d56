"""Every file of conf/sampler makes its sampler, and the schema refuses what the class refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from betasigma.commands.assemble import make_sampler
from betasigma.errors import UserError
from betasigma.options.base import parse_component
from betasigma.samplers import Sampler

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))


def composed(name: str, *changes: str) -> dict:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+sampler={name}", *changes])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_its_sampler_and_draws(make_model, name: str) -> None:
    config = composed(name)
    parse_component("sampler", config["sampler"])
    sampler = make_sampler(config["sampler"])
    assert isinstance(sampler, Sampler)
    assert name.startswith(sampler.name)
    from betasigma.schedules import geometric, linear

    for schedule in (geometric(), linear(steps=50)):
        sampler.steps = 3
        assert sampler.sample(make_model(schedule), 2).x.isfinite().all()


def test_there_is_a_file_for_every_sampler() -> None:
    import betasigma.samplers as package

    targets = {composed(name)["sampler"]["_target_"].rpartition(".")[2] for name in NAMES}
    kinds = {"CountingDenoiser", "Noise", "Sampler", "Samples"}
    assert targets == {name for name in package.__all__ if name[0].isupper()} - kinds


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predictor_corrector", "sampler.snr=0.0", r"sampler\.snr=0\.0 must be above 0"),
        ("predictor_corrector", "sampler.corrector_steps=-1", r"sampler\.corrector_steps=-1"),
        ("predictor_corrector", "sampler.predictor=heun", r"sampler\.predictor=heun must be"),
        ("euler", "sampler.steps=0", r"sampler\.steps=0 must be at least 1"),
        ("euler", "+sampler.corrector_steps=1", "corrector_steps=1 is unknown: Euler takes"),
        ("dpm_solver", "+sampler.snr=0.1", "snr=0.1 is unknown: DPMSolver takes"),
        ("dpm_solver", "sampler.eta=2.0", r"sampler\.eta=2\.0"),
        ("heun", "sampler.s_churn=-1.0", r"sampler\.s_churn=-1"),
        ("heun", "sampler.rho=0.0", r"sampler\.rho=0"),
        ("heun", "sampler.grid=even", r"sampler\.grid=even must be"),
        ("adaptive_ode", "sampler.rtol=0.0", r"sampler\.rtol=0"),
        ("adaptive_ode", "+sampler.steps=10", "steps=10 is unknown: AdaptiveODE takes"),
    ],
)
def test_bad_values_are_one_sentence(name: str, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        parse_component("sampler", composed(name, change)["sampler"])
    assert "\n" not in str(refused.value)


def test_churn_between_crossed_bounds() -> None:
    config = composed("heun", "sampler.s_min=2.0", "sampler.s_max=1.0")
    with pytest.raises(UserError, match=r"sampler\.s_min=2 must be at most sampler\.s_max=1"):
        parse_component("sampler", config["sampler"])


def test_a_config_from_before_rho_still_fits() -> None:
    config = composed("ddim")
    del config["sampler"]["rho"]
    parse_component("sampler", config["sampler"])
