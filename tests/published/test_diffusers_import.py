"""diffusers' UNet2DModel: the same function after import, by every setting that ours has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from equality import CLOSE, images, output, randomised, relative_error

from betasigma.denoiser import Denoiser

HO: dict[str, Any] = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
"""Settings of google/ddpm-*; the others of diffusers are its defaults."""


def unet(channels: tuple[int, ...], attention: tuple[bool, ...], **config: Any) -> UNet2DModel:
    kinds = {"down": "DownBlock2D", "up": "UpBlock2D"} | config.pop("kinds", {})
    down = [f"Attn{'DownBlock2D'}" if a else kinds["down"] for a in attention]
    up = [f"Attn{'UpBlock2D'}" if a else kinds["up"] for a in reversed(attention)]
    model = UNet2DModel(
        block_out_channels=channels, down_block_types=down, up_block_types=up, **config
    )
    randomised(model)
    return model


SMALL: dict[str, dict[str, Any]] = {
    # the shape of google/ddpm-cifar10-32 and of google/ddpm-celebahq-256 (bedroom, church, cat)
    "cifar10": {
        **HO,
        "channels": (32, 64, 64, 64),
        "attention": (False, True, False, False),
        "sample_size": 16,
    },
    "celebahq": {
        **HO,
        "channels": (32, 32, 64, 64, 128, 128),
        "attention": (False, False, False, False, True, False),
        "sample_size": 32,
    },
    # diffusers' own defaults: padding at all sides, heads of width 8, cosines first
    "defaults": {
        "channels": (32, 64),
        "attention": (False, True),
        "sample_size": 8,
    },
    "scale_shift": {
        "channels": (32, 64),
        "attention": (False, True),
        "sample_size": 8,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
    "in_blocks": {
        "channels": (32, 64),
        "attention": (False, False),
        "kinds": {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"},
        "sample_size": 8,
    },
    "without_attention": {
        "channels": (32, 32),
        "attention": (False, False),
        "sample_size": 8,
        "add_attention": False,
    },
    "classes": {
        "channels": (32, 32),
        "attention": (False, True),
        "sample_size": 8,
        "num_class_embeds": 5,
        "norm_num_groups": 8,
    },
    "greyscale": {
        "channels": (32, 32),
        "attention": (True, False),
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
    },
}


def saved(model: UNet2DModel, folder: Path, scheduler: Any = None, **how: Any) -> Path:
    DDPMPipeline(model, scheduler or DDPMScheduler()).save_pretrained(folder, **how)
    return folder


PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {**SMALL["cifar10"], "channels": (128, 256, 256, 256), "sample_size": 32},
    "celebahq": {
        **SMALL["celebahq"],
        "channels": (128, 128, 256, 256, 512, 512),
        "sample_size": 256,
    },
}
"""google/ddpm-cifar10-32 and google/ddpm-celebahq-256, at full width."""


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_equal(name: str, tmp_path: Path, converted: Callable[..., Denoiser]) -> None:
    check(unet(**SMALL[name]), tmp_path / "pipe", converted)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_are_equal_at_full_width(
    name: str, tmp_path: Path, converted: Callable[..., Denoiser]
) -> None:
    check(unet(**PUBLISHED[name]), tmp_path / f"ddpm-{name}", converted)


def check(model: UNet2DModel, folder: Path, converted: Callable[..., Denoiser]) -> None:
    denoiser = converted(saved(model, folder))
    # its layers do not know the size of the image
    channels, size, _ = denoiser.sample_shape
    x = images(3, (channels, min(size, 32), min(size, 32)))
    y = torch.tensor([0, 2, 4]) if denoiser.num_classes else None
    for t in (0, 357, 999):
        with torch.no_grad():
            theirs = model(x, t, class_labels=y).sample
        assert relative_error(output(denoiser, x, t + 1, y), theirs) < CLOSE
