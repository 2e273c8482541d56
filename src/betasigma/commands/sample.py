"""What ``scripts/sample.py`` does: draw samples, save them as a picture, as arrays or as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import validate
from betasigma.commands.load import load_run, weights_key
from betasigma.commands.measure import say_not_finite
from betasigma.commands.sample_folder import SampleFolder
from betasigma.commands.trajectory import save_trajectory
from betasigma.data import pixels
from betasigma.denoiser import DenoiserLike, guided
from betasigma.devices import move_to_device, precision_of
from betasigma.display import Display, plain_warnings
from betasigma.options.apps import Sample
from betasigma.pictures import picture, save
from betasigma.runs.directory import DRAWN
from betasigma.runs.files import replace_file, write_json
from betasigma.runs.record import format_settings
from betasigma.runs.start import Start
from betasigma.samplers import Sampler, Samples, count_not_finite
from betasigma.training.compiling import compile_for_sampling


def sample(config: DictConfig, start: Start) -> None:
    """Draw samples from a run or a checkpoint into a new directory, or into a folder of images.

    Raises:
        UserError: for bad input.
    """
    content = validate(config, Sample)
    asked, out = Sample.parse(content), start.directory
    plain_warnings()
    display = Display()
    precision = precision_of(content["hardware"])
    loaded = load_run(content["run"], precision, content["data"])
    denoiser = loaded.denoiser
    move_to_device(denoiser, content["hardware"])
    sampler = choose_sampler(content.get("sampler"), loaded, display)
    total = len(asked.chosen_seeds) * len(asked.chosen_indices)
    weights = weights_key(loaded) if asked.save == "folder" else ""  # before they are compiled
    compile_for_sampling(denoiser, content["hardware"], sampler, total, asked.batch_size, display)
    draw = Draw(guided(denoiser, content["guidance"]), sampler, content["labels"], asked.batch_size)
    told = {
        "run": content["run"],
        "step": loaded.step,
        "sampler": sampler.name,
        "settings": format_settings(sampler.settings),
        "seeds": asked.chosen_seeds,
        "labels": asked.labels,
        "guidance": asked.guidance,
    }
    if asked.save == "folder":
        into = SampleFolder(
            Path(asked.out) if asked.out is not None else out / "samples",
            {**told, "weights": weights, "precision": str(precision or torch.float32)},
            loaded.classes if asked.subfolders else None,
        )
        counted = _fill(into, draw, asked, display)
    else:
        counted = _gather(draw, asked, out, display)
    write_json(out / DRAWN, {**told, "seed": asked.chosen_seeds[0], **counted})
    if asked.trajectory is not None:
        path = save_trajectory(
            draw.denoiser,
            sampler,
            asked.chosen_indices,
            asked.chosen_seeds[0],
            draw.labels,
            asked.trajectory,
            out,
        )
        display.line(f"trajectory {path}")


class Draw:
    """Draws samples by seed and index, each with the label that its index says.

    Args:
        denoiser: the model, with its guidance.
        sampler: of the samples.
        labels: class labels, taken in turn; otherwise every class in turn.
        batch_size: drawn at once.
    """

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

    def __call__(
        self, indices: Sequence[int], seed: int, progress: Callable[[float], None]
    ) -> Samples:
        """Samples of these indices."""
        return self.sampler.sample(
            self.denoiser,
            indices=indices,
            seed=seed,
            y=self.labels(indices),
            batch_size=self.batch_size,
            progress=progress,
        )


def _gather(draw: Draw, asked: Sample, out: Path, display: Display) -> dict[str, Any]:
    """Draw all samples, write picture and arrays, and return what there is to tell."""
    seeds, indices = asked.chosen_seeds, asked.chosen_indices
    total = len(seeds) * len(indices)
    with display.share(f"{draw.sampler.name}: {total} samples") as progress:
        drawn = [draw(indices, seed, lambda share: progress(share / len(seeds))) for seed in seeds]
    x, nfe = torch.cat([part.x for part in drawn]), max(part.nfe for part in drawn)
    say_not_finite(x)
    images = to_uint8(x, draw.denoiser)
    display.line(f"{total} samples by {draw.sampler.name}, {nfe} network evaluations each")
    if asked.save in ("png", "both"):
        save(picture(images), out / "samples.png")
        display.line(f"picture {out}/samples.png")
    if asked.save in ("npz", "both"):
        arrays = {"arr_0": (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).numpy()}
        labels = draw.labels(indices)
        if labels is not None:
            arrays["arr_1"] = labels.repeat(len(seeds)).numpy()
        with replace_file(out / "samples.npz") as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        display.line(f"numbers {out}/samples.npz")
    return {"n": total, "nfe": nfe, "not_finite": count_not_finite(x)}


def _fill(into: SampleFolder, draw: Draw, asked: Sample, display: Display) -> dict[str, Any]:
    """Draw what the folder lacks, batch by batch, and return what there is to tell."""
    wanted = [(seed, i) for seed in asked.chosen_seeds for i in asked.chosen_indices]
    labels = draw.labels([i for _, i in wanted])
    classes = [None] * len(wanted) if labels is None else labels.tolist()
    paths = {place: into.path(*place, label) for place, label in zip(wanted, classes, strict=True)}
    lacking = [place for place in wanted if not paths[place].is_file()]
    nfe, bad = 0, 0
    with display.share(f"{draw.sampler.name}: {len(lacking)} samples") as progress:
        for seed in asked.chosen_seeds:
            indices = [i for of, i in lacking if of == seed]
            for first in range(0, len(indices), draw.batch_size):
                part = indices[first : first + draw.batch_size]

                def advance(share: float, weight: float = len(part) / len(lacking)) -> None:
                    progress(share * weight)

                drawn = draw(part, seed, advance)
                into.write([paths[seed, i] for i in part], to_uint8(drawn.x, draw.denoiser))
                nfe, bad = max(nfe, drawn.nfe), bad + count_not_finite(drawn.x)
                say_not_finite(drawn.x)
    there = len(wanted) - len(lacking)
    display.line(
        f"{len(lacking)} samples by {draw.sampler.name}, {nfe} network evaluations each"
        + (f"; {there} were there already" if there else "")
    )
    display.line(f"images {into.root}")
    return {"n": len(wanted), "drawn": len(lacking), "nfe": nfe, "not_finite": bad}


def to_uint8(x: Tensor, denoiser: DenoiserLike) -> Tensor:
    """Turn samples into bytes. Points stay as they are."""
    return pixels.to_uint8(x, denoiser.value_range) if x.ndim == 4 else x
