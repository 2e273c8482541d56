"""A training step against public peers and against a bare loop: images/s, GFLOP/s, memory.

Each step is forward, backward, clipping, Adam and averaged weights. Ours runs inside the real
Trainer with the callbacks and loggers of ``train.py``, its data loading included; peers and the
bare loop get a ready batch. Peers have processes of their own, since ``train.py`` sets up the
allocator of its own one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness import machine, ours, peers
from harness.images import png_folder
from harness.machine import dtypes
from harness.report import Report, options, with_spread
from harness.timing import Apart, Step, Timings


class Case(NamedTuple):
    """A network and the batch that it is trained on."""

    title: str
    overrides: tuple[str, ...]
    peers: peers.Peers
    channels: int
    size: int
    batch: int


CASES = {
    "cifar": Case(
        "(a) DDPM's CIFAR-10 U-Net, 3×32×32",
        (
            "experiment=ddpm_cifar10",
            "data=image_folder",
            "network=unet_ddpm_cifar10",
            "data.image_size=32",
        ),
        peers.CIFAR,
        channels=3,
        size=32,
        batch=16,
    ),
    "grey": Case(
        "(b) small 28×28 greyscale U-Net",
        (
            "experiment=mnist_ddpm",
            "data=image_folder",
            "network=unet_28",
            "data.image_size=28",
            "data.channels=1",
            "data.flip=false",
        ),
        peers.GREY_28,
        channels=1,
        size=28,
        batch=64,
    ),
}

LUCIDRAINS = "denoising-diffusion-pytorch"

SETTINGS = {
    "default": ("as each is run by default: ours as configured, theirs fp32", ()),
    "fp32": ("all fp32", ("hardware.precision=32",)),
    "bf16": ("all bf16", ("hardware.precision=bf16",)),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--rounds", {"type": int, "help": "rounds that count; 7 at full size, else 3"}),
        ("--cases", {"nargs": "+", "choices": list(CASES), "default": None}),
    )
    os.environ.setdefault("WANDB_MODE", "offline")
    report = Report("train_step", chosen)
    rounds = chosen.rounds or (7 if report.full else 3)
    limits = machine.limits(11 if report.full else 5)
    report.table("Limits of this machine (GFLOP/s)", ["what", "GFLOP/s"], limits.items())
    report.raw("limits", limits)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.cases or (list(CASES) if report.full else ["grey"]):
            measure(report, CASES[name], limits, rounds, Path(folder) / name)
            report.save()
    if "bf16" not in dtypes():
        report.note(machine.NO_BF16)
    report.note(
        "Peers and the bare loop train on a ready batch, without data loading, progress bars or "
        "trackers; ours includes all of them. Ours keeps its configured dropout, theirs have none."
    )
    report.save()


def measure(
    report: Report, case: Case, limits: dict[str, float], rounds: int, folder: Path
) -> None:
    """All settings of one case, and the memory of its candidates."""
    batch = case.batch if report.full else min(case.batch, 32)
    data = png_folder(folder / "data", 300, case.channels, case.size)
    x = torch.rand(batch, case.channels, case.size, case.size) * 2 - 1
    their_flops = {
        name: machine.alone(ours.flops_of_built, partial(step_of, name, case.peers[name], x))
        for name in case.peers
    }
    sizes: dict[str, int] = {}
    for setting, (title, overrides) in settings().items():
        print(f"\n{case.title}: {title}", flush=True)
        config = configured(case, overrides, data, batch)
        made = ours.parts(config)
        bare = ours.bare_step(config, made, x)
        flops = ours.flops_of(bare)
        others: dict[str, Step] = {"bare loop": bare}
        precision = "bf16" if setting == "bf16" else "no"
        their = case.peers["diffusers"]
        sizes |= {
            "ours": peers.parameters(made.denoiser),
            "diffusers": peers.parameters(peers.diffusers_unet(their)),
        }
        with ExitStack() as running:
            others["diffusers"] = running.enter_context(
                Apart(partial(peers.diffusers_step, their, x, precision))
            )
            if precision == "no":
                name, their = LUCIDRAINS, case.peers[LUCIDRAINS]
                others[name] = running.enter_context(
                    Apart(partial(peers.lucidrains_step, their, (x + 1) / 2))
                )
                sizes[name] = peers.parameters(peers.lucidrains_unet(their))
            timings = ours.trainer_against(config, made, folder / setting, others, rounds)
        del others, bare
        dtype = "bf16" if made.denoiser.precision is not None else "fp32"
        share = flops / timings.median("ours") / 1e9
        report.table(
            f"{case.title}, batch {batch}: {title} (ours: {dtype})",
            ["", "parameters", "GFLOP an image", "images/s", "GFLOP/s", "ours is faster by"],
            [
                [
                    name,
                    sizes.get(name, sizes["ours"]),
                    their_flops.get(name, flops) / batch / 1e9,
                    batch / timings.median(name),
                    their_flops.get(name, flops) / timings.median(name) / 1e9,
                    with_spread(timings.ratio(name, "ours"), timings.spread(name, "ours")),
                ]
                for name in timings.seconds
            ],
        )
        limit = machine.fastest_convolution(limits, dtype)
        report.table(
            f"{case.title}, {dtype}: arithmetic of our step",
            ["GFLOP a step", "GFLOP/s", f"share of the {dtype} convolution limit"],
            [[flops / 1e9, share, f"{100 * share / limit:.0f} %"]],
        )
        report.raw(f"{case.title}: {setting}", timings.seconds)
        targets(report, case, setting, timings)
        if setting == "default" and case is CASES["cifar"]:
            report.target(f"{case.title}: share of the limit (moonshot)", share / limit, 0.65)
    memory(report, case, data, batch, folder)


def settings() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Those of ``SETTINGS`` that this processor has instructions for."""
    return {name: found for name, found in SETTINGS.items() if name in ("default", *dtypes())}


