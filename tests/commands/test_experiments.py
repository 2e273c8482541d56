"""Every experiment, every point of the bridge, and every model with every schedule and sampler:
composed as shipped, checked, built, trained for one step and sampled from, with a narrow network
and random images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from launching import ROOT, quick
from omegaconf import OmegaConf
from torch.optim import Optimizer

from betasigma.commands.assemble import (
    make_data,
    make_denoiser,
    make_module,
    make_sampler,
    make_schedule,
)
from betasigma.commands.auto import resolve_auto
from betasigma.commands.checks import check_run
from betasigma.data import catalog, facts
from betasigma.denoiser import Denoiser
from betasigma.devices import precision_of
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.launch.app import register_resolvers

CONF = ROOT / "conf"
NARROW = ("network.channels=8", "batch_size=2")
SHORT = {"steps": 2, "inner_steps": 1, "rtol": 0.1, "atol": 0.1}
"""Values that make any sampler quick."""


def files(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [name for name in names if name != "base"]  # which other files are made from


@pytest.fixture(scope="module", autouse=True)
def _data_sets_are_there() -> Iterator[None]:
    """All that is not checked here is whether the files of the data set exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "check", lambda *_: None)
        find = facts.find_files
        patch.setattr(facts, "find_files", lambda n: find(n) if n["name"] == "array" else None)
        yield


