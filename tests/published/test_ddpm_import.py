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

from betasigma.commands.load import Loaded
from betasigma.denoiser import Denoiser
from betasigma.published.score_sde import ScoreSdeDDPM

HO_SHAPES = {
    "diffusion_cifar10_model": {
        "resolution": 32,
        "ch_mult": (1, 2, 2, 2),
        "attn_resolutions": (16,),
    },
    "ema_diffusion_lsun_church_model": {
        "resolution": 256,
        "ch_mult": (1, 1, 2, 2, 4, 4),
        "attn_resolutions": (16,),
    },
}
"""The two networks of Ho et al. 2020, by the names of folders that their weights are in."""


@pytest.mark.parametrize("name", HO_SHAPES)
def test_pytorch_diffusion_is_equal(
    name: str,
    tmp_path: Path,
    imported: Callable[..., Loaded],
    public_code: Callable[[str], Path],
) -> None:
    public_code("pytorch_diffusion")
    make = import_module("pytorch_diffusion.model").Model
    shape: dict[str, Any] = HO_SHAPES[name]
    model = make(ch=32, out_ch=3, in_channels=3, num_res_blocks=2, **shape)
    randomised(model)
    (tmp_path / name).mkdir()
    torch.save(model.state_dict(), tmp_path / name / "model-790000.ckpt")
    loaded = imported(tmp_path / name / "model-790000.ckpt")
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    assert loaded.step == 790000
    assert denoiser.sample_shape == (3, shape["resolution"], shape["resolution"])
    model.resolution = side = 32  # it refuses images of another size; its layers do not know it
    x = images(2, (3, side, side))
    for step in (1, 400, 1000):
        with torch.no_grad():
            expected = model(x, torch.full((2,), step - 1))
        assert relative_error(output(denoiser, x, step), expected) < CLOSE
    betas = import_module("pytorch_diffusion.diffusion").get_beta_schedule(
        "linear", beta_start=1e-4, beta_end=0.02, num_diffusion_timesteps=1000
    )
    alpha_bar = denoiser.schedule.alpha(denoiser.schedule.times()) ** 2
    torch.testing.assert_close(alpha_bar, torch.from_numpy(1 - betas).cumprod(0))


@pytest.mark.parametrize("name", ["vp/ddpm/cifar10", "vp/ddpm/church"])
def test_score_sde_is_equal(
    name: str,
    tmp_path: Path,
    imported: Callable[..., Loaded],
    public_code: Callable[[str], Path],
) -> None:
    public_code("score_sde_pytorch")
    settings = {**ScoreSdeDDPM.defaults, **ScoreSdeDDPM.published[name], "nf": 32}
    side = 32
    model = import_module("models.ddpm").DDPM(config_of(settings, attends_at=side))
    average = {k: v.clone() for k, v in randomised(model).named_parameters()}
    randomised(model, seed=7)  # the weights that are not averaged are others
    folder = tmp_path / name
    folder.mkdir(parents=True)
    file = folder / "checkpoint_26.pth"
    torch.save(
        {
            "model": {f"module.{name}": value for name, value in model.state_dict().items()},
            "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": list(average.values())},
            "optimizer": {"state": {}, "param_groups": []},
            "step": 1_300_000,
        },
        file,
    )
    loaded = imported(file, flags={"nf": 32})
    assert loaded.step == 1_300_000
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    model.load_state_dict(average, strict=False)
    x = images(2, (3, side, side))
    for step in (1, 400, 1000):
        with torch.no_grad():
            expected = model(x, torch.full((2,), step - 1))
        assert relative_error(output(denoiser, x, step), expected) < CLOSE
    sde = import_module("sde_lib").VPSDE(N=1000)
    alpha_bar = denoiser.schedule.alpha(denoiser.schedule.times()) ** 2
    torch.testing.assert_close(alpha_bar, sde.alphas_cumprod.double(), rtol=1e-4, atol=0)


def config_of(settings: dict[str, Any], attends_at: int) -> SimpleNamespace:
    """Their config; attention is where 16 pixels of the published size are on ``attends_at``."""
    resolution = 16 * attends_at // settings["image_size"]
    return SimpleNamespace(
        data=SimpleNamespace(image_size=attends_at, centered=True, num_channels=3),
        model=SimpleNamespace(
            nf=settings["nf"],
            ch_mult=tuple(int(word) for word in settings["ch_mult"].split(",")),
            num_res_blocks=settings["num_res_blocks"],
            attn_resolutions=(resolution,),
            dropout=settings["dropout"],
            resamp_with_conv=True,
            conditional=True,
            scale_by_sigma=False,
            nonlinearity="swish",
            sigma_max=50,
            sigma_min=0.01,
            num_scales=1000,
        ),
    )
