"""The libraries that users would pick instead, as their own training examples run them.

diffusers: ``examples/unconditional_image_generation/train_unconditional.py`` with its defaults
(batch 16, AdamW 1e-4 with betas .95/.999 and weight decay 1e-6, cosine schedule after 500 steps,
clip 1, EMA with warm-up of power ¾, float32), which is not part of the package and is retold here.
denoising-diffusion-pytorch: its ``Trainer`` (Adam 8e-5 with betas .9/.99, clip 1, EMA every 10
steps) with the settings of its README, of which ``amp``, float16, needs a GPU: float32 without.
Progress bars and trackers are left out, so that nothing but the step is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.timing import Step

Peers = dict[str, dict[str, Any]]

MODULES = {
    "diffusers": (
        "accelerate",
        "diffusers.models.unets.unet_2d",
        "diffusers.optimization",
        "diffusers.schedulers.scheduling_ddpm",
        "diffusers.training_utils",
    ),
    "denoising-diffusion-pytorch": ("accelerate", "denoising_diffusion_pytorch", "ema_pytorch"),
}
"""What the peers' steps import."""

CIFAR: Peers = {
    "diffusers": {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
    },
    "denoising-diffusion-pytorch": {"dim": 64, "dim_mults": (1, 2, 4, 8), "channels": 3},
}
"""Peers of ``network=unet_ddpm_cifar10``: google/ddpm-cifar10-32's own, and the README's."""

GREY_28: Peers = {
    "diffusers": {
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": None,
    },
    "denoising-diffusion-pytorch": {"dim": 28, "dim_mults": (1, 2, 2), "channels": 1},
}
"""Peers of ``network=unet_28``."""


def diffusers_unet(settings: dict[str, Any]) -> Any:
    """diffusers' UNet."""
    from diffusers import UNet2DModel

    return UNet2DModel(**settings)


def lucidrains_unet(settings: dict[str, Any]) -> Any:
    """denoising-diffusion-pytorch's UNet; ``flash_attn`` as in its README."""
    from denoising_diffusion_pytorch import Unet

    return Unet(**settings, flash_attn=True)


class DiffusersTraining:
    """The loop of diffusers' example, one step a call.

    Args:
        model: the UNet.
        mixed_precision: accelerate's, ``no`` by default there.
        total: optimizer steps of the cosine schedule.

    Attributes:
        model: being trained.
        average: diffusers' EMAModel.
        scheduler: its DDPMScheduler.
    """

    def __init__(self, model: Any, mixed_precision: str = "no", total: int = 100_000) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(mixed_precision=mixed_precision)
        self.average = EMAModel(
            model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=3 / 4,
            model_cls=UNet2DModel,
            model_config=model.config,
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=total)
        self.model, self._optimizer, self._rate = self.accelerator.prepare(model, optimizer, rate)

    def step(self, x: Tensor) -> float:
        """One step on images in [−1, 1]; returns the loss."""
        self.model.train()
        noise = torch.randn(x.shape, device=x.device)
        t = torch.randint(0, 1000, (len(x),), device=x.device).long()
        noisy = self.scheduler.add_noise(x, noise, t)
        loss = F.mse_loss(self.model(noisy, t).sample.float(), noise.float())
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._rate.step()
        self._optimizer.zero_grad()
        self.average.step(self.model.parameters())
        return float(loss.detach().item())

    def sampler(self) -> Any:
        """A DDIM pipeline of the averaged weights; to be called at the end: they stay."""
        from diffusers import DDIMPipeline, DDIMScheduler

        model = self.accelerator.unwrap_model(self.model)
        self.average.copy_to(model.parameters())
        return diffusers_pipeline(DDIMPipeline, model, DDIMScheduler(num_train_timesteps=1000))


def diffusers_pipeline(kind: Any, model: nn.Module, scheduler: Any) -> Any:
    """A pipeline without its progress bar."""
    pipeline = kind(unet=model.eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_step(settings: dict[str, Any], x: Tensor, mixed_precision: str = "no") -> Step:
    """A step of the example on the batch ``x``, again and again."""
    training = DiffusersTraining(diffusers_unet(settings), mixed_precision)
    return lambda: training.step(x)


def lucidrains_diffusion(
    model: nn.Module, size: int, nfe: int | None = None, eta: float = 0.0
) -> Any:
    """Its GaussianDiffusion as in the README: 1,000 time steps; DDIM where ``nfe`` is given."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    return GaussianDiffusion(
        model, image_size=size, timesteps=1000, sampling_timesteps=nfe, ddim_sampling_eta=eta
    )


def lucidrains_step(settings: dict[str, Any], x: Tensor, mixed_precision: str = "no") -> Step:
    """A step of its Trainer on the batch ``x`` of images in [0, 1], again and again."""
    from accelerate import Accelerator
    from ema_pytorch import EMA

    diffusion = lucidrains_diffusion(lucidrains_unet(settings), x.shape[-1])
    accelerator = Accelerator(split_batches=True, mixed_precision=mixed_precision)
    made = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10).to(x.device)
    model, optimizer = accelerator.prepare(diffusion, made)

    def step() -> float:
        model.train()
        with accelerator.autocast():
            loss = model(x)
        total = float(loss.item())
        accelerator.backward(loss)
        accelerator.wait_for_everyone()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.wait_for_everyone()
        average.update()
        return total

    return step


def parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def uint8_of(parts: Iterable[Tensor]) -> Tensor:
    """Images in [0, 1], in batches → bytes, as torchvision's ``save_image`` rounds them."""
    return torch.cat([(part * 255 + 0.5).clamp(0, 255).to(torch.uint8) for part in parts])