@cache
def config(*overrides: str) -> dict[str, Any]:
    """The config of a command line, complete and checked."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", list(overrides))
    content = check_run(composed).content
    assert not OmegaConf.missing_keys(composed)
    return content


def train_a_step(content: dict[str, Any]) -> tuple[Denoiser, Optimizer]:
    """One optimizer step on random images; returns the trained denoiser and the optimizer."""
    data = make_data(content)
    content = resolve_auto(content, data, Display(quiet=True)).config
    denoiser = make_denoiser(
        content, data.sample_shape, data.value_range, precision_of(content["hardware"])
    )
    module = make_module(content, denoiser)
    size = content["batch_size"]
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((size, *data.sample_shape), generator=generator)
    if data.has_pixels:
        image = (256 * image).to(torch.uint8)
    batch = {"image": image, "index": np.arange(size), "step": 0, "augment": True}
    if content["network"]["num_classes"]:
        batch["label"] = torch.arange(size) % content["network"]["num_classes"]
    x = data.prepare_batch(batch)["x"]
    assert x.min() >= data.value_range[0]
    assert x.max() <= data.value_range[1]

    before = [p.detach().clone() for p in denoiser.parameters()]
    loss = module.training_step({**batch, "x": x}, 0)
    loss.backward()
    made = module.configure_optimizers()
    made["optimizer"].step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True))
    assert all(bool(p.isfinite().all()) for p in denoiser.parameters())
    return denoiser.eval(), made["optimizer"]


def draw(denoiser: Denoiser, node: dict[str, Any]) -> None:
    """Two samples in a few steps."""
    short = {key: value for key, value in SHORT.items() if key in node}
    samples = make_sampler({**node, **short}).sample(denoiser, 2)
    assert samples.x.shape == (2, *denoiser.sample_shape)
    assert bool(samples.x.isfinite().all())
    assert samples.nfe >= 1


def images_of(data: str, folder: Path) -> tuple[str, ...]:
    """Where a data set is that needs to be somewhere."""
    if data != "array":
        return ()
    np.save(folder / "images.npy", np.zeros((4, 32, 32, 3), np.uint8))
    return (f"data.root={folder}/images.npy",)


def sampler_of(name: str) -> tuple[str, ...]:
    """A sampler that fits ten levels too."""
    return (f"sampler={name}", *(["sampler.steps=5"] if name == "ddim50" else []))


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("experiment", "bridge") for name in files(group)],
)
def test_every_experiment_and_every_point_of_the_bridge(group: str, name: str) -> None:
    data = config(f"{group}='{name}'")["data"]["name"]
    width = "width" if data == "mixture" else "channels"
    content = config(f"{group}='{name}'", f"network.{width}=8", "batch_size=2")
    draw(train_a_step(content)[0], content["sampler"])


@pytest.mark.parametrize("name", files("optimizer"))
def test_every_optimizer_is_fused(name: str) -> None:
    content = config(f"optimizer={name}", "network.channels=8", "batch_size=2", "optimizer.lr=0.01")
    optimizer = train_a_step(content)[1]
    assert type(optimizer).__name__.lower() == name.removesuffix("_small")
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["lr"] == 0.01


@pytest.mark.parametrize(
    "sampler", quick(["ddim", "heun", "annealed_langevin"], "annealed_langevin")
)
@pytest.mark.parametrize("name", files("experiment"))
def test_every_experiment_takes_another_sampler(name: str, sampler: str) -> None:
    node = config(f"experiment={name}", f"sampler={sampler}")["sampler"]
    assert node == config(f"sampler={sampler}")["sampler"]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif prefix + name != "defaults":
            yield prefix + name, value


@pytest.mark.parametrize("group", ["experiment", "model", "data", "bridge"])
def test_what_a_file_says_holds(group: str, tmp_path: Path) -> None:
    """Nothing that is composed after it takes it back."""
    for name in files(group):
        content = OmegaConf.create(config(f"{group}='{name}'", *images_of(name, tmp_path)))
        for key, value in leaves(yaml.safe_load((CONF / group / f"{name}.yaml").read_text())):
            if "${" not in str(value):
                assert OmegaConf.select(content, key) == value, f"{group}={name}: {key}"


PUBLISHED = {
    "ddpm_cifar10": {
        "steps": 800_000,
        "batch_size": 128,
        "optimizer.lr": 2e-4,
        "training.warmup": 5000,
        "training.clip": 1.0,
        "ema.decay": 0.9999,
        "network.dropout": 0.1,
        "beta.steps": 1000,
        "sampler._target_": "betasigma.samplers.Ancestral",
        "sampler.variance": "beta",
        "data.flip": True,
    },
    "ncsn_cifar10": {
        "steps": 200_000,
        "batch_size": 128,
        "optimizer.lr": 1e-3,
        "ema.decay": 0.0,
        "sigma.levels": 10,
        "sigma.max": 1.0,
        "sigma.min": 0.01,
        "model.value_range": [0.0, 1.0],
        "sampler.inner_steps": 100,
        "sampler.step": 2e-5 / 0.01**2,
        "sampler.denoise": False,
        "sampler.start": "uniform",
        "preconditioning.prediction": "raw_score",
        "preconditioning.conditioning": "level_number",
        "network._target_": "betasigma.networks.refinenet.RefineNet",
        "network.pooling": "average",
        "network.conditional": True,
        "data.dequantize": True,
    },
    "ncsnv2_cifar10": {
        "steps": 300_000,
        "batch_size": 128,
        "optimizer.lr": 1e-4,
        "ema.decay": 0.999,
        "sigma.levels": 232,
        "sigma.max": 50.0,
        "sampler.inner_steps": 5,
        "sampler.step": 6.2e-6 / 0.01**2,
        "sampler.denoise": True,
        "network._target_": "betasigma.networks.refinenet.RefineNet",
        "network.pooling": "max",
        "network.conditional": False,
        "data.dequantize": False,
    },
    "ncsnv2_celeba64": {
        "steps": 210_000,
        "sigma.levels": 500,
        "sigma.max": 90.0,
        "sampler.inner_steps": 5,
        "sampler.step": 3.3e-6 / 0.01**2,
        "ema.decay": 0.999,
        "data.image_size": 64,
    },
    "ncsnpp_cifar10": {
        "steps": 1_300_000,
        "optimizer.lr": 2e-4,
        "training.warmup": 5000,
        "training.clip": 1.0,
        "ema.decay": 0.999,
        "sigma.levels": 1000,
        "sigma.max": 50.0,
        "sigma.min": 0.01,
        "objective.times": "continuous",
        "preconditioning.conditioning": "log_sigma",
        "preconditioning.prediction": "score",
        "sampler.snr": 0.16,
        "sampler.corrector_steps": 1,
    },
    "ddpmpp_cifar10": {
        "steps": 1_300_000,
        "optimizer.lr": 2e-4,
        "ema.decay": 0.9999,
        "beta.start": 0.1,
        "beta.end": 20.0,
        "objective.times": "continuous",
        "preconditioning.conditioning": "scaled_time",
        "sampler.predictor": "euler_maruyama",
        "sampler.corrector_steps": 0,
    },
}
"""The papers' numbers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_numbers(name: str) -> None:
    content = OmegaConf.create(config(f"experiment={name}"))
    for key, value in PUBLISHED[name].items():
        found = OmegaConf.select(content, key)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), key


