"""A finished run, for notebooks and sweepers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betasigma.errors import UserError, did_you_mean
from betasigma.runs.directory import SUMMARY
from betasigma.runs.record import Record, current_name

if TYPE_CHECKING:
    from betasigma.commands.load import Loaded
    from betasigma.denoiser import Denoiser
    from betasigma.oracles import ExactDenoiser
    from betasigma.samplers import Sampler


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended: metrics, model and sampler."""

    directory: Path

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric, by name."""
        rows = Record.of(self.directory).rows()
        return {row["metric"]: float(row["value"]) for row in rows}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``: ``step``, and ``table`` with metric, value (``None`` where
        it is not finite), n and NFE.
        """
        content: dict[str, Any] = json.loads((self.directory / SUMMARY).read_text("utf-8"))
        return content

    @property
    def denoiser(self) -> Denoiser | ExactDenoiser:
        """The model with its averaged weights, on the CPU."""
        return self._loaded.denoiser

    @property
    def sampler(self) -> Sampler:
        """The sampler that the run was configured with."""
        return self._loaded.sampler

    def value(self, metric: str) -> float:
        """Return the last value of ``objective_metric``.

        Raises:
            UserError: if the run has no such metric, or its value is not finite.
        """
        metric = current_name(metric)
        if metric not in self.metrics:
            listed = ", ".join(sorted(self.metrics)) or "none"
            hint = did_you_mean(metric, self.metrics, 3, 0.5) or f"it has {listed}"
            raise UserError(f"objective_metric={metric} was not measured in this run; {hint}")
        value = self.metrics[metric]
        if not math.isfinite(value):
            raise UserError(f"objective_metric={metric} is {value} at the end of this run")
        return value

    @cached_property
    def _loaded(self) -> Loaded:
        from betasigma.commands.load import load_run

        return load_run(self.directory)
