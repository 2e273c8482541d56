"""pytorch_diffusion and score_sde's DDPM: the same function and the same noise after import."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from equality import CLOSE, images, output, randomised, relative_error
from torch import nn

from betasigma.commands.import_model import read_published
from betasigma.denoiser import Denoiser
from betasigma.options.apps import Import
from betasigma.published.score_sde import ScoreSdeDDPM

SIDE = 32
"""Of the images in the comparison; layers do not know the size of the published ones."""

STEPS = (1, 400, 1000)

HO_SHAPES = {
    "diffusion_cifar10_model": (32, (1, 2, 2, 2)),
    "ema_diffusion_lsun_church_model": (256, (1, 1, 2, 2, 4, 4)),
}
"""Images and levels of the two networks of Ho et al. 2020, by folders that have their weights."""

widths = pytest.mark.parametrize("width", [32, pytest.param(128, marks=pytest.mark.slow)])


@widths
@pytest.mark.parametrize("name", HO_SHAPES)
def test_pytorch_diffusion_is_equal(
    name: str,
    width: int,
    tmp_path: Path,
    converted: Callable[..., Denoiser],
    public_code: Callable[[str], Path],
) -> None:
    public_code("pytorch_diffusion")
    size, levels = HO_SHAPES[name]
    model = import_module("pytorch_diffusion.model").Model(
        ch=width,
        out_ch=3,
        in_channels=3,
        ch_mult=levels,
        num_res_blocks=2,
        attn_resolutions=(16,),
        resolution=size,
    )
    randomised(model)
    (tmp_path / name).mkdir()
    file = tmp_path / name / "model-790000.ckpt"
    torch.save(model.state_dict(), file)
    assert read_published(Import.parse({"from": str(file)})).model.step == 790000
    denoiser = converted(file)
    assert denoiser.sample_shape == (3, size, size)
    model.resolution = SIDE  # it refuses images of another size
    x = images(2, (3, SIDE, SIDE))
    for step in STEPS:
        with torch.no_grad():
            expected = model(x, torch.full((2,), step - 1))
        assert relative_error(output(denoiser, x, step), expected) < CLOSE
    betas = import_module("pytorch_diffusion.diffusion").get_beta_schedule(
        "linear", beta_start=1e-4, beta_end=0.02, num_diffusion_timesteps=1000
    )
    alpha_bar = denoiser.schedule.alpha(denoiser.schedule.times()) ** 2
    torch.testing.assert_close(alpha_bar, torch.from_numpy(1 - betas).cumprod(0))


@widths
@pytest.mark.parametrize(
    "name", ["vp/ddpm/cifar10", "vp/ddpm/church", "vp/ddpm/cifar10_continuous"]
)
def test_score_sde_is_equal(
    name: str,
    width: int,
    tmp_path: Path,
    converted: Callable[..., Denoiser],
    public_code: Callable[[str], Path],
) -> None:
    public_code("score_sde_pytorch")
    settings, model, denoiser = of_score_sde(name, width, tmp_path, converted)
    sde = import_module("sde_lib").VPSDE(N=1000)
    times, x = denoiser.schedule.times(), images(2, (3, SIDE, SIDE))
    for step in STEPS:
        t = times[step - 1]
        label = 999 * t.float() if settings["continuous"] else torch.tensor(step - 1)
        with torch.no_grad():
            expected = model(x, label.expand(2))
        assert relative_error(output(denoiser, x, step), expected) < CLOSE
    if settings["continuous"]:
        mean, std = sde.marginal_prob(torch.ones(1000, 1, 1, 1).double(), times)
        torch.testing.assert_close(denoiser.schedule.alpha(times), mean.flatten())
        torch.testing.assert_close(denoiser.schedule.sigma(times), std)
    else:
        alpha_bar = denoiser.schedule.alpha(times) ** 2
        torch.testing.assert_close(alpha_bar, sde.alphas_cumprod.double(), rtol=1e-4, atol=0)


@widths
@torch.no_grad()
def test_score_sde_is_equal_on_the_levels_of_the_ve_sde(
    width: int,
    tmp_path: Path,
    converted: Callable[..., Denoiser],
    public_code: Callable[[str], Path],
) -> None:
    """Theirs takes images in [0, 1] and gives the score there, half of that of twice the values."""
    public_code("score_sde_pytorch")
    _, model, denoiser = of_score_sde("ve/cifar10_ddpm", width, tmp_path, converted)
    assert denoiser.value_range == (-1, 1)
    sde, levels = import_module("sde_lib").VESDE(N=1000), denoiser.schedule.levels
    theirs = sde.discrete_sigmas.double()
    times = denoiser.schedule.times()
    torch.testing.assert_close(denoiser.schedule.sigma(times), 2 * theirs, rtol=1e-5, atol=0)
    for step in STEPS:
        x = images(2, (3, SIDE, SIDE)) * theirs[step - 1].float()
        expected = model(x, torch.full((2,), levels - step))
        found = denoiser(2 * x - 1, times[step - 1])
        assert relative_error(2 * found.score, expected) < CLOSE


def of_score_sde(
    name: str, width: int, folder: Path, converted: Callable[..., Denoiser]
) -> tuple[dict[str, Any], nn.Module, Denoiser]:
    """Settings, a model of theirs with random weights, and what ours makes of its checkpoint."""
    settings = {**ScoreSdeDDPM.defaults, **ScoreSdeDDPM.published[name], "nf": width}
    model = import_module("models.ddpm").DDPM(config_of(settings))
    average = {k: v.clone() for k, v in randomised(model).named_parameters()}
    randomised(model, seed=7)  # the weights that are not averaged are others
    file = folder / name / "checkpoint_26.pth"
    file.parent.mkdir(parents=True)
    torch.save(
        {
            "model": {f"module.{name}": value for name, value in model.state_dict().items()},
            "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": list(average.values())},
            "optimizer": {"state": {}, "param_groups": []},
            "step": 1_300_000,
        },
        file,
    )
    denoiser = converted(file, flags={"nf": width})
    model.load_state_dict(average, strict=False)
    return settings, model, denoiser


def config_of(settings: dict[str, Any]) -> SimpleNamespace:
    """Their config, with attention where 16 pixels of the published size are on ``SIDE``."""
    return SimpleNamespace(
        data=SimpleNamespace(image_size=SIDE, centered=settings["centered"], num_channels=3),
        model=SimpleNamespace(
            nf=settings["nf"],
            ch_mult=tuple(int(word) for word in settings["ch_mult"].split(",")),
            num_res_blocks=settings["num_res_blocks"],
            attn_resolutions=(16 * SIDE // settings["image_size"],),
            dropout=settings["dropout"],
            resamp_with_conv=True,
            conditional=True,
            scale_by_sigma=settings["scale_by_sigma"],
            nonlinearity="swish",
            sigma_max=50,
            sigma_min=0.01,
            num_scales=1000,
        ),
    )
