"""The parts of a config and the facts of its data, for checks between groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from betasigma.errors import UserError

if TYPE_CHECKING:
    from betasigma.options.hardware import HardwareOptions
    from betasigma.options.models import ModelOptions
    from betasigma.options.networks import NetworkOptions
    from betasigma.options.noise_schedules import ScheduleOptions
    from betasigma.options.objectives import ObjectiveOptions
    from betasigma.options.preconditionings import PreconditioningOptions
    from betasigma.options.training import DenoiserOptions


@dataclass(frozen=True)
class DataFacts:
    """What other groups ask of the data, read once.

    Attributes:
        name: of the data set.
        shape: of one example: ``(C, H, W)``, or ``(d,)`` for points.
        find_classes: gives the names of the classes, by number; it may read many file names.
        has_density: whether the density of the data is known in closed form.
        value_range: least and greatest value of clean data; ``None`` if the model chooses.
    """

    name: str
    shape: tuple[int, ...]
    find_classes: Callable[[], Sequence[str]] = tuple
    has_density: bool = False
    value_range: tuple[float, float] | None = None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Name of each class label; ``()`` for none."""
        return tuple(self.find_classes())

    @property
    def num_classes(self) -> int:
        """Class labels; 0 for none."""
        return len(self.classes)

    @property
    def dimensions(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    @property
    def points(self) -> bool:
        """Whether examples are points; else they are images."""
        return len(self.shape) == 1


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none: their numbers."""
    return tuple(map(str, range(count)))


@dataclass(frozen=True)
class Composition:
    """The parts of a model's config that others ask about."""

    data: DataFacts
    network: NetworkOptions
    schedule: ScheduleOptions
    preconditioning: PreconditioningOptions
    objective: ObjectiveOptions
    model: ModelOptions
    denoiser: DenoiserOptions
    hardware: HardwareOptions

    @property
    def trains(self) -> bool:
        """Whether there is something to train: an oracle has no weights."""
        return self.model.trains

    @property
    def refuses_between_levels(self) -> bool:
        """Whether the model refuses times between its noise levels."""
        levels_only = self.objective.times == "levels" and self.denoiser.off_levels == "refuse"
        return self.trains and levels_only

    def refuse_between_levels(self, what: str, instead: str = "") -> None:
        """Refuse what visits times between the noise levels, where the model refuses these."""
        if self.refuses_between_levels and not self.one_level:
            raise UserError(
                f"{what} visits times between the model's {self.schedule.level_count} noise "
                f"levels, and the model has denoiser.off_levels=refuse: {instead}train it with "
                f"denoiser.off_levels=snap or interpolate"
            )

    @property
    def one_level(self) -> bool:
        """Whether the model has a single noise level."""
        return self.schedule.level_count == 1

    @property
    def learns_variance(self) -> bool:
        """Whether the model knows the variance of its reverse steps."""
        return self.trains and self.objective.learns_variance
