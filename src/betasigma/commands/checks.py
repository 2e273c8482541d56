"""What each command checks before it starts, and decides once for a whole sweep.

Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from betasigma.commands import memory
from betasigma.commands.config import (
    class_trains,
    interpolated_keys,
    key_of,
    leave_out_former_keys,
    parsed,
    plain,
    saved_header,
    trains,
    unresolved,
    within,
)
from betasigma.commands.resume import check_steps_left, continue_in, continue_run, refuse_oracle
from betasigma.data import catalog
from betasigma.data.facts import described_facts, find_facts
from betasigma.errors import UserError, counted, did_you_mean, few
from betasigma.evaluation.choice import choose
from betasigma.options import AUTO, DataFacts, DataOptions, SamplerOptions, apps, evaluation
from betasigma.options.base import REGISTRY, dump
from betasigma.options.composition import Composition, numbered
from betasigma.options.edits import check_ends
from betasigma.options.noise_schedules import check_dimensions
from betasigma.options.plugins import locate, versions
from betasigma.options.samplers import HeunOptions
from betasigma.options.training import ERROR_BY_NOISE, LOGGED, check_division
from betasigma.report.runs import (
    check_comparable,
    curves_to_draw,
    leaves,
    read_evaluations,
    read_runs,
    runs_in,
)
from betasigma.report.scan import (
    check_common,
    check_filters,
    find_recorded,
    run_directories,
)
from betasigma.runs.directory import holds_run
from betasigma.runs.files import check_place
from betasigma.runs.header import checkpoint_path, may_be_published, read_header
from betasigma.runs.record import METRICS, current_name
from betasigma.runs.status import STATUS
from betasigma.runs.sweep_record import SWEEP, read_sweep
from betasigma.training.account import check_online, logged_in

OF_TRAINING = (
    *("steps", "network", "preconditioning", "objective", "denoiser"),
    *("optimizer", "lr_schedule", "training", "ema", "callbacks", "debug", "init", "stop"),
)
"""Keys and nodes that say how a network is trained. An oracle refuses them, except ``FOR_ALL``."""
FOR_ALL = ("network.num_classes", "training.guidance", "training.num_samples")


class Decision(NamedTuple):
    """Choices made once for a run or a whole sweep, so that its jobs can be compared: values by
    key, and one line for the user.
    """

    values: dict[str, Any]
    note: str | None = None


PNG_CHANNELS = 4
"""Channels of a PNG, at most: colours and transparency."""

NOTHING = Decision({})


Check = Callable[[DictConfig, list[str]], Path | None]


def leave_run_alone(config: DictConfig, overrides: list[str], directory: Path) -> None:
    """Refuse to write into the directory of a run, whose status and log would be another's."""
    if holds_run(directory):
        raise UserError(f"{directory} is the directory of a run: give another hydra.run.dir")


class AppChecks(NamedTuple):
    """What ``Preflight`` does for one app."""

    check: Check
    """Refuse a config that cannot work. Return the directory of the run that is continued, or
    ``None`` for a new one.
    """
    decide: Callable[[DictConfig], Decision] = lambda config: NOTHING
    """Choose what the config leaves open."""
    preview: Callable[[DictConfig], str] = lambda config: ""
    """Say what the command will do, in one line; empty where it says nothing."""
    enter: Callable[[DictConfig, list[str], Path], None] = leave_run_alone
    """Look at what the run directory holds already."""
    writes: bool = True
    """Whether it writes into its directory, and holds it against other commands."""
    needs_machine: bool = True
    """Whether this machine must have the hardware and the account that the config asks for."""


