"""Options of Lightning's Trainer, and of callbacks beside ours.

Most of the Trainer's flags are decided by other keys of the config, or would break what a run
promises: steps that are counted, data in an order that can be resumed, whole checkpoints. Those are
refused with the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from betasigma.options.base import (
    ComponentOptions,
    Options,
    option,
    typed,
    written,
)

NO_EPOCHS = "has no meaning here: training counts steps and its data have no end"

REFUSED_FLAGS = {
    "accelerator": "is set by hardware.accelerator",
    "devices": "is set by hardware.devices",
    "num_nodes": "is set by hardware.nodes",
    "strategy": "is set by hardware.strategy",
    "precision": "is set by hardware.precision, which leaves noise and schedule in full precision",
    "deterministic": "is set by hardware.deterministic",
    "max_steps": "is set by steps",
    "min_steps": "is set by steps",
    "max_epochs": f"{NO_EPOCHS} (steps)",
    "min_epochs": f"{NO_EPOCHS} (steps)",
    "limit_train_batches": f"{NO_EPOCHS} (steps)",
    "reload_dataloaders_every_n_epochs": NO_EPOCHS,
    "check_val_every_n_epoch": f"{NO_EPOCHS} (training.validate_every)",
    "val_check_interval": "is set by training.validate_every",
    "limit_val_batches": "is set by data.val_size",
    "num_sanity_val_steps": "would record a validation of step 0; use debug=ten_steps",
    "limit_test_batches": "has no effect: samples are measured by evaluation.*",
    "limit_predict_batches": "has no effect: samples are drawn by sample.py",
    "log_every_n_steps": "is set by training.log_every",
    "accumulate_grad_batches": "is set by training.accumulate, by which the batch is divided",
    "gradient_clip_val": "is set by training.clip",
    "callbacks": "is set by the node callbacks",
    "logger": "is set by the node logger",
    "plugins": "would replace what writes whole, plain checkpoints",
    "use_distributed_sampler": "would replace the order of the data, which can be resumed",
    "overfit_batches": "would replace the order of the data: use debug=overfit_one_batch",
    "fast_dev_run": "would leave no checkpoint and no record: use debug=ten_steps",
    "barebones": "would leave no checkpoint and no record",
    "enable_checkpointing": "would write second checkpoints beside those of "
    "training.checkpoint_every",
    "enable_progress_bar": "has no effect: progress is shown in any case",
    "enable_model_summary": "is set by callbacks=model_summary",
    "enable_autolog_hparams": "has no effect: the logger gets the whole config",
    "default_root_dir": "is set by the run directory, hydra.run.dir",
    "model_registry": "would send checkpoints away",
}
"""Flags of the Trainer that cannot be passed on, with the reason."""


DAYS_TO_SECONDS = "be DD:HH:MM:SS, as in '00:12:00:00' for twelve hours"


class TrainerOptions(Options):
    """Flags that are passed on to Lightning's Trainer."""

    node = "trainer"

    gradient_clip_algorithm: Literal["norm", "value"] | None = option(
        None, "what training.clip limits; null: the norm"
    )
    max_time: Annotated[str, written(r"\d{1,4}(:\d\d){3}", DAYS_TO_SECONDS)] | None = option(
        None, "when to stop, as DD:HH:MM:SS of training; null: never"
    )
    profiler: Literal["simple", "advanced", "pytorch"] | None = option(
        None, "report of where the time goes, in the run directory"
    )
    detect_anomaly: bool = option(False, "stop at the operation whose gradient is not a number")
    benchmark: bool | None = option(None, "let cuDNN try its algorithms first")
    inference_mode: bool = option(True, "validate without any record for gradients")
    sync_batchnorm: bool = option(False, "share the statistics of batch normalisation")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, content: Any) -> Any:
        for flag, value in content.items() if isinstance(content, dict) else ():
            if flag in REFUSED_FLAGS:
                raise ValueError(refuse_flag(flag, value))
        return content


def refuse_flag(flag: str, value: Any) -> str:
    """Sentence for a flag that cannot be passed on."""
    return f"trainer.{flag}={typed(value)} cannot be passed on: it {REFUSED_FLAGS[flag]}"


class CallbackOptions(ComponentOptions):
    """Options of a callback of Lightning's or of an outside package: the class's own arguments."""

    group: ClassVar[str] = "callbacks"
    model_config = ConfigDict(extra="allow")


REFUSED_CALLBACKS = {
    "ModelCheckpoint": "would write second checkpoints beside those of training.checkpoint_every",
    "OnExceptionCheckpoint": "would write checkpoints of half a step; a run that is stopped keeps "
    "its last whole one",
    "EMAWeightAveraging": "averages the weights, as ema.decay does",
    "WeightAveraging": "averages the weights, as ema.decay does",
    "StochasticWeightAveraging": "averages the weights, as ema.decay does",
    "GradientAccumulationScheduler": "changes what a step is; the number of micro-batches is "
    "training.accumulate",
    "BatchSizeFinder": "takes steps that are not counted; give batch_size",
    "LearningRateFinder": "takes steps that are not counted; sweep optimizer.lr with -m",
    "TQDMProgressBar": "would be a second progress bar",
    "RichProgressBar": "would be a second progress bar",
}
"""Lightning's callbacks that break what a run promises, with the reason."""


class RefusedCallbackOptions(CallbackOptions):
    targets = tuple(f"pytorch_lightning.callbacks.{name}" for name in REFUSED_CALLBACKS)

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        name = self.target.rpartition(".")[2]
        raise ValueError(f"{self.target} cannot be used: it {REFUSED_CALLBACKS[name]}")
