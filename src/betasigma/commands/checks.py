"""What each app checks before it starts, and what it decides once for a whole sweep. No heavy
imports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from betasigma.commands.schema import Compare, Evaluate, Sample, Train, own_keys, validate
from betasigma.data import catalog
from betasigma.errors import UserError
from betasigma.evaluation.choice import choose
from betasigma.networks import limits
from betasigma.training.headers import checkpoint_path, read_header
from betasigma.training.runs import newest_run

CHANGEABLE = (
    "steps",
    "name",
    "tags",
    "hardware",
    "cluster",
    "logger",
    "evaluation",
    "sampler",
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


class AppChecks(NamedTuple):
    """What ``Preflight`` does for one app."""

    check: Callable[[DictConfig, list[str]], Path | None]
    """Refuse a config that cannot work; returns the directory to run in where it is not a new
    one.
    """
    decide: Callable[[DictConfig], dict[str, Any]]
    """Values of keys that were left to be chosen."""


def check_train(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``train.py``; where it resumes, make it the resumed run's.

    Raises:
        UserError: for the first thing that cannot work.
    """
    directory = _resume(config, overrides) if config.get("resume") is not None else None
    _check_schedule(config)
    content = validate(config, Train)
    _check_data(content["data"])
    _check_network(content)
    _check_labels(content)
    if content["batch_size"] % content["training"]["accumulate"]:
        raise UserError(
            f"batch_size={content['batch_size']} cannot be divided into "
            f"training.accumulate={content['training']['accumulate']} equal micro-batches"
        )
    return directory


def check_sample(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/sample.py``."""
    read_header(checkpoint_path(validate(config, Sample)["run"]))
    return None


def check_evaluate(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/evaluate.py``."""
    content = validate(config, Evaluate)
    header = read_header(checkpoint_path(content["run"]))
    _check_data({**header["config"]["data"], **_given(content["data"])})
    return None


def decide_train(config: DictConfig) -> dict[str, Any]:
    """The extractor of the run's evaluations."""
    if not config.evaluation.metrics or config.evaluation.n == 0:
        return {}
    return _extractor(config, config.data)


def decide_evaluate(config: DictConfig) -> dict[str, Any]:
    """The extractor of the evaluation."""
    header = read_header(checkpoint_path(config.run))
    return _extractor(config, header["config"]["data"])


def _extractor(config: DictConfig, data: Any) -> dict[str, Any]:
    node = config.evaluation
    shape = catalog.sample_shape(data["name"], data["image_size"], data["channels"])
    choice = choose(node.extractor, node.inception_weights, node.download, shape)
    if choice.note and os.environ.get("LOCAL_RANK", "0") == "0":
        print(choice.note, flush=True)
    decided = {"evaluation.extractor": choice.extractor}
    if choice.weights:
        decided["evaluation.inception_weights"] = choice.weights
    return decided


def _given(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if value is not None}


def _resume(config: DictConfig, overrides: list[str]) -> Path | None:
    """Replace ``config`` by that of the run it resumes, with what may change changed."""
    if config.resume == "auto":
        wanted = _fixed(config)
        run = newest_run(lambda saved: _fixed(saved) == wanted)
        if run is None:
            print("resume=auto: no run with this config has a checkpoint; starting one", flush=True)
            config.resume = None
            return None
        checkpoint = checkpoint_path(run, "resume")
    else:
        checkpoint = checkpoint_path(config.resume, "resume")
    saved: DictConfig = OmegaConf.create(read_header(checkpoint, "resume")["config"])
    for key in _keys(overrides):
        if key == "resume":
            continue
        value = OmegaConf.select(config, key)
        if _changeable(key):
            OmegaConf.update(saved, key, value, merge=False, force_add=True)
        elif config.resume != "auto" and OmegaConf.select(saved, key) != value:
            raise UserError(
                f"{key}={value} would make another run: resume continues one as it was, and can "
                f"change only {', '.join(CHANGEABLE)}"
            )
    saved.resume = str(checkpoint)
    with open_dict(config):
        for name in [name for name in config if name != "hydra"]:
            del config[name]
        for name in saved:
            config[name] = saved[name]
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else None


def _fixed(config: DictConfig) -> Any:
    """The part of a config that makes a run what it is."""
    content: Any = OmegaConf.to_container(own_keys(config), resolve=True)
    content.pop("resume", None)
    for key in CHANGEABLE:
        node, _, leaf = key.rpartition(".")
        (content[node] if node else content).pop(leaf, None)
    return content


def _keys(overrides: list[str]) -> list[str]:
    return [override.partition("=")[0].lstrip("+~").partition("@")[0] for override in overrides]


def _changeable(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in CHANGEABLE)


def _check_schedule(config: DictConfig) -> None:
    """Refuse knobs of a schedule other than the one that was chosen (``+sigma.levels=…``)."""
    chosen = str(OmegaConf.select(config, "schedule._target_")).rpartition(".")[2]
    own = "sigma" if chosen == "geometric" else "beta"
    for node, model in (("sigma", "ncsn"), ("beta", "ddpm")):
        if node != own and config.get(node) is not None:
            knob, value = next(iter(config[node].items()))
            raise UserError(
                f"{node}.{knob}={value} does not fit schedule={chosen}, which is set by {own}.*; "
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
    if flat != network["_target_"].endswith("MLP"):
        fits = "network=mlp" if flat else "a U-Net (network=unet_28, …)"
        raise UserError(
            f"network={network['_target_']} does not fit data={data['name']}: use {fits}"
        )
    if not flat:
        options = {key: value for key, value in network.items() if key in UNET_LIMITS}
        limits.check_unet(in_channels=shape[0], image_size=shape[1], **options)


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
    guidance = content["training"]["guidance"]
    if guidance != 1 and not (classes and content["objective"]["label_dropout"]):
        raise UserError(
            f"training.guidance={guidance} needs network.num_classes and objective.label_dropout "
            f"(0.1, say): the model must know both with and without a label"
        )


def check_compare(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/compare.py``."""
    for path in validate(config, Compare)["runs"]:
        if not (Path(path) / "metrics.csv").is_file():
            raise UserError(f"runs=[{path}] is not a run directory: it has no metrics.csv")
    return None


CHECKS = {
    "train": AppChecks(check_train, decide_train),
    "sample": AppChecks(check_sample, lambda config: {}),
    "compare": AppChecks(check_compare, lambda config: {}),
    "evaluate": AppChecks(check_evaluate, decide_evaluate),
}
