"""U-Nets in the default memory format and with channels last, and what ``auto`` takes of the two.

    python benchmarks/memory_format.py --size full        # four minutes on two cores

Training is a bare step, sampling one evaluation of a batch of 64 (``hardware.channels_last``,
:func:`betasigma.devices.faster_channels_last`, :mod:`betasigma.commands.memory_format`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from betasigma.commands.memory_format import choose_memory_format
from betasigma.devices import prepare_model
from harness import ours
from harness.machine import NO_BF16, dtypes
from harness.report import Report, options, with_spread
from harness.timing import Step, Timings, interleaved

NETWORKS = {
    "unet_8": (8, 64),
    "unet_28": (28, 32),
    "unet_32": (32, 16),
    "unet_ddpm_cifar10": (32, 8),
}
"""Size of the images, and a batch that is trained on."""

FORMATS = {"default": False, "channels last": True}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--rounds", {"type": int, "help": "9 at full size, else 3"}),
        ("--networks", {"nargs": "+", "choices": list(NETWORKS), "default": None}),
    )
    report = Report("memory_format", chosen)
    rounds = chosen.rounds or (9 if report.full else 3)
    rows, least = [], 1.0
    for network in chosen.networks or (list(NETWORKS) if report.full else ["unet_8"]):
        for dtype in dtypes():
            taken, steps = candidates(network, dtype)
            for work, step in steps.items():
                timings = interleaved(step, rounds, warmup=2)
                ratio = timings.ratio(*FORMATS)
                spread = timings.spread(*FORMATS)
                rows.append([network, dtype, work, with_spread(ratio, spread), taken[work]])
                least = min(least, share(timings, taken[work]))
    report.table(
        "Channels last is faster than the default format by",
        ["network", "arithmetic", "work", "times", "auto takes"],
        rows,
    )
    report.target("speed of what auto takes / the faster format's, least", least, 0.95)
    if "bf16" not in dtypes():
        report.note(NO_BF16)
    report.save()


def share(timings: Timings, name: str) -> float:
    """Speed of a candidate as a share of the fastest one's."""
    return min(map(timings.median, timings.seconds)) / timings.median(name)


def candidates(
    network: str, dtype: str
) -> tuple[Mapping[str, str], Mapping[str, Mapping[str, Step]]]:
    """By kind of work, the format that auto takes, and what to call for each format."""
    size, batch = NETWORKS[network]
    x = torch.rand(batch, 1, size, size)
    steps: dict[str, dict[str, Step]] = {"training": {}, "sampling": {}}
    words = [
        *(f"network={network}", f"data.image_size={size}", "sampler=ddim", "sampler.steps=1"),
        *(f"hardware.precision={dtype.removeprefix('fp')}", "hardware.compile=false"),
    ]
    auto = ours.composed(words)
    taken = {}
    for work, trains in (("training", True), ("sampling", False)):
        denoiser = ours.parts(auto).denoiser
        prepare_model(denoiser, auto["hardware"])
        choose_memory_format(denoiser, auto["hardware"], trains, print)
        taken[work] = next(name for name, last in FORMATS.items() if last == is_last(denoiser))
    for name, last in FORMATS.items():
        config = ours.composed([*words, f"hardware.channels_last={last}"])
        made = ours.parts(config)
        steps["training"][name] = ours.bare_step(config, made, x)
        steps["sampling"][name] = partial(made.sampler.sample, made.module.average, 64)
    return taken, steps


def is_last(network: torch.nn.Module) -> bool:
    """Whether the weights of its convolutions have their channels last."""
    return any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in network.parameters()
        if p.ndim == 4
    )


if __name__ == "__main__":
    main()
