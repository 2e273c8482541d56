"""What each app checks before it starts, and what it decides once for a whole sweep. No heavy
imports.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from betasigma.commands.schema import (
    ENERGY,
    EXPLICIT,
    HYBRID,
    IMPLICIT,
    SLICED,
    Compare,
    Evaluate,
    Sample,
    Train,
    learns_variance,
    own_keys,
    trains,
    validate,
    validate_plain,
)
from betasigma.data import catalog
from betasigma.errors import UserError
from betasigma.evaluation.choice import choose
from betasigma.limits import (
    check_exact_trace,
    check_hybrid,
    check_levels,
    check_trace,
    check_weighting,
)
from betasigma.networks import limits
from betasigma.options.evaluation import check_metrics, check_n
from betasigma.report.runs import check_curves, read_runs
from betasigma.runs.directory import newest_run
from betasigma.runs.header import check_plain, checkpoint_path, read_header
from betasigma.runs.status import process_rank

CHANGEABLE = (
    "steps",
    "name",
    "tags",
    "hardware",
    "cluster",
    "logger",
    "evaluation",
    "likelihood",
    "sampler",
    "objective_metric",
    "training.log_every",
    "training.validate_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.num_samples",
    "data.root",
    "data.workers",
    "data.download",
)
"""Keys that may differ between a run and its continuation: they do not enter the weights."""


OF_TRAINING = (
    *("steps", "network", "preconditioning", "objective", "denoiser"),
    *("optimizer", "training", "ema"),
)
"""Keys and nodes that say how a network is trained: not for an oracle, but for these."""
FOR_ALL = ("network.num_classes", "training.guidance", "training.num_samples")

AUTO = "auto"
"""Value of what NCSNv2's rules are to find (``schedule=geometric_auto``)."""


class Decision(NamedTuple):
    """What is decided before a run or a whole sweep, so that its jobs can be compared."""

    values: dict[str, Any]
    """Of keys that were left to be chosen."""
    note: str | None = None
    """One line for the user."""


NOTHING = Decision({})


class AppChecks(NamedTuple):
    """What ``Preflight`` does for one app."""

    check: Callable[[DictConfig, list[str]], Path | None]
    """Refuse a config that cannot work; returns the directory to run in where it is not a new
    one.
    """
    decide: Callable[[DictConfig], Decision] = lambda config: NOTHING
    """Choose what was left to be chosen."""


