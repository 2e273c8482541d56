"""What busy neighbours cost, by the number of threads and by how they wait for each other.

    python benchmarks/neighbours.py                # seven minutes

A command takes as many threads as CPUs are idle when it starts, and follows neighbours that come
later (:mod:`betasigma.cpus`, :class:`betasigma.devices.Following`). Every
setting has a process of its own, since OpenMP reads it when PyTorch is loaded; the processes take
turns, without neighbours and beside one and two processes that only burn time. A share is the speed
of a setting over that of the fastest one of the same round.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from unittest.mock import patch

from betasigma.cpus import THREADS_OF_USER, usable_cpus
from harness.machine import NO_BF16, alone, dtypes
from harness.report import Report, options
from harness.timing import Apart, Step, Timings, seconds_of

NEIGHBOURS = (0, 1, 2)


def threads_beside(number: int) -> str:
    """Name of the setting that a command chooses beside so many busy processes."""
    idle = max(1, usable_cpus() - number)
    return DEFAULT if idle == usable_cpus() else f"OMP_NUM_THREADS={idle}"


DEFAULT = "PyTorch's default"

SETTINGS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (10_000, 1000, 100)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{
        name: {"OMP_NUM_THREADS": name.rpartition("=")[2]}
        for name in map(threads_beside, NEIGHBOURS)
        if name != DEFAULT
    },
}
"""Environment variables of each setting; none of the others' are set."""

VARIABLES = sorted({name for setting in SETTINGS.values() for name in setting})

KINDS = (
    "training, fp32",
    "training, bf16",
    "sampling, fp32",
    "sampling, bf16",
    "evaluation",
)
"""Kinds of work: a step of the digits' U-Net at the default batch, network evaluations of a
sampling of 256, and features of 8 images."""


def work() -> tuple[str, ...]:
    """Those of ``KINDS`` that this processor has instructions for."""
    return tuple(kind for kind in KINDS if "bf16" not in kind or "bf16" in dtypes())


BURN = "while True: pass"

