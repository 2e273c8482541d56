"""What a training step on a CPU gains by huge pages.

    python benchmarks/huge_pages.py                # a minute

A command lets its heap have pages of 2 MiB (:func:`betasigma.devices.keep_freed_memory`). Each
candidate has a process of its own, since the heap of a process is extended once; they take turns.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from harness.machine import NO_BF16, dtypes
from harness.report import Report, options, with_spread
from harness.timing import Apart, Step, interleaved

CASES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "digits, 8×8, batch 128": ((), (128, 1, 8, 8)),
    "28×28, batch 64": (("network=unet_28", "data.image_size=28"), (64, 1, 28, 28)),
}
"""Words of the config, and the shape of a batch."""

ADVICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__, argv, ("--rounds", {"type": int, "help": "15 at full size, else 5"}))
    report = Report("huge_pages", chosen)
    rounds = chosen.rounds or (15 if report.full else 5)
    rows: list[list[str | int | float]] = []
    for case in CASES:
        for precision in dtypes():
            made = (Apart(partial(step_of, case, precision, huge)) for huge in (False, True))
            with next(made) as small, next(made) as huge:
                timings = interleaved({"4 KiB": small, "2 MiB": huge}, rounds, warmup=2)
                memory = [candidate.ask(peak) / 2**10 for candidate in (small, huge)]
            ratio = timings.ratio("4 KiB", "2 MiB")
            spread = timings.spread("4 KiB", "2 MiB")
            milliseconds = [1000 * timings.median(name) for name in timings.seconds]
            rows.append([case, precision, *milliseconds, with_spread(ratio, spread), *memory])
            report.raw(f"{case}, {precision}", timings.seconds)
            report.target(f"{case}, {precision}: speed with huge pages / without", ratio, 1.0)
    report.table(
        "A training step, by the pages of the heap",
        ["network", "arithmetic", "4 KiB, ms", "2 MiB, ms", "ratio", "4 KiB, MiB", "2 MiB, MiB"],
        rows,
    )
    if "bf16" not in dtypes():
        report.note(NO_BF16)
    told = ADVICE.read_text(encoding="utf-8").strip() if ADVICE.exists() else "no huge pages"
    report.note(f"This system says: {told}. MiB are the peak memory of the process.")
    report.save()


def step_of(case: str, precision: str, huge: bool) -> Step:
    """The training step of a process whose heap has huge pages or not."""
    import torch

    from betasigma import devices
    from harness import ours

    torch.manual_seed(0)
    words, shape = CASES[case]
    with patch.object(
        devices, "_use_huge_pages", devices._use_huge_pages if huge else lambda: None
    ):
        config = ours.composed([*words, f"hardware.precision={precision.removeprefix('fp')}"])
        made = ours.parts(config)
    return ours.bare_step(config, made, torch.randn(shape))


def peak() -> float:
    """Peak memory of this process, in KiB."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
