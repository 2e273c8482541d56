"""Pipeline folders of diffusers: ``UNet2DModel`` with a scheduler of either family.

The network computes the same function under diffusers' names. What is not expressed by its config
is expressed by weights:

- a network that is told log σ gets the Fourier embedding of diffusers, whose frequencies are a
  parameter: our positional frequencies over 2π do the same;
- a network that is told nothing (NCSNv2) gets projections of the noise level that are zero;
- a network with class labels becomes the unconditional model: the null label's embedding is a
  constant, and goes into the bias of the noise level's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.networks.layers import Conditioning, Fourier, Positional
from betasigma.networks.unet import Attention, Downsample, ResidualBlock, UNet, Upsample
from betasigma.options.samplers import AncestralOptions, SamplerOptions
from betasigma.published.diffusers_unet import BLOCK, PREDICTIONS, VARIANCES
from betasigma.schedules import NoiseSchedule, VarianceExploding, VariancePreserving, cosine

DIFFUSERS = "0.30.0"
"""Oldest version that reads the folder."""

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

INDEX = "model_index.json"

THEIR_PREDICTIONS = {ours: theirs for theirs, ours in PREDICTIONS.items()}
# the first of two names for one variance
THEIR_VARIANCES = {ours: theirs for theirs, ours in reversed(VARIANCES.items())}

KINDS = ("weight", "bias")
"""Parameters of a layer."""

Json = dict[str, Any]
Weights = dict[str, Tensor]


class PipelineFolder(NamedTuple):
    """What the folder holds."""

    files: dict[str, Json]
    """Content of each JSON file, by its path in the folder."""
    weights: Weights
    """Of the U-Net."""
    steps: int
    """``num_inference_steps`` of the run's sampler, or that visit every level."""
    notes: list[str]
    """What the user should know."""