def test_ddpm_s_beta_rises_from_1e_4_to_0_02() -> None:
    alpha_bar = (
        make_schedule(config("experiment=ddpm_cifar10")["schedule"])
        .alpha(torch.tensor([1, 999, 1000], dtype=torch.float64) / 1000)
        .square()
    )
    assert float(1 - alpha_bar[0]) == pytest.approx(1e-4)
    assert float(1 - alpha_bar[2] / alpha_bar[1]) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ddpm_cifar10", 35.746307),
        ("ddpmpp_cifar10", 61.8),
        ("ncsnpp_cifar10", 62.8),
        ("ncsn_cifar10", 30.1),
        ("ncsnv2_cifar10", 29.7),
    ],
)
def test_networks_have_the_published_sizes(name: str, millions: float) -> None:
    content = config(f"experiment={name}")
    with torch.device("meta"):
        network = make_denoiser(content, (3, 32, 32), (0.0, 1.0)).network
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions != 35.746307 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in files("model") if name != "oracle"])
def test_every_model_takes_every_schedule_and_sampler(model: str) -> None:
    tiny = (*NARROW, "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")
    own = [config(f"model={model}", *sampler_of(name), *tiny) for name in files("sampler")]
    for schedule in files("schedule"):
        denoiser = train_a_step(config(f"model={model}", f"schedule={schedule}", *tiny))[0]
        for content in own:
            draw(denoiser, content["sampler"])


@pytest.mark.parametrize("prediction", ["epsilon", "score", "raw_score", "x0", "v", "edm"])
@pytest.mark.parametrize("model", ["ddpm", "ncsn"])
def test_every_prediction_trains_on_every_time(model: str, prediction: str) -> None:
    for times in ("levels", "continuous"):
        content = config(
            *NARROW,
            "network.blocks=1",
            f"model={model}",
            f"preconditioning.prediction={prediction}",
            f"objective.times={times}",
        )
        draw(train_a_step(content)[0], content["sampler"])


@pytest.mark.parametrize("weighting", ["vlb", "min_snr"])
def test_every_weighting_trains(weighting: str) -> None:
    for model in ("ddpm", "ncsn"):
        train_a_step(config(*NARROW, f"model={model}", f"objective.weighting={weighting}"))


@pytest.mark.parametrize("objective", sorted({*files("objective")} - {"hybrid"}))
@pytest.mark.parametrize("network", quick(["mlp", "mlp_energy"], "mlp"))
def test_every_objective_trains_both_families(objective: str, network: str) -> None:
    chosen = (f"objective={objective}", "data=mixture", f"network={network}", "network.width=8")
    levels = 2 if objective == "likelihood" else 1  # its weight is a slope
    for model in (("model=ddpm",), ("model=ncsn", f"sigma.levels={levels}", "sigma.max=0.05")):
        content = config(*chosen, *model, "batch_size=2")
        draw(train_a_step(content)[0], content["sampler"])


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("ddpm", "digits"),
        pytest.param("ncsn", "mixture", marks=pytest.mark.slow),
        pytest.param("ddpm", "mixture", marks=pytest.mark.slow),
        pytest.param("ncsn", "digits", marks=pytest.mark.slow),
    ],
)
def test_a_model_with_a_learned_variance_takes_every_sampler(model: str, data: str) -> None:
    small = ("network.multipliers=[1]", "network.channels=8", "network.blocks=1")
    chosen = ("objective=hybrid", f"model={model}", f"data={data}", "batch_size=2")
    chosen = (*chosen, *(("network.width=8",) if data == "mixture" else small))
    learned = config(*chosen, "sampler=ancestral", "sampler.variance=learned")
    denoiser = train_a_step(learned)[0]
    draw(denoiser, learned["sampler"])
    for name in files("sampler"):
        draw(denoiser, config(*chosen, *sampler_of(name))["sampler"])


def test_a_u_net_with_attention_can_be_differentiated_twice() -> None:
    small = ("network.multipliers=[1]", "network.attention=[8]", "network.blocks=1")
    train_a_step(config("objective=sliced", *NARROW, *small))


@pytest.mark.parametrize("data", files("data"))
def test_every_data_set_has_a_network(data: str, tmp_path: Path) -> None:
    width = "width" if data == "mixture" else "channels"
    content = config(
        f"data={data}", *images_of(data, tmp_path), f"network.{width}=8", "batch_size=2"
    )
    train_a_step(content)


def test_every_hardware_logger_and_evaluation_composes() -> None:
    for group in ("hardware", "logger", "evaluation", "likelihood"):
        for name in files(group):
            with needing(name):
                config(f"{group}={name}")


def needing(name: str) -> AbstractContextManager[Any]:
    """Two of the loggers want packages that are not among our dependencies."""
    package = {"comet": "comet_ml", "mlflow": "mlflow"}.get(name)
    if package is None or find_spec(package) is not None:
        return nullcontext()
    return pytest.raises(UserError, match=f"logger={name} needs the")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 100),
        (["schedule=cosine", "beta.steps=40"], 40),
        (["schedule=geometric"], 10),
        (["beta.steps=40", "sampler.steps=60"], 60),
    ],
)
def test_ddpm_samples_on_100_of_its_levels_or_all(words: list[str], expected: int) -> None:
    assert config(*words)["sampler"]["steps"] == expected
