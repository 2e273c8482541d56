"""How long a run still takes: its steps, and what comes between them and after the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from betasigma.training.steps import Stopwatch

EVALUATIONS = 3
"""Network evaluations that a training step counts as, for each of its examples."""


class Work(NamedTuple):
    """Work beside the steps: validation, sampling, evaluation.

    Attributes:
        size: network evaluations each time, of one example each.
        every: steps between two times; ``None`` for never.
        after: network evaluations of it after the last step.
        with_last: whether it is also done at the last step, where that is one of ``every``.
    """

    size: float = 0.0
    every: int | None = None
    after: float = 0.0
    with_last: bool = False

    def between(self, begin: int, end: int, total: int) -> float:
        """Network evaluations of it after step ``begin``, up to step ``end`` of ``total``."""
        if self.every is None:
            return 0.0
        last = end if self.with_last else min(end, total - 1)
        return self.size * max(0, last // self.every - begin // self.every)


class Forecast:
    """Predicts the seconds that are left.

    Work that was done before takes as long as then. Work that is new takes as long as training
    steps of as many network evaluations.

    Args:
        watch: what the run has spent its time on.
        batch_size: examples of a step.
        total: steps of the whole run.
        works: gives them by what they are; asked when the run begins.
        budget: gives the seconds of training that the run may still take.
    """

    def __init__(
        self,
        watch: Stopwatch,
        batch_size: int,
        total: int,
        works: Callable[[], Mapping[str, Work]],
        budget: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._watch, self._batch_size, self._total = watch, batch_size, total
        self._ask, self._budget = works, budget
        self._works: Mapping[str, Work] = {}
        self._first = 0

    def begin(self, step: int) -> None:
        """The run, or this start of it, begins after this step."""
        self._first, self._works = step, self._ask()

    def beside_steps(self, step: int, seconds_per_step: float) -> tuple[float, float]:
        """Seconds of what comes between the steps after ``step``, and of what comes at the end."""
        between = after = 0.0
        for what, work in self._works.items():
            done = work.between(self._first, step, self._total)
            spent = self._watch.spent.get(what, 0.0)
            one = spent / done if done and spent else seconds_per_step / self._of_a_step
            between += one * work.between(step, self._total, self._total)
            after += one * work.after
        return between, after

    def seconds(self, step: int, seconds_per_step: float) -> float:
        """Seconds left after ``step``."""
        between, after = self.beside_steps(step, seconds_per_step)
        training = (self._total - step) * seconds_per_step + between
        return min(training, max(0.0, self._budget())) + after

    @property
    def _of_a_step(self) -> float:
        return float(EVALUATIONS * self._batch_size)
