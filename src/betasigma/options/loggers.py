"""Options of where metrics go beside metrics.csv."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, model_validator

from betasigma.options.base import (
    ComponentOptions,
    Count,
    Options,
    Positive,
    option,
    parse_component,
    typed,
)
from betasigma.options.composition import Composition

Knob = bool | Literal["auto"]
Kept = Literal["none", "best", "all"]


class WandbOptions(Options):
    """Options of Weights & Biases. What is null here is taken from its own environment variable,
    and otherwise from the run.
    """

    node = "logger"

    kind: Literal["wandb"] = option("wandb", "Weights & Biases")
    project: str | None = option(None, "where runs appear; null: WANDB_PROJECT, else betasigma")
    entity: str | None = option(None, "team or user; null: WANDB_ENTITY, else the account's")
    group: str | None = option(
        None, "what runs are grouped by; null: WANDB_RUN_GROUP, else the sweep, else the name"
    )
    name: str | None = option(None, "of the run; null: WANDB_NAME, else its directory's")
    system: Knob = option("auto", "log the load of the machine; auto: on a GPU")
    console: Knob = option("auto", "upload what is printed; auto: on a GPU")
    artifacts: Kept = option(
        "none", "checkpoints that are kept there: the best, or each one that is written"
    )
    mode: Literal["auto", "online", "offline"] = option("auto", "auto: online when logged in")
    timeout: Positive = option(8.0, "seconds to wait for the server at the start")

    def unused(self, composition: Composition) -> dict[str, str]:
        return {"timeout": "with logger.mode=offline"} if self.mode == "offline" else {}


class TensorboardOptions(Options):
    node = "logger"

    kind: Literal["tensorboard"] = option("tensorboard", "event files in the run directory")

    @model_validator(mode="after")
    def _installed(self) -> Self:
        require_package("tensorboard", "logger=tensorboard")
        return self


class NoLoggerOptions(Options):
    node = "logger"

    kind: Literal["none"] = option("none", "metrics.csv only")


class LightningLoggerOptions(ComponentOptions):
    """Options of any logger of Lightning's or of an outside package: the class's own arguments. One
    that takes ``save_dir`` is given the run directory.
    """

    group: ClassVar[str] = "logger"
    model_config = ConfigDict(extra="allow")
    package: ClassVar[str | None] = None
    """That it needs, beside Lightning."""

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.package is not None:
            require_package(self.package, f"logger={self.package.partition('-')[0]}")
        return self


class CSVLoggerOptions(LightningLoggerOptions):
    model_config = ConfigDict(extra="forbid")
    targets = ("pytorch_lightning.loggers.CSVLogger",)

    name: str = option("csv", "folder in the run directory")
    version: int | str | None = option(None, "folder in that; null: the next number")
    prefix: str = option("", "of the metrics' names")
    flush_logs_every_n_steps: Count = option(100, "steps between two writings")


class MLFlowOptions(LightningLoggerOptions):
    model_config = ConfigDict(extra="forbid")
    targets = ("pytorch_lightning.loggers.MLFlowLogger",)
    package = "mlflow"

    experiment_name: str = option("betasigma", "where runs appear")
    run_name: str | None = option(None, "of the run; null: one of MLflow's own")
    tracking_uri: str | None = option(
        None, "the server or database; null: files in the run directory"
    )
    tags: dict[str, Any] | None = option(None, "of the run")
    prefix: str = option("", "of the metrics' names")
    artifact_location: str | None = option(None, "where the server keeps files")
    run_id: str | None = option(None, "a run to continue; null: a new one")


class CometOptions(LightningLoggerOptions):
    """The account's key is read from ``COMET_API_KEY``: a config is kept in every checkpoint."""

    model_config = ConfigDict(extra="forbid")
    targets = ("pytorch_lightning.loggers.CometLogger",)
    package = "comet-ml"

    project: str | None = option("betasigma", "where runs appear")
    workspace: str | None = option(None, "team or user; null: the account's default")
    online: bool | None = option(None, "false: files, to be uploaded later")
    prefix: str | None = option(None, "of the metrics' names")
    experiment_key: str | None = option(None, "an experiment to continue; null: a new one")


KINDS: dict[str, type[Options]] = {
    "wandb": WandbOptions,
    "tensorboard": TensorboardOptions,
    "none": NoLoggerOptions,
}


def require_package(package: str, asked: str) -> None:
    """Refuse what needs a package that is not installed.

    Raises:
        ValueError: naming the package.
    """
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise ValueError(f"{asked} needs the {package} package: pip install {package}")


def parse_logger(node: Any) -> Any:
    """The options of a ``logger`` node: a ``kind`` of ours, or the ``_target_`` of a logger.

    Raises:
        ValueError: where it has neither.
    """
    if isinstance(node, Options):
        return node
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Mapping) and "_target_" in value:
            word = f"{name}._target_={value['_target_']}"
            raise ValueError(f"logger.{word} is a second logger: write +loggers.{word}")
    if isinstance(node, Mapping) and node.get("_target_") is not None:
        return parse_component("logger", node)
    kind = node.get("kind") if isinstance(node, Mapping) else node
    if kind not in KINDS:
        raise ValueError(f"logger.kind={typed(kind)} is unknown; choose from {', '.join(KINDS)}")
    return KINDS[kind].parse(node)


AnyLogger = Annotated[
    WandbOptions | TensorboardOptions | NoLoggerOptions | LightningLoggerOptions,
    BeforeValidator(parse_logger),
]
