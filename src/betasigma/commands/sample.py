"""What ``scripts/sample.py`` does: draw samples, save them as a picture and as arrays."""

from __future__ import annotations

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import validate
from betasigma.commands.load import load_run
from betasigma.commands.measure import say_not_finite
from betasigma.data import pixels
from betasigma.denoiser import DenoiserLike, guided
from betasigma.devices import move_to_device, precision_of
from betasigma.display import Display, plain_warnings
from betasigma.options.apps import Sample
from betasigma.pictures import picture, save
from betasigma.runs.files import write_json
from betasigma.runs.start import Start
from betasigma.samplers import count_not_finite, labels_in_turn


def sample(config: DictConfig, start: Start) -> None:
    """Draw samples from a run or a checkpoint into a new directory.

    Raises:
        UserError: for bad input.
    """
    content = validate(config, Sample)
    out = start.directory
    plain_warnings()
    display = Display()
    loaded = load_run(content["run"], precision_of(content["hardware"]), content["data"])
    denoiser = loaded.denoiser
    move_to_device(denoiser, content["hardware"])
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    labels = choose_labels(content["labels"], denoiser, content["n"])
    with display.share(f"{sampler.name}: {content['n']} samples") as progress:
        drawn = sampler.sample(
            guided(denoiser, content["guidance"]),
            content["n"],
            seed=content["seed"],
            y=labels,
            batch_size=content["batch_size"],
            progress=progress,
        )
    say_not_finite(drawn.x)
    images = to_uint8(drawn.x, denoiser)
    display.line(f"{content['n']} samples by {sampler.name}, {drawn.nfe} network evaluations each")
    if content["save"] in ("png", "both"):
        save(picture(images), out / "samples.png")
        display.line(f"picture {out}/samples.png")
    if content["save"] in ("npz", "both"):
        arrays = {"samples": images.numpy()}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        np.savez_compressed(out / "samples.npz", **arrays)  # type: ignore[arg-type]
        display.line(f"numbers {out}/samples.npz")
    write_json(
        out / "samples.json",
        {
            "run": content["run"],
            "step": loaded.step,
            "sampler": sampler.name,
            "n": content["n"],
            "nfe": drawn.nfe,
            "not_finite": count_not_finite(drawn.x),
            "seed": content["seed"],
            "guidance": content["guidance"],
        },
    )


def choose_labels(wanted: list[int] | str | None, denoiser: DenoiserLike, n: int) -> Tensor | None:
    """Return the class label of each sample: the wanted ones in turn, or all classes in turn."""
    if not isinstance(wanted, list):
        return labels_in_turn(denoiser.num_classes, n)
    return in_turn(wanted, n)


def in_turn(labels: list[int], n: int) -> Tensor:
    """These labels again and again, int64 ``(n,)``."""
    return torch.tensor(labels, dtype=torch.int64).repeat(-(-n // len(labels)))[:n]


def to_uint8(x: Tensor, denoiser: DenoiserLike) -> Tensor:
    """Turn samples into bytes. Points stay as they are."""
    return pixels.to_uint8(x, denoiser.value_range) if x.ndim == 4 else x
