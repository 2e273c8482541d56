"""What ``scripts/plot.py`` does: draw one of the figures that a paper on these models needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.build import make
from betasigma.commands.assemble import open_data
from betasigma.commands.auto import choose_sampler
from betasigma.commands.config import parsed, saved_header
from betasigma.commands.load import Loaded, load_run, with_data_location
from betasigma.commands.trajectory import at_contrast, states_on_the_way
from betasigma.data import pixels
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import perturb
from betasigma.devices import move_to_device, precision_of
from betasigma.display import Display, warn
from betasigma.errors import UserError
from betasigma.evaluation.neighbours import nearest_examples
from betasigma.objectives.error_curve import from_schedule_log_snr, to_schedule_log_snr
from betasigma.options import figures
from betasigma.options.apps import Plot
from betasigma.randomness import Stream
from betasigma.report.plots import Sheet, draw_error_curves, draw_results, draw_sheets, error_curves
from betasigma.report.quality import draw_quality, quality_of_jobs, quality_of_runs
from betasigma.report.rows import rows_of_settings
from betasigma.report.runs import left_out, read_evaluations, read_runs, runs_in
from betasigma.report.tables import drawable
from betasigma.runs.header import run_of
from betasigma.runs.start import Start
from betasigma.samplers import Sampler, labels_in_turn
from betasigma.schedules import NoiseSchedule

BATCH = 1024


class FigureRequest(NamedTuple):
    """What a figure is drawn from: the config, also as plain containers, and where it goes."""

    asked: Plot
    content: dict[str, Any]
    out: Path
    display: Display

    def models(self) -> Iterator[Model]:
        """The models of the runs, each with its sampler and data, on the device."""
        paths = runs_in(self.asked.runs)
        names = [saved_header(path)["config"]["model"]["name"] for path in paths]
        labels = [
            name if names.count(name) == 1 else f"{name}, {run_of(path).resolve().name}"
            for name, path in zip(names, paths, strict=True)
        ]
        for path, label in zip(paths, labels, strict=True):
            location, hardware = self.content["data"], self.content["hardware"]
            loaded = load_run(path, precision_of(hardware), location)
            move_to_device(loaded.denoiser, hardware)
            sampler = choose_sampler(self.content.get("sampler"), loaded, self.display)
            yield Model(label, loaded, sampler, location)


class Figure:
    """What ``scripts/plot.py`` draws. A subclass defines :meth:`draw`."""

    of_models = figures.FigureOptions.of_models

    def draw(self, request: FigureRequest) -> Path:
        """Draw it, and return the path of its first file.

        Raises:
            UserError: for runs that it cannot be drawn of.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw(request)")


class Model(NamedTuple):
    """A model to draw from."""

    label: str
    loaded: Loaded
    sampler: Sampler
    location: dict[str, Any]

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and greatest value of clean data."""
        return self.loaded.denoiser.value_range

    def data(self) -> ImageDataModule:
        """The data that it was trained on."""
        return open_data(with_data_location(self.loaded.config, self.location))

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Class labels of samples, every class in turn; ``None`` without classes."""
        return labels_in_turn(self.loaded.denoiser.num_classes, len(indices))

    def log_snr(self, t: float) -> float:
        """log-SNR at t, of data in [−1, 1]."""
        schedule = self.loaded.denoiser.schedule
        return from_schedule_log_snr(float(schedule.log_snr(t)), self.value_range)

    def ends(self) -> tuple[float, float]:
        """Least and largest log-SNR of the schedule, of data in [−1, 1]."""
        schedule: NoiseSchedule = self.loaded.denoiser.schedule
        return self.log_snr(1.0), self.log_snr(schedule.t_min)