def check_train(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``train.py``; where it resumes, make it the resumed run's.

    Raises:
        UserError: for the first thing that cannot work.
    """
    _refuse_training(config, overrides)
    directory = _resume(config, overrides) if config.get("resume") is not None else None
    content = check_content(config)
    if content["resume"] is not None:
        _check_steps_left(Path(content["resume"]), content["steps"])
    return directory


def check_content(config: DictConfig) -> dict[str, Any]:
    """Check the composed config of a training run; returns it as plain containers.

    Raises:
        UserError: for the first thing that cannot work.
    """
    _check_schedule(config)
    content = validate(config, Train)
    _check_data(content["data"])
    _check_auto(content)
    if trains(content):
        _check_network(content)
        _check_objective(content)
    else:
        content["steps"] = 0  # whatever an experiment says of training
    _check_labels(content)
    _check_variance(content["sampler"], content)
    _check_likelihood(content.get("likelihood"), content)
    hardware = content["hardware"]
    devices = 1 if hardware["devices"] == "auto" else hardware["devices"] * hardware["nodes"]
    accumulate = content["training"]["accumulate"]
    check_division(content["batch_size"], accumulate, devices)
    if hardware["compile"] == "cuda_graphs" and accumulate > 1:
        raise UserError(
            f"training.accumulate={accumulate} does not go with hardware.compile=cuda_graphs, "
            f"whose next replay overwrites gradients that are kept: use hardware.compile=true"
        )
    return content


def check_division(batch_size: int, accumulate: int, devices: int) -> None:
    """Refuse a batch that cannot be divided evenly."""
    if batch_size % (accumulate * devices):
        among = f" on each of {devices} devices" if devices > 1 else ""
        raise UserError(
            f"batch_size={batch_size} cannot be divided into training.accumulate={accumulate} "
            f"equal micro-batches{among}; make it a multiple of {accumulate * devices}"
        )


def unresolved_keys(content: dict[str, Any]) -> list[str]:
    """Keys of a config's ladder and sampler that are still to be found."""
    keys = (("schedule", "levels"), ("schedule", "max"), ("sampler", "step"))
    return [f"{node}.{key}" for node, key in keys if content[node].get(key) == AUTO]


def _check_auto(content: dict[str, Any]) -> None:
    """Refuse to find what no rule can find."""
    rules = (content.get("sigma") or {}).get("overlap") is not None
    for key in unresolved_keys(content):
        if key.startswith("schedule.") and not rules:
            raise UserError(
                f"{key.replace('schedule', 'sigma')}=auto is found by schedule=geometric_auto; "
                f"schedule=geometric needs a number"
            )
    _check_auto_step(content["sampler"], content["schedule"])
    data = content["data"]
    dim = math.prod(catalog.sample_shape(data["name"], data["image_size"], data["channels"]))
    if content["schedule"].get("levels") == AUTO and dim < FEWEST:
        raise UserError(
            f"sigma.levels=auto needs data of at least {FEWEST} dimensions, where levels can be "
            f"too far apart to overlap; data={data['name']} has {dim}: give sigma.levels=10, say"
        )


FEWEST = 5
"""Dimensions for which NCSNv2's Technique 2 chooses a number of levels (betasigma.ladder)."""


def _check_auto_step(sampler: dict[str, Any], schedule: dict[str, Any]) -> None:
    if sampler.get("step") == AUTO and not schedule["_target_"].endswith(".geometric"):
        raise UserError(
            f"sampler.step=auto follows from the ratio of a geometric ladder (model=ncsn); "
            f"{schedule['_target_'].rpartition('.')[2]} has none: give sampler.step=0.2, say"
        )


def check_sample(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/sample.py``."""
    content = validate(config, Sample)
    saved = saved_header(content["run"])["config"]
    _check_guidance("guidance", content["guidance"], saved)
    _check_variance(content.get("sampler"), saved)
    if not trains(saved):
        _check_data({**saved["data"], **_given(content["data"])})
    _check_auto_step(content.get("sampler") or {}, saved["schedule"])
    labels, classes = content["labels"], saved["network"]["num_classes"]
    if labels is not None and not classes:
        raise UserError(f"labels={labels} needs a model trained with class labels; this has none")
    if isinstance(labels, list) and (not labels or max(labels) >= classes):
        raise UserError(f"labels={labels} must be class labels of the model, 0 to {classes - 1}")
    return None


def check_evaluate(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/evaluate.py``."""
    content = validate(config, Evaluate)
    saved = saved_header(content["run"])["config"]
    _check_guidance("guidance", content["guidance"], saved)
    _check_variance(content.get("sampler"), saved)
    _check_auto_step(content.get("sampler") or {}, saved["schedule"])
    _check_data({**saved["data"], **_given(content["data"])})
    check_n(content["n"], content["evaluation"]["metrics"])
    _check_likelihood(content.get("likelihood"), saved)
    return None


def saved_header(run: str | Path, key: str = "run") -> dict[str, Any]:
    """Header of a run's or a checkpoint's weights, with a config that this version knows.

    Raises:
        UserError: where there is none, or it asks for something that is not this project's.
    """
    path = checkpoint_path(run, key)
    header = read_header(path, key)
    known = Train.model_fields  # a run of before may have had others
    header["config"] = {name: node for name, node in header["config"].items() if name in known}
    try:
        validate_plain(header["config"], Train)
        for name in unresolved_keys(header["config"]):
            raise UserError(f"{name}={AUTO} is no number")
    except UserError as error:
        raise UserError(f"{key}={run} has a config that cannot be used: {error}") from None
    check_plain(path, key)
    return header


def decide_train(config: DictConfig) -> Decision:
    """The extractor of the run's evaluations."""
    node = config.evaluation
    if node.n:
        check_n(node.n, node.metrics)
    if node.every:
        check_n(node.n_during, node.metrics)
    wanted = node.metrics and (node.n or node.every)
    return _extractor(config, config.data) if wanted else NOTHING


def decide_evaluate(config: DictConfig) -> Decision:
    """The extractor of the evaluation."""
    if not config.evaluation.metrics:
        return NOTHING
    return _extractor(config, read_header(checkpoint_path(config.run))["config"]["data"])


def _extractor(config: DictConfig, data: Any) -> Decision:
    node = config.evaluation
    shape = catalog.sample_shape(data["name"], data["image_size"], data["channels"])
    choice = choose(node.extractor, node.inception_weights, node.download, shape)
    check_metrics(node.metrics, choice.extractor)
    decided = {"evaluation.extractor": choice.extractor}
    if choice.weights:
        decided["evaluation.inception_weights"] = choice.weights
    return Decision(decided, choice.note)


def _given(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if value is not None}


def _resume(config: DictConfig, overrides: list[str]) -> Path | None:
    """Replace ``config`` by that of the run it resumes, with what may change changed."""
    if not isinstance(config.resume, str):
        raise UserError(f"resume={config.resume} must be auto, a run directory or a checkpoint")
    if config.resume == "auto":
        wanted = _fixed(config)
        run = newest_run(lambda saved: _fixed(as_asked(saved)) == wanted)
        if run is None:
            print("resume=auto: no run with this config has a checkpoint; starting one", flush=True)
            config.resume = None
            return None
        checkpoint = checkpoint_path(run, "resume")
        if process_rank() == 0:
            print(
                f"resume=auto: the newest run with this config is {run}, at step "
                f"{read_header(checkpoint)['step']}",
                flush=True,
            )
    else:
        checkpoint = checkpoint_path(config.resume, "resume")
    saved: DictConfig = OmegaConf.create(saved_header(checkpoint, "resume")["config"])
    _refuse_oracle(saved)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~").partition("@")[0]
        if key == "resume":
            continue
        if _changeable(key):
            value = OmegaConf.select(config, key)
            OmegaConf.update(saved, key, value, merge=False, force_add=True)
        elif not _agree(config, saved, key):
            raise UserError(
                f"{override} would make another run: resume continues one as it was, and can "
                f"change only {', '.join(CHANGEABLE)}"
            )
    saved.resume = str(checkpoint)
    with open_dict(config):
        for name in [name for name in config if name != "hydra"]:
            del config[name]
        for name in saved:
            config[name] = saved[name]
    return checkpoint.parents[1] if _in_run(checkpoint) else None


def _refuse_training(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what is typed about training where the model is an oracle and nothing is trained."""
    if OmegaConf.select(config, "model.family") != "oracle":
        return
    if config.get("resume") is not None:
        _refuse_oracle(config)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~").partition("@")[0]
        if key.partition(".")[0] in OF_TRAINING and key not in FOR_ALL:
            raise UserError(f"{override} does not fit model=oracle, which trains nothing")


def _refuse_oracle(config: DictConfig) -> None:
    """Refuse to continue what has no steps to take."""
    if not trains(config):
        raise UserError("resume continues training, and model=oracle trains nothing: start it anew")


def _agree(config: DictConfig, saved: DictConfig, key: str) -> bool:
    """Whether both configs mean the same by ``key``; an experiment is all that it sets."""
    asked = as_asked(saved)
    if key == "experiment":
        return _fixed(config) == _fixed(asked)
    values = [OmegaConf.select(known, key) for known in (asked, saved)]
    return OmegaConf.select(config, key) in values


def as_asked(saved: DictConfig) -> DictConfig:
    """A run's config as it was before what was ``auto`` had been found."""
    found = OmegaConf.select(saved, "sigma.found")
    if not found:
        return saved
    asked = copy.deepcopy(saved)
    for key in found:
        asked.sigma[key] = asked.schedule[key] = AUTO
    del asked.sigma["found"]
    return asked


def _check_steps_left(checkpoint: Path, steps: int) -> None:
    """Refuse to continue a run that has ended; one that was cut off after its last step may."""
    done = read_header(checkpoint, "resume")["step"]
    ended = not _in_run(checkpoint) or (checkpoint.parents[1] / "summary.json").is_file()
    if done > steps or (done == steps and ended):
        raise UserError(
            f"resume={checkpoint} has already taken {done} of {steps} steps; to train further "
            f"give more, e.g. steps={2 * done}"
        )


def _in_run(checkpoint: Path) -> bool:
    """Whether a checkpoint lies in a run directory."""
    return checkpoint.parent.name == "checkpoints"


def _fixed(config: DictConfig) -> Any:
    """The part of a config that makes a run what it is."""
    content: Any = OmegaConf.to_container(own_keys(config), resolve=True)
    for key in ("resume", *CHANGEABLE):
        node, _, leaf = key.rpartition(".")
        parent = content.get(node) if node else content
        if isinstance(parent, dict):
            parent.pop(leaf, None)
    return content


def _changeable(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in CHANGEABLE)


def _check_schedule(config: DictConfig) -> None:
    """Refuse knobs of a schedule other than the one that was chosen (``+sigma.levels=…``)."""
    chosen = str(OmegaConf.select(config, "schedule._target_")).rpartition(".")[2]
    own = "sigma" if chosen == "geometric" else "beta"
    for node, model in (("sigma", "ncsn"), ("beta", "ddpm")):
        if node != own and config.get(node) is not None:
            key, value = node, config[node]
            if OmegaConf.is_dict(value) and value:
                knob, value = next(iter(value.items()))
                key = f"{node}.{knob}"
            raise UserError(
                f"{key}={value} does not fit schedule={chosen}, which is set by {own}.*; "
                f"{node}.* belongs to model={model}"
            )


def _check_data(data: dict[str, Any]) -> None:
    catalog.sample_shape(data["name"], data["image_size"], data["channels"])
    catalog.crop_size(data["name"], data["crop"])
    catalog.check(data["name"], data["root"], data["download"])


def _check_network(content: dict[str, Any]) -> None:
    data, network = content["data"], content["network"]
    shape = catalog.sample_shape(data["name"], data["image_size"], data["channels"])
    flat = len(shape) == 1
    if flat != (network["_target_"] in ON_POINTS):
        fits = "network=mlp or mlp_energy" if flat else "a U-Net (network=unet_28, …)"
        raise UserError(
            f"network={network['_target_']} does not fit data={data['name']}: use {fits}"
        )
    if not flat:
        options = {key: value for key, value in network.items() if key in UNET_LIMITS}
        limits.check_unet(in_channels=shape[0], image_size=shape[1], **options)


ON_POINTS = ("betasigma.networks.mlp.MLP", ENERGY)
"""Networks for data that are points; the others are for images."""

UNET_LIMITS = (
    "channels",
    "multipliers",
    "blocks",
    "attention",
    "heads",
    "head_channels",
    "dropout",
    "num_classes",
    "embedding",
)


def _check_objective(content: dict[str, Any]) -> None:
    """Refuse an objective that the data or the network have no part for."""
    data, network, objective = content["data"], content["network"], content["objective"]
    target = objective["_target_"]
    check_weighting(
        objective.get("weighting", "sigma_power"), objective["sigma_power"], objective["times"]
    )
    if target == EXPLICIT and data["name"] != "mixture":
        raise UserError(
            f"objective=explicit needs the true score, which data={data['name']} does not have: "
            f"use data=mixture, or objective=denoising, which has the same minimiser"
        )
    if target == EXPLICIT and network["num_classes"]:
        raise UserError(
            f"objective=explicit fits the score without labels: network.num_classes="
            f"{network['num_classes']} must be 0"
        )
    if target == IMPLICIT:
        shape = catalog.sample_shape(data["name"], data["image_size"], data["channels"])
        check_trace(math.prod(shape))
    if target == HYBRID:
        check_hybrid(objective["weighting"], objective["times"])
        _check_doubled(network, content["schedule"])
    twice = network["_target_"] == ENERGY or target in (IMPLICIT, SLICED)
    if content["hardware"]["compile"] and twice:
        raise UserError(
            f"hardware.compile={str(content['hardware']['compile']).lower()} cannot differentiate "
            "twice, as an energy network and implicit and sliced score matching must: leave it at "
            "false"
        )


def _check_doubled(network: dict[str, Any], schedule: dict[str, Any]) -> None:
    """Refuse to learn a variance where there is no output, or no step, to have one."""
    if network["_target_"] == ENERGY:
        raise UserError(
            "network=mlp_energy has the gradient of one scalar for output and no variance beside "
            "it: objective=hybrid needs network=mlp"
        )
    for key, name in (("levels", "sigma.levels"), ("steps", "beta.steps")):
        if schedule.get(key) == 1:
            raise UserError(f"{name}=1 leaves objective=hybrid no step to learn the variance of")


def _check_variance(sampler: dict[str, Any] | None, model: dict[str, Any]) -> None:
    """Refuse to sample with a variance that the model has not learned."""
    if sampler and sampler.get("variance") == "learned" and not learns_variance(model):
        raise UserError(
            "sampler.variance=learned needs a model that has learned one: train it with "
            "objective=hybrid, or take sampler.variance=beta or posterior"
        )


def _check_likelihood(node: dict[str, Any] | None, model: dict[str, Any]) -> None:
    """Refuse a likelihood that the model of a config does not have."""
    if node is None:
        return
    data, schedule = model["data"], model["schedule"]
    levels = schedule.get("levels", schedule.get("steps"))
    if levels != AUTO:
        check_levels(levels)
    shape = catalog.sample_shape(data["name"], data["image_size"], data["channels"])
    if len(shape) == 1 and not node["_target_"].endswith("FlowLikelihood"):
        raise UserError(
            f"a variational bound is of bytes, its decoder integrates over 256 grey levels, and "
            f"data={data['name']} has points: use likelihood=flow"
        )
    if "learned" in (node.get("variance"), node.get("decoder_std")) and not learns_variance(model):
        raise UserError(
            "likelihood.variance=learned and likelihood.decoder_std=learned need a model that has "
            "learned a variance: train it with objective=hybrid"
        )
    if node.get("trace") == "exact":
        check_exact_trace(prod(shape))


def _check_labels(content: dict[str, Any]) -> None:
    data, classes = content["data"], content["network"]["num_classes"]
    if classes:
        known = catalog.num_classes(data["name"], data["root"], data["mixture"])
        if classes != known:
            raise UserError(
                f"network.num_classes={classes} does not fit data={data['name']}, which has "
                f"{known} classes; 0 trains without labels"
            )
    if content["objective"]["label_dropout"] and not classes:
        raise UserError(
            f"objective.label_dropout={content['objective']['label_dropout']} needs labels "
            f"to drop: give network.num_classes too"
        )
    _check_guidance("training.guidance", content["training"]["guidance"], content)


def _check_guidance(key: str, weight: float, model: dict[str, Any]) -> None:
    """Refuse guidance of a model that was not trained both with and without labels."""
    knows_both = model["objective"]["label_dropout"] or not trains(model)
    if weight != 1 and not (model["network"]["num_classes"] and knows_both):
        raise UserError(
            f"{key}={weight} needs a model trained with network.num_classes and "
            f"objective.label_dropout (0.1, say): it must know both with and without a label"
        )


def check_compare(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/compare.py``."""
    content = validate(config, Compare)
    check_curves(read_runs(content["runs"]), content["metrics"])
    return None


CHECKS = {
    "train": AppChecks(check_train, decide_train),
    "sample": AppChecks(check_sample),
    "compare": AppChecks(check_compare),
    "evaluate": AppChecks(check_evaluate, decide_evaluate),
}
