"""The whole config of each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from betasigma.options.base import (
    AUTO,
    Count,
    Index,
    Options,
    Positive,
    Seed,
    by_name,
    component,
    dump,
    option,
    parse_component,
    written,
)
from betasigma.options.composition import Composition, DataFacts
from betasigma.options.dashboards import DashboardOptions
from betasigma.options.data import DataOptions
from betasigma.options.drawing import DrawingOptions
from betasigma.options.edits import BATCH_SIZE, EditOptions
from betasigma.options.evaluation import EvaluationOptions
from betasigma.options.figures import FigureOptions
from betasigma.options.hardware import HardwareOptions
from betasigma.options.lightning import TrainerOptions
from betasigma.options.likelihoods import LikelihoodOptions
from betasigma.options.loggers import AnyLogger, NoLoggerOptions, require_package
from betasigma.options.lr_schedules import ConstantRateOptions, LearningRateOptions
from betasigma.options.models import ModelOptions
from betasigma.options.networks import NetworkOptions
from betasigma.options.noise_schedules import BetaOptions, ScheduleOptions, SigmaOptions
from betasigma.options.objectives import ObjectiveOptions
from betasigma.options.optimizers import OptimizerOptions
from betasigma.options.preconditionings import PreconditioningOptions
from betasigma.options.samplers import DRAWN_AT_ONCE, MOST, SamplerOptions
from betasigma.options.training import (
    VALIDATION_ERROR,
    AveragingOptions,
    BatchOptions,
    DenoiserOptions,
    GuidedOptions,
    InitOptions,
    StopOptions,
    StudyOptions,
    TrainingOptions,
)

Network = Annotated[NetworkOptions, component("network")]
Schedule = Annotated[ScheduleOptions, component("schedule")]
Preconditioning = Annotated[PreconditioningOptions, component("preconditioning")]
Objective = Annotated[ObjectiveOptions, component("objective")]
Model = Annotated[ModelOptions, component("model")]
Data = Annotated[DataOptions, component("data")]
Optimizer = Annotated[OptimizerOptions, component("optimizer")]
Sampler = Annotated[SamplerOptions, component("sampler")]
AnEdit = Annotated[EditOptions, component("edit")]
OptionalSampler = Annotated[SamplerOptions | None, component("sampler")]
OptionalLikelihood = Annotated[LikelihoodOptions | None, component("likelihood")]
LearningRate = Annotated[LearningRateOptions, component("lr_schedule")]
Film = Literal["gif", "mp4", "png"]
Range = Annotated[str, written(r"\d{1,18}-\d{1,18}", "be a first and a last number, as in 0-99")]
TrainingMetric = Annotated[str, written(r"(train|val)/.+", "begin with train/ or val/")]
Runs = Annotated[list[str], Field(min_length=1)]
ClassLabel = Index | str
"""A class, by its number or its name."""

Callbacks = Annotated[dict[str, dict[str, Any]], by_name("callbacks", "callbacks")]
Loggers = Annotated[dict[str, dict[str, Any]], by_name("logger", "loggers")]


class ModelConfig(Options):
    """What a model is, of the config of a training run: all that a checkpoint must have."""

    seed: Seed = option(0, "of weights, data order, noise and dropout")
    network: Network
    sigma: SigmaOptions | None = option(None, "knobs of schedule=geometric")
    beta: BetaOptions | None = option(None, "knobs of the variance-preserving schedules")
    schedule: Schedule
    preconditioning: Preconditioning
    objective: Objective
    denoiser: DenoiserOptions = option(DenoiserOptions(), "the network with its schedule")
    model: Model
    data: Data
    sampler: Sampler

    def composition(self, facts: DataFacts, hardware: HardwareOptions | None = None) -> Composition:
        """The view that checks of one group against another take."""
        return Composition(
            facts,
            self.network,
            self.schedule,
            self.preconditioning,
            self.objective,
            self.model,
            self.denoiser,
            hardware or HardwareOptions(),
        )

    @property
    def unresolved(self) -> list[str]:
        """Keys of the ladder and of the sampler that are still to be found."""
        found = [f"schedule.{key}" for key in self.schedule.unresolved]
        return [*found, "sampler.step"] if getattr(self.sampler, "step", None) == AUTO else found


class Train(ModelConfig, BatchOptions):
    """The config of ``train.py``."""

    name: Annotated[str, written(r"[\w.+-]+", "be of letters, digits, and _ . + -")] = option(
        "run", "of the run, on the dashboard and in its directory"
    )
    tags: list[str] = option([], "of the run, on the dashboard")
    plugins: list[str] = option([], "outside packages that the config may name")
    steps: Annotated[int, Field(ge=0, le=10**9)] = option(2000, "optimizer steps")
    hardware: HardwareOptions = option(HardwareOptions(), "what computes")
    resume: str | None = option(None, "a run or checkpoint to continue; auto: the newest match")
    init: InitOptions = option(InitOptions(), "the weights that training starts from")
    overwrite: bool = option(False, "begin over in a directory that holds a run")
    evaluation: EvaluationOptions = option(EvaluationOptions(), "what is measured of samples")
    likelihood: OptionalLikelihood = option(None, "bits per dimension")
    logger: AnyLogger = option(NoLoggerOptions(), "where metrics go")
    loggers: Loggers = option({}, "loggers beside logger: a name and a _target_ each")
    objective_metric: TrainingMetric = option(
        VALIDATION_ERROR, "whose last value a sweeper that searches is given"
    )
    study: StudyOptions | None = option(None, "which point of a study this is")
    cluster: dict[str, Any] = option({"name": "none"}, "where the jobs of a sweep run")
    optimizer: Optimizer
    training: TrainingOptions = option(TrainingOptions(), "the training loop")
    stop: StopOptions = option(StopOptions(), "when a run ends before its last step")
    ema: AveragingOptions = option(AveragingOptions(), "the averaged weights")
    lr_schedule: LearningRate = option(
        ConstantRateOptions.default(), "learning rate after the warm-up"
    )
    callbacks: Callbacks = option({}, "callbacks beside ours: a name and a _target_ each")
    trainer: TrainerOptions = option(
        TrainerOptions(), "flags of Lightning's Trainer; the others are decided by other keys"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if self.training.clip is None:
            found["trainer.gradient_clip_algorithm"] = "without training.clip"
        if not composition.network.outside:
            found["trainer.sync_batchnorm"] = (
                f"with network={composition.network.target}, which has no batch normalisation"
            )
        return found

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.steps == 0 and self.model.trains:
            raise ValueError(
                "steps=0 must be greater than or equal to 1; only model=oracle trains nothing"
            )
        if self.model.trains:
            self.lr_schedule.check_run(self.steps, self.training.warmup)
        return self


class DataPlace(Options):
    """Where data are, for commands that read a run's."""

    node = "data"

    root: str | None = option(None, "folder of the files; null: where the run found its data")
    download: bool | None = option(None, "fetch them if they are missing")

    @property
    def given(self) -> dict[str, Any]:
        """The keys that say something."""
        return {key: value for key, value in dump(self).items() if value is not None}