def check_train(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``train.py``. To resume, replace it by the config of the resumed run."""
    leave_out_former_keys(config, overrides)
    _refuse_training(config, overrides)
    no_reader = unread(config)
    directory = continue_run(config, overrides) if config.get("resume") is not None else None
    _find_initial(config)
    content, options, facts = check_run(config)
    refuse_unlogged(content)
    if content["resume"] is None and not options.unresolved:
        _check_initial(content, facts)
    _refuse_unused(overrides, no_reader | unused_in_training(content, options, facts))
    here = content["cluster"].get("name") == "none"
    if here:  # the nodes of a cluster have other memory
        memory.check_training(options, facts)
    if content["resume"] is not None:
        check_steps_left(Path(content["resume"]), content)
    return directory


def refuse_unlogged(content: Mapping[str, Any]) -> None:
    """Refuse an objective that is not logged, as far as that is known: classes of one's own log
    what they like, and the names of what is measured of samples depend on the data.
    """
    metric = current_name(content["objective_metric"])
    if metric in LOGGED or re.fullmatch(ERROR_BY_NOISE, metric) or versions(content):
        return
    more = evaluation.measures(content["evaluation"]) or "likelihood" in content
    near = did_you_mean(metric, LOGGED, cutoff=0.85)
    if near or not (more and metric.startswith("val/")):
        known = near or f"there are {few(LOGGED)}"
        raise UserError(f"objective_metric={metric} is not logged by this run: {known}")


def check_prefetch(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/prefetch.py``, which may download."""
    given = {override.partition("=")[0] for override in overrides}
    for name in ("data", "evaluation"):
        node = config[name]
        if "download" in node and f"{name}.download" not in given and not node.get("source"):
            node.download = True
    check_train(config, overrides)


def _refuse_unused(
    overrides: Sequence[str], unused: Mapping[str, str], removed: bool = False
) -> None:
    """Refuse keys that were typed and have no effect, and say why; those that ``~key`` takes away
    too where they have none in any case (``removed``).
    """
    for override in overrides:
        taken_away = [key_of(override)] if removed and override.startswith("~") else []
        for key in [*typed_keys(override), *taken_away]:
            why = unused_reason(key, unused)
            if why is not None:
                space = "" if why.startswith(":") else " "
                end = ": leave it out, or give that" if why.startswith("without ") else ""
                raise UserError(f"{override} has no effect{space}{why}{end or '; leave it out'}")


def unused_reason(key: str, unused: Mapping[str, str]) -> str | None:
    """Why a key has no effect; ``None`` if it is not among those that have none."""
    return next((why for name, why in unused.items() if within(key, name)), None)


def typed_keys(override: str) -> list[str]:
    """Dotted keys that an override gives a value to; of ``node={key:value}`` those within."""
    key, _, value = override.partition("=")
    key = key.lstrip("+").partition("@")[0]
    if key.startswith("~"):
        return []
    if not value.startswith("{"):
        return [key]
    node: Any = OverridesParser.create().parse_override(override).value()
    return [key, *(f"{key}.{within}" for within in leaves(node))]


def unused_in_training(
    content: dict[str, Any], options: apps.Train, facts: DataFacts
) -> dict[str, str]:
    """Keys of a training run that have no effect, and why."""
    found = options.unused(options.composition(facts, options.hardware))
    found |= {f"data.{key}": why for key, why in catalog.unused(content["data"]).items()}
    if not options.model.trains:
        found["data.one_batch"] = "with model=oracle, which trains nothing"
    if content["cluster"].get("name") == "none":
        idle = [key for key in content["cluster"] if key != "name"]
        why = "without cluster=slurm, and the run would be on this machine"
        found |= {f"cluster.{key}": why for key in idle}
    return found


def unread(config: DictConfig) -> dict[str, str]:
    """Keys from which other nodes should read by interpolation, and none does."""
    found = {}
    raw = unresolved(config)
    read = interpolated_keys(raw)
    knobs = {str(options.knobs) for options in REGISTRY["schedule"].values()}
    for node in (
        *knobs & raw.keys(),
        "model.defaults",
        *raw.keys() - apps.Train.model_fields.keys(),
    ):
        held: Any = raw
        for part in node.split("."):
            held = held.get(part) if isinstance(held, dict) else None
        for leaf in leaves(held) if isinstance(held, dict) else ():
            key = f"{node}.{leaf}"
            if not any(within(key, name) or within(name, key) for name in read):
                found[key] = ": no other key takes it from there"
    for key in ("overlap", "examples", "found"):  # read by the rules that find what is auto
        found.pop(f"sigma.{key}", None)
    return found


def _find_initial(config: DictConfig) -> None:
    """Find the weights to start from. A model that others published is imported, and the run
    directory that this makes is named instead.
    """
    run = OmegaConf.select(config, "init.run")
    if run is not None and config.get("resume") is None:
        config.init.run = str(run_or_published(run, "init"))


def _check_initial(content: dict[str, Any], facts: DataFacts) -> None:
    """Check that the weights of ``init=RUN`` fit; where noise levels are still to be found, the
    run does.
    """
    if content["init"]["run"] is None:
        return
    from betasigma.commands.assemble import make_denoiser  # these import PyTorch
    from betasigma.commands.initial_weights import load_initial

    value_range = facts.value_range or content["model"]["value_range"]
    load_initial(make_denoiser(content, facts.shape, value_range), content)


class CheckedRun(NamedTuple):
    """The config of a training run, and what it says."""

    content: dict[str, Any]
    options: apps.Train
    facts: DataFacts


def check_run(config: DictConfig) -> CheckedRun:
    """Check the composed config of a training run."""
    _check_knobs(config)
    content, options = parsed(config, apps.Train)
    facts = look_for_data(options)
    check_composition(options, facts)
    content["model"]["family"] = family(options)
    if not options.model.trains:
        content["steps"] = 0  # whatever an experiment says of training
    devices = options.hardware.devices
    among = 1 if isinstance(devices, str) else devices * options.hardware.nodes
    accumulate = options.training.accumulate
    check_division(options.batch_size, accumulate, among)
    if options.hardware.compile == "cuda_graphs" and accumulate > 1:
        raise UserError(
            f"training.accumulate={accumulate} does not go with hardware.compile=cuda_graphs, "
            f"whose next replay overwrites gradients that are kept: use hardware.compile=true"
        )
    return CheckedRun(content, options, facts)


def check_composition(options: apps.Train, facts: DataFacts) -> None:
    """Check the groups of a training run against one another."""
    _check_auto(options, facts)
    if facts.points:
        catalog.refuse_pixels(facts.name, options.data.flip, options.data.dequantize)
    composition = options.composition(facts, options.hardware)
    if options.model.trains:
        options.network.check_with(composition)
        options.objective.check_with(composition)
        options.preconditioning.check_with(composition)
    options.network.check_classes(composition)
    _check_sampler(options.sampler, composition)
    if options.likelihood is not None:
        options.likelihood.check_with(composition)
    _check_guidance("training.guidance", options.training.guidance, options)


def _check_sampler(sampler: SamplerOptions, composition: Composition) -> None:
    """Check a sampler against the model, that it begins at a noise of the schedule, and that its
    bounds of churn leave one of those where it steps.
    """
    sampler.check_with(composition)
    ratio_max, schedule = getattr(sampler, "ratio_max", None), composition.schedule
    heun = sampler if isinstance(sampler, HeunOptions) and sampler.bounds_churn else None
    if not (ratio_max or heun) or composition.one_level or schedule.unresolved:
        return
    from betasigma.commands.assemble import make_sampler, make_schedule  # these import PyTorch
    from betasigma.samplers.sampler import start_time

    made = make_schedule(dump(schedule))
    start_time(made, ratio_max, in_noise=True)
    if heun is not None:
        stepping: Any = make_sampler(dump(heun))
        heun.check_churn([made.ratio(t).item() for t in stepping.times(made)])


def family(options: apps.ModelConfig) -> str:
    """Return the family of the model, which is an attribute of its class."""
    known = options.model.family_of_class
    return known or str(getattr(locate(options.model.target, "model"), "family", ""))


def run_or_published(run: str | Path, key: str = "run") -> str | Path:
    """The run that a path names; of a model that others published, the run directory that it is
    imported to.
    """
    path = Path(run)
    try:
        read_header(checkpoint_path(path, key), key)
    except UserError:
        if not may_be_published(path):
            raise
        from betasigma.commands.import_model import imported_run  # imports PyTorch
        from betasigma.display import Display

        imported = imported_run(path, key, Display())
        if imported is None:
            raise
        return imported
    return run


def of_a_run(check: Check) -> Check:
    """``check``, of a config whose ``run`` may be a published model, too."""

    @wraps(check)
    def checked(config: DictConfig, overrides: list[str]) -> Path | None:
        run = None if OmegaConf.is_missing(config, "run") else config.run
        if run and isinstance(run, str) and may_be_published(Path(run)):
            config.run = str(run_or_published(run))
        return check(config, overrides)

    return checked


def _saved_composition(
    asked: apps.Sample | apps.EditApp | apps.Evaluate, run: str, overrides: list[str]
) -> tuple[apps.ModelConfig, DataFacts, Composition]:
    """The model of a run, its data and both together, of which no key may be without effect."""
    saved, facts = saved_model(run)
    composition = saved.composition(facts)
    _check_guidance("guidance", asked.guidance, saved)
    if asked.sampler is not None:
        _check_sampler(asked.sampler, composition)
    unused = {f"data.{key}": why for key, why in catalog.unused(saved.data.arguments).items()}
    _refuse_unused(overrides, unused | asked.unused(composition))
    return saved, facts, composition


@of_a_run
def check_sample(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/sample.py``."""
    leave_out_former_keys(config, overrides)
    _, asked = parsed(config, apps.Sample)
    saved, facts, _ = _saved_composition(asked, asked.run, overrides)
    memory.check_sampling(asked, saved, facts)
    if not saved.model.trains:
        _check_data(saved, asked.data.given, facts)
    if asked.out is not None:
        check_place(Path(asked.out), f"out={asked.out}")
    _number_labels(config, saved, facts)
    for key in ("save=folder", f"trajectory={asked.trajectory}"):
        if facts.points and getattr(asked, key.partition("=")[0]) == key.partition("=")[2]:
            raise UserError(f"{key} needs a model of images; this one's data are points")
    if asked.save == "folder" and facts.shape[0] > PNG_CHANNELS:
        raise UserError(
            f"save=folder writes a PNG a sample, of at most {PNG_CHANNELS} channels, and this "
            f"model's have {facts.shape[0]}: give save=npz"
        )
    if asked.subfolders and not saved.network.num_classes:
        raise UserError("subfolders=true needs a model trained with class labels; this has none")


@of_a_run
def check_edit(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/edit.py``."""
    leave_out_former_keys(config, overrides)
    _, asked = parsed(config, apps.EditApp)
    saved, facts, composition = _saved_composition(asked, asked.run, overrides)
    asked.edit.check_with(composition)
    if asked.edit.draws:
        sampler = asked.sampler or saved.sampler
        asked.edit.check_sampler(sampler)
        _check_sampler(sampler, composition)
    _number_labels(config, saved, facts)
    if asked.labels is None and asked.guidance != 1:
        raise UserError(f"guidance={asked.guidance:g} needs labels=[…] to guide towards")
    if asked.labels is None and saved.network.num_classes and not _knows_no_label(saved):
        raise UserError(
            "this model was trained with a label on every image: give labels=[…], those of the "
            "images"
        )
    if asked.images is not None:
        if facts.points:
            raise UserError(
                f"images={asked.images} does not fit this run, whose data are points: without it "
                f"the test points of its data are taken"
            )
        if not Path(asked.images).expanduser().exists():
            raise UserError(
                f"images={asked.images} is not there: give a folder, a file or an array"
            )
    elif not asked.edit.needs_images:
        check_ends(len(asked.seeds))
    if not saved.model.trains:
        _check_data(saved, asked.data.given, facts)
    elif asked.images is None and asked.edit.needs_images:
        try:
            _check_data(saved, asked.data.given, facts)
        except UserError as error:
            raise UserError(f"{error}; or edit images of your own, images=FOLDER") from None


def _number_labels(config: DictConfig, saved: apps.ModelConfig, facts: DataFacts) -> None:
    """Put numbers in the place of names of classes, and refuse labels that the model has not."""
    labels = config.labels
    if labels is None:
        return
    count = saved.network.num_classes
    if not count:
        raise UserError(f"labels={labels} needs a model trained with class labels; this has none")
    if not OmegaConf.is_list(labels):
        return
    names = list(facts.classes) if facts.num_classes == count else list(numbered(count))
    numbers = [_number(label, names) for label in labels]
    if not numbers:
        raise UserError(f"labels=[] names no class: leave it out for all {count}")
    config.labels = numbers


def _number(label: int | str, names: list[str]) -> int:
    """Number of a class, given by number or name."""
    if isinstance(label, int) and label < len(names):
        return label
    if label in names:
        return names.index(str(label))
    near = did_you_mean(label, names) if isinstance(label, str) else ""
    known = few([f"{i} {name}" if name != str(i) else name for i, name in enumerate(names)])
    raise UserError(
        f"labels={label} is no class of the model"
        + (f"; {near}" if near else f", which has {known}")
    )


@of_a_run
def check_evaluate(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/evaluate.py``."""
    leave_out_former_keys(config, overrides)
    _refuse_unused(overrides, OF_A_TRAINING, removed=True)
    _, asked = parsed(config, apps.Evaluate)
    if asked.images is not None:
        _check_images(asked, overrides)
        return
    assert asked.run is not None  # the options refuse what has neither
    assert isinstance(asked.data, apps.DataPlace)
    saved, facts, composition = _saved_composition(asked, asked.run, overrides)
    _check_data(saved, asked.data.given, facts)
    _check_keeps(Path(asked.run))
    _number_labels(config, saved, facts)
    evaluation.check_n(asked.n, asked.evaluation.metrics)
    memory.check_evaluation(asked, saved, facts)
    if asked.likelihood is not None:
        asked.likelihood.check_with(composition)


def _check_keeps(run: Path) -> None:
    """Check that a run can keep what is measured of it, before hours of work are done for that."""
    record = run / METRICS
    if run.is_dir() and not os.access(record if record.exists() else run, os.W_OK):
        raise UserError(
            f"{record} cannot be written, where a run keeps what is measured of it: give a "
            f"checkpoint, run={checkpoint_path(run)}, whose values go to the evaluation alone"
        )


def look_for_data(model: apps.ModelConfig, given: Mapping[str, Any] | None = None) -> DataFacts:
    """Return the facts of a run's data, which must be where the config or ``given`` says."""
    return find_facts({**model.data.arguments, **(given or {}), "seed": model.seed})


OF_A_TRAINING = {
    **dict.fromkeys(("network", "optimizer"), ": nothing is trained here"),
    **dict.fromkeys(
        ("evaluation.n", "evaluation.n_during", "evaluation.every"),
        "outside training: n=… says how many samples are measured",
    ),
}
"""Keys and nodes that ``scripts/evaluate.py`` has no use for, and why."""

OF_SAMPLES = (
    *("n", "seed", "labels", "sampler", "guidance", "likelihood", "error_curve"),
    *("logger", "loggers"),
)
"""Keys and nodes of ``scripts/evaluate.py`` about what a model draws or knows."""


def _check_images(asked: apps.Evaluate, overrides: list[str]) -> None:
    """Check what is measured of images that there are."""
    images = f": images={asked.images} are measured, all of them, and nothing is drawn"
    _refuse_unused(overrides, dict.fromkeys(OF_SAMPLES, images), removed=True)
    for key, path in (("images", asked.images), ("reference", asked.reference)):
        if path is not None and not Path(path).expanduser().exists():
            raise UserError(
                f"{key}={path} is not there: give a folder, a zip archive, an .npz or an .npy"
            )
    facts = compared_facts(asked)
    if facts.points:
        raise UserError(f"data={facts.name} are points, and images=… are images")
    unused = asked.evaluation.unused_features(facts)
    _refuse_unused(overrides, {f"evaluation.{key}": why for key, why in unused.items()})


def compared_facts(asked: apps.Evaluate) -> DataFacts:
    """What is known of what images are compared with, and where it is not known, of any images."""
    if asked.reference is not None:
        return DataFacts("reference", (3, 1, 1))
    if isinstance(asked.data, DataOptions):
        return find_facts({**asked.data.arguments, "seed": asked.seed})
    assert asked.run is not None  # one of the three is given
    saved, facts = saved_model(asked.run)
    _check_data(saved, asked.data.given, facts)
    return facts


def saved_model(run: str) -> tuple[apps.ModelConfig, DataFacts]:
    """Read what the model of a run or checkpoint is, and what is known of its data."""
    header = saved_header(run)
    config = header["config"]
    known = {key: value for key, value in config.items() if key in apps.ModelConfig.model_fields}
    return apps.ModelConfig.parse(known), saved_facts(header)


def saved_facts(header: dict[str, Any]) -> DataFacts:
    """Return what a checkpoint says of its data. Early checkpoints only name the data set."""
    data = header["config"]["data"]
    if "sample_shape" not in header:
        return described_facts(data)
    shape, count = tuple(header["sample_shape"]), header["num_classes"]
    named: list[str] = header.get("classes") or []
    return DataFacts(data["name"], shape, lambda: named or numbered(count))


def decide_train(config: DictConfig) -> Decision:
    """Choose the feature extractor of a run's evaluations."""
    node = config.evaluation
    if node.n != 0:
        evaluation.check_n(node.n or evaluation.FEWEST_SAMPLES, node.metrics)
    if node.every:
        evaluation.check_n(node.n_during, node.metrics)
    if not evaluation.measures(node):
        return NOTHING
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    return _extractor(config, find_facts({**data, "seed": config.seed}))


def preview_training(config: DictConfig) -> str:
    """What a training run will do, in one line."""
    content = plain(config)
    model, data, measured = content["model"]["name"], content["data"]["name"], content["evaluation"]
    if trains(content):
        verb = "continue" if content["resume"] is not None else "train"
        steps = f"{counted(content['steps'], 'step')} of {content['batch_size']}"
        text = f"will {verb} {model} on {data}: {steps}"
    else:
        text = f"will measure what is known exactly of {data} (model={model})"
    sampler = content["sampler"]["_target_"].rpartition(".")[2]
    drawn = f"a grid of samples by {sampler}"
    if measured["metrics"] and measured["n"] != 0:
        most = measured["n"] is None
        n = counted(evaluation.SAMPLES if most else measured["n"], "sample")
        drawn = f"{'at most ' if most else ''}{n} by {sampler}, measured"
    likelihood = ", then bits per dimension" if content.get("likelihood") else ""
    return f"{text}, then {drawn}{likelihood}"


def decide_evaluate(config: DictConfig) -> Decision:
    """Choose the feature extractor of the evaluation."""
    if not config.evaluation.metrics:
        return NOTHING
    if config.get("images") is not None:
        return _extractor(config, compared_facts(parsed(config, apps.Evaluate)[1]))
    return _extractor(config, saved_facts(read_header(checkpoint_path(config.run))))


def check_compare(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/compare.py``."""
    _, asked = parsed(config, apps.Compare)
    runs = read_runs(asked.runs)
    curves_to_draw(runs, asked.metrics)
    check_comparable(runs)


def check_dashboard(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/dashboard.py``, and that there are runs that it can compare."""
    _, asked = parsed(config, apps.Dashboard)
    with warnings.catch_warnings(action="ignore"):  # said when the runs are read again
        recorded = find_recorded(asked.runs)
    check_common(recorded)
    check_filters(recorded, asked.dashboard.filters)
    asked.dashboard.check_metrics({name for run in recorded for name in run.metrics})
    if asked.to == "wandb":
        check_online("to=wandb")


def check_sync(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/sync.py``, that there is an account, and what to send."""
    _, asked = parsed(config, apps.Sync)
    for path in asked.runs:
        if next(run_directories(Path(path)), None) is None:
            raise UserError(f"runs=[{path}] is no run directory and has none in it")
    if not logged_in():
        raise UserError(
            "sync sends runs to Weights & Biases, and needs an account there: type wandb login "
            "first; run directories have everything in any case"
        )


def check_plot(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/plot.py``, and that the figure can be drawn of these runs."""
    _, asked = parsed(config, apps.Plot)
    if not asked.figure.of_models:
        recorded = ": this figure shows what runs have recorded, and draws nothing from a model"
        _refuse_unused(overrides, dict.fromkeys(OF_FIGURES, recorded), removed=True)
        others = [path for path in asked.runs if not read_evaluations([path])]
        if others:
            read_runs(others)
        if 0 < len(others) < len(asked.runs):
            raise UserError(
                f"runs=[{others[0]}] is no sweep of evaluations, as others of runs=[…] are: give "
                f"these alone, or training runs alone, which have what was evaluated of them"
            )
        return
    shapes = {}
    for path in runs_in(asked.runs):
        read_header(checkpoint_path(path, "runs"), "runs")
        saved, facts = saved_model(str(path))
        if facts.points:
            raise UserError(f"runs=[{path}] is of points, and this figure shows images")
        if asked.sampler is not None:
            _check_sampler(asked.sampler, saved.composition(facts))
        _check_data(saved, asked.data.given, facts)
        shapes[facts.shape] = path
    if len(shapes) > 1:
        told = " and ".join(f"{'×'.join(map(str, s))} ({path})" for s, path in shapes.items())
        raise UserError(f"runs of images of several shapes, {told}, make no one figure")


OF_FIGURES = ("seed", "sampler", "data", "hardware")
"""Keys and nodes of ``scripts/plot.py`` about what a model draws."""


def check_jobs(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/jobs.py``."""
    _, asked = parsed(config, apps.Jobs)
    sweep = Path(asked.sweep).expanduser()
    if read_sweep(sweep) is None and not any(sweep.glob(f"*/{STATUS}")):
        raise UserError(
            f"sweep={asked.sweep} is no sweep's directory: it has neither {SWEEP} nor runs; give "
            f"what a command with -m has made below outputs/"
        )
    return sweep


def check_import(config: DictConfig, overrides: list[str]) -> Path | None:
    """Check the config of ``scripts/import.py``, and the model that it names."""
    _, asked = parsed(config, apps.Import)
    directory = Path(asked.to) if asked.to is not None else None
    if directory is not None:
        _check_new(directory, "to")
    if asked.convert is not None:
        for key, path in (("from", asked.source), ("code", str(asked.code))):
            if not Path(path).exists():
                raise UserError(f"{key}={path} does not exist")
        return directory
    from betasigma.commands.import_model import read_published  # imports PyTorch

    read_published(asked)
    return directory


@of_a_run
def check_export(config: DictConfig, overrides: list[str]) -> None:
    """Check the config of ``scripts/export.py``."""
    _, asked = parsed(config, apps.Export)
    saved, _ = saved_model(asked.run)
    if not saved.model.trains:
        raise UserError(f"run={asked.run} has an oracle, which has no weights to export")
    if asked.out is not None:
        _check_new(Path(asked.out), "out")
    if asked.to == "diffusers":
        _check_pipeline(asked.run, saved)


def _check_pipeline(run: str, saved: apps.ModelConfig) -> None:
    """Refuse a model that diffusers has no pipeline for, before its weights are read."""
    from betasigma.commands.assemble import make_denoiser  # these import PyTorch
    from betasigma.exports.diffusers_folder import pipeline_folder

    header = saved_header(run)
    low, high = header["value_range"]
    pipeline_folder(
        make_denoiser(header["config"], saved_facts(header).shape, (low, high)), saved.sampler
    )
    if saved.network.num_classes and not _knows_no_label(saved):
        raise UserError(
            "to=diffusers writes the model without a label, and this one was trained with a label "
            "on every image: train with objective.label_dropout (0.1, say), or export "
            "to=safetensors, torch_export or onnx"
        )


def _check_new(directory: Path, key: str) -> None:
    """Refuse a place that holds something, or where no directory can be made."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise UserError(f"{key}={directory} is not empty; give the path of a new directory")
    check_place(directory, f"{key}={directory}")


CHECKS = {
    "train": AppChecks(check_train, decide_train, preview_training, continue_in),
    "sample": AppChecks(check_sample),
    "edit": AppChecks(check_edit),
    "compare": AppChecks(check_compare),
    "plot": AppChecks(check_plot),
    "dashboard": AppChecks(check_dashboard),
    "sync": AppChecks(check_sync),
    "evaluate": AppChecks(check_evaluate, decide_evaluate),
    "import": AppChecks(check_import),
    "export": AppChecks(check_export),
    "prefetch": AppChecks(check_prefetch, decide_train, needs_machine=False),
    "jobs": AppChecks(check_jobs, writes=False),
}


def _extractor(config: DictConfig, facts: DataFacts) -> Decision:
    node = config.evaluation
    choice = choose(
        node.extractor, node.inception_weights, node.download, facts.shape, node.dinov2_weights
    )
    evaluation.check_metrics(node.metrics, choice.extractor)
    decided = {"evaluation.extractor": choice.extractor}
    if choice.weights:
        decided[f"evaluation.{choice.extractor}_weights"] = choice.weights
    return Decision(decided, choice.note)


def _check_data(saved: apps.ModelConfig, given: Mapping[str, Any], known: DataFacts) -> None:
    """Check that the data of a run are where ``given`` says, or where the run found them, and have
    the classes that the model knows.
    """
    facts, count = look_for_data(saved, given), saved.network.num_classes
    if not count:
        return
    named = known.classes != numbered(count)  # an early checkpoint does not name them
    if facts.classes == known.classes if named else facts.num_classes == count:
        return
    shown = [few(found.classes) for found in (facts, known)]
    raise UserError(
        f"data.root={given.get('root', saved.data.root)} has the classes {shown[0] or 'none'}, and "
        f"the model knows {shown[1]}: give the data that it was trained on"
    )


def _refuse_training(config: DictConfig, overrides: list[str]) -> None:
    """Refuse overrides about training if the model is an oracle, which trains nothing."""
    if class_trains(str(OmegaConf.select(config, "model._target_"))):
        return
    if config.get("resume") is not None:
        refuse_oracle(plain(config))
    for override in overrides:
        key = key_of(override)
        if key.partition(".")[0] in OF_TRAINING and key not in FOR_ALL:
            raise UserError(f"{override} does not fit model=oracle, which trains nothing")


def _check_auto(options: apps.Train, facts: DataFacts) -> None:
    """Refuse ``auto`` for what no rule can compute."""
    rules = options.sigma is not None and options.sigma.overlap is not None
    for key in options.schedule.unresolved:
        if not rules:
            raise UserError(
                f"{options.schedule.node}.{key}=auto is found by schedule=geometric_auto; "
                f"schedule=geometric needs a number"
            )
    if options.schedule.level_count == AUTO:
        check_dimensions(facts.dimensions)


def _check_knobs(config: DictConfig) -> None:
    """Refuse knobs of a schedule other than the one that was chosen (``+sigma.levels=…``)."""
    target = str(OmegaConf.select(config, "schedule._target_"))
    chosen = REGISTRY["schedule"].get(target)
    own = chosen.knobs if chosen else None
    for schedule in REGISTRY["schedule"].values():
        node = str(schedule.knobs)
        if node == own or config.get(node) is None:
            continue
        key, value = node, config[node]
        if OmegaConf.is_dict(value) and value:
            knob, value = next(iter(value.items()))
            key = f"{node}.{knob}"
        set_by = f"which is set by {own}.*" if own else "which has no such knob"
        raise UserError(
            f"{key}={value} does not fit schedule={target.rpartition('.')[2]}, {set_by}; {node}.* "
            f"belongs to model={getattr(schedule, 'model', '')}"
        )


def _check_guidance(key: str, weight: float, model: apps.ModelConfig) -> None:
    """Refuse guidance of a model that was not trained both with and without labels."""
    if weight != 1 and not (model.network.num_classes and _knows_no_label(model)):
        raise UserError(
            f"{key}={weight:g} needs a model trained with network.num_classes and "
            f"objective.label_dropout (0.1, say): it must know both with and without a label"
        )


def _knows_no_label(model: apps.ModelConfig) -> bool:
    """Whether a model with classes was also trained without a label."""
    return bool(model.objective.label_dropout) or not model.model.trains
