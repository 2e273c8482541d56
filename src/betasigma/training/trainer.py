"""Lightning's Trainer as a run uses it: it counts optimizer steps and leaves the rest to callbacks.

Flags, callbacks and loggers of the user's own come from the config's nodes ``trainer``,
``callbacks`` and ``logger``; :mod:`betasigma.options.lightning` says which flags are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies import Strategy

from betasigma.build import make
from betasigma.errors import UserError
from betasigma.objectives.error_curve import GRID
from betasigma.options.evaluation import FEWEST_SAMPLES, SAMPLES, most_samples
from betasigma.options.training import VALIDATION_ERROR
from betasigma.samplers import Sampler
from betasigma.samplers.evaluations import evaluations
from betasigma.schedules import NoiseSchedule
from betasigma.training.checkpoints import AtomicCheckpointIO
from betasigma.training.progress import EVALUATIONS

Config = dict[str, Any]

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def validation_interval(content: Config) -> int:
    """Steps between two validations; a run has at least one."""
    return max(1, min(content["training"]["validate_every"], content["steps"]))


PER_IMAGE = 1 + len(GRID)
"""Network evaluations of a validation, for each image: one for what is minimised, and one at each
point of the denoising error's grid.
"""

FEWEST = 16
"""Images of the cheapest validation."""

FEATURES = 230
"""Network evaluations that the features of a measured sample take as long as, with those of the
images that it is compared with: of the network of the digits, the smallest, 207 in float32 and 254
in bf16, for 500 samples and 1,797 images by EfficientNet-Lite0 (142 and 174 on two quiet cores with
``network.channels=32``, whose float32 step takes 1.46 times as long).
"""

GRID_SAMPLES, FEWEST_SHOWN = 64, 4
"""Samples in a grid, and in the cheapest one."""


@dataclass(frozen=True)
class Affordable:
    """How many images a run validates on, draws and measures: those that are asked for, else what
    its training is worth. Work is counted in evaluations of the network, of one example each; a
    training step counts as :data:`~betasigma.training.progress.EVALUATIONS` of each example.

    Args:
        content: the config of the run.
        nfe: evaluations that a sample takes.
    """

    content: Config
    nfe: int

    @classmethod
    def by(
        cls, sampler: Sampler, content: Config, schedule: NoiseSchedule, shape: tuple[int, ...]
    ) -> Affordable:
        """What a run affords whose samples are drawn by ``sampler``.

        Args:
            sampler: that draws and measures.
            content: the config of the run.
            schedule: its noise levels.
            shape: of one example.
        """
        guidance = content["training"]["guidance"]
        return cls(content, evaluations(sampler, schedule, shape, guidance))

    def training(self, steps: int) -> int:
        """Evaluations that cost as much as so many steps."""
        return int(EVALUATIONS * self.content["batch_size"] * steps)

    def validated(self, images: int) -> int:
        """How many of ``images`` cost no more than a tenth of the steps before a validation; at
        least ``FEWEST``.
        """
        tenth = self.training(validation_interval(self.content)) // 10
        return max(FEWEST, min(images, tenth // PER_IMAGE))

    @property
    def shown(self) -> int:
        """Samples of the last grid: ``GRID_SAMPLES``, or as many as cost no more than the training
        of the whole run; at least ``FEWEST_SHOWN``.
        """
        asked: int | None = self.content["training"]["num_samples"]
        if asked is not None or not self.content["steps"]:
            return asked or GRID_SAMPLES
        most = self.training(self.content["steps"]) // self.nfe
        return max(FEWEST_SHOWN, min(GRID_SAMPLES, most))

    @property
    def between(self) -> int:
        """Samples of a grid before the last one: as many as cost no more than a tenth of the
        training since the grid before it.
        """
        settings = self.content["training"]
        if settings["num_samples"] is not None:
            return self.shown
        tenth = self.training(settings["sample_every"]) // 10
        return max(FEWEST_SHOWN, min(self.shown, tenth // self.nfe))

    @property
    def measured(self) -> int:
        """Samples that are measured at the end: ``SAMPLES``, or as many as cost no more than the
        training of the whole run; none below ``FEWEST_SAMPLES``.
        """
        asked: int | None = self.content["evaluation"]["n"]
        if asked is not None or not self.content["steps"]:
            return most_samples(asked)
        found = min(SAMPLES, self.training(self.content["steps"]) // self.of_measured)
        return found if found >= FEWEST_SAMPLES else 0

    @property
    def of_measured(self) -> int:
        """Evaluations that a measured sample takes as long as."""
        return self.nfe + FEATURES


def make_trainer(
    content: Config, run: Path, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    """The Trainer of a run."""
    settings, hardware = content["training"], content["hardware"]
    strategy: str | Strategy = hardware["strategy"]
    if strategy == "fsdp":
        from betasigma.training.fully_sharded import FullySharded  # half a second, rarely needed

        strategy = FullySharded()
    kind = content["trainer"].get("profiler")
    profiler = PROFILERS[kind](dirpath=run, filename="profile") if kind else None
    plugins: list[Any] = [AtomicCheckpointIO(settings["wait_for_space"])]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return Trainer(
        **{**content["trainer"], "profiler": profiler},
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        num_nodes=hardware["nodes"],
        strategy=strategy,
        deterministic=hardware["deterministic"],
        max_epochs=-1,
        max_steps=content["steps"],
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=settings["clip"],
        val_check_interval=validation_interval(content) * settings["accumulate"],
        check_val_every_n_epoch=None,
        log_every_n_steps=settings["log_every"],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=loggers or [DummyLogger()],  # callbacks that log insist on one, on every rank
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=run,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_callbacks(nodes: Mapping[str, Config], monitor: str) -> list[Callback]:
    """Callbacks of the user's own, in the order of the config.

    Args:
        nodes: of the config, by name.
        monitor: what the mean of the denoising error is called in this run: early stopping watches
            it where it is to watch that of the whole grid.

    Raises:
        UserError: where one names what is no callback, may not be imported, or does not take its
            arguments.
    """
    made = [
        make(node, "callbacks", f"callbacks.{name}", kind=Callback) for name, node in nodes.items()
    ]
    for callback in made:
        if isinstance(callback, EarlyStopping) and callback.monitor == VALIDATION_ERROR:
            callback.monitor = monitor
    return made


def refuse_unmeasured(callbacks: list[Callback], trainer: Trainer, error: Exception) -> None:
    """Refuse to stop early by what is not measured, where Lightning's ``error`` is that.

    Raises:
        UserError: naming the metric, and those that there are.
    """
    for monitor in (c.monitor for c in callbacks if isinstance(c, EarlyStopping)):
        if f"metric `{monitor}` which is not available" in str(error):
            measured = [name for name in trainer.callback_metrics if name.startswith("val/")]
            raise UserError(
                f"monitor={monitor} of a callback is not measured at a validation; choose from "
                f"{', '.join(measured)}"
            ) from None
