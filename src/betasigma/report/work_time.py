"""How long a run has worked, out of its record: the time between two starts is no work."""

from __future__ import annotations

from itertools import pairwise

from betasigma.report.scan import Recorded
from betasigma.runs.status import written_at


class WorkTime:
    """Seconds of work of a run.

    Args:
        run: whose start of the process counts, or its first value where that is not known.

    Attributes:
        starts: moments at which it was started and continued, as far as they are known.
    """

    def __init__(self, run: Recorded) -> None:
        earlier = run.environment.get("resumed_after")
        nodes = [*(earlier if isinstance(earlier, list) else []), run.environment]
        known = (written_at(node, "started") for node in nodes if isinstance(node, dict))
        self.starts = sorted(filter(None, known))
        self._pauses = _pauses(run, self.starts)

    def until(self, moment: float) -> float:
        """Seconds of work until a moment."""
        off = [off for start, off in self._pauses if start <= moment]
        off = off or [off for _, off in self._pauses[:1]]
        return max(0.0, moment - off[-1]) if off else 0.0


def _pauses(run: Recorded, starts: list[float]) -> list[tuple[float, float]]:
    """From when on how much is taken off the clock: the time before the first start, and that
    between the last value of a start and the next start.
    """
    known = [series.times for series in run.series if series.times]
    if not starts:
        first = min(map(min, known), default=None)
        return [] if first is None else [(first, first)]
    pauses = [(starts[0], starts[0])]
    for before, start in pairwise(starts):
        here = (moment for times in known for moment in times if before <= moment < start)
        last = max(here, default=before)
        pauses.append((start, pauses[-1][1] + start - last))
    return pauses
