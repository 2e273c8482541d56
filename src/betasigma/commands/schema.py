"""What a config may hold: the type, the range and the meaning of every key.

The tree of ``conf/`` gives values; this page says which values are possible. It is checked before
anything heavy is imported, and every complaint is one sentence with the key, the value and what
would be accepted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from betasigma.errors import UserError

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
Auto = Literal["auto"]
Overlap = Annotated[float, Field(gt=0, lt=0.997)]
"""C of NCSNv2's Technique 2; two equal levels overlap by 0.9973."""


ENERGY = "betasigma.networks.energy.energy_mlp"
EXPLICIT = "betasigma.objectives.ExplicitScoreMatching"
HYBRID = "betasigma.objectives.Hybrid"
IMPLICIT = "betasigma.objectives.ImplicitScoreMatching"
SLICED = "betasigma.objectives.SlicedScoreMatching"
"""Targets that need more than their own keys."""


class Node(BaseModel):
    """A node of the config: no keys but these, no conversions of type, only finite numbers."""

    model_config = ConfigDict(
        strict=True, extra="forbid", populate_by_name=False, allow_inf_nan=False
    )


class Target(Node):
    """A node that says which class it makes."""

    target: str = Field(alias="_target_")


class Sigma(Node):
    levels: Count | Auto
    max: Positive | Auto
    min: Positive
    overlap: Overlap | None = None
    examples: Annotated[int, Field(ge=2)] | None = None
    step: OpenUnit | Auto | None = None
    found: list[Literal["levels", "max"]] | None = None

    @model_validator(mode="after")
    def _falling(self) -> Sigma:
        only = self.levels == 1  # which is sigma.max
        if not isinstance(self.max, str) and self.min >= self.max and not only:
            raise ValueError(
                f"sigma.min={self.min:g} must be below sigma.max={self.max:g} and above 0"
            )
        return self


class Beta(Node):
    steps: Count
    start: OpenUnit | None = None
    end: OpenUnit | None = None
    offset: OpenUnit | None = None
    max: OpenUnit | None = None

    @model_validator(mode="after")
    def _rising(self) -> Beta:
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError(
                f"beta.end={self.end:g} must be at least beta.start={self.start:g} and below 1"
            )
        return self


class Linear(Target):
    target: Literal["betasigma.schedules.linear", "betasigma.schedules.sigmoid"] = Field(
        alias="_target_"
    )
    start: OpenUnit
    end: OpenUnit
    steps: Count


class Cosine(Target):
    target: Literal["betasigma.schedules.cosine"] = Field(alias="_target_")
    steps: Count
    offset: OpenUnit
    max_beta: OpenUnit


class Geometric(Target):
    target: Literal["betasigma.schedules.geometric"] = Field(alias="_target_")
    levels: Count | Auto
    max: Positive | Auto
    min: Positive


AnySchedule = Annotated[Linear | Cosine | Geometric, Field(discriminator="target")]


class UNet(Target):
    target: Literal["betasigma.networks.unet.UNet"] = Field(alias="_target_")
    channels: Count
    multipliers: Annotated[list[Count], Field(min_length=1)]
    blocks: Count
    attention: list[Count]
    heads: Count
    head_channels: Count | None
    dropout: Probability
    num_classes: Index
    embedding: Literal["positional", "fourier"]
    conditional: bool
    checkpoint: bool


class MLP(Target):
    target: Literal["betasigma.networks.mlp.MLP", "betasigma.networks.energy.energy_mlp"] = Field(
        alias="_target_"
    )
    width: Count
    depth: Count
    num_classes: Index
    embedding: Literal["positional", "fourier"]
    conditional: bool


class Sampler(Target):
    start: Literal["prior", "uniform", "moments"]
    clip: bool
    dtype: Literal["float32", "float64"]


class OnGrid(Sampler):
    steps: Count | None
    grid: Literal["levels", "uniform_t", "uniform_log_snr", "karras"]
    rho: Positive = 7.0


class Ancestral(OnGrid):
    target: Literal["betasigma.samplers.Ancestral"] = Field(alias="_target_")
    variance: Literal["beta", "posterior", "learned"]


class DDIM(OnGrid):
    target: Literal["betasigma.samplers.DDIM"] = Field(alias="_target_")
    eta: Annotated[float, Field(ge=0, le=1)]