@dataclass(frozen=True)
class Filmstrip(Figure):
    """States on the way from noise to samples. Runs share the seed, and a column is one log-SNR: a
    cell is empty where a run has no state near it.
    """

    samples: int = 3
    columns: int = 12
    of_models = figures.FilmstripOptions.of_models

    def __post_init__(self) -> None:
        figures.FilmstripOptions.check(samples=self.samples, columns=self.columns)

    def draw(self, request: FigureRequest) -> Path:
        models = list(request.models())
        low = min(model.ends()[0] for model in models)
        high = max(model.ends()[1] for model in models)
        grid = np.linspace(low, high, self.columns - 1)
        sheets = []
        with request.display.share(f"{self.samples} samples of each run") as progress:
            for model in models:
                cells = self._strip(model, request.asked.seed, grid)
                title = f"{model.label}, {model.sampler.name}"
                rows = [f"sample {row}" for row in range(self.samples)]
                sheets.append(Sheet(title, cells, rows, [*map(_signed, grid), "sample"]))
                progress(1 / len(models))
        note = (
            f"log-SNR of data in [−1, 1], empty where no state is near; seed {request.asked.seed}"
        )
        return draw_sheets(sheets, note, request.out / "filmstrip", request.asked)

    def _strip(self, model: Model, seed: int, grid: np.ndarray) -> list[list[Tensor | None]]:
        """Pictures by sample and column."""
        chosen: dict[int, int] = {}

        def choose(reached: Sequence[float]) -> set[int]:
            known = np.array([model.log_snr(t) for t in reached[:-1]])
            half = (grid[1] - grid[0]) / 2
            for column, at in enumerate(grid):
                # of a level's Langevin steps the last
                nearest = len(known) - 1 - int(np.abs(known - at)[::-1].argmin())
                if abs(known[nearest] - at) <= half:
                    chosen[column] = nearest
            chosen[len(grid)] = len(reached) - 1
            return set(chosen.values())

        indices = range(self.samples)
        denoiser = model.loaded.denoiser
        labels = model.labels(indices)
        shown = states_on_the_way(denoiser, model.sampler, indices, seed, labels, choose)
        return [
            [shown[chosen[c]][row] if c in chosen else None for c in range(self.columns)]
            for row in indices
        ]


@dataclass(frozen=True)
class DenoisedImage(Figure):
    """One test image with noise, and below it what each run says it was: x̂_0 = E[x_0 | x_t], with
    the error ‖ε − ε̂‖²/d, over the log-SNR that all runs know.
    """

    index: int = 0
    columns: int = 10
    of_models = figures.DenoisedImageOptions.of_models

    def __post_init__(self) -> None:
        figures.DenoisedImageOptions.check(index=self.index, columns=self.columns)

    def draw(self, request: FigureRequest) -> Path:
        """Raises:
        UserError: for an image that is not there, or runs of different data or noise levels.
        """
        models = list(request.models())
        low = max(model.ends()[0] for model in models)
        high = min(model.ends()[1] for model in models)
        if low >= high:
            raise UserError("the runs have no noise level in common: draw them one by one")
        grid = np.linspace(low, high, self.columns)
        data = models[0].data()
        size = data.size("test")
        if self.index >= size:
            raise UserError(
                f"figure.index={self.index} is no test image: there are {size}, 0 to {size - 1}"
            )
        (batch,) = data.examples("test", np.array([self.index]), 1)
        clean = batch["image"]
        noise = Stream("figure", request.asked.seed, indices=[self.index])
        eps = noise.normal(tuple(clean.shape[1:]))
        noisy: list[Tensor | None] = [clean[0]]
        rows: list[list[Tensor | None]] = [noisy]
        captions: list[list[str]] = [[""] * (self.columns + 1)]
        for model in models:
            row: list[Tensor | None] = [None]
            told = [""]
            for at in grid:
                denoised, error, x_t = _denoised(model, clean, batch, eps, float(at))
                row.append(denoised)
                told.append(f"{error:.3g}")
                if model is models[0]:
                    noisy.append(x_t)
            rows.append(row)
            captions.append(told)
        names = ["noisy", *(model.label for model in models)]
        columns = ["clean", *map(_signed, grid)]
        name = models[0].loaded.config["data"]["name"]
        title = f"test image {self.index} of {name}; below each its error ‖ε − ε̂‖²/d"
        sheet = Sheet(title, rows, names, columns, captions)
        note = "log-SNR of data in [−1, 1]"
        return draw_sheets([sheet], note, request.out / "denoising", request.asked)


@dataclass(frozen=True)
class Neighbours(Figure):
    """Samples above the training images that are nearest to them in pixels, beside test images
    above theirs: has a model learned by heart?
    """

    samples: int = 8
    nearest: int = 3
    of_models = figures.NeighboursOptions.of_models

    def __post_init__(self) -> None:
        figures.NeighboursOptions.check(samples=self.samples, nearest=self.nearest)

    def draw(self, request: FigureRequest) -> Path:
        sheets, data = [], None
        with request.display.share("samples and their neighbours") as progress:
            for model in request.models():
                data = model.data()
                drawn = model.sampler.sample(
                    model.loaded.denoiser,
                    self.samples,
                    seed=request.asked.seed,
                    y=model.labels(range(self.samples)),
                )
                title = f"samples of {model.label} by {model.sampler.name}, {drawn.nfe} NFE"
                images = pixels.to_uint8(drawn.x, model.value_range)
                sheets.append(self._sheet(images, data, f"{title}, seed {request.asked.seed}"))
                progress(1 / len(request.asked.runs))
        assert data is not None  # a run is named
        held_out = torch.cat(list(data.batches("test", BATCH, self.samples)))
        sheets.append(self._sheet(held_out, data, f"test images of {data.data_name}"))
        train = data.size("train")
        note = f"root mean square difference of pixels, 0 to 255; nearest of {train:,} images"
        return draw_sheets(sheets, note, request.out / "neighbours", request.asked)

    def _sheet(self, images: Tensor, data: ImageDataModule, title: str) -> Sheet:
        batches = data.batches("train", BATCH)
        distances, numbers = nearest_examples(images, batches, number=self.nearest)
        examples = data.examples("train", numbers.flatten().numpy(), BATCH)
        found = torch.cat([batch["image"] for batch in examples]).unflatten(0, numbers.shape)
        per_pixel = distances / images[0].numel() ** 0.5
        cells = [list(images), *([*found[:, rank]] for rank in range(self.nearest))]
        told = [[f"{value:.1f}" for value in per_pixel[:, p]] for p in range(self.nearest)]
        names = ["image", *(f"nearest {rank + 1}" for rank in range(self.nearest))]
        return Sheet(title, cells, names, [""] * len(images), [[""] * len(images), *told])