def pipeline_folder(denoiser: Denoiser, sampler: SamplerOptions) -> PipelineFolder:
    """A trained model as a pipeline of diffusers.

    Args:
        denoiser: with the weights to write.
        sampler: of the run: what ``DDPMScheduler`` takes variance and clipping from.

    Raises:
        UserError: where diffusers has no model that computes the same.
    """
    network = denoiser.network
    if not isinstance(network, UNet):
        raise _refused(f"network={type(network).__name__} is not the U-Net of UNet2DModel")
    exploding = isinstance(denoiser.schedule, VarianceExploding)
    notes: list[str] = []
    if exploding:
        kind, scheduler = "ScoreSdeVe", _ve_scheduler(denoiser)
        notes.append("the pipeline samples by predictor and corrector, snr 0.16")
    else:
        kind, scheduler = "DDPM", _vp_scheduler(denoiser, sampler)
    if denoiser.num_classes:
        notes.append("the pipeline passes no labels: it is the model without a label")
    config, weights = _unet(network, denoiser.sample_shape, exploding)
    channels = denoiser.sample_shape[0]
    learned = config["out_channels"] > channels
    if learned and scheduler.get("variance_type") != THEIR_VARIANCES["learned"]:
        # diffusers would take the variance for more channels
        weights |= {f"conv_out.{k}": weights[f"conv_out.{k}"][:channels].clone() for k in KINDS}
        config["out_channels"] = channels
        notes.append("without the learned variance, which the run's sampler does not take")
    version = {"_diffusers_version": DIFFUSERS}
    files = {
        INDEX: {
            "_class_name": f"{kind}Pipeline",
            **version,
            "scheduler": ["diffusers", f"{kind}Scheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": f"{kind}Scheduler",
            **version,
            **scheduler,
        },
        "unet/config.json": {"_class_name": "UNet2DModel", **version, **config},
    }
    steps = denoiser.schedule.levels if exploding else _steps(denoiser.schedule, sampler)
    return PipelineFolder(files, weights, steps, notes)


def _steps(schedule: NoiseSchedule, sampler: SamplerOptions) -> int:
    """How many steps ``DDPMScheduler`` takes: as many as the run's sampler, where both visit the
    same levels, as they do where those are evenly spaced; else one a level.
    """
    levels = schedule.levels
    if not isinstance(sampler, AncestralOptions) or not isinstance(sampler.steps, int):
        return levels
    even = sampler.grid == "levels" and sampler.ratio_max is None
    return sampler.steps if even and 1 < sampler.steps <= levels else levels


def _vp_scheduler(denoiser: Denoiser, sampler: SamplerOptions) -> Json:
    schedule, told = denoiser.schedule, denoiser.preconditioning
    if not isinstance(schedule, VariancePreserving):
        raise _refused("its schedule is neither variance preserving nor exploding")
    if told.prediction not in THEIR_PREDICTIONS:
        known = ", ".join(THEIR_PREDICTIONS)
        raise _refused(f"preconditioning.prediction={told.prediction} must be one of {known}")
    if told.conditioning != "timestep" or told.timestep_scale != 1:
        raise _refused(f"preconditioning.conditioning={told.conditioning} must be timestep")
    _check_input(denoiser, (-1.0, 1.0))
    variance = sampler.variance if isinstance(sampler, AncestralOptions) else "beta"
    return {
        "num_train_timesteps": schedule.levels,
        **_betas(schedule),
        "variance_type": THEIR_VARIANCES[variance],
        "clip_sample": sampler.clip,
        "clip_sample_range": 1.0,
        "prediction_type": THEIR_PREDICTIONS[told.prediction],
        "timestep_spacing": "linspace",
    }


def _betas(schedule: VariancePreserving) -> Json:
    """β_1 … β_T, by name where it is one of diffusers'."""
    alpha_bar = schedule.alpha_bar.numpy()
    if np.allclose(alpha_bar, cosine(len(alpha_bar)).alpha_bar.numpy(), rtol=1e-9, atol=0):
        return {"beta_schedule": "squaredcos_cap_v2"}
    betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    even = np.linspace(-6, 6, len(betas))
    for name, shape in {"linear": even, "sigmoid": 1 / (1 + np.exp(-even))}.items():
        scale = (betas[-1] - betas[0]) / (shape[-1] - shape[0])
        low = betas[0] - scale * shape[0]
        if np.allclose(betas, low + scale * shape, rtol=1e-9, atol=0):
            first, last = (betas[0], betas[-1]) if name == "linear" else (low, low + scale)
            ends = {"beta_start": float(f"{first:.9g}"), "beta_end": float(f"{last:.9g}")}
            return {"beta_schedule": name, **ends}
    return {"trained_betas": betas.tolist()}


def _ve_scheduler(denoiser: Denoiser) -> Json:
    schedule, told = denoiser.schedule, denoiser.preconditioning
    if told.prediction != "score":
        raise _refused(f"preconditioning.prediction={told.prediction} must be score")
    if told.conditioning not in ("log_sigma", "none"):
        raise _refused(f"preconditioning.conditioning={told.conditioning} must be log_sigma")
    _check_input(denoiser, (0.0, 1.0))
    channels, height, width = denoiser.sample_shape
    if channels != 3 or height != width:
        shape = f"{channels}×{height}×{width}"
        raise _refused(f"ScoreSdeVePipeline draws squares in 3 channels, not {shape}")
    sigma = schedule.sigma(schedule.times()).numpy()
    if not np.allclose(np.diff(np.log(sigma), 2), 0, atol=1e-9):
        raise _refused("its noise levels have no common ratio")
    return {
        "num_train_timesteps": schedule.levels,
        "snr": 0.16,
        "sigma_min": float(sigma[0]),
        "sigma_max": float(sigma[-1]),
        "sampling_eps": 1e-5,
        "correct_steps": 1,
    }


def _check_input(denoiser: Denoiser, value_range: tuple[float, float]) -> None:
    if denoiser.preconditioning.input_scaling != "none":
        raise _refused(
            f"preconditioning.input_scaling={denoiser.preconditioning.input_scaling} must be none"
        )
    if denoiser.value_range != value_range:
        low, high = value_range
        raise _refused(
            f"model.value_range={list(denoiser.value_range)} must be [{low:g}, {high:g}], which "
            f"the pipeline makes images of"
        )


def _unet(network: UNet, sample_shape: tuple[int, ...], fourier: bool) -> tuple[Json, Weights]:
    """Config and weights of ``UNet2DModel``."""
    channels, *sides = sample_shape
    weights = _noise(network.conditioning, network.enter.out_channels, fourier)
    weights |= _layer("conv_in", network.enter)
    weights |= _layer("conv_norm_out", network.leave[0]) | _layer("conv_out", network.leave[2])
    down = list(_levels(network.down))
    up = list(_levels(network.up))
    emb = 4 * network.enter.out_channels
    for side, levels in (("down", down), ("up", up)):
        for level, (blocks, between) in enumerate(levels):
            prefix = f"{side}_blocks.{level}"
            for number, block in enumerate(blocks):
                weights |= _block(f"{prefix}.resnets.{number}", block, emb)
                weights |= _attention(f"{prefix}.attentions.{number}", block.attention)
            if isinstance(between, ResidualBlock):
                weights |= _block(f"{prefix}.{side}samplers.0", between, emb)
            elif between is not None:
                assert isinstance(between, Downsample | Upsample)
                weights |= _layer(f"{prefix}.{side}samplers.0.conv", between.conv)
    for number, inner in enumerate(network.middle):
        assert isinstance(inner, ResidualBlock)
        weights |= _block(f"mid_block.resnets.{number}", inner, emb)
        weights |= _attention(f"mid_block.attentions.{number}", inner.attention)
    middle = any(isinstance(module, Attention) for module in network.middle.modules())

    residual = any(isinstance(between, ResidualBlock) for _, between in down)
    plain = "ResnetDownsampleBlock2D" if residual else "DownBlock2D"
    attending = [blocks[0].attention is not None for blocks, _ in down]
    kinds = ["AttnDownBlock2D" if attends else plain for attends in attending]
    norm = next(module for module in network.modules() if isinstance(module, nn.GroupNorm))
    at_end = any(isinstance(between, Downsample) and between.at_end for _, between in down)
    resampling = "resnet" if residual else "conv"
    features = network.conditioning.features
    groups = _one_number_of_groups(network)
    config = {
        "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "in_channels": channels,
        "out_channels": network.leave[2].out_channels,
        "time_embedding_type": "fourier" if fourier else "positional",
        "freq_shift": features.shift if isinstance(features, Positional) else 0,
        "flip_sin_to_cos": False,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in kinds[::-1]],
        "block_out_channels": [blocks[0].conv1.out_channels for blocks, _ in down],
        "layers_per_block": len(down[0][0]),
        "downsample_padding": 0 if at_end else 1,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "dropout": 0.0,
        "act_fn": "silu",
        "attention_head_dim": _head_width(network),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,  # in the middle, where scale_shift would have none
        "norm_eps": norm.eps,
        "resnet_time_scale_shift": "scale_shift" if down[0][0][0].scale_shift else "default",
        "add_attention": middle,
    }
    return config, {name: weight.detach().contiguous() for name, weight in weights.items()}


