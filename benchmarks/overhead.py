"""What the framework adds: microseconds a step over a bare loop, and seconds until it starts.

The overhead of a step is the difference between the Trainer's whole step (data, loop, callbacks,
loggers, progress) and a bare loop's on the same network, taken on a network so small that nothing
else is left, and held against the small U-Net's step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from harness import ours
from harness.images import png_folder
from harness.report import ROOT, Report, options, with_spread
from harness.timing import Timings, interleaved, now

IMPORTS = "import hydra, torch, torchvision, pytorch_lightning, wandb"
"""What a training with the default logger cannot do without."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__, argv, ("--rounds", {"type": int, "help": "7 at full size, else 3"}))
    os.environ.setdefault("WANDB_MODE", "offline")
    report = Report("overhead", chosen)
    rounds = chosen.rounds or (7 if report.full else 3)
    with TemporaryDirectory() as folder:
        steps(report, Path(folder), rounds)
        if chosen.clock == "wall":
            startup(report, Path(folder), rounds)
    report.save()


def steps(report: Report, folder: Path, rounds: int) -> None:
    """The Trainer's step against the bare loop's, on a trivial network and on the small U-Net."""
    quiet = [f"training.{key}_every=1000000" for key in ("validate", "sample", "checkpoint")]
    data = png_folder(folder / "data", 200, 1, 28)
    trivial = against_bare(
        ["data=mixture", "network.width=8", "network.depth=1", "batch_size=64", *quiet],
        folder / "trivial",
        rounds=100 * rounds,
        warmup=50,
    )
    small = against_bare(
        [
            "experiment=mnist_ddpm",
            "data=image_folder",
            "network=unet_28",
            "data.image_size=28",
            "data.channels=1",
            f"data.root={data}",
            "data.val_size=1",
            f"batch_size={64 if report.full else 16}",
            *quiet,
        ],
        folder / "small",
        rounds=3 * rounds,
        warmup=2,
    )
    added = trivial.median("ours") - trivial.median("bare")
    step = small.median("bare")
    report.table(
        "A step of the Trainer against the bare loop",
        ["network", "Trainer, ms", "bare loop, ms", "ratio"],
        [
            [
                name,
                1e3 * timings.median("ours"),
                1e3 * timings.median("bare"),
                with_spread(timings.ratio("ours", "bare"), timings.spread("ours", "bare")),
            ]
            for name, timings in (("trivial", trivial), ("small U-Net", small))
        ],
    )
    report.table(
        "The framework's own time",
        ["microseconds a step", "share of the small U-Net's step"],
        [[1e6 * added, f"{100 * added / step:.2f} %"]],
    )
    report.raw("small U-Net", small.seconds)
    report.target("framework's time / the small U-Net's step", added / step, at_most=0.02)


def against_bare(overrides: list[str], run: Path, rounds: int, warmup: int) -> Timings:
    """A session of the Trainer with the bare loop in turns."""
    config = ours.composed([*overrides, "evaluation=none"])
    made = ours.parts(config)
    x = torch.randn(config["batch_size"], *made.data.sample_shape)
    return ours.trainer_against(
        config, made, run, {"bare": ours.bare_step(config, made, x)}, rounds, warmup
    )


def startup(report: Report, folder: Path, rounds: int) -> None:
    """Time until an answer, and until the first step."""
    python = sys.executable
    timings = interleaved(
        {
            "import hydra": partial(run, python, "-c", "import hydra"),
            "train.py --help": partial(run, python, "train.py", "--help"),
            "train.py --cfg job": partial(run, python, "train.py", "--cfg", "job"),
            "bare imports": partial(run, python, "-c", IMPORTS),
            "first step": FirstStep(folder),
        },
        rounds,
    )
    report.table(
        "Start-up, seconds",
        ["what", "seconds"],
        [[name, timings.median(name)] for name in timings.seconds],
    )
    report.raw("startup", timings.seconds)
    report.target(
        "--help / import hydra", timings.ratio("train.py --help", "import hydra"), None, 3
    )
    report.target(
        "command to first step / bare imports",
        timings.ratio("first step", "bare imports"),
        at_most=1.3,
    )
    report.note(
        f"Bare imports: `{IMPORTS}`. First step: the command's, until its loss is recorded."
    )


def run(*words: str) -> None:
    """Run a command to its end."""
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)


class FirstStep:
    """The command ``train.py``, until the first step's loss is in ``metrics.csv``.

    Args:
        folder: where each of its runs gets a directory.
    """

    def __init__(self, folder: Path) -> None:
        self._runs = (folder / f"first_{number}" for number in count())

    def __call__(self) -> None:
        self.seconds()

    def seconds(self) -> float:
        """Seconds of the next run; what follows its first step does not count."""
        folder = next(self._runs)
        words = ["steps=2", "training.log_every=1", "evaluation=none", f"hydra.run.dir={folder}"]
        start = now()
        process = subprocess.Popen(
            [sys.executable, "train.py", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            return waited(
                start, lambda: _mentions(folder / "metrics.csv", "train/objective"), process
            )
        finally:
            process.wait(timeout=300)


def waited(start: float, happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> float:
    """Seconds since ``start`` when it has happened.

    Raises:
        RuntimeError: where the process ends without it.
    """
    while not happened():
        if process.poll() not in (None, 0):
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read().decode()[-500:])
        time.sleep(0.005)
    return now() - start


def _mentions(file: Path, word: str) -> bool:
    return file.exists() and word in file.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
