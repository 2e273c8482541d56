"""Options of where metrics go beside metrics.csv."""

from __future__ import annotations

from typing import Literal

from betasigma.options.base import Options, Positive, option


class WandbOptions(Options):
    node = "logger"

    kind: Literal["wandb"] = option("wandb", "Weights & Biases")
    project: str = option("betasigma", "where runs appear")
    entity: str | None = option(None, "team or user; null: the account's default")
    group: str | None = option(None, "what runs are grouped by")
    mode: Literal["auto", "online", "offline"] = option("auto", "auto: online when logged in")
    timeout: Positive = option(30.0, "seconds to wait for the server at the start")


class TensorboardOptions(Options):
    node = "logger"

    kind: Literal["tensorboard"] = option("tensorboard", "event files in the run directory")


class NoLoggerOptions(Options):
    node = "logger"

    kind: Literal["none"] = option("none", "metrics.csv only")
