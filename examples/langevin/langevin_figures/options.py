"""What the config of ``figures.py`` may hold. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field, model_validator

from betasigma.commands.checks import AppChecks
from betasigma.commands.config import parsed, saved_header
from betasigma.data import catalog
from betasigma.errors import UserError
from betasigma.options.apps import DataPlace
from betasigma.options.base import Index, Options, Positive, Seed, component
from betasigma.options.hardware import HardwareOptions
from betasigma.options.noise_schedules import GeometricOptions, SigmaOptions
from betasigma.options.samplers import AnnealedLangevinOptions

PLANE = "two"
"""The toy distribution (``data.mixture``) that the figures of the plane show."""


class FiguresOptions(Options):
    """The config of ``figures.py``."""

    runs: list[str]
    figures: Annotated[
        list[Literal["filmstrip", "vector_field", "score_error", "mode_weights"]],
        Field(min_length=1),
    ]
    seed: Seed
    n: Annotated[int, Field(ge=2)]
    image: Index
    frames: Annotated[int, Field(ge=3)]
    grid: Annotated[int, Field(ge=5)]
    learned_from: Annotated[int, Field(ge=2)]
    sigmas: Annotated[list[Positive], Field(min_length=1)]
    sigma: SigmaOptions
    schedule: Annotated[GeometricOptions, component("schedule", only=GeometricOptions)]
    sampler: Annotated[AnnealedLangevinOptions, component("sampler", only=AnnealedLangevinOptions)]
    data: DataPlace
    hardware: HardwareOptions

    @model_validator(mode="after")
    def _rising(self) -> FiguresOptions:
        if sorted(set(self.sigmas)) != self.sigmas:
            raise ValueError(f"sigmas={self.sigmas} must rise")
        return self


def check_figures(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config before anything is drawn.

    Raises:
        UserError: for the first thing that cannot work.
    """
    content, _ = parsed(config, FiguresOptions)
    saved = {run: saved_header(run, "runs")["config"]["data"] for run in content["runs"]}
    images = {"digits"}
    for run, data in saved.items():
        if data["name"] == "mixture":
            if data["mixture"] != PLANE:
                raise UserError(
                    f"runs=[{run}] was trained on data.mixture={data['mixture']}; the figures of "
                    f"the plane show data.mixture={PLANE}"
                )
            continue
        given = {key: value for key, value in content["data"].items() if value is not None}
        data = {**data, **given}
        catalog.check(data["name"], data["root"], data["download"])
        images.add(data["name"])
    for name in images:
        known = catalog.describe(name).test
        if known is not None and content["image"] >= known:
            raise UserError(
                f"image={content['image']} is not among the {known} test images of data={name}; "
                f"the first is 0"
            )
    return None


CHECKS = AppChecks(check_figures)
