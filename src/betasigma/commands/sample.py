"""What ``scripts/sample.py`` does: draw samples, save them as a picture, as arrays or as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import parsed
from betasigma.commands.load import Loaded, load_run, weights_key
from betasigma.commands.measure import say_not_finite
from betasigma.commands.memory_format import choose_memory_format
from betasigma.commands.trajectory import SHOWN, save_trajectory
from betasigma.cpus import cpus_of_a_process
from betasigma.data import pixels
from betasigma.denoiser import DenoiserLike, guided
from betasigma.devices import Following, move_to_device, precision_of
from betasigma.display import Display, plain_warnings
from betasigma.errors import UserError, counted
from betasigma.evaluation.sharding import (
    broadcast,
    gather,
    made_by_first_rank_first,
    own_share,
    rank_and_world_size,
    shard,
)
from betasigma.options.apps import Sample
from betasigma.pictures import image_of, picture, save
from betasigma.runs.directory import DRAWN
from betasigma.runs.files import read_json, replace_file, write_json
from betasigma.runs.record import format_settings
from betasigma.runs.start import Start
from betasigma.runs.status import process_rank
from betasigma.samplers import Sampler, count_not_finite
from betasigma.training.compiling import compile_for_sampling
from betasigma.training.processes import shared_work


def sample(config: DictConfig, start: Start) -> None:
    """Draw samples from a run or a checkpoint into a new directory, or into a folder of images."""
    content, asked = parsed(config, Sample)
    first = process_rank() == 0
    plain_warnings(quiet=not first)
    display = Display(quiet=not first)
    loaded = load_run(content["run"], precision_of(content["hardware"]), content["data"])
    with shared_work(content["hardware"], start) as device:
        move_to_device(loaded.denoiser, content["hardware"], device, display.line)
        choose_memory_format(loaded.denoiser, content["hardware"], False, display.line)
        display.meanwhile = Following(content["hardware"], display.line)
        _sample(asked, content, loaded, start.directory, display)


def _sample(
    asked: Sample, content: dict[str, Any], loaded: Loaded, out: Path, display: Display
) -> None:
    denoiser = loaded.denoiser
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    rank, world_size = rank_and_world_size()
    share = len(shard(asked.total, 0, world_size))
    weights = weights_key(loaded) if asked.save == "folder" else ""  # before they are compiled
    hardware, guidance = content["hardware"], content["guidance"]
    compile_for_sampling(denoiser, hardware, sampler, share, asked.batch_size, display, guidance)
    draw = Draw(guided(denoiser, guidance), sampler, content["labels"], asked.batch_size)
    told = {
        "run": content["run"],
        "step": loaded.step,
        "sampler": sampler.name,
        "settings": format_settings(sampler.settings),
        "seeds": asked.chosen_seeds,
        "labels": None if asked.labels == "all" else asked.labels,
        "guidance": asked.guidance,
    }
    if asked.save == "folder":
        precision = str(precision_of(content["hardware"]) or torch.float32)
        begin = partial(
            SampleFolder,
            Path(asked.out) if asked.out is not None else out / "samples",
            {**told, "weights": weights, "precision": precision},
            loaded.classes if asked.subfolders else None,
        )
        counted = _fill(begin, draw, asked, display)
    else:
        counted = _gather(draw, asked, out, display)
    if rank != 0:
        return
    which = {"indices": asked.indices, "seed": asked.chosen_seeds[0]}
    write_json(out / DRAWN, {**told, **which, **counted})
    if asked.trajectory is not None:
        first, seed = asked.chosen_indices[:SHOWN], asked.chosen_seeds[0]
        how = (draw.labels(first), asked.trajectory, out)
        path = save_trajectory(draw.denoiser, sampler, first, seed, *how)
        display.line(f"trajectory {path}")


SeedIndex = tuple[int, int]  # seed and index


class DrawnBatch(NamedTuple):
    """Samples that were drawn at once."""

    samples: list[SeedIndex]
    images: Tensor
    """As bytes; points as they are."""
    nfe: int
    not_finite: int


class Draw:
    """Draws samples by seed and index, each with the label that its index says."""

    def __init__(
        self,
        denoiser: DenoiserLike,
        sampler: Sampler,
        labels: list[int] | str | None,
        batch_size: int,
    ) -> None:
        self.denoiser, self.sampler, self.batch_size = denoiser, sampler, batch_size
        self._wanted = labels if isinstance(labels, list) else list(range(denoiser.num_classes))

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Class label of each of these samples, int64; ``None`` without classes."""
        if not self._wanted:
            return None
        return torch.tensor([self._wanted[i % len(self._wanted)] for i in indices])

    def __call__(self, wanted: Sequence[SeedIndex], display: Display) -> Iterator[DrawnBatch]:
        """This process's share of the wanted samples, batch by batch, each of one seed."""
        own = own_share(len(wanted))
        first, size = own.start, self.batch_size
        with display.share(f"{self.sampler.name}: {counted(len(wanted), 'sample')}") as progress:
            while first < own.stop:
                seed = wanted[first][0]
                at_once = wanted[first : min(first + size, own.stop)]
                part = [one for one in at_once if one[0] == seed]
                indices = [i for _, i in part]

                def advance(share: float, weight: float = len(part) / len(own)) -> None:
                    progress(share * weight)

                drawn = self.sampler.sample(
                    self.denoiser,
                    indices=indices,
                    seed=seed,
                    y=self.labels(indices),
                    batch_size=size,
                    progress=advance,
                )
                first, size = first + len(part), drawn.batch_size
                images = to_uint8(drawn.x, self.denoiser)
                yield DrawnBatch(part, images, drawn.nfe, count_not_finite(drawn.x))