class AnnealedLangevin(OnGrid):
    target: Literal["betasigma.samplers.AnnealedLangevin"] = Field(alias="_target_")
    inner_steps: Count
    step: OpenUnit | Auto
    denoise: bool


class PredictorCorrector(OnGrid):
    target: Literal["betasigma.samplers.PredictorCorrector"] = Field(alias="_target_")
    predictor: Literal["reverse_diffusion", "euler_maruyama", "ancestral"]
    snr: Positive
    corrector_steps: Index


class Euler(OnGrid):
    target: Literal["betasigma.samplers.Euler"] = Field(alias="_target_")


class Heun(OnGrid):
    target: Literal["betasigma.samplers.Heun"] = Field(alias="_target_")
    s_churn: NonNegative
    s_min: NonNegative
    s_max: Positive | None
    s_noise: Positive

    @model_validator(mode="after")
    def _rising(self) -> Heun:
        if self.s_max is not None and self.s_min > self.s_max:
            raise ValueError(
                f"sampler.s_min={self.s_min:g} must be at most sampler.s_max={self.s_max:g}"
            )
        return self


class DPMSolver(OnGrid):
    target: Literal["betasigma.samplers.DPMSolver"] = Field(alias="_target_")
    eta: Annotated[float, Field(ge=0, le=1)]


class AdaptiveODE(Sampler):
    target: Literal["betasigma.samplers.AdaptiveODE"] = Field(alias="_target_")
    rtol: Positive
    atol: Positive


AnySampler = Annotated[
    Ancestral
    | DDIM
    | AnnealedLangevin
    | PredictorCorrector
    | Euler
    | Heun
    | DPMSolver
    | AdaptiveODE,
    Field(discriminator="target"),
]


class Hardware(Node):
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count | Literal["auto"]
    nodes: Count
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "bf16", "32"] | int
    channels_last: bool | Literal["auto"]
    compile: bool | Literal["cuda_graphs"]
    deterministic: bool
    threads: Count | None

    @model_validator(mode="after")
    def _known_precision(self) -> Hardware:
        if isinstance(self.precision, int) and self.precision != 32:
            raise ValueError(
                f"hardware.precision={self.precision} is unknown; choose from auto, 32, bf16"
            )
        return self


class Evaluation(Node):
    extractor: Literal["auto", "inception", "efficientnet_lite0", "identity"]
    inception_weights: str | None
    download: bool
    metrics: list[Literal["fd", "kid", "is", "precision", "recall", "neighbours"]]
    every: Count | None
    n: Index
    n_during: Annotated[int, Field(ge=2)]
    n_reference: Annotated[int, Field(ge=2)] | None
    batch_size: Count
    cache: str

    @model_validator(mode="after")
    def _enough(self) -> Evaluation:
        if self.n == 1:
            raise ValueError(
                "evaluation.n=1 is too few: the covariance of a Fréchet distance needs at least 2 "
                "samples, and a steady value thousands (0 turns the evaluation off)"
            )
        return self


class Likelihood(Target):
    prior: Literal["standard", "moments"]
    n: Annotated[int, Field(ge=2)]
    split: Literal["train", "test"]
    batch_size: Count


class DiscreteBound(Likelihood):
    target: Literal["betasigma.likelihood.DiscreteBound"] = Field(alias="_target_")
    variance: Literal["beta", "posterior", "learned"]
    decoder_std: Literal["kernel", "fitted", "learned"]


class ContinuousBound(Likelihood):
    target: Literal["betasigma.likelihood.ContinuousBound"] = Field(alias="_target_")
    draws: Count
    decoder_std: Literal["kernel", "fitted"]


class FlowLikelihood(Likelihood):
    target: Literal["betasigma.likelihood.FlowLikelihood"] = Field(alias="_target_")
    trace: Literal["hutchinson", "exact"]
    tolerance: Positive


AnyLikelihood = Annotated[
    DiscreteBound | ContinuousBound | FlowLikelihood, Field(discriminator="target")
]


class Wandb(Node):
    kind: Literal["wandb"]
    project: str
    entity: str | None
    group: str | None
    mode: Literal["auto", "online", "offline"]
    timeout: Positive


class Tensorboard(Node):
    kind: Literal["tensorboard"]


class NoLogger(Node):
    kind: Literal["none"]


AnyLogger = Annotated[Wandb | Tensorboard | NoLogger, Field(discriminator="kind")]


