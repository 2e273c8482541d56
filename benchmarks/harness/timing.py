"""Timing that survives a machine which is not quiet: candidates take turns.

A, B, A, B, …: whatever slows the machine down for a while slows all of them down. A claim is the
ratio of the medians of one such session; its spread is that of the ratios of neighbours.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, runtime_checkable

Step = Callable[[], object]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` is the processor time of the process: of use with one thread on a busy machine."""

_clock = "wall"


def use_clock(name: str) -> None:
    """Choose what seconds are, for the whole process."""
    global _clock
    _clock = name


def now() -> float:
    """Seconds on the chosen clock."""
    return CLOCKS[_clock]()


@dataclass
class Timings:
    """Seconds of each candidate, one a round.

    Attributes:
        seconds: by name; element k of all lists belongs to round k.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of a candidate."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as fast ``fast`` is: ratio of the medians."""
        return self.median(slow) / self.median(fast)

    def spread(self, slow: str, fast: str) -> tuple[float, float]:
        """First and third quartile of the rounds' own ratios."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        ratios = [a / b for a, b in pairs]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


@runtime_checkable
class Timed(Protocol):
    """A candidate that times itself."""

    def seconds(self) -> float:
        """Seconds of one call."""
        ...


REST = 0.1
"""Seconds before and after a candidate in another process: the threads of whoever was last wait for
work without sleeping for some 20 ms, and would take them from the next.
"""


class Apart:
    """A candidate in a process of its own, where nothing that another one sets reaches it; it waits
    there until it is called, and times itself. To be used in a ``with``.

    Args:
        build: makes the step; can be pickled.
    """

    def __init__(self, build: Callable[[], Step]) -> None:
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._begun = False
        self._process = context.Process(target=_serve, args=(there, build, _clock), daemon=True)

    def __enter__(self) -> Apart:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join()

    def __call__(self) -> None:
        self.seconds()

    def begin(self) -> None:
        """Build the step and call it once, without waiting for the end of that."""
        self._here.send(None)
        self._begun = True

    def seconds(self) -> float:
        """Seconds of one call, by the clock of its process; of the first one where it has begun.

        Raises:
            RuntimeError: where it failed, with what it raised.
        """
        return self.ask(None)

    def ask(self, question: Callable[[], float] | None) -> float:
        """What a function returns there; ``None``: the step's seconds.

        Raises:
            RuntimeError: where it failed, with what it raised.
        """
        if not self._begun:
            time.sleep(REST)
            self._here.send(question)
        self._begun = False
        while not self._here.poll(1):
            if not self._process.is_alive():
                raise RuntimeError(f"a candidate ended with status {self._process.exitcode}")
        found = self._here.recv()
        time.sleep(REST)
        if isinstance(found, str):
            raise RuntimeError(found)
        return float(found)


def _serve(calls: Connection, build: Callable[[], Step], clock: str) -> None:
    use_clock(clock)
    step = None
    while True:
        question = calls.recv()
        try:
            step = step or build()
            calls.send(seconds_of(step) if question is None else question())
        except Exception as error:  # whatever a library raises, it is told where it matters
            calls.send(f"{type(error).__name__}: {error}")


def seconds_of(step: Step) -> float:
    """Seconds of one call."""
    if isinstance(step, Timed):
        return step.seconds()
    start = now()
    step()
    return now() - start


TOLD_EVERY = 10.0
"""Shortest time, in seconds, between two lines on how far a session is."""


class Telling:
    """Says now and then how far a session of turns is, so that a slow one is not silent."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, timings: Timings) -> None:
        """Print the medians so far, where nothing was printed for ``TOLD_EVERY`` seconds."""
        done = [name for name, seconds in timings.seconds.items() if seconds]
        if not done or time.monotonic() - self._last < TOLD_EVERY:
            return
        self._last = time.monotonic()
        rounds = max(len(timings.seconds[name]) for name in done)
        shown = ", ".join(f"{name} {timings.median(name):.3g} s" for name in done)
        print(f"  {rounds} rounds: {shown}", flush=True)


def interleaved(candidates: Mapping[str, Step], rounds: int, warmup: int = 1) -> Timings:
    """Time the candidates in turns.

    Args:
        candidates: what to call, by name.
        rounds: rounds that count.
        warmup: rounds before them that do not.
    """
    timings, tell = Timings({name: [] for name in candidates}), Telling()
    for number in range(warmup + rounds):
        for name, step in candidates.items():
            seconds = seconds_of(step)
            if number >= warmup:
                timings.seconds[name].append(seconds)
            tell(timings)
    return timings


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost ∝ size^p, by least squares in logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(x, y).slope
