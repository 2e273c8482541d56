"""Images/s of the datamodule against torchvision's Dataset and PyTorch's DataLoader.

Made-up images in MNIST's files: speed does not read them. A batch of ours is what the model gets,
float32 in the value range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from betasigma.data.datamodule import ImageDataModule
from harness import ours
from harness.images import mnist, png_folder
from harness.report import Report, options, with_spread
from harness.timing import Step, Timings, interleaved

BATCH = 128


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__, argv, ("--rounds", {"type": int, "help": "7 at full size, else 3"}))
    report = Report("data", chosen)
    rounds = chosen.rounds or (7 if report.full else 3)
    with TemporaryDirectory() as folder:
        memory = in_memory(report, Path(folder), rounds)
        streaming(report, Path(folder), rounds)
        share(report, Path(folder), BATCH * memory, rounds)
    report.save()


def in_memory(report: Report, folder: Path, rounds: int) -> float:
    """MNIST; returns seconds an image."""
    root = mnist(folder)
    batches = 100 if report.full else 20
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = datasets.MNIST(str(root), train=True, transform=transform)
    made = ImageDataModule("mnist", root, batch_size=BATCH)
    made.setup()
    timings = interleaved(
        {
            "ours": taking(lambda: our_batches(made), batches),
            "torchvision, no workers": taking(lambda: their_batches(dataset, 0), batches),
            "torchvision, 2 workers": taking(lambda: their_batches(dataset, 2), batches),
        },
        rounds,
    )
    table(report, "MNIST in memory", timings, BATCH * batches)
    names = ("torchvision, no workers", "torchvision, 2 workers")
    best = min(timings.ratio(name, "ours") for name in names)
    report.target("MNIST, images/s of ours / torchvision's better", best, at_least=20)
    return timings.median("ours") / (BATCH * batches)


def streaming(report: Report, folder: Path, rounds: int) -> None:
    """Colour images of 64×64 decoded from a folder on the way, by two processes."""
    root = folder / "streaming"
    batches = 10 if report.full else 4
    # twice what is taken, so that both decode ahead until they are stopped
    png_folder(root / "train" / "images", 2 * batches * BATCH, 3, 64)
    png_folder(root / "test" / "images", 4, 3, 64)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = datasets.ImageFolder(str(root / "train"), transform)
    made = ImageDataModule(
        "image_folder", root, batch_size=BATCH, image_size=64, in_memory=False, workers=2
    )
    made.setup()
    timings = interleaved(
        {
            "ours, 2 workers": taking(lambda: our_batches(made), batches),
            "torchvision, 2 workers": taking(lambda: their_batches(dataset, 2), batches),
        },
        rounds,
    )
    table(
        report,
        "64×64 images from a folder, start of the workers included",
        timings,
        BATCH * batches,
    )


def share(report: Report, folder: Path, seconds: float, rounds: int) -> None:
    """A batch's share of the small U-Net's step."""
    data = png_folder(folder / "small", 20, 1, 28)
    words = ["data=image_folder", "network=unet_28", "data.image_size=28", "data.channels=1"]
    config = ours.composed(["experiment=mnist_ddpm", *words, f"data.root={data}"])
    made = ours.parts(config)
    step = ours.bare_step(config, made, torch.randn(BATCH, 1, 28, 28))
    timings = interleaved({"step": step}, rounds)
    value = seconds / timings.median("step")
    report.table(
        "Share of the small U-Net's training step, batch 128",
        ["data, ms", "step, ms", "share"],
        [[1e3 * seconds, 1e3 * timings.median("step"), f"{100 * value:.2f} %"]],
    )
    report.target("data / the small U-Net's step", value, at_most=0.01)


def our_batches(data: ImageDataModule) -> Iterator[Any]:
    """Batches as the model gets them."""
    for batch in data.train_dataloader():
        yield data.prepare_batch(batch)["x"]


def their_batches(dataset: Any, workers: int) -> Iterator[Any]:
    """Shuffled batches of a torchvision data set, epoch after epoch."""
    while True:
        yield from DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)


def taking(batches: Callable[[], Iterator[Any]], count: int) -> Step:
    """Takes ``count`` batches from a new iterator."""

    def take() -> None:
        iterator = batches()
        for _ in range(count):
            next(iterator)

    return take


def table(report: Report, title: str, timings: Timings, images: int) -> None:
    """Images/s of all."""
    first = next(iter(timings.seconds))
    report.table(
        title,
        ["", "images/s", "ours is faster by"],
        [
            [
                name,
                images / timings.median(name),
                with_spread(timings.ratio(name, first), timings.spread(name, first)),
            ]
            for name in timings.seconds
        ],
    )
    report.raw(title, timings.seconds)


if __name__ == "__main__":
    main()
