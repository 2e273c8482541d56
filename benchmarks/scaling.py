"""Cost against resolution, width, batch, n and NFE (fitted exponents), two processes against one,
and projections from counted operations for runs that this machine cannot do.

Projections are written into ``docs/scaling.md`` at full size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from betasigma.build import make
from betasigma.commands.assemble import make_sampler
from betasigma.runs.files import write_json
from betasigma.runs.record import Record
from harness import ours
from harness.images import png_folder
from harness.report import ROOT, Cell, Report, as_table, options, replace_section
from harness.timing import Step, fitted_exponent, interleaved

MEASURED = ROOT / "benchmarks/results/gpu_h100_80gb_hbm3.json"
"""What ``benchmarks/gpu.py`` measured on an H100."""

BYTES_PER_PARAMETER = 4 + 4 + 8 + 4 + 2
"""float32 weights, gradients, Adam's two moments and the average, and the bf16 copy of autocast."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, project and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--rounds", {"type": int, "help": "7 at full size, else 2"}),
        ("--projections", {"action": "store_true", "help": "count anew, and keep what is timed"}),
    )
    report = Report("scaling", chosen)
    rounds = chosen.rounds or (7 if report.full else 2)
    tables = projections(report)
    if chosen.projections:
        renew(report)
    else:
        with TemporaryDirectory() as folder:
            exponents(report, Path(folder), rounds)
            if chosen.clock == "wall":
                processes(report, Path(folder))
        report.save()
    if report.full:
        replace_section(ROOT / "docs/scaling.md", "projections", tables)


def renew(report: Report) -> None:
    """Put the projections into the results that an earlier run has left."""
    path = report.out / f"{report.name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    counted = report.content["tables"]
    content["tables"][: len(counted)] = counted
    content["notes"] = report.content["notes"]
    write_json(path, content)


# ------------------------------------------------------------------ measured here


def exponents(report: Report, folder: Path, rounds: int) -> None:
    """Sweeps of one size at a time, the others held."""
    full = report.full
    sweeps: dict[str, tuple[Sequence[int], Callable[[int], Step]]] = {
        "training step, resolution": (
            (16, 32, 64) if full else (8, 16),
            lambda size: training(folder, size=size),
        ),
        "training step, channels": (
            (32, 64, 128) if full else (16, 32),
            lambda channels: training(folder, channels=channels),
        ),
        "training step, batch": (
            (4, 8, 16, 32) if full else (4, 8),
            lambda batch: training(folder, batch=batch),
        ),
        "sampling, n": (
            (32, 64, 128, 256) if full else (8, 16),
            lambda n: sampling(folder, n=n),
        ),
        "sampling, NFE": (
            (5, 10, 20, 40) if full else (2, 4),
            lambda nfe: sampling(folder, nfe=nfe),
        ),
    }
    rows: list[list[Cell]] = []
    for name, (sizes, build) in sweeps.items():
        timings = interleaved({str(size): build(size) for size in sizes}, rounds)
        costs = [timings.median(str(size)) for size in sizes]
        shown = ", ".join(f"{s}: {1e3 * c:.0f}" for s, c in zip(sizes, costs, strict=True))
        rows.append([name, shown, fitted_exponent(sizes, costs)])
        report.raw(name, timings.seconds)
    report.table(
        "Cost ∝ size^p (default sizes: 32×32 greyscale, 32 channels, batch 8; 32 images, 10 NFE)",
        ["what", "milliseconds by size", "p"],
        rows,
    )


def configured(folder: Path, size: int, channels: int, batch: int) -> dict[str, Any]:
    """A small U-Net without attention, so that one law holds at all sizes."""
    data = folder / f"data_{size}"
    if not data.exists():
        png_folder(data, 20, 1, size)
    return ours.composed(
        [
            "experiment=mnist_ddpm",
            "data=image_folder",
            f"data.root={data}",
            f"data.image_size={size}",
            "data.channels=1",
            "network=unet_28",
            "network.attention=[]",
            "sampler=ddim",
            f"network.channels={channels}",
            f"batch_size={batch}",
        ]
    )


def training(folder: Path, size: int = 32, channels: int = 32, batch: int = 8) -> Step:
    """A bare training step."""
    config = configured(folder, size, channels, batch)
    return ours.bare_step(config, ours.parts(config), torch.randn(batch, 1, size, size))


def sampling(folder: Path, n: int = 32, nfe: int = 10) -> Step:
    """n images by DDIM."""
    config = configured(folder, 32, 32, 8)
    denoiser = ours.parts(config).module.average
    sampler = make_sampler({**config["sampler"], "steps": nfe})
    return lambda: sampler.sample(denoiser, n)


def processes(report: Report, folder: Path) -> None:
    """Images/s of ``train.py`` with one process and with two."""
    data = png_folder(folder / "processes", 200, 1, 28)
    cores = torch.get_num_threads()
    settings = {
        "1 process, 1 thread": ["hardware=cpu", "hardware.threads=1"],
        f"1 process, {cores} threads": ["hardware=cpu", f"hardware.threads={cores}"],
        "2 processes, 1 thread each": [
            "hardware=ddp",
            "hardware.accelerator=cpu",
            "hardware.threads=1",
        ],
    }
    steps = 30 if report.full else 4
    rows: list[list[Cell]] = []
    for number, (name, words) in enumerate(settings.items()):
        run = folder / f"run_{number}"
        common = [
            "data=image_folder",
            f"data.root={data}",
            "data.image_size=28",
            "data.channels=1",
            "data.val_size=4",
            "network=unet_28",
            "batch_size=64" if report.full else "batch_size=8",
            f"steps={steps}",
            f"training.log_every={steps}",
            "evaluation=none",
            "logger=none",
            "sampler=ddim",
            "sampler.steps=1",
            "training.num_samples=2",
            f"hydra.run.dir={run}",
        ]
        subprocess.run(
            [sys.executable, "train.py", *common, *words], cwd=ROOT, check=True, capture_output=True
        )
        speed = Record(run / "metrics.csv").curve("train/images_per_second")[1][-1]
        rows.append([name, speed])
    report.table("Data-parallel training of the small U-Net", ["", "images/s"], rows)