class Data(Target):
    target: Literal["betasigma.data.datamodule.ImageDataModule"] = Field(alias="_target_")
    name: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "celeba", "image_folder", "mixture"
    ]
    root: str | None
    download: bool
    image_size: Count | None
    channels: Literal[1, 3] | None
    crop: str | None
    flip: bool
    dequantize: bool
    val_size: Count
    workers: Index
    in_memory: bool | None
    on_corrupt: Literal["warn", "error"]
    mixture: Literal["ring", "two", "grid"]


class Model(Target):
    target: Literal[
        "betasigma.modules.DDPM", "betasigma.modules.NCSN", "betasigma.modules.Oracle"
    ] = Field(alias="_target_")
    name: str
    family: Literal["ddpm", "ncsn", "oracle"]
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _ordered(self) -> Model:
        low, high = self.value_range
        if low >= high:
            raise ValueError(f"model.value_range=[{low:g}, {high:g}] must rise")
        return self


class Study(Node):
    """Which point of a study a run is, for tables and plots."""

    name: str
    point: Index
    label: str


class Preconditioning(Node):
    prediction: Literal["epsilon", "score", "raw_score", "x0", "v", "edm"]
    conditioning: Literal["timestep", "log_sigma", "none"]
    input_scaling: Literal["none", "unit_variance"]
    sigma_data: Positive


class Objective(Target):
    times: Literal["levels", "continuous"]
    weighting: Literal["sigma_power", "vlb", "min_snr"] = "sigma_power"
    sigma_power: Annotated[float, Field(ge=-4, le=8)]
    gamma: Positive = 5.0
    reduction: Literal["mean", "half_sum"]
    label_dropout: Probability


class DirectObjective(Objective):
    target: Literal[
        "betasigma.objectives.Denoising",
        "betasigma.objectives.ExplicitScoreMatching",
        "betasigma.objectives.ImplicitScoreMatching",
    ] = Field(alias="_target_")


class Sliced(Objective):
    target: Literal["betasigma.objectives.SlicedScoreMatching"] = Field(alias="_target_")
    projections: Count
    variance_reduced: bool


class Hybrid(Objective):
    target: Literal["betasigma.objectives.Hybrid"] = Field(alias="_target_")
    vlb_weight: Positive


AnyObjective = Annotated[DirectObjective | Sliced | Hybrid, Field(discriminator="target")]


class DenoiserNode(Node):
    off_levels: Literal["snap", "interpolate", "refuse"]


class Optimizer(Target):
    lr: Positive
    weight_decay: NonNegative


class Adam(Optimizer):
    target: Literal[
        "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.NAdam", "torch.optim.RAdam"
    ] = Field(alias="_target_")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)]
    eps: NonNegative


class SGD(Optimizer):
    target: Literal["torch.optim.SGD"] = Field(alias="_target_")
    momentum: Probability
    nesterov: bool

    @model_validator(mode="after")
    def _momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true needs an optimizer.momentum above 0")
        return self


AnyOptimizer = Annotated[Adam | SGD, Field(discriminator="target")]


class Training(Node):
    warmup: Index
    clip: Positive | None
    accumulate: Count
    log_every: Count
    validate_every: Count
    sample_every: Count
    checkpoint_every: Count
    num_samples: Count
    guidance: NonNegative


class Ema(Node):
    decay: Annotated[float, Field(ge=0, lt=1)]


