"""Pictures of how samples come about: the states on a sampler's way, as a strip or a film."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from betasigma.data import pixels
from betasigma.denoiser import DenoiserLike
from betasigma.options.apps import Film
from betasigma.pictures import grid, save
from betasigma.randomness import Stream
from betasigma.runs.files import replace_file
from betasigma.samplers import Sampler
from betasigma.schedules import NoiseSchedule

SHOWN = 8
COLUMNS, FRAMES = 12, 60
"""States of a strip and of a film, at most."""
MILLISECONDS, LAST = 70, 1500
"""For which a frame of a film is shown, and its last one."""


def save_trajectory(
    denoiser: DenoiserLike,
    sampler: Sampler,
    indices: Sequence[int],
    seed: int,
    y: Tensor | None,
    film: Film,
    out: Path,
) -> Path:
    """Draw these samples once more and show states on the way: as ``png`` in a row each, as ``gif``
    and ``mp4`` in a grid that moves. Return the path in ``out``.
    """
    states = seen(denoiser, sampler, indices, seed, y, COLUMNS if film == "png" else FRAMES)
    path = out / f"trajectory.{film}"
    if film == "png":
        save(grid(states.transpose(0, 1).flatten(0, 1), len(states)), path)
        return path
    frames = [grid(frame) for frame in states]
    with replace_file(path) as partial:
        if film == "gif":
            first, *others = frames
            how = {"duration": [*[MILLISECONDS] * len(others), LAST], "loop": 0}
            first.save(partial, format="GIF", save_all=True, append_images=others, **how)
        else:
            _write_mp4(partial, frames)
    return path


def seen(
    denoiser: DenoiserLike,
    sampler: Sampler,
    indices: Sequence[int],
    seed: int,
    y: Tensor | None,
    most: int,
) -> Tensor:
    """States from the first to the sample, evenly chosen, as bytes ``(states, n, C, H, W)``."""

    def choose(reached: Sequence[float]) -> set[int]:
        chosen = np.linspace(0, len(reached) - 1, min(most, len(reached))).round()
        return set(chosen.astype(int).tolist())

    shown = states_on_the_way(denoiser, sampler, indices, seed, y, choose)
    return torch.stack([shown[index] for index in sorted(shown)])


def states_on_the_way(
    denoiser: DenoiserLike,
    sampler: Sampler,
    indices: Sequence[int],
    seed: int,
    y: Tensor | None,
    choose: Callable[[Sequence[float]], Collection[int]],
) -> dict[int, Tensor]:
    """Chosen states from the first to the sample, at the contrast of clean data, by index: bytes
    ``(n, C, H, W)``. ``choose`` gives the indices that are wanted, from the times that all states
    have come to: falling from the first to 0, the sample.
    """
    schedule, device = denoiser.schedule, denoiser.device
    rng = Stream("sample", seed, indices=indices, device=device)
    x = sampler.begin(denoiser, rng)
    times = sampler.times(schedule)
    reached = [times[0], *sampler.reached(times)]
    wanted = choose(reached)
    labels = None if y is None else y.to(device)

    def states() -> Iterator[Tensor]:
        yield x
        yield from sampler.states(denoiser, x, rng, labels)

    return {
        index: at_contrast(state, schedule, t, denoiser.value_range)
        for index, (state, t) in enumerate(zip(states(), reached, strict=True))
        if index in wanted
    }


def at_contrast(
    x_t: Tensor, schedule: NoiseSchedule, t: float | Tensor, value_range: tuple[float, float]
) -> Tensor:
    """A state as bytes, at the contrast of clean data: deviations from the middle of the value
    range are divided by √(α² + (σ/h)²), with half the range h. That changes nothing where the
    variance is preserved over [−1, 1], and makes one picture of it and of a σ-ladder.
    """
    low, high = value_range
    middle, half = (low + high) / 2, (high - low) / 2
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    contrast = (alpha**2 + (sigma / half) ** 2) ** 0.5
    return pixels.to_uint8(middle + (x_t.float().cpu() - alpha * middle) / contrast, value_range)


def _write_mp4(path: Path, frames: Sequence[Image.Image]) -> None:
    av = importlib.import_module("av")  # of the extra [video], which the check asks for
    held = [*frames, *[frames[-1]] * (LAST // MILLISECONDS)]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=round(1000 / MILLISECONDS))
        # its colours have half the resolution, and need an even number of pixels
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        for image in held:
            sheet = Image.new("RGB", (stream.width, stream.height), "white")
            sheet.paste(image)
            for packet in stream.encode(av.VideoFrame.from_image(sheet)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
