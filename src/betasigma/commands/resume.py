"""Continue a run: find it, change what may change, check that steps are left.

Nothing heavy is imported here.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from betasigma.commands.config import complete, key_of, plain, saved_header, trains, upgrade, within
from betasigma.errors import UserError
from betasigma.options import AUTO
from betasigma.options.base import parse_component
from betasigma.options.training import StopOptions
from betasigma.runs.directory import ENVIRONMENT, SUMMARY, holds_run, newest_runs
from betasigma.runs.files import read_json
from betasigma.runs.header import CHECKPOINTS, checkpoint_path, last_checkpoint, read_header
from betasigma.runs.status import process_rank
from betasigma.runs.sweep_record import read_sweep

CHANGEABLE = (
    *("steps", "name", "tags", "plugins", "hardware", "cluster", "logger", "loggers"),
    *("stop", "evaluation", "likelihood", "sampler", "objective_metric"),
    "training.log_every",
    "training.validate_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.num_samples",
    "training.wait_for_space",
    "training.skip_limit",
    *("trainer.max_time", "trainer.profiler", "trainer.detect_anomaly"),
    "data.root",
    "data.workers",
    "data.download",
)
"""Keys that may change when a run is continued. They do not enter the weights."""


HOW_IT_STARTS = ("resume", "overwrite")
"""Keys that say whether a run is begun or continued."""


def continue_run(config: DictConfig, overrides: list[str]) -> Path | None:
    """Replace ``config`` by that of the resumed run, with the overrides that may change it.

    Returns:
        The directory of the resumed run; ``None`` for a new one.
    """
    if not isinstance(config.resume, str):
        raise UserError(f"resume={config.resume} must be auto, a run directory or a checkpoint")
    refuse_overwrite(config)
    if read_sweep(Path(config.resume)) is not None:
        raise UserError(f"resume={config.resume} is a sweep of several runs: add -m")
    found = _found(config, overrides) if config.resume == "auto" else _saved(config.resume)
    if found is None:
        _say("resume=auto: no run with a checkpoint fits this command; starting one")
        config.resume = None
        return None
    checkpoint, saved = found
    refuse_oracle(saved)
    for override in overrides:
        key = key_of(override)
        if not (key in HOW_IT_STARTS or _changeable(key) or _agree(config, saved, key)):
            raise UserError(
                f"{override} would make another run: resume continues one as it was, and can "
                f"change only {', '.join(CHANGEABLE)}"
            )
    continued = _changed(saved, config, overrides)
    _check_length(saved, continued.steps)
    _replace(config, continued, checkpoint)
    return checkpoint.parents[1] if _in_run(checkpoint) else None


def _saved(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run, and its config."""
    checkpoint = checkpoint_path(run, "resume")
    return checkpoint, complete(saved_header(checkpoint, "resume")["config"])