class Train(Node):
    """The config of ``train.py``."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    tags: list[str]
    seed: Seed
    steps: Index
    batch_size: Count
    objective_metric: Annotated[str, Field(pattern=r"^(train|val)/.+")] = "val/denoising_error"
    resume: str | None
    network: Annotated[UNet | MLP, Field(discriminator="target")]
    sigma: Sigma | None = None
    beta: Beta | None = None
    schedule: AnySchedule
    sampler: AnySampler
    hardware: Hardware
    evaluation: Evaluation
    likelihood: AnyLikelihood | None = None
    logger: AnyLogger
    data: Data
    model: Model
    study: Study | None = None
    cluster: dict[str, Any]
    preconditioning: Preconditioning
    objective: AnyObjective
    denoiser: DenoiserNode
    optimizer: AnyOptimizer
    training: Training
    ema: Ema

    @model_validator(mode="after")
    def _some_steps(self) -> Train:
        if self.steps == 0 and self.model.family != "oracle":
            raise ValueError(
                "steps=0 must be greater than or equal to 1; only model=oracle trains nothing"
            )
        return self


class DataPlace(Node):
    root: str | None
    download: bool | None


class Sample(Node):
    """The config of ``scripts/sample.py``."""

    run: str
    n: Count
    seed: Seed
    sampler: AnySampler | None = None
    labels: list[Index] | Literal["all"] | None
    guidance: NonNegative
    batch_size: Count
    save: Literal["png", "npz", "both"]
    data: DataPlace
    hardware: Hardware


class Evaluate(Node):
    """The config of ``scripts/evaluate.py``."""

    run: str
    n: int
    seed: Seed
    sampler: AnySampler | None = None
    guidance: NonNegative
    error_curve: Index
    data: DataPlace
    evaluation: Evaluation
    likelihood: AnyLikelihood | None = None
    hardware: Hardware

    @model_validator(mode="after")
    def _enough(self) -> Evaluate:
        if self.n < 2:
            raise ValueError(
                f"n={self.n} is too few: the covariance of a Fréchet distance needs at least 2 "
                "samples, and a steady value thousands"
            )
        return self


class Compare(Node):
    """The config of ``scripts/compare.py``."""

    runs: Annotated[list[str], Field(min_length=1)]
    metrics: Annotated[list[str], Field(min_length=1)]


def trains(config: Mapping[str, Any]) -> bool:
    """Whether the model of a config is one that is trained: an oracle is not."""
    return config["model"]["family"] != "oracle"


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Whether the model of a config knows the variance of its reverse steps."""
    return trains(config) and config["objective"]["_target_"] == HYBRID


def validate(config: DictConfig, schema: type[Node]) -> dict[str, Any]:
    """The config as plain containers with interpolations resolved, known to fit ``schema``; one
    directory for ``runs`` is a list of it.

    Raises:
        UserError: for the first key that does not.
    """
    config = own_keys(config)
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value; give {key}=…")
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    content = {str(key): value for key, value in plain.items()}
    if isinstance(content.get("runs"), str):
        content["runs"] = [content["runs"]]
    validate_plain(content, schema)
    return content


def own_keys(config: DictConfig) -> DictConfig:
    """The config without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def validate_plain(content: dict[str, Any], schema: type[Node]) -> None:
    """Check plain containers, for example the config in a checkpoint's header.

    Raises:
        UserError: for the first key that does not fit ``schema``.
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        raise UserError(_sentence(error, content)) from None


def _sentence(error: ValidationError, content: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = _key(first["loc"], content)
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return f"{key}={_typed(first['input'])} is unknown: there is no key {key}"
    if first["type"] == "missing":
        return f"{key} has no value; give {key}=…"
    if first["type"].startswith("union_tag"):
        known = first["ctx"].get("expected_tags", "")
        tag = "_target_" if "_target_" in _at(first["loc"], content) else "kind"
        value = _at(first["loc"], content).get(tag)
        return f"{key}.{tag}={value} is not one of {known}"
    # a value that may be of several types fails once for each
    same = [found["msg"] for found in error.errors() if _key(found["loc"], content) == key]
    accepted = " or ".join(map(_message, same)).replace(" or must ", " or ")
    return f"{key}={_typed(first['input'])} {accepted}"


def _message(text: str) -> str:
    """What a value must be, from pydantic's message."""
    message = re.sub(r"^(Input|String|List) should", "must", text)
    message = message.replace(" after validation", "").replace("input", "value")
    return message if "must" in message else f"is not possible: {message}"


def _typed(value: Any) -> Any:
    """A value as it is typed in YAML and on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def _key(loc: tuple[int | str, ...], content: dict[str, Any]) -> str:
    """Dotted key of a location; names of union members and types are left out."""
    parts: list[str] = []
    node: Any = content
    for part in loc:
        if isinstance(node, dict) and part in node:
            parts.append(str(part))
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int):
            parts[-1] += f"[{part}]"
            node = node[part]
        elif part == loc[-1] and isinstance(node, dict):
            parts.append(str(part))
    return ".".join(parts)


def _at(loc: tuple[int | str, ...], content: dict[str, Any]) -> dict[str, Any]:
    node: Any = content
    for part in loc:
        if isinstance(node, dict) and part in node:
            node = node[part]
    return node if isinstance(node, dict) else {}