def _levels(
    layers: nn.ModuleList,
) -> Iterator[tuple[list[ResidualBlock], ResidualBlock | Downsample | Upsample | None]]:
    """Blocks of each level, and the layer to the next."""
    blocks: list[ResidualBlock] = []
    for layer in layers:
        if isinstance(layer, ResidualBlock) and layer.resample is None:
            blocks.append(layer)
        else:
            assert isinstance(layer, ResidualBlock | Downsample | Upsample)
            yield blocks, layer
            blocks = []
    yield blocks, None


def _noise(conditioning: Conditioning, channels: int, fourier: bool) -> Weights:
    """Embedding of the noise level, with that of the null label."""
    width, features = 4 * channels, conditioning.features
    told = 2 * channels if fourier else channels
    hidden, hidden_bias = torch.zeros(width, told), torch.zeros(width)
    out, out_bias = torch.zeros(width, width), torch.zeros(width)
    frequencies = torch.zeros(channels)
    if features is not None:
        weight = conditioning.hidden.weight
        if weight.shape != (width, channels):
            raise _refused("network.embedding_channels must be network.channels")
        if isinstance(features, Fourier) and not fourier:
            raise _refused("network.embedding=fourier or radians must be positional")
        if fourier:
            half = channels // 2
            frequencies[:half] = _frequencies(features)
            hidden[:, :half] = weight[:, :half]
            hidden[:, channels : channels + half] = weight[:, half:]
        else:
            hidden = weight
        hidden_bias = conditioning.hidden.bias
        out, out_bias = conditioning.out.weight, conditioning.out.bias
    if conditioning.labels is not None:
        if not conditioning.null_class:
            raise _refused("network.null_class=false leaves it no image without a label")
        out_bias = out_bias + conditioning.labels.weight[conditioning.num_classes]
    weights = {
        "time_embedding.linear_1.weight": hidden,
        "time_embedding.linear_1.bias": hidden_bias,
        "time_embedding.linear_2.weight": out,
        "time_embedding.linear_2.bias": out_bias,
    }
    return {**weights, "time_proj.weight": frequencies} if fourier else weights


