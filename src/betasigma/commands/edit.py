"""What ``scripts/edit.py`` does: edit images by a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.build import make
from betasigma.commands.assemble import make_data
from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import parsed
from betasigma.commands.load import Loaded, load_run, with_data_location
from betasigma.commands.measure import say_not_finite
from betasigma.commands.sample import to_uint8
from betasigma.data import image_sets, pixels
from betasigma.denoiser import guided
from betasigma.devices import Following, move_to_device, precision_of
from betasigma.display import Display
from betasigma.editing import Edit, Request
from betasigma.errors import UserError, counted
from betasigma.options.apps import EditApp
from betasigma.options.data import kind_of
from betasigma.pictures import picture, save
from betasigma.runs.files import replace_file, write_json
from betasigma.runs.record import format_settings
from betasigma.runs.start import Start
from betasigma.samplers import count_not_finite

FIRST = 4
"""Images that are edited where nobody says which."""


def edit(config: DictConfig, start: Start) -> None:
    """Edit images by the model of a run or a checkpoint, into a new directory."""
    content = parsed(config, EditApp)[0]
    out, node = start.directory, content["edit"]
    display = Display()
    doing = make(node, "edit", kind=Edit)
    # a solver that adapts its steps would follow the rounding of bf16
    precision = precision_of(content["hardware"]) if doing.draws else None
    loaded = load_run(content["run"], precision, content["data"])
    denoiser = loaded.denoiser
    move_to_device(denoiser, content["hardware"], tell=display.line)
    display.meanwhile = Following(content["hardware"], display.line)
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    seeded = not doing.needs_images and content.get("images") is None
    images = None if seeded else given_images(content, loaded)
    seeds = tuple(content["seeds"]) if seeded else ()
    rows = len(seeds) if images is None else len(images)
    numbers = None if images is None else content.get("indices") or list(range(rows))
    labels = content.get("labels")
    name = type(doing).__name__
    with display.share(name) as progress:
        found = doing.apply(
            Request(
                guided(denoiser, content["guidance"]),
                sampler,
                images,
                seeds=seeds,
                variants=content["n"],
                seed=content["seed"],
                y=None
                if labels is None
                else torch.tensor([labels[i % len(labels)] for i in range(rows)]),
                batch_size=content["batch_size"],
                progress=progress,
            )
        )
    results = found.x.flatten(0, 1)
    say_not_finite(count_not_finite(results), len(results))
    by = f"by {sampler.name}, " if doing.draws else "along the probability flow, "
    display.line(f"{name} {by}{counted(found.nfe, 'network evaluation')} each")
    if found.note:
        display.line(found.note)
    for between, error in found.errors.items():
        bytes_too = f", {255 * error:.3g} of 255" if len(denoiser.sample_shape) == 3 else ""
        share = f"{error:.3g} of the value range"
        display.line(f"root mean square between {between}: {share}{bytes_too}")
    edited = to_uint8(results, denoiser)
    save(picture(edited, len(found.columns)), out / "edited.png")
    display.line(f"picture {out}/edited.png, a row: {', '.join(found.columns)}")
    arrays = {"images": edited.unflatten(0, found.x.shape[:2])}
    if found.latents is not None:
        arrays["latents"] = found.latents
    with replace_file(out / "edited.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **{key: value.numpy() for key, value in arrays.items()})
    display.line(f"numbers {out}/edited.npz")
    write_json(
        out / "edited.json",
        {
            "run": content["run"],
            "step": loaded.step,
            "edit": node,
            "sampler": sampler.name if doing.draws else None,
            "settings": format_settings(sampler.settings) if doing.draws else None,
            "images": content.get("images"),
            "indices": numbers,
            "seeds": list(seeds),
            "seed": content["seed"],
            "labels": labels,
            "guidance": content["guidance"],
            "columns": found.columns,
            "nfe": found.nfe,
            "rms": found.errors,
        },
    )


def given_images(content: dict[str, Any], loaded: Loaded) -> Tensor:
    """The images to edit, in the model's value range, ``(n, *sample_shape)`` on the CPU."""
    path, denoiser = content.get("images"), loaded.denoiser
    kind = kind_of(denoiser.sample_shape)
    if path is None:
        data = make_data(with_data_location(loaded.config, content["data"]))
        data.prepare_data()
        size = data.size("test")
        numbers = chosen(content.get("indices"), size, kind)
        (batch,) = data.examples("test", np.array(numbers), len(numbers))
        return data.from_uint8(batch["image"])
    found = image_sets.open_images(path, "images", denoiser.sample_shape)
    numbers = chosen(content.get("indices"), len(found), kind)
    return pixels.from_uint8(found.take(np.array(numbers))["image"], denoiser.value_range)


def chosen(indices: list[int] | None, size: int, kind: str) -> list[int]:
    """The images or points that ``indices`` names; the first few without it."""
    if indices is None:
        return list(range(min(FIRST, size)))
    if max(indices) >= size:
        raise UserError(f"indices={indices} must be numbers of {kind}s, 0 to {size - 1}")
    return indices
