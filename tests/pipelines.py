"""Published models of the test's own: small, with random weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def save_pipeline(folder: Path, image_size: int, levels: int = 1000) -> None:
    """Write the folder of a diffusers pipeline of pictures in colour."""
    model = UNet2DModel(
        sample_size=image_size,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    DDPMPipeline(model, DDPMScheduler(num_train_timesteps=levels)).save_pretrained(folder)