def _wanted_samples(asked: Sample) -> list[SeedIndex]:
    """All samples that are asked for, seed by seed."""
    return [(seed, i) for seed in asked.chosen_seeds for i in asked.chosen_indices]


def _gather(draw: Draw, asked: Sample, out: Path, display: Display) -> dict[str, Any]:
    """Draw all samples; the first process writes picture and arrays. Return what there is to
    tell.
    """
    wanted = _wanted_samples(asked)
    gathered = gather(list(draw(wanted, display)))
    if gathered is None:
        return {}
    every = [part for of_rank in gathered for part in of_rank]
    images = torch.cat([part.images for part in every])
    nfe, bad = max(part.nfe for part in every), sum(part.not_finite for part in every)
    say_not_finite(bad, len(wanted))
    display.line(_drawn(len(wanted), draw.sampler, nfe))
    if asked.save in ("png", "both"):
        save(picture(images), out / "samples.png")
        display.line(f"picture {out}/samples.png")
    if asked.save in ("npz", "both"):
        arrays = {"arr_0": (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).numpy()}
        labels = draw.labels([i for _, i in wanted])
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        with replace_file(out / "samples.npz") as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        display.line(f"numbers {out}/samples.npz")
    return {"n": len(wanted), "nfe": nfe, "not_finite": bad}


def _fill(
    begin: Callable[[], SampleFolder], draw: Draw, asked: Sample, display: Display
) -> dict[str, Any]:
    """Draw what the folder lacks, each process its share into files of its own, and return what
    there is to tell.
    """
    wanted = _wanted_samples(asked)
    labels = draw.labels([i for _, i in wanted])
    classes = [None] * len(wanted) if labels is None else labels.tolist()
    class_of = dict(zip(wanted, classes, strict=True))
    into = made_by_first_rank_first(begin)
    looked_at = wanted if rank_and_world_size()[0] == 0 else []
    lacking = broadcast([p for p in looked_at if not into.path(*p, class_of[p]).is_file()])
    nfe, bad = 0, 0
    for part in draw(lacking, display):
        into.write([into.path(*one, class_of[one]) for one in part.samples], part.images)
        nfe, bad = max(nfe, part.nfe), bad + part.not_finite
    counts = gather((nfe, bad))
    if counts is None:
        return {}
    nfe, bad = max(nfe for nfe, _ in counts), sum(bad for _, bad in counts)
    say_not_finite(bad, len(lacking))
    there = len(wanted) - len(lacking)
    display.line(
        _drawn(len(lacking), draw.sampler, nfe) + (f"; {there} were there already" if there else "")
    )
    display.line(f"images {into.root}")
    return {"n": len(wanted), "drawn": len(lacking), "nfe": nfe, "not_finite": bad}


def _drawn(number: int, sampler: Sampler, nfe: int) -> str:
    evaluations = counted(nfe, "network evaluation")
    return f"{counted(number, 'sample')} by {sampler.name}, {evaluations} each"


def to_uint8(x: Tensor, denoiser: DenoiserLike) -> Tensor:
    """Turn samples into bytes. Points stay as they are."""
    return pixels.to_uint8(x, denoiser.value_range) if x.ndim == 4 else x


FREE = ("seeds", "run")
"""What may differ when a folder is filled up: a name says its seed, and a run may have moved."""


class SampleFolder:
    """A folder of samples: a PNG each, named by seed and index, begun once and filled up later.

    Args:
        root: its path; made where it is not there.
        told: what its samples depend on. A folder that says something else of them is refused.
        classes: names of the classes, each of which gets a sub-folder.
    """

    def __init__(
        self, root: Path, told: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        self.root = root
        told = {**told, "subfolders": classes is not None}
        self._folders = None if classes is None else _folder_names(classes)
        description = root / DRAWN
        if description.is_file():
            known = read_json(description)
            if not known:
                raise UserError(f"out: {description} is damaged: give another folder")
            _compare(root, known, told)
        elif root.is_dir() and any(root.iterdir()):
            raise UserError(f"out={root} is not empty and holds no samples: give another folder")
        else:
            write_json(description, {key: told[key] for key in told if key not in FREE})

    def path(self, seed: int, index: int, label: int | None) -> Path:
        """Where a sample is, or will be."""
        folder = self.root
        if self._folders is not None and label is not None:
            folder /= self._folders[label]
        return folder / f"seed{seed}_{index:06d}.png"

    def write(self, paths: Sequence[Path], images: Tensor) -> None:
        """Write images ``(n, C, H, W)``, each whole or not at all."""
        with ThreadPoolExecutor(cpus_of_a_process(1)) as pool:
            list(pool.map(save, map(image_of, images), paths))


def _compare(root: Path, known: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    for key, value in told.items():
        if key not in FREE and known.get(key) != value:
            raise UserError(
                f"out={root} holds samples of {format_settings({key: known.get(key)})}, and these "
                f"would be of {format_settings({key: value})}: give another folder"
            )


def _folder_names(classes: Sequence[str]) -> list[str]:
    """A folder for each class: its name, where that can be one, behind its number."""
    width = len(str(len(classes) - 1))
    names = [re.sub(r"[^\w.-]+", "_", name).strip("._") for name in classes]
    return [
        f"{i:0{width}d}" if name in ("", str(i)) else f"{i:0{width}d}_{name}"
        for i, name in enumerate(names)
    ]