@dataclass(frozen=True)
class Frontier(Figure):
    """Distance against network evaluations, of evaluations that there are."""

    def draw(self, request: FigureRequest) -> Path:
        """Raises:
        UserError: where nothing was evaluated.
        """
        jobs = read_evaluations(request.asked.runs)
        found = quality_of_jobs(jobs) if jobs else quality_of_runs(read_runs(request.asked.runs))
        path = draw_quality(found, request.out / "frontier", request.asked)
        return _drawn(path, request, "no distance of an evaluation: evaluate.py makes some")


@dataclass(frozen=True)
class ErrorByNoise(Figure):
    """Denoising error against log-SNR, as it was last measured."""

    def draw(self, request: FigureRequest) -> Path:
        """Raises:
        UserError: where it was not measured.
        """
        curves = error_curves(read_runs(request.asked.runs))
        if not curves:
            return _drawn(None, request, "no denoising error by log-SNR: validation measures it")
        return draw_error_curves(curves, request.out / "error_by_noise", request.asked)


@dataclass(frozen=True)
class StudyResults(Figure):
    """Results of the points of a study, or of any settings, and their errors by noise level."""

    def draw(self, request: FigureRequest) -> Path:
        """Raises:
        UserError: where nothing was measured.
        """
        runs = read_runs(request.asked.runs)
        rows, curves = rows_of_settings(runs), error_curves(runs)
        path = draw_results(
            rows, drawable(rows), request.out / "results", curves, look=request.asked
        )
        return _drawn(path, request, "no results: neither distances nor errors")


def _drawn(path: Path | None, request: FigureRequest, lacks: str) -> Path:
    if path is None:
        raise UserError(f"runs=[{','.join(request.asked.runs)}] have {lacks}")
    return path


def _denoised(
    model: Model, clean: Tensor, batch: dict[str, Any], eps: Tensor, log_snr: float
) -> tuple[Tensor, float, Tensor]:
    """x̂_0 as bytes, the error of ε̂, and x_t at the contrast of clean data."""
    denoiser, value_range = model.loaded.denoiser, model.value_range
    schedule: NoiseSchedule = denoiser.schedule
    x0 = pixels.from_uint8(clean, value_range).to(denoiser.device)
    at = min(
        max(to_schedule_log_snr(log_snr, value_range), float(schedule.log_snr(1.0))),
        float(schedule.log_snr(schedule.t_min)),
    )
    t = schedule.t_of_log_snr(at)
    noise = eps.to(x0)
    x_t = perturb(schedule, x0, t, noise)
    y = batch["label"].to(denoiser.device) if denoiser.num_classes else None
    with torch.no_grad(), denoiser.between_levels("interpolate"):
        predicted = denoiser(x_t, t, y)
        error = (predicted.eps - noise).square().mean().item()
        x0_hat = predicted.x0
    shown = pixels.to_uint8(x0_hat.float().cpu(), value_range)[0]
    return shown, error, at_contrast(x_t, schedule, t, value_range)[0]


def _signed(log_snr: float) -> str:
    return f"{log_snr:.1f}".replace("-", "−")


def plot(config: DictConfig, start: Start) -> None:
    """Draw a figure of runs into a new directory."""
    content, asked = parsed(config, Plot)
    display = Display()
    if deeper := left_out(asked.runs):
        warn(deeper)
    figure = make(content["figure"], "figure", kind=Figure)
    path = figure.draw(FigureRequest(asked, content, start.directory, display))
    for form in asked.formats:
        display.line(f"figure {path.with_name(f'{path.stem}.{form}')}")
