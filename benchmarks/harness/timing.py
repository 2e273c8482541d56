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


def seconds_of(step: Step) -> float:
    """Seconds of one call."""
    start = now()
    step()
    return now() - start


def interleaved(candidates: Mapping[str, Step], rounds: int, warmup: int = 1) -> Timings:
    """Time the candidates in turns.

    Args:
        candidates: what to call, by name.
        rounds: rounds that count.
        warmup: rounds before them that do not.
    """
    timings = Timings({name: [] for name in candidates})
    for number in range(warmup + rounds):
        for name, step in candidates.items():
            seconds = seconds_of(step)
            if number >= warmup:
                timings.seconds[name].append(seconds)
    return timings


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost ∝ size^p, by least squares in logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(x, y).slope