def _changed(saved: dict[str, Any], config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of a run, with what ``config`` has for the overrides that may change it."""
    continued: DictConfig = OmegaConf.create(saved)
    for key in filter(_changeable, map(key_of, overrides)):
        OmegaConf.update(continued, key, OmegaConf.select(config, key), merge=False, force_add=True)
    return continued


def refuse_overwrite(config: DictConfig) -> None:
    """Refuse to begin over what is to be continued."""
    if config.get("resume") is not None and config.get("overwrite"):
        raise UserError(
            f"overwrite=true begins over, and resume={config.resume} continues: leave one out"
        )


MEASURED_BY = ("sampler", "evaluation", "likelihood")
"""Of these, what a run measures itself by: its values compare only while they stay."""


def continue_in(config: DictConfig, overrides: list[str], directory: Path) -> None:
    """Continue the run that ``directory`` holds, if it has a checkpoint: a run is never begun over,
    except with ``overwrite=true``.

    So a job that a cluster starts again, or a command that is repeated, goes on where it was.
    Keys that may change take the values of ``config``, which is replaced otherwise. What the run
    measures itself by stays too, whatever this version's defaults are, unless something else is
    typed than at its start.

    Raises:
        UserError: where the directory holds another run, or one that cannot be continued.
    """
    if not trains(plain(config)) or begins_over(config.get("overwrite", False)):
        return
    checkpoint = last_checkpoint(directory, "resume")
    if checkpoint is None:
        if (directory / SUMMARY).is_file() and holds_run(directory):
            raise UserError(
                f"{directory} holds a run that has ended and has no checkpoint any more: give "
                f"another directory, or begin over in this one with overwrite=true"
            )
        return
    if config.get("resume") is not None and Path(config.resume).parent == checkpoint.parent:
        return
    saved = complete(saved_header(checkpoint, "resume")["config"])
    asked, known = _fixed(plain(config)), _fixed(as_asked(saved))
    if asked != known:
        key = next(k for k in {**known, **asked} if asked.get(k) != known.get(k))
        raise UserError(
            f"{directory} holds another run (of another {key}): give another directory, or begin "
            f"over in this one with overwrite=true"
        )
    continued: DictConfig = OmegaConf.create(saved)
    changed = _changed_words(overrides, directory)
    for key in CHANGEABLE:
        if key in MEASURED_BY and not any(_may_set(word, key) for word in changed):
            continue
        value = OmegaConf.select(config, key)
        OmegaConf.update(continued, key, value, merge=False, force_add=True)
    _check_length(saved, continued.steps)
    _replace(config, continued, checkpoint)


def _changed_words(overrides: list[str], directory: Path) -> set[str]:
    """The overrides in which a command differs from the one that a run was started by."""
    newest = read_json(directory / ENVIRONMENT)
    first = [*newest.get("resumed_after", []), newest][0]  # resume= may have continued it since
    earlier = first.get("overrides")
    return set(overrides) ^ set(map(str, earlier if isinstance(earlier, list) else ()))


def _may_set(word: str, node: str) -> bool:
    """Whether an override gives ``node`` a value: its own, or of a group that has no node."""
    key = key_of(word)
    return key.partition(".")[0] == node or not (_changeable(key) or key in HOW_IT_STARTS)


def begins_over(overwrite: bool) -> bool:
    """Whether ``overwrite=true`` is to be followed. A job that SLURM has started again was begun
    over at its first start.
    """
    return overwrite and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"


def _replace(config: DictConfig, continued: DictConfig, checkpoint: Path) -> None:
    """Replace a composed config by that of the run to continue."""
    continued.resume = str(checkpoint)
    continued.plugins = config.get("plugins", [])  # a run names packages, and never allows them
    with open_dict(config):
        for name in [name for name in config if name != "hydra"]:
            del config[name]
        for name in continued:
            config[name] = continued[name]


def _check_length(saved: dict[str, Any], steps: int) -> None:
    """Refuse another number of steps where the learning rate of every step depends on it."""
    schedule = parse_component("lr_schedule", saved["lr_schedule"])
    if schedule.ends_with_the_run and steps != saved["steps"]:
        raise UserError(
            f"steps={steps} would change the learning rate of steps that are taken: "
            f"lr_schedule.{schedule.length} of this run is its length, steps={saved['steps']}; "
            f"start another run"
        )


def refuse_oracle(content: dict[str, Any]) -> None:
    """Refuse to resume an oracle, which trains nothing."""
    if not trains(content):
        raise UserError("resume continues training, and model=oracle trains nothing: start it anew")


def check_steps_left(checkpoint: Path, content: dict[str, Any]) -> None:
    """Refuse to continue a run that has ended.

    A run that was interrupted after its last step, before its summary, may continue.
    """
    done, steps = read_header(checkpoint, "resume")["step"], content["steps"]
    if done > steps or (done == steps and not _lacks_summary(checkpoint)):
        raise UserError(
            f"resume={checkpoint} has already taken {done} of {steps} steps; to train further "
            f"give more, e.g. steps={2 * done}"
        )
    if _budget_is_spent(checkpoint, content):
        raise UserError(
            f"resume={checkpoint} has trained for as long as stop.minutes or stop.hours lets it; "
            f"to train further give more"
        )


def has_ended(checkpoint: Path, content: dict[str, Any]) -> bool:
    """Whether a run has taken all its steps, or spent its time, and written its summary."""
    done = read_header(checkpoint)["step"] >= content["steps"]
    ended = done or _budget_is_spent(checkpoint, content)
    return ended and not _lacks_summary(checkpoint)


def _budget_is_spent(checkpoint: Path, content: dict[str, Any]) -> bool:
    budget = StopOptions.parse(content["stop"]).seconds
    return budget is not None and read_header(checkpoint).get("seconds", 0) >= budget


def _lacks_summary(checkpoint: Path) -> bool:
    return _in_run(checkpoint) and not (checkpoint.parents[1] / SUMMARY).is_file()


def as_asked(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config as it was asked for, with ``auto`` where numbers were computed."""
    found = (saved.get("sigma") or {}).get("found")
    if not found:
        return saved
    asked = copy.deepcopy(saved)
    for key in found:
        asked["sigma"][key] = asked["schedule"][key] = AUTO
    asked["sigma"]["found"] = None
    return asked


def _found(config: DictConfig, overrides: list[str]) -> tuple[Path, dict[str, Any]] | None:
    """Find the checkpoint and the config of the newest run with this config that has not ended; of
    the newest where all have.
    """
    wanted = _fixed(plain(config))
    named = any(key_of(word) == "name" for word in overrides)

    def matches(saved: DictConfig) -> bool:
        content: Any = OmegaConf.to_container(saved)
        if named and content.get("name") != config.name:
            return False
        try:
            return _fixed(as_asked(complete(upgrade(content)))) == wanted
        except UserError:  # a run that this version, or this user, knows nothing of
            return False

    ended = None
    for run in newest_runs(matches):
        try:
            checkpoint, saved = _saved(run)
        except UserError as damage:
            _say(f"resume=auto: {damage}; an older run is looked for")
            continue
        if has_ended(checkpoint, plain(_changed(saved, config, overrides))):
            ended = ended or (checkpoint, saved)
            continue
        step = read_header(checkpoint)["step"]
        which = "" if ended is None else f" and that has not ended, as {ended[0].parents[1]} has,"
        newest = f"the newest run that fits this command{which} is {run}"
        _say(f"resume=auto: {newest}, at step {step}")
        return checkpoint, saved
    if ended is not None:
        newest = f"the newest is {ended[0].parents[1]}, at step {read_header(ended[0])['step']}"
        _say(f"resume=auto: the runs that fit this command have ended, {newest}")
    return ended


def _say(text: str) -> None:
    if process_rank() == 0:
        print(text, flush=True)


def _agree(config: DictConfig, saved: dict[str, Any], key: str) -> bool:
    """Whether both configs mean the same by ``key``; of a group that leaves no node of its own (an
    experiment, a point of a study) whether they mean the same by all keys.
    """
    typed, asked = _fixed(plain(config)), _fixed(as_asked(saved))
    if key.partition(".")[0] not in typed:
        return typed == asked
    values = [OmegaConf.select(OmegaConf.create(known), key) for known in (asked, _fixed(saved))]
    return OmegaConf.select(OmegaConf.create(typed), key) in values


def _fixed(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that makes a run what it is."""
    fixed = complete(content)
    for key in (*HOW_IT_STARTS, "model.family", *CHANGEABLE):
        node, _, leaf = key.rpartition(".")
        parent = fixed.get(node) if node else fixed
        if isinstance(parent, dict):
            parent.pop(leaf, None)
    return fixed


def _in_run(checkpoint: Path) -> bool:
    """Whether a checkpoint lies in a run directory."""
    return checkpoint.parent.name == CHECKPOINTS


def _changeable(key: str) -> bool:
    return any(within(key, known) for known in CHANGEABLE)