class WithAModel(GuidedOptions):
    """What the commands that draw from a model share."""

    plugins: list[str] = option([], "outside packages that the run may name")
    seed: Seed = option(0, "sample i is a function of seed and i")
    sampler: OptionalSampler = option(None, "null: the one the run was configured with")
    hardware: HardwareOptions = option(HardwareOptions(), "what computes")

    def unused(self, composition: Composition) -> dict[str, str]:
        why = "here: processes share samples out, and no step"
        return super().unused(composition) | {"hardware.strategy": why}


class OfARun(WithAModel):
    """What the commands that read a run share."""

    run: str = option("", "a run directory, a checkpoint or a published model")
    data: DataPlace = option(DataPlace(), "where the data are")


class Sample(OfARun):
    """The config of ``scripts/sample.py``."""

    n: Annotated[int, Field(ge=1, le=MOST)] = option(64, "samples of each seed: 0 to n-1")
    indices: list[Index] | Range | None = option(
        None, "which samples of each seed, [3,5] or 0-9999, instead of n"
    )
    seeds: list[Seed] | Range | None = option(None, "several, [0,1] or 0-9, instead of seed")
    labels: list[ClassLabel] | Literal["all"] | None = option(
        None, "classes by number or name, taken in turn; all or null: every class in turn"
    )
    batch_size: Count = option(
        DRAWN_AT_ONCE, "drawn at once; halved where the memory of a GPU ends"
    )
    save: Literal["png", "npz", "both", "folder"] = option(
        "both", "what is written: a picture, arrays as evaluators take them, or a PNG a sample"
    )
    out: str | None = option(
        None, "folder of save=folder, filled up where it was begun; null: a new one"
    )
    subfolders: bool = option(False, "of save=folder: one for each class")
    trajectory: Film | None = option(
        None, "states of a few samples on the way, as a film or a strip (png)"
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if self.indices is not None:
            found["n"] = f"beside indices={self.indices}"
        if self.seeds is not None:
            found["seed"] = f"beside seeds={self.seeds}"
        if composition.trains:
            found["data"] = "on a trained model, which draws without its data"
        return found

    @property
    def chosen_indices(self) -> list[int]:
        """Indices of the samples of each seed."""
        return list(range(self.n) if self.indices is None else _numbers(self.indices))

    @property
    def chosen_seeds(self) -> list[int]:
        """Seeds of the samples."""
        return [self.seed] if self.seeds is None else list(_numbers(self.seeds))

    @property
    def total(self) -> int:
        """Number of samples, of all seeds."""
        seeds = 1 if self.seeds is None else len(_numbers(self.seeds))
        return seeds * (self.n if self.indices is None else len(_numbers(self.indices)))

    @model_validator(mode="after")
    def _written(self) -> Self:
        for key in ("indices", "seeds"):
            value = getattr(self, key)
            count = 1 if value is None else len(_numbers(value))
            twice = isinstance(value, list) and len(set(value)) < count
            if twice or not 0 < count <= MOST:
                raise ValueError(
                    f"{key}={value} must name at least one, at most {MOST:,}, and none twice"
                )
        if self.save != "folder":
            why = (
                f"belongs to save=folder; what save={self.save} writes goes to a new directory, "
                f"which hydra.run.dir=… would name"
            )
            self.refuse_given(("out", "subfolders"), why)
        if self.trajectory == "mp4":
            require_package("av", "trajectory=mp4")
        return self


def _data_or_place(node: Any) -> Any:
    """A data set, or only where that of the run is."""
    chosen = isinstance(node, Mapping) and "_target_" in node
    return parse_component("data", node) if chosen else node


class Evaluate(WithAModel):
    """The config of ``scripts/evaluate.py``."""

    run: str | None = option(None, "a run directory, a checkpoint or a published model")
    images: str | None = option(
        None, "instead of samples: a folder, a zip archive or an array (.npz with arr_0, .npy)"
    )
    reference: str | None = option(
        None, "another such set to compare images with, instead of a data set"
    )
    data: Annotated[DataOptions | DataPlace, BeforeValidator(_data_or_place)] = option(
        DataPlace(), "the data set to compare images with; where the data of a run are"
    )
    optimizer: dict[str, Any] | None = option(None, "of the network; not used")
    network: dict[str, Any] | None = option(None, "of the data set; not used")

    n: Annotated[int, Field(ge=2, le=MOST)] = option(2000, "samples")
    labels: Annotated[list[ClassLabel], Field(min_length=1)] | None = option(
        None, "classes by number or name: samples of them, compared with their images; null: all"
    )
    error_curve: Index = option(
        256, "test examples whose denoising error is measured at every log-SNR; 0: none"
    )
    evaluation: EvaluationOptions = option(EvaluationOptions(), "what is measured of samples")
    likelihood: OptionalLikelihood = option(None, "bits per dimension")
    logger: AnyLogger | None = option(
        None, "where values go too; null: Weights & Biases where the run was logged there"
    )
    loggers: Loggers = option({}, "loggers beside logger: a name and a _target_ each")

    def unused(self, composition: Composition) -> dict[str, str]:
        found = super().unused(composition)
        if self.labels is not None:
            found["error_curve"] = "beside labels=…: it is measured on examples of every class"
        if not self.evaluation.metrics:
            keys = {"n", "sampler", "guidance", *({} if self.likelihood else {"seed"})}
            found |= dict.fromkeys(keys, "without evaluation.metrics, for which samples are drawn")
        return found

    @model_validator(mode="after")
    def _something(self) -> Self:
        chosen = isinstance(self.data, DataOptions)
        if self.images is None:
            if not self.run:
                raise ValueError("run has no value; give run=…, or images=… to measure images")
            if chosen or self.reference is not None:
                key = "data" if chosen else f"reference={self.reference}"
                raise ValueError(f"{key} is what images=… are compared with: give images=… too")
            return self
        if self.reference is not None and isinstance(self.data, DataPlace):
            why = "has no effect: images=… and reference=… are compared as they are"
            self.data.refuse_given(DataPlace.model_fields, why)
        given = [bool(self.run), chosen, self.reference is not None]
        if sum(given) != 1:
            raise ValueError(
                f"images={self.images} is compared with one of: a data set (data=cifar10, say), "
                f"that of a run (run=…), or other images (reference=…)"
            )
        return self


class EditApp(OfARun):
    """The config of ``scripts/edit.py``."""

    edit: AnEdit
    images: str | None = option(
        None, "a file, a folder or an array; null: test images of the run's data, or seeds"
    )
    indices: Annotated[list[Index], Field(min_length=1)] | None = option(
        None, "which of the images; null: the first 4"
    )
    seeds: list[Seed] = option(
        [0, 1, 2, 3], "of latents to interpolate between, where there are no images"
    )
    n: Count = option(4, "results for each image, where they are drawn")
    labels: Annotated[list[ClassLabel], Field(min_length=1)] | None = option(
        None, "class of each image or path by number or name, taken in turn; null: no label"
    )
    batch_size: Count = option(BATCH_SIZE, "edited at once; halved where the memory of a GPU ends")

    @property
    def of_images(self) -> bool:
        """Whether images are edited; else latents of seeds."""
        return self.edit.needs_images or self.images is not None

    def unused(self, composition: Composition) -> dict[str, str]:
        alone = dict.fromkeys(("hardware.devices", "hardware.nodes"), "here: one process edits")
        found = super().unused(composition) | alone
        if not self.edit.draws:
            found["n"] = found["seed"] = ": this edit draws nothing, and has one result"
            if self.hardware.precision not in ("32", 32):
                found["hardware.precision"] = "along the probability flow: it is followed in fp32"
            found["sampler"] = (
                ": this edit follows the probability flow, by a solver of its own (edit.tolerance)"
            )
        elif not self.edit.starts_from_noise:
            found["sampler.start"] = ": this edit starts from the images, with noise on them"
        if self.of_images:
            found["seeds"] = ": this edit is of images; seed=… is that of its noise"
        else:
            found["indices"] = ": this edit is of seeds: give seeds=…, or images=… too"
        if composition.trains and not (self.of_images and self.images is None):
            found["data"] = "on a trained model, and images or seeds that are given"
        return found


class ImportedData(Options):
    """What a published model was trained on."""

    node = "data"

    name: str | None = option(
        None, "of its data set; null: what is known of the model, else image_folder"
    )
    root: str | None = option(None, "folder of the files, for commands that read them")


class Import(Options):
    """The config of ``scripts/import.py``."""

    source: str = Field("", alias="from", description="a file or a folder of published weights")
    to: str | None = option(None, "the new run directory; null: below outputs/")
    format: str | None = option(None, "the public code that wrote it; null: by what it holds")
    published: str | None = option(
        None, "which published model it is; null: by the name of the file or its folder"
    )
    flags: dict[str, Any] | str | None = option(
        None, "settings that the file does not hold, as its authors' scripts take them"
    )
    data: ImportedData = option(ImportedData(), "what the model was trained on")
    convert: Literal["edm"] | None = option(
        None, "write what a pickle holds as plain tensors instead, which runs the pickle's code"
    )
    code: str | None = option(None, "of convert: a clone of the code that the pickle asks for")

    @model_validator(mode="after")
    def _converts(self) -> Self:
        if self.convert is None:
            self.refuse_given(["code"], "has no effect without convert=edm")
            return self
        if self.code is None or self.to is None:
            raise ValueError(
                f"convert={self.convert} needs code=FOLDER, a clone of the code that the pickle "
                f"asks for, and to=FOLDER, which takes the plain tensors"
            )
        why = (
            f"has no effect with convert={self.convert}, which takes a pickle as it is: give it to "
            f"the import of what convert writes"
        )
        self.refuse_given(("format", "published", "flags"), why)
        self.data.refuse_given(ImportedData.model_fields, why)
        return self


Target = Literal["safetensors", "diffusers", "torch_export", "onnx"]


class Export(Options):
    """The config of ``scripts/export.py``."""

    run: str = option("", "a run directory, a checkpoint or a published model")
    plugins: list[str] = option([], "outside packages that the run may name")
    to: Target = option(
        "safetensors",
        "averaged weights with a YAML that betasigma.load reads; a pipeline folder; a program or a "
        "graph of the denoiser",
    )
    out: str | None = option(None, "the new folder; null: below outputs/")
    name: str | None = option(None, "of the model, in its card; null: the run's")
    licence: str | None = option(
        None, "of the weights, in the card; null: that of the published model, else unknown"
    )

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.to == "onnx":
            require_onnx("to=onnx")
        return self


def require_onnx(asked: str) -> None:
    """Refuse a graph where what writes it is not installed.

    Raises:
        ValueError: naming the package.
    """
    for package in ("onnx", "onnxscript"):
        require_package(package, asked)


class Plot(DrawingOptions):
    """The config of ``scripts/plot.py``."""

    runs: Runs = option([], "run directories, or a sweep's with all its runs")
    plugins: list[str] = option([], "outside packages that the runs may name")
    figure: Annotated[FigureOptions, component("figure")]
    seed: Seed = option(0, "sample i is a function of seed and i")
    sampler: OptionalSampler = option(None, "null: the one each run was configured with")
    hardware: HardwareOptions = option(HardwareOptions(), "what computes")
    data: DataPlace = option(DataPlace(), "where the data are")


class Compare(DrawingOptions):
    """The config of ``scripts/compare.py``."""

    runs: Runs = option([], "run directories, or a sweep's with all its runs")
    metrics: Annotated[list[str], Field(min_length=1)] | None = option(
        None, "whose curves are drawn; null: the denoising error in training and in validation"
    )
    to: Literal["terminal", "csv", "latex"] = option(
        "terminal", "how the results are printed; --csv and --latex are short for the others"
    )


class Dashboard(Options):
    """The config of ``scripts/dashboard.py``."""

    to: Literal["html", "wandb"] = option(
        "html",
        "one file for a browser, which needs no network; or a workspace and a report on "
        "Weights & Biases",
    )
    project: str | None = option(None, "of to=wandb; null: what the runs were logged for")
    entity: str | None = option(None, "of to=wandb; null: what the runs were logged for")
    runs: Runs = option(
        ["outputs"], "run directories, or directories with runs in them, at any depth"
    )
    open: bool = option(True, "show the page in a browser")
    serve: Annotated[int, Field(ge=1, le=65535)] | None = option(
        None, "port of this machine where the page follows growing runs; null: only the file"
    )
    dashboard: DashboardOptions

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.to == "wandb":
            require_package("wandb-workspaces", "to=wandb")
            self.refuse_given(["serve"], "has no effect with to=wandb")
        else:
            self.refuse_given(("project", "entity"), "has no effect without to=wandb")
        return self


class Sync(Options):
    """The config of ``scripts/sync.py``."""

    runs: Runs = option([], "run directories, or directories with runs in them, at any depth")
    project: str | None = option(None, "where runs appear; null: where each was to be logged")
    entity: str | None = option(None, "team or user; null: what each was logged for")
    again: bool = option(False, "send also what has been sent, which replaces it")
    timeout: Positive = option(12.0, "seconds to wait for the server at the start")
    patience: Positive = option(600.0, "seconds that the server may take for one run")


class Jobs(DrawingOptions):
    """The config of ``scripts/jobs.py``."""

    sweep: str = option("", "a sweep's directory")
    watch: bool = option(False, "show the table again and again, until every job has ended")
    every: Positive = option(10.0, "seconds between two tables of watch=true")
    conclude: bool = option(
        False, "then write what the finished jobs have measured; status 1 unless all have finished"
    )
    quiet_minutes: Positive = option(
        10.0, "without a sign of life, after which a running job is called stalled"
    )

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if not self.conclude:
            self.refuse_given(DrawingOptions.model_fields, "has no effect without conclude=true")
        return self


def _numbers(named: list[int] | str) -> Sequence[int]:
    """The numbers of a list, or of a range with both its ends."""
    if isinstance(named, list):
        return named
    first, last = map(int, named.split("-"))
    return range(first, last + 1)


TOP_LEVEL: dict[str, type[Options]] = {
    "train": Train,
    "sample": Sample,
    "edit": EditApp,
    "evaluate": Evaluate,
    "compare": Compare,
    "plot": Plot,
    "dashboard": Dashboard,
    "sync": Sync,
    "import": Import,
    "export": Export,
    "jobs": Jobs,
}
"""Options of each command's whole config."""
