"""improved-diffusion and guided-diffusion: the same function and the same noise after import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import CLOSE, images, output, randomised, relative_error

from betasigma.denoiser import Denoiser
from betasigma.published.openai_unet import GuidedDiffusion, ImprovedDiffusion

FORMS: dict[str, type[ImprovedDiffusion]] = {
    "improved-diffusion": ImprovedDiffusion,
    "guided-diffusion": GuidedDiffusion,
}
TRAINING = ("dropout", "data", "step")
"""Settings that a trained model's function does not depend on."""


def functions() -> Iterator[tuple[str, str]]:
    """Code and name of each published model, where several compute the same, of the first."""
    seen = []
    for code, form in FORMS.items():
        for name, settings in form.published.items():
            function = code, {k: v for k, v in settings.items() if k not in TRAINING}
            if function not in seen:
                seen.append(function)
                yield code, name


PUBLISHED = list(functions())


def narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with at most 32 channels at the full resolution, and heads of 8."""
    first = 64 if settings["image_size"] == 512 else 32
    heads = {"num_head_channels": 8} if settings.get("num_head_channels", -1) > 0 else {}
    return {**settings, "num_channels": first, **heads}


def theirs(code: str, settings: dict[str, Any]) -> tuple[torch.nn.Module, Any]:
    """Model and diffusion that the scripts of ``code`` make."""
    util = import_module(f"{code.replace('-', '_')}.script_util")
    known = util.model_and_diffusion_defaults()
    flags = {key: settings[key] for key in settings if key in known}
    model, diffusion = util.create_model_and_diffusion(**{**known, **flags})
    return randomised(model), diffusion


def check(
    code: str, settings: dict[str, Any], folder: Path, converted: Callable[..., Denoiser]
) -> None:
    model, diffusion = theirs(code, settings)
    file = folder / "ema_0.9999_000123.pt"
    torch.save(model.state_dict(), file)
    flags = {key: value for key, value in settings.items() if key in FORMS[code].defaults}
    denoiser = converted(file, format=code, flags=flags)
    levels = denoiser.schedule.levels
    # as many halvings as the network needs: its layers do not know the size of the image
    side = max(16, settings["image_size"] // 8)
    x = images(2, (3, side, side))
    y = torch.tensor([0, 999]) if settings["class_cond"] else None
    for step in (1, levels // 3, levels):
        t = torch.full((2,), step - 1)
        with torch.no_grad():
            expected = diffusion._wrap_model(model)(x, t, **({} if y is None else {"y": y}))
        assert relative_error(output(denoiser, x, step, y), expected) < CLOSE
    alpha_bar = denoiser.schedule.alpha(denoiser.schedule.times()) ** 2
    torch.testing.assert_close(
        alpha_bar, torch.from_numpy(diffusion.alphas_cumprod), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("code", "name"), PUBLISHED)
def test_outputs_are_equal(
    code: str,
    name: str,
    wide: bool,
    tmp_path: Path,
    converted: Callable[..., Denoiser],
    public_code: Callable[[str], Path],
) -> None:
    public_code(code)
    settings = {**FORMS[code].defaults, **FORMS[code].published[name]}
    check(code, settings if wide else narrow(settings), tmp_path, converted)


def test_attention_in_the_middle_alone(
    tmp_path: Path, converted: Callable[..., Denoiser], public_code: Callable[[str], Path]
) -> None:
    public_code("improved-diffusion")
    form = FORMS["improved-diffusion"]
    settings = {**form.defaults, **form.published["cifar10_uncond_50M_500K"]}
    check(
        "improved-diffusion",
        {**narrow(settings), "attention_resolutions": "2"},
        tmp_path,
        converted,
    )
