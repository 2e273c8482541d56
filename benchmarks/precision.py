"""Training in bf16 follows training in fp32: the same run twice, loss curves and final distance.

Both see the same images, times and noise at every step; the difference of their losses is held
against what another seed changes.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from betasigma.commands.assemble import make_sampler
from betasigma.runs.record import Record
from harness import machine, ours
from harness.quality import Judge, mnist_or_stand_in
from harness.report import Report, options

RUNS = {"fp32": ("32", 0), "bf16": ("bf16", 0), "fp32, another seed": ("32", 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Train three runs and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--steps", {"type": int, "help": "500 at full size, else 6"}),
        ("--n", {"type": int, "help": "images of each distance; 250 at full size, else 16"}),
    )
    os.environ.setdefault("WANDB_MODE", "offline")
    report = Report("precision", chosen)
    steps = chosen.steps or (500 if report.full else 6)
    n = chosen.n or (250 if report.full else 16)
    every = max(1, steps // 20)
    with TemporaryDirectory() as scratch:
        root = mnist_or_stand_in(chosen, Path(scratch), report)
        curves, distances = {}, {}
        for name, (precision, seed) in RUNS.items():
            if precision not in ("32", *machine.dtypes()):
                report.note(machine.NO_BF16)
                continue
            print(f"{name}: {steps} steps", flush=True)
            words = [
                "experiment=mnist_ddpm",
                f"data.root={root}",
                f"hardware.precision={precision}",
                f"seed={seed}",
                f"steps={steps}",
                f"training.log_every={every}",
                "training.sample_every=1000000",
                "data.val_size=16",
                f"sampler.steps={20 if report.full else 4}",
                "batch_size=16",
                "evaluation=none",
                "logger=none",
            ]
            config = ours.composed(words)
            made, run = ours.parts(config), Path(scratch) / name.replace(", ", "_")
            ours.fit(config, made, run)
            curves[name] = Record(run / "metrics.csv").curve("train/objective")[1]
            judge = Judge(made.data, 10_000 if report.full else 64)
            sampler = make_sampler(config["sampler"])
            distances[name], _ = judge.samples(made.module.average.cpu(), sampler, n)
        tell(report, steps, every, curves, distances)
        report.note(f"Distances are {judge.name} of n={n} samples to the training images.")
    report.save()


def tell(
    report: Report,
    steps: int,
    every: int,
    curves: dict[str, list[float]],
    distances: dict[str, dict[str, float]],
) -> None:
    """Curves, final values and targets."""
    rows = range(len(curves["fp32"]))
    report.table(
        f"Training loss over {steps} steps, means of {every}",
        ["step", *curves],
        [[(row + 1) * every, *(curve[row] for curve in curves.values())] for row in rows],
    )
    gap = {name: relative_gap(curves["fp32"], curve) for name, curve in curves.items()}
    report.table(
        "At the end",
        ["run", "distance", "mean relative difference of the loss to fp32"],
        [[name, distances[name]["train"], gap[name]] for name in curves],
    )
    if "bf16" in gap:
        share = gap["bf16"] / gap["fp32, another seed"]
        report.target("loss: bf16's difference / another seed's", share, None, 1)
        ratio = distances["bf16"]["train"] / distances["fp32"]["train"]
        report.target("distance: bf16 / fp32", ratio, None, 1.1)
    report.note("Two seeds of fp32 show how far apart equal trainings end.")


def relative_gap(reference: Sequence[float], other: Sequence[float]) -> float:
    """Mean of |other − reference| / reference."""
    pairs = zip(reference, other, strict=True)
    return statistics.fmean(abs(b - a) / a for a, b in pairs)


if __name__ == "__main__":
    main()
