"""diffusers computes and draws the same from the folder, whatever our U-Net was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from launching import quick
from safetensors.torch import save_file
from torch import nn

from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.exports.diffusers_folder import WEIGHTS_FILE, pipeline_folder
from betasigma.networks.unet import UNet
from betasigma.options.base import parse_component
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import Ancestral
from betasigma.schedules import NoiseSchedule, cosine, geometric, linear, sigmoid

CLOSE = 1e-4
STEPS = 30


class Written:
    """Noise written down beforehand."""

    def __init__(self, draws: torch.Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, shape, dtype=None) -> torch.Tensor:
        return next(self.draws)


def unet(channels: int = 1, size: int = 8, **options: Any) -> UNet:
    torch.manual_seed(0)
    settings = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    grouped = {"norm_groups": 4, "group_width": 1}
    network = UNet(channels, size, **{**settings, **grouped, **options})
    for parameter in network.parameters():  # the last layers of blocks are zeros at the start
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def model(
    network: UNet, schedule: NoiseSchedule, told: Preconditioning, value_range=(-1.0, 1.0)
) -> Denoiser:
    shape = (network.enter.in_channels, 8, 8)
    made = Denoiser(network, schedule, told, shape, value_range, network.num_classes)
    return made.eval().requires_grad_(False)


def written(denoiser: Denoiser, folder: Path, **sampler: Any) -> Path:
    node = {"_target_": "betasigma.samplers.Ancestral", **sampler}
    found = pipeline_folder(denoiser, parse_component("sampler", node))
    for name, content in found.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    save_file(found.weights, folder / "unet" / WEIGHTS_FILE)
    return folder


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three levels": {"multipliers": (1, 2, 2), "blocks": 2, "attention": (4, 2)},
    "no attention": {"attention": ()},
    "heads": {"attention": (8, 4), "head_channels": 8},
    "labels": {"num_classes": 3},
    "untold": {"conditional": False},
    "adm": {"scale_shift": True, "resampling": "residual", "frequency_shift": 0.0},
    "both sides": {"padding": "both", "norm_eps": 1e-5},
}


@pytest.mark.parametrize("name", quick(NETWORKS, "plain", "labels", "heads"))
def test_a_ddpm_draws_the_same(tmp_path: Path, name: str) -> None:
    schedule = cosine(STEPS) if name == "labels" else linear(steps=STEPS)
    conditioning = Preconditioning(levels=STEPS)
    denoiser = model(unet(**NETWORKS[name]), schedule, conditioning)
    check(denoiser, written(denoiser, tmp_path), Ancestral())


@pytest.mark.parametrize("schedule", [linear, cosine, sigmoid])
def test_a_schedule_that_diffusers_names_is_named(
    tmp_path: Path, schedule: Callable[..., NoiseSchedule]
) -> None:
    denoiser = model(unet(), schedule(steps=STEPS), Preconditioning(levels=STEPS))
    scheduler = DDPMScheduler.from_pretrained(written(denoiser, tmp_path), subfolder="scheduler")
    assert scheduler.config.trained_betas is None
    expected = denoiser.schedule.alpha(denoiser.schedule.times()) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, expected.float(), rtol=1e-5, atol=1e-9)


PAIRED = [("epsilon", "beta"), ("x0", "posterior"), ("v", "learned")]
OTHERS = set(product(["epsilon", "x0", "v"], ["beta", "posterior", "learned"])) - set(PAIRED)


@pytest.mark.parametrize(
    ("prediction", "variance"),
    [*PAIRED, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in sorted(OTHERS))],
)
def test_predictions_and_variances(tmp_path: Path, prediction: str, variance: str) -> None:
    network = unet(out_channels=2 if variance == "learned" else 1)
    denoiser = model(network, linear(steps=STEPS), Preconditioning(prediction, levels=STEPS))
    folder = written(denoiser, tmp_path, variance=variance, clip=False)
    check(denoiser, folder, Ancestral(variance, clip=False))


def test_a_learned_variance_that_the_sampler_does_not_take_is_left_out(tmp_path: Path) -> None:
    """diffusers would take the half of the output that is the variance for more channels."""
    denoiser = model(unet(out_channels=2), linear(steps=STEPS), Preconditioning(levels=STEPS))
    check(denoiser, written(denoiser, tmp_path, variance="posterior"), Ancestral("posterior"))


def test_a_sampler_of_few_steps_keeps_them(tmp_path: Path) -> None:
    """Variance, clipping and number of steps are the sampler's that the run was made with."""
    denoiser = model(unet(), linear(steps=STEPS), Preconditioning(levels=STEPS))
    few = {"variance": "posterior", "steps": 10}
    folder = written(denoiser, tmp_path, **few)
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert scheduler["variance_type"] == "fixed_small"
    steps = {}
    for more in ({}, {"steps": None}, {"grid": "karras"}, {"steps": 2 * STEPS}):
        node = {"_target_": "betasigma.samplers.Ancestral", **few, **more}
        steps[str(more)] = pipeline_folder(denoiser, parse_component("sampler", node)).steps
    assert list(steps.values()) == [10, STEPS, STEPS, STEPS]
    check(denoiser, folder, Ancestral("posterior", steps=10), 10)