def _frequencies(features: Positional | Fourier) -> Tensor:
    """Of sines and cosines, in turns per unit."""
    if isinstance(features, Fourier):
        return features.turns
    half = features.width // 2
    exponent = torch.arange(half, dtype=torch.float64) / (half - features.shift)
    return torch.exp(-math.log(10_000) * exponent) / (2 * math.pi)


def _block(prefix: str, block: ResidualBlock, emb: int) -> Weights:
    width = block.conv1.out_channels
    weights = {
        f"{prefix}.time_emb_proj.weight": torch.zeros(width, emb),
        f"{prefix}.time_emb_proj.bias": torch.zeros(width),
    }
    for theirs, ours in {**BLOCK, "conv_shortcut": "shortcut"}.items():
        layer = getattr(block, ours)
        if layer is not None:
            weights |= _layer(f"{prefix}.{theirs}", layer)
    return weights


def _attention(prefix: str, attention: Attention | None) -> Weights:
    if attention is None:
        return {}
    weights = _layer(f"{prefix}.group_norm", attention.norm)
    weights |= _layer(f"{prefix}.to_out.0", attention.out)
    for kind, joined in (("weight", attention.qkv.weight), ("bias", attention.qkv.bias)):
        for name, part in zip("qkv", joined.chunk(3), strict=True):
            weights[f"{prefix}.to_{name}.{kind}"] = part
    return weights


def _layer(name: str, layer: nn.Module) -> Weights:
    return {f"{name}.{kind}": value for kind, value in layer.named_parameters(recurse=False)}


def _head_width(network: UNet) -> int | None:
    """Width of a head; ``None`` for one head everywhere."""
    found = [m for m in network.modules() if isinstance(m, Attention)]
    widths = {attention.out.in_features // attention.heads for attention in found}
    if all(attention.heads == 1 for attention in found):
        return None
    if len(widths) > 1:
        raise _refused(
            f"its heads have {', '.join(map(str, sorted(widths)))} channels, and UNet2DModel's one "
            f"number: train with network.head_channels"
        )
    return widths.pop()


def _one_number_of_groups(network: UNet) -> int:
    groups = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if len(groups) > 1:
        found = ", ".join(map(str, sorted(groups)))
        raise _refused(
            f"its normalisations have {found} groups, and UNet2DModel's one number: train with "
            f"network.norm_groups={min(groups)}, or export to=safetensors, torch_export or onnx"
        )
    return groups.pop()


def _refused(why: str) -> UserError:
    return UserError(f"to=diffusers does not fit this run: {why}")


def schedule_of(schedule: NoiseSchedule) -> Json:
    """α and σ of each level, for whoever samples without this package."""
    kernel = schedule.at(schedule.times())
    return {"alpha": kernel.alpha.tolist(), "sigma": kernel.sigma.tolist()}