LOOKS = 20
"""Commands that look at the machine beside each number of neighbours."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--rounds", {"type": int, "help": "15 at full size, else 5"}),
        ("--neighbours", {"type": int, "nargs": "*", "default": NEIGHBOURS, "help": "how many"}),
        ("--settings", {"nargs": "*", "default": list(SETTINGS), "help": "some of them"}),
    )
    report = Report("neighbours", chosen)
    rounds = chosen.rounds or (15 if report.full else 5)
    with ExitStack() as stack:
        candidates = {name: stack.enter_context(started(name)) for name in chosen.settings}
        for candidate in candidates.values():  # one after the other, so that none waits in memory
            for _ in work():
                candidate()
        for number in chosen.neighbours:
            with neighbours(number):
                show(report, number, in_turns(candidates, rounds), looks(LOOKS))
    later(report)
    if "bf16" not in dtypes():
        report.note(NO_BF16)
    report.note(
        "A share of 1 is the fastest setting of that column. Each figure is a ratio of medians; "
        "the settings took turns, piece of work by piece of work."
    )
    report.save()


COMES, LEAVES, ENDS, ROW = 15, 45, 75, 5
"""Seconds after which a neighbour comes and leaves and a training ends, and of a row of its table.
"""


def later(report: Report) -> None:
    """A training that a neighbour joins, with threads that follow it, and with those it had."""
    follows, stays = (alone(joined, follows) for follows in (True, False))
    report.table(
        f"A neighbour comes after {COMES} s and leaves after {LEAVES} s: images/s of a training",
        ["seconds", "threads follow", "threads of the start"],
        [
            [f"{ROW * n} to {ROW * (n + 1)}", *both]
            for n, both in enumerate(zip(follows, stays, strict=True))
        ],
    )
    report.raw("a neighbour comes later", {"follows": follows, "stays": stays})
    last = LEAVES // ROW - 1
    what = f"images/s beside one who came {LEAVES - COMES} s ago, threads follow / stay"
    report.target(what, follows[last] / stays[last], 1)


def joined(follows: bool) -> list[float]:
    """Images a second of a training of the digits, in each stretch of ``ROW`` seconds."""
    import torch

    from betasigma.devices import Following
    from harness import ours

    config = ours.composed(["hardware.compile=false"])
    made, batch = ours.parts(config), config["batch_size"]
    step = ours.bare_step(config, made, torch.randn(batch, *made.data.sample_shape))
    for _ in range(3):
        step()
    following, steps = Following(config["hardware"], print), [0] * (ENDS // ROW)
    begun = time.monotonic()
    for number, until in ((0, COMES), (1, LEAVES), (0, ENDS)):
        with neighbours(number):
            while (passed := time.monotonic() - begun) < until:
                steps[int(passed / ROW)] += 1
                step()
                if follows:
                    following()
    return [batch * n / ROW for n in steps]


@contextmanager
def started(name: str) -> Iterator[Apart]:
    """A process whose environment has this setting and none of the others."""
    own = SETTINGS[name]
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    with patch.dict(os.environ, {**kept, **own}, clear=True), Apart(turns_of) as candidate:
        yield candidate


def turns_of() -> Step:
    """A step that does the next kind of work at each call."""
    import torch

    from betasigma.commands.assemble import make_sampler
    from betasigma.evaluation.choice import choose
    from betasigma.evaluation.features import build
    from harness import ours

    torch.manual_seed(0)
    steps: dict[str, Step] = {}
    for name in dtypes():
        words = [f"hardware.precision={name.removeprefix('fp')}", "hardware.compile=false"]
        config = ours.composed([*words, "sampler=ddim", "sampler.steps=3"])
        made = ours.parts(config)
        x = torch.randn(config["batch_size"], *made.data.sample_shape)
        steps[f"training, {name}"] = repeated(ours.bare_step(config, made, x), 2)
        sampler, average = make_sampler(config["sampler"]), made.module.average
        steps[f"sampling, {name}"] = partial(sampler.sample, average, 256)
    extractor = build(choose("auto", None, False, made.data.sample_shape), made.data.sample_shape)
    images = torch.randint(256, (8, *made.data.sample_shape), dtype=torch.uint8)
    steps["evaluation"] = partial(extractor.extract, images)
    order = cycle(work())
    return lambda: steps[next(order)]()


def repeated(step: Step, times: int) -> Step:
    """The step, several times."""

    def run() -> None:
        for _ in range(times):
            step()

    return run


def in_turns(candidates: Mapping[str, Apart], rounds: int) -> dict[str, Timings]:
    """Seconds of every candidate, by the kind of work."""
    found = {kind: Timings({name: [] for name in candidates}) for kind in work()}
    for number in range(rounds + 1):  # the first does not count
        for timings in found.values():
            for name, candidate in candidates.items():
                seconds = seconds_of(candidate)
                if number:
                    timings.seconds[name].append(seconds)
    return found


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """That many processes that only burn time, started by a shell that ends: what a process starts
    itself is no neighbour.
    """
    command = ["sh", "-c", '"$0" -c "$1" >&- & echo $!', sys.executable, BURN]
    started = [int(subprocess.check_output(command)) for _ in range(number)]
    try:
        yield
    finally:
        for process in started:
            os.kill(process, signal.SIGKILL)


LOOK = "from betasigma import cpus; cpus.look_for_idle_cpus(); print(cpus.idle_cpus())"


def looks(number: int) -> list[int]:
    """Threads that so many commands would take, each in a process that looks as they do."""
    environment = {key: value for key, value in os.environ.items() if key not in THREADS_OF_USER}
    call = partial(subprocess.run, [sys.executable, "-c", LOOK], env=environment)
    return [int(call(capture_output=True, check=True).stdout) for _ in range(number)]


def show(report: Report, number: int, found: Mapping[str, Timings], threads: Sequence[int]) -> None:
    """A table of the shares, and what commands would choose."""
    best = {work: min(map(t.median, t.seconds)) for work, t in found.items()}
    settings = next(iter(found.values())).seconds
    report.table(
        f"Beside {number} busy processes: speed as a share of the fastest setting's",
        ["setting", *found, "least"],
        [
            [name, *shares, min(shares)]
            for name in settings
            for shares in [[best[work] / t.median(name) for work, t in found.items()]]
        ],
    )
    report.raw(f"{number} neighbours", {work: t.seconds for work, t in found.items()})
    report.raw(f"{number} neighbours, load", list(os.getloadavg()))
    chosen = threads_beside(number)
    if chosen in settings:
        least = min(best[work] / t.median(chosen) for work, t in found.items())
        what = f"{chosen}, which a command chooses beside {number} busy processes"
        report.target(f"{what}: least share of the fastest", least, 0.8 if number else 0.98)
    right = threads.count(max(1, usable_cpus() - number)) / len(threads)
    what = f"share of {len(threads)} commands that choose so beside {number} busy processes"
    report.target(what, right, 0.9)


if __name__ == "__main__":
    main()