def check(denoiser: Denoiser, folder: Path, sampler: Ancestral, steps: int = STEPS) -> None:
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randn(2, 1, 8, 8, generator=generator) for _ in range(steps)])
    *_, ours = sampler.states(denoiser, draws[0], Written(draws[1:]))
    seeded = torch.Generator().manual_seed(0)
    drawn = pipeline(2, seeded, num_inference_steps=steps, output_type="pt").images
    inside = (ours / 2 + 0.5).clamp(0, 1)
    assert inside.std() > 0.02
    assert (drawn - inside).abs().max() < CLOSE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding": "fourier"},
        {"embedding": "radians"},
        {"conditional": False},
        {"num_classes": 3},
    ],
    ids=["positional", "fourier", "radians", "untold", "labels"],
)
def test_an_ncsn_has_the_same_score(tmp_path: Path, options: dict[str, Any]) -> None:
    schedule = geometric(12, 5.0, 0.01)
    told = "log_sigma" if options.get("conditional", True) else "none"
    conditioning = Preconditioning("score", told, levels=12)
    denoiser = model(unet(3, **options), schedule, conditioning, (0.0, 1.0))
    pipeline = DiffusionPipeline.from_pretrained(written(denoiser, tmp_path))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for level in (1, 5, 12):
        sigma = schedule.sigma(level / 12).float()
        ours = denoiser(x * sigma, level / 12).score
        theirs = pipeline.unet(x * sigma, sigma.expand(2)).sample
        assert (ours - theirs).abs().max() < CLOSE * ours.abs().max()
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(1, num_inference_steps=12, output_type="np").images.shape == (1, 8, 8, 3)
    torch.testing.assert_close(
        pipeline.scheduler.discrete_sigmas.double(),
        schedule.sigma(schedule.times()),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize(
    ("options", "schedule", "told", "sentence"),
    [
        ({"group_width": 4, "norm_groups": 32}, linear(), {}, "groups, and UNet2DModel's one"),
        ({"heads": 2, "attention": (8, 4)}, linear(), {}, "network.head_channels"),
        ({"embedding": "fourier"}, linear(), {}, "embedding=fourier or radians must be positional"),
        ({"embedding_channels": 32}, linear(), {}, "embedding_channels must be network.channels"),
        ({"num_classes": 3, "null_class": False}, linear(), {}, "null_class=false"),
        ({}, linear(), {"prediction": "edm"}, "prediction=edm must be one of epsilon, x0, v"),
        ({}, linear(), {"conditioning": "log_sigma"}, "conditioning=log_sigma must be timestep"),
        ({}, linear(), {"input_scaling": "unit_variance"}, "input_scaling=unit_variance must be"),
        ({}, geometric(), {"prediction": "raw_score"}, "prediction=raw_score must be score"),
        ({}, geometric(), {"prediction": "score"}, "conditioning=timestep must be log_sigma"),
        (
            {},
            geometric(),
            {"prediction": "score", "conditioning": "log_sigma"},
            r"value_range=\[-1\.0, 1\.0\] must be \[0, 1\]",
        ),
    ],
)
def test_what_diffusers_has_not_is_refused(tmp_path, options, schedule, told, sentence) -> None:
    denoiser = model(unet(**options), schedule, Preconditioning(**told, levels=schedule.levels))
    with pytest.raises(UserError, match=f"to=diffusers does not fit this run: .*{sentence}"):
        written(denoiser, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("channels", "sides"), [(1, (8, 8)), (3, (8, 16))])
def test_an_ncsn_is_of_square_pictures_in_three_channels(tmp_path, channels, sides) -> None:
    told = Preconditioning("score", "log_sigma", levels=12)
    denoiser = model(unet(channels, sides), geometric(12), told, (0.0, 1.0))
    denoiser.sample_shape = (channels, *sides)
    what = "×".join(map(str, denoiser.sample_shape))
    with pytest.raises(UserError, match=f"draws squares in 3 channels, not {what}"):
        written(denoiser, tmp_path)
