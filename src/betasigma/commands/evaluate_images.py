"""What ``scripts/evaluate.py images=…`` does: measure images that there are already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from betasigma.commands.assemble import Config, make_data
from betasigma.commands.config import saved_header
from betasigma.commands.load import with_place
from betasigma.commands.measure import (
    COLUMNS,
    log_measurements,
    make_evaluator,
    named,
    rank_and_world_size,
    results,
)
from betasigma.data.image_sets import ReferenceImages, open_images
from betasigma.data.sources import Source
from betasigma.devices import move_to_device
from betasigma.display import Display, warn
from betasigma.errors import UserError
from betasigma.evaluation.evaluator import Evaluator, Measurement
from betasigma.evaluation.reference import DataSource
from betasigma.evaluation.sharding import made_by_first_rank_first, shard
from betasigma.options.evaluation import REFERENCE
from betasigma.runs.record import Record
from betasigma.runs.start import Start
from betasigma.runs.status import process_rank
from betasigma.training.processes import shared_work
from betasigma.training.tracking import RecordLogger


def evaluate_images(content: Config, start: Start, display: Display) -> None:
    """Measure ``images`` against a data set or against ``reference``. Values go to ``metrics.csv``.

    Raises:
        UserError: if they cannot be read, or are of another shape than what they are compared with.
    """
    reference = content.get("reference")
    if reference is None:
        data = make_data(data_config(content))
        data.prepare_data()
        data.setup()
        images = open_images(content["images"], "images", channels=data.sample_shape[0])
        compared: DataSource = data
        against, shape = named(data), data.sample_shape
    else:
        other = open_images(reference, "reference")
        images = open_images(content["images"], "images", channels=other.shape[0])
        compared = ReferenceImages(other)
        against, shape = f"reference={reference}", other.shape
    if tuple(images.shape) != tuple(shape):
        sides = ",".join(map(str, images.shape[1:]))
        sized = content["data"].get("image_size") is not None
        hint = f", which data.image_size=[{sides}] would give" if sized else ""
        raise UserError(
            f"images={content['images']} are {_shown(images.shape)}, and {against} has images of "
            f"{_shown(shape)}: they must have one shape{hint}"
        )
    with shared_work(content["hardware"], start) as own:
        device = move_to_device(nn.Identity(), content["hardware"], own, display.line)
        evaluator = made_by_first_rank_first(
            lambda: make_evaluator(
                content["evaluation"],
                len(images),
                compared,
                against,
                shape,
                device,
                display,
                ("train",) if reference is not None else ("train", "test"),
            ),
            *rank_and_world_size(),
        )
        found = _measure_images(content, evaluator, images, against, display)
    if process_rank() != 0:
        return
    if reference is not None:
        found = [m if m.split is None else replace(m, split=REFERENCE) for m in found]
    record = Record.of(start.directory)
    loggers: list[Logger] = [RecordLogger(record)]
    log_measurements(loggers, found, 0, "eval", {})
    display.table(
        f"{content['images']}, compared with {against}",
        COLUMNS,
        [row.cells for row in results(found)],
    )
    display.line(f"metrics {record.path}")


def _measure_images(
    content: Config, evaluator: Evaluator, images: Source, against: str, display: Display
) -> list[Measurement]:
    """Measure images, of which each process reads its share."""
    rank, world_size = rank_and_world_size()
    if evaluator.left_out and rank == 0:
        warn(
            f"{', '.join(evaluator.left_out)} left out: needs a test split, and {against} has none"
        )
    own = shard(len(images), rank, world_size)
    with display.work(f"features of {len(images)} images", len(own)) as update:
        found = evaluator.evaluate_images(
            _batches(images, own, content["evaluation"]["batch_size"], update),
            sampler=content["images"],
            rank=rank,
            world_size=world_size,
        )
    if content.get("reference") is None and evaluator.measures_frechet:
        found.append(evaluator.floor(len(images), rank, world_size))
    return found


def data_config(content: Config) -> Config:
    """The config from which the data that images are compared with are made."""
    if content.get("run"):
        return with_place(saved_header(content["run"])["config"], content["data"])
    of_model = {"value_range": [0.0, 1.0]}  # of no effect: bytes are compared
    own = {"batch_size": content["evaluation"]["batch_size"], "seed": content["seed"]}
    return {"data": content["data"], "model": of_model, **own}


def _batches(
    images: Source, own: range, batch_size: int, update: Callable[[int, str], None]
) -> Iterator[Tensor]:
    for first in own[::batch_size]:
        numbers = np.arange(first, min(first + batch_size, own.stop))
        yield images.take(numbers)["image"]
        update(int(numbers[-1]) + 1 - own.start, "")


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