def configured(case: Case, overrides: tuple[str, ...], data: Path, batch: int) -> dict[str, Any]:
    """The run's config: the default one, but for the data and for pauses between steps."""
    pauses = [f"training.{key}_every=1000000" for key in ("validate", "sample", "checkpoint")]
    return ours.composed(
        [
            *case.overrides,
            *overrides,
            f"data.root={data}",
            "data.val_size=1",
            f"batch_size={batch}",
            "evaluation=none",
            *pauses,
        ]
    )


def targets(report: Report, case: Case, setting: str, timings: Timings) -> None:
    """Compare with issue 4's figures."""
    theirs = [name for name in timings.seconds if name not in ("ours", "bare loop")]
    best = min(timings.ratio(name, "ours") for name in theirs)
    if setting == "default":
        wanted = 1.8 if case is CASES["cifar"] else 1.6
        report.target(f"{case.title}: step, default against the faster peer", best, wanted)
    else:
        ratio = timings.ratio("diffusers", "ours")
        what = f"{case.title}: step, all {setting}, against diffusers at equal size"
        report.target(what, ratio, 1.05)


def memory(report: Report, case: Case, data: Path, batch: int, folder: Path) -> None:
    """Peak memory of three steps of each candidate, each in its own process."""
    shape = (batch, case.channels, case.size, case.size)
    tasks: dict[str, Callable[[], object]] = {
        "ours": partial(run_ours, case, data, batch, folder / "memory"),
        **{name: partial(run_peer, name, case.peers[name], shape) for name in case.peers},
    }
    peaks = {
        name: machine.peak_memory(task, peers.MODULES.get(name, ())) for name, task in tasks.items()
    }
    report.table(
        f"{case.title}, batch {batch}: peak memory beyond the imports", ["", "MiB"], peaks.items()
    )
    least = min(peak for name, peak in peaks.items() if name != "ours")
    report.target(f"{case.title}: memory, ours / the leaner peer's", peaks["ours"] / least, None, 1)


def run_ours(case: Case, data: Path, batch: int, folder: Path) -> None:
    """Three steps of ours, in the default setting."""
    config = {**configured(case, (), data, batch), "steps": 3}
    ours.fit(config, ours.parts(config), folder)


def run_peer(name: str, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Three steps of a peer."""
    x = torch.rand(shape)
    step = step_of(name, settings, x)
    for _ in range(3):
        step()


def step_of(name: str, settings: dict[str, Any], x: torch.Tensor) -> Step:
    """A peer's step on the batch ``x``, by its defaults."""
    return (peers.diffusers_step if name == "diffusers" else peers.lucidrains_step)(settings, x)


if __name__ == "__main__":
    main()