# ------------------------------------------------------------------ projected


class Cost(NamedTuple):
    """What a network costs per image."""

    parameters: int
    forward: float
    """FLOP of a forward pass."""
    training: float
    """FLOP of a forward and a backward pass."""
    activations: float
    """Bytes kept for the backward pass."""


class Run(NamedTuple):
    """A training that is projected."""

    network: dict[str, Any]
    channels: int
    size: int
    batch: int
    steps: int


CELEBA_HQ = {"channels": 128, "multipliers": [1, 1, 2, 2, 4, 4], "attention": [16], "dropout": 0.0}
RUNS = {
    "CIFAR-10 as published, batch 128, 800k steps": Run({}, 3, 32, 128, 800_000),
    "CelebA-HQ 256 as published, batch 64, 500k steps": Run(CELEBA_HQ, 3, 256, 64, 500_000),
    "CelebA-HQ 256, gradient checkpointing": Run(
        {**CELEBA_HQ, "checkpoint": True}, 3, 256, 64, 500_000
    ),
    "one of 1,000 jobs of a sweep: CIFAR-10, batch 128, 50k steps": Run({}, 3, 32, 128, 50_000),
}


def projections(report: Report) -> str:
    """Count operations and bytes without computing, and divide; returns the tables."""
    speed = measured_speed()
    training: list[list[Cell]] = []
    sampling: list[list[Cell]] = []
    for name, run in RUNS.items():
        cost = cost_of(run)
        seconds = cost.training * run.batch * run.steps / speed
        state = cost.parameters * BYTES_PER_PARAMETER
        training.append(
            [
                name,
                f"{cost.parameters / 1e6:.1f} M",
                cost.training / 1e9,
                f"{state / 2**30:.1f} + {cost.activations * run.batch / 2**30:.1f}",
                seconds / 3600,
            ]
        )
        if "checkpointing" not in name and "1,000" not in name:
            per_call = cost.forward * 50_000 / speed / 3600
            sampling.append([name.split(",")[0], 1000 * per_call, 50 * per_call])
    hours = training[-1][-1]
    assert isinstance(hours, float)
    columns = [
        "**projected** on one H100",
        "parameters",
        "GFLOP an image",
        "GiB: state + activations",
        "hours",
    ]
    report.table("Projected training (counted, not measured)", columns, training)
    more = ["**projected** on one H100", "hours, 1,000 NFE", "hours, 50 NFE"]
    report.table("Projected sampling of 50,000 images", more, sampling)
    assumption = (
        f"Projected from PyTorch's operation counter at the {speed / 1e12:.0f} TFLOP/s that a "
        f"training step of the CIFAR-10 network was measured at on one H100 (benchmarks.md; "
        f"sampling was as fast within 3 %); activations are what autograd keeps in bf16 autocast. "
        f"The sweep of 1,000 such jobs: {1000 * hours:,.0f} GPU-hours, "
        f"{1000 * hours / 64:,.0f} hours on 64 GPUs. The larger networks were not measured there."
    )
    report.note(assumption)
    tables = [{"columns": columns, "rows": training}, {"columns": more, "rows": sampling}]
    return "\n\n".join([*(as_table(table) for table in tables), assumption])


def measured_speed() -> float:
    """FLOP/s of the fastest training step of DDPM's CIFAR-10 network on an H100."""
    tables = json.loads(MEASURED.read_text(encoding="utf-8"))["tables"]
    steps = next(table for table in tables if table["title"].startswith("DDPM's CIFAR-10"))
    found = steps["columns"].index("TFLOP/s")
    return max(1e12 * row[found] for row in steps["rows"] if row[found])


def cost_of(run: Run) -> Cost:
    """Cost per image, from two batch sizes: what does not grow with the batch is no image's."""
    # only the network's settings are read: nothing is downloaded
    node = ours.composed(["experiment=ddpm_cifar10", "data.download=true"])["network"]
    with FakeTensorMode():
        network = make(
            {**node, **run.network}, "network", in_channels=run.channels, image_size=run.size
        )
        one, two = (_counted(network, run, batch) for batch in (1, 2))
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, *(b - a for a, b in zip(one, two, strict=True)))


def _counted(network: nn.Module, run: Run, batch: int) -> tuple[float, float, float]:
    x, t = torch.randn(batch, run.channels, run.size, run.size), torch.ones(batch)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            forward = ours.flops_of(lambda: network(x, t))
        kept: dict[int, int] = {}

        def both() -> None:
            with saved_bytes(kept):
                output = network(x, t)
            output.float().square().mean().backward()

        total = ours.flops_of(both)
    return forward, total, float(sum(kept.values()))


@contextmanager
def saved_bytes(kept: dict[int, int]) -> Iterator[Mapping[int, int]]:
    """Sizes of the storages that autograd keeps meanwhile."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


if __name__ == "__main__":
    main()
