"""Every component of betasigma keeps the contracts that outside code is asked to keep."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from launching import quick

from betasigma import samplers
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.evaluation import metrics
from betasigma.evaluation.features import FeatureExtractor
from betasigma.likelihood import ContinuousBound, DiscreteBound, FlowLikelihood
from betasigma.modules import DDPM, NCSN, Oracle
from betasigma.networks.energy import energy_mlp
from betasigma.networks.mlp import MLP
from betasigma.networks.ncsnpp import NCSNpp
from betasigma.networks.refinenet import RefineNet
from betasigma.networks.unet import UNet
from betasigma.objectives import (
    Denoising,
    ExplicitScoreMatching,
    Hybrid,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)
from betasigma.options.evaluation import METRICS as NAMED_METRICS
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import cosine, geometric, linear, sigmoid, sub_vp_sde, vp_sde
from betasigma.testing import (
    check_dataset,
    check_likelihood,
    check_metric,
    check_module,
    check_network,
    check_objective,
    check_preconditioning,
    check_sampler,
    check_schedule,
)

CONF = Path(__file__).resolve().parents[2] / "conf"


def unet(**options: Any) -> Callable[[], UNet]:
    small = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    return lambda: UNet(**{"in_channels": 1, "image_size": 8, **small, **options})


def ncsnpp(**options: Any) -> Callable[[], NCSNpp]:
    small = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    return lambda: NCSNpp(**{"in_channels": 1, "image_size": 8, **small, **options})


NETWORKS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "unet": (unet(dropout=0.1), (1, 8, 8), {}),
    "unet, classes": (unet(in_channels=3, num_classes=3), (3, 8, 8), {"num_classes": 3}),
    "unet, fourier, recomputed": (unet(embedding="fourier", checkpoint=True), (1, 8, 8), {}),
    "unet, ADM's": (
        unet(scale_shift=True, resampling="residual", frequency_shift=0.0, embedding_channels=16),
        (1, 8, 8),
        {},
    ),
    "unet, padded at both sides": (unet(padding="both", group_width=2), (1, 8, 8), {}),
    "unet, variance": (unet(out_channels=2), (1, 8, 8), {"learns_variance": True}),
    "unet, heads, unconditional": (
        unet(head_channels=4, conditional=False),
        (1, 8, 8),
        {"conditional": False},
    ),
    "refinenet": (lambda: RefineNet(3, 8, channels=8, value_range=(-1.0, 1.0)), (3, 8, 8), {}),
    "refinenet, v2": (
        lambda: RefineNet(1, 8, channels=8, pooling="max", conditional=False),
        (1, 8, 8),
        {"conditional": False},
    ),
    "ddpmpp": (ncsnpp(num_classes=2), (1, 8, 8), {"num_classes": 2}),
    "ncsnpp": (
        ncsnpp(embedding="fourier", resample_filter="fir", progressive_input="residual"),
        (1, 8, 8),
        {},
    ),
    "ncsnpp, progressive, recomputed": (
        ncsnpp(progressive_input="skip", progressive_output="skip", checkpoint=True),
        (1, 8, 8),
        {},
    ),
    "ncsnpp, variance, unconditional": (
        ncsnpp(out_channels=2, conditional=False),
        (1, 8, 8),
        {"learns_variance": True, "conditional": False},
    ),
    "mlp": (lambda: MLP(2, width=16), (2,), {}),
    "mlp, classes, variance": (
        lambda: MLP(2, 4, width=16, num_classes=1, embedding="fourier"),
        (2,),
        {"num_classes": 1, "learns_variance": True},
    ),
    "energy": (lambda: energy_mlp(2, width=16, num_classes=3), (2,), {"num_classes": 3}),
}
SCHEDULES = {
    "linear": linear,
    "sigmoid": sigmoid,
    "cosine": cosine,
    "geometric": geometric,
    "vp_sde": vp_sde,
    "vp_sde, coarse": lambda: vp_sde(steps=8),
    "sub_vp_sde": sub_vp_sde,
    "two levels": lambda: geometric(2, 1.0, 0.1),
    "one level": lambda: geometric(1, 1.0, 0.01),
}
OBJECTIVES: dict[str, Any] = {
    "denoising": Denoising(),
    "denoising, continuous": Denoising(times="continuous", reduction="half_sum"),
    "denoising, sigma_power": Denoising(sigma_power=1.0),
    "denoising, vlb": Denoising(weighting="vlb"),
    "denoising, min_snr": Denoising(weighting="min_snr"),
    "denoising, label_dropout": Denoising(label_dropout=0.3),
    "hybrid": Hybrid(),
    "explicit": lambda truth: ExplicitScoreMatching(true_score=lambda x, t: truth(x, t).score),
    "implicit": ImplicitScoreMatching(),
    "sliced": SlicedScoreMatching(),
    "sliced_vr": SlicedScoreMatching(projections=2, variance_reduced=True),
}
SAMPLERS: dict[str, Sampler] = {
    "ancestral": Ancestral(steps=8),
    "ancestral, posterior": Ancestral("posterior", steps=8, grid="uniform_log_snr"),
    "ddim": DDIM(steps=8),
    "ddim, stochastic": DDIM(0.5, steps=8, grid="karras"),
    "langevin": AnnealedLangevin(10, 0.1, steps=8),
    "langevin, denoised": AnnealedLangevin(10, 0.1, denoise=True, steps=8, start="moments"),
    "pc, reverse_diffusion": PredictorCorrector(steps=8),
    "pc, euler_maruyama": PredictorCorrector(
        "euler_maruyama", steps=8, corrector_steps=0, grid="uniform_log_snr"
    ),
    "pc, ancestral": PredictorCorrector("ancestral", 0.1, steps=8),
    "euler": Euler(steps=8, grid="uniform_log_snr"),
    "heun": Heun(steps=6),
    "heun, churn": Heun(4.0, steps=6),
    "dpm_solver": DPMSolver(steps=8, dtype="float64"),
    "dpm_solver, sde": DPMSolver(1.0, steps=8),
    "adaptive_ode": AdaptiveODE(),
}
# what a bound of fixed variances leaves of the likelihood of a narrow Gaussian falls with its steps
STEPS_200 = [linear(5e-4, 0.1, 200), geometric(200, 20.0, 0.02)]
LIKELIHOODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "flow": (FlowLikelihood(trace="exact", tolerance=1e-4), {}),
    "flow, hutchinson": (FlowLikelihood(), {}),
    "continuous_bound": (ContinuousBound(draws=16), {}),
    "discrete_bound": (DiscreteBound(), {"schedules": STEPS_200, "gap": 0.2}),
    "discrete_bound, posterior": (
        DiscreteBound(variance="posterior", decoder_std="fitted"),
        {"schedules": STEPS_200, "gap": 1.1},
    ),
}


@pytest.mark.parametrize(
    "name", quick(NETWORKS, "unet", "unet, classes", "refinenet", "ncsnpp", "mlp", "energy")
)
def test_networks(name: str) -> None:
    build, sample_shape, options = NETWORKS[name]
    check_network(build, sample_shape, **options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    check_schedule(SCHEDULES[name])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "score", "raw_score", "x0", "v", "edm"])
def test_preconditionings(name: str, prediction: Any) -> None:
    schedule = SCHEDULES[name]()
    for conditioning, scaling in (
        ("timestep", "none"),
        ("scaled_time", "none"),
        ("level_number", "none"),
        ("log_sigma", "unit_variance"),
        ("none", "none"),
    ):
        chosen = Preconditioning(prediction, conditioning, scaling, levels=schedule.levels)
        check_preconditioning(chosen, schedule)


@pytest.mark.parametrize("name", quick(OBJECTIVES, "denoising", "hybrid", "sliced"))
def test_objectives(name: str) -> None:
    check_objective(OBJECTIVES[name], num_classes=2 if name.endswith("label_dropout") else 0)


FINE = {
    "euler": {"steps": 400},  # its error falls with 1/steps only
    "langevin": {"steps": 60},
    "langevin, denoised": {"steps": 60},
}


@pytest.mark.parametrize("name", quick(SAMPLERS, "ancestral", "heun"))
def test_samplers(name: str) -> None:
    check_sampler(SAMPLERS[name], adaptive=name == "adaptive_ode", fine=FINE.get(name))


@pytest.mark.parametrize("name", quick(LIKELIHOODS, "continuous_bound"))
def test_likelihoods(name: str) -> None:
    likelihood, options = LIKELIHOODS[name]
    check_likelihood(likelihood, **options)


class Blocks(FeatureExtractor):
    """Mean values of a quarter of an image."""

    name, dim, classes, fingerprint = "blocks", 12, 12, "blocks-1"

    def features_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 64
        return means, means


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (metrics.FrechetDistance, {"best": 0.0}),
        (metrics.KernelDistance, {}),
        (metrics.InceptionScore, {"ordered": True}),
        (metrics.Precision, {"best": 1.0}),
        (metrics.Recall, {"best": 1.0}),
        (metrics.Density, {}),
        (metrics.Coverage, {"best": 1.0}),
    ],
)
def test_metrics(kind: Any, options: dict[str, Any]) -> None:
    check_metric(kind(Blocks()), (3, 8, 8), **options)
    check_metric(lambda: kind(Blocks()), (3, 8, 8), **options)


def test_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    train, held_out = (
        torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    )
    ratio = metrics.NeighbourRatio(lambda: train.split(16), lambda: [held_out])
    check_metric(ratio, (1, 8, 8))


def test_digits() -> None:
    check_dataset(ImageDataModule("digits", batch_size=16, flip=True, dequantize=True))


def test_mixture() -> None:
    check_dataset(ImageDataModule("mixture", batch_size=16))


def test_image_folder(tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (60, 10, 10, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for in_memory in (True, False):
        check_dataset(
            ImageDataModule(
                "image_folder",
                tmp_path,
                batch_size=8,
                image_size=8,
                flip=True,
                in_memory=in_memory,
                workers=0,
            )
        )


@pytest.mark.parametrize(("family", "num_classes"), [(DDPM, 0), (NCSN, 3)])
def test_modules(family: Any, num_classes: int) -> None:
    def build() -> Any:
        network = MLP(2, width=16, depth=1, num_classes=num_classes)
        preconditioning = Preconditioning("epsilon", "log_sigma")
        denoiser = Denoiser(network, geometric(), preconditioning, (2,), num_classes=num_classes)
        objective = Denoising(label_dropout=0.5 if num_classes else 0.0)
        return family(denoiser, objective, lambda weights: torch.optim.Adam(weights, lr=1e-3))

    check_module(build)


def targets(group: str) -> set[Any]:
    """What the configs of a group name."""
    found = set()
    for path in (CONF / group).glob("*.yaml"):
        for name in re.findall(r"^ *_target_: (betasigma\S+)", path.read_text(), re.MULTILINE):
            found.add(resolve_name(name))
    return found


@pytest.mark.parametrize(
    ("group", "checked"),
    [
        ("network", {UNet, NCSNpp, RefineNet, MLP, energy_mlp}),
        ("schedule", set(SCHEDULES.values())),
        ("objective", {*map(type, OBJECTIVES.values()), ExplicitScoreMatching}),
        ("sampler", set(map(type, SAMPLERS.values()))),
        ("likelihood", {type(likelihood) for likelihood, _ in LIKELIHOODS.values()}),
        ("data", {ImageDataModule}),
        ("model", {DDPM, NCSN, Oracle}),  # an oracle is not trained: there is no step to check
    ],
)
def test_nothing_that_a_config_names_is_left_out(group: str, checked: set[Any]) -> None:
    assert targets(group)
    assert targets(group) <= checked


def test_no_metric_is_left_out() -> None:
    checked = {"FrechetDistance", "KernelDistance", "InceptionScore"}
    checked |= {"Precision", "Recall", "Density", "Coverage", "NeighbourRatio"}
    assert {known.target.rpartition(".")[2] for known in NAMED_METRICS.values()} == checked


def test_no_sampler_is_left_out() -> None:
    public = {getattr(samplers, name) for name in samplers.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, Sampler)} - {Sampler}
    assert classes == set(map(type, SAMPLERS.values()))


def test_the_truth_is_what_the_checks_think_it_is() -> None:
    """The moments that samplers are held to are those of the mixture's own draws."""
    from betasigma.randomness import Stream
    from betasigma.testing.probes import mixture

    truth: GaussianMixture = mixture(linear(), (2,))
    x = truth.draw(Stream("x", indices=range(40_000)))
    torch.testing.assert_close(x.mean(0), truth.moments.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(x.var(0), truth.moments.variance, atol=0.005, rtol=0)
