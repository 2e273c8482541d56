"""What ``train.py`` does: build data, model and Trainer from the config, and train."""

from __future__ import annotations

import logging
import math
import shlex
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from betasigma.build import Config
from betasigma.commands import assemble
from betasigma.commands.auto import resolve_auto
from betasigma.commands.checks import check_run
from betasigma.commands.config import trains
from betasigma.commands.describe_data import describe_data, keep_description
from betasigma.commands.finished import FinishedRun
from betasigma.commands.initial_weights import load_initial
from betasigma.commands.measure import (
    COLUMNS,
    Meter,
    Result,
    check_splits,
    data_as_typed,
    make_estimator,
    results,
    say_not_finite,
    with_measured,
)
from betasigma.commands.memory_format import choose_memory_format
from betasigma.commands.resume import has_ended
from betasigma.commands.run_facts import cost_of, gpu_name, shown_config
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.loading import worker_failure
from betasigma.denoiser import Denoiser, DenoiserLike, guided
from betasigma.devices import Following, precision_of, prepare_model
from betasigma.display import Display, clock, plain_warnings
from betasigma.errors import Stopped, UserError, counted, first_line
from betasigma.modules import MeasuredModule
from betasigma.options import plugins
from betasigma.options.base import AUTO, parse_component
from betasigma.options.evaluation import SAMPLES, measures, references
from betasigma.options.training import (
    SPEED,
    TRAIN_ERROR,
    TRAIN_OBJECTIVE,
    VALIDATION_OBJECTIVE,
    StopOptions,
)
from betasigma.oracles import ExactDenoiser
from betasigma.pictures import picture
from betasigma.runs import directory
from betasigma.runs.files import read_json, write_json, write_patiently, write_text
from betasigma.runs.header import CHECKPOINTS, FORMAT, LAST, newest_step, read_header
from betasigma.runs.record import METRICS, Record
from betasigma.runs.start import Start, program
from betasigma.runs.status import ActivityLog, process_rank
from betasigma.samplers import count_not_finite, labels_in_turn
from betasigma.training import tracking
from betasigma.training.checkpoints import Checkpoints
from betasigma.training.compiling import CompileTraining, can_be_compiled, is_left_open
from betasigma.training.interrupts import Interrupts
from betasigma.training.periodic import MissedValidation, PeriodicEvaluation, SampleGrids
from betasigma.training.processes import launched_processes
from betasigma.training.progress import Forecast, Metrics, ShowProgress, Work
from betasigma.training.skipped import SkippedSteps
from betasigma.training.steps import EVALUATION, LIKELIHOOD, SAMPLING, VALIDATION, Stopwatch
from betasigma.training.stop_signals import caught_signals, queued_again
from betasigma.training.trainer import (
    GRID_SAMPLES,
    PER_IMAGE,
    Affordable,
    make_callbacks,
    make_trainer,
    refuse_unmeasured,
    validation_interval,
)
from betasigma.version import VERSION


def train(config: DictConfig, start: Start) -> FinishedRun:
    """Train a model, or continue one, and leave a complete run directory."""
    content: Config = check_run(config).content
    with queued_again(start.directory), caught_signals():
        return _train(content, start)


def _train(content: Config, start: Start) -> FinishedRun:
    run = start.directory
    quiet_libraries()
    display = Display(quiet=process_rank() != 0, note=ActivityLog(run).note)
    resumed = Path(content["resume"]) if content["resume"] else None
    if resumed and has_ended(resumed, content):
        display.line(
            f"{run} has ended after {counted(read_header(resumed)['step'], 'step')}: nothing to do"
        )
        return FinishedRun(run)
    data = assemble.open_data(content)
    if measures(content["evaluation"]):
        check_splits(data, data_as_typed(data))
    content, reasons, ladder = resolve_auto(content, data, display)
    denoiser = make_model(content, data)
    initial = None
    if content["init"]["run"] is not None and resumed is None:
        initial = load_initial(denoiser, content)
    fewer_threads = prepare_model(denoiser, content["hardware"], _threads_of(resumed))
    choose_memory_format(denoiser, content["hardware"], trains(content), display.line)
    cost = cost_of(denoiser) if process_rank() == 0 and tracking.shows_config(content) else {}
    module = assemble.make_module(content, denoiser)
    sampler = assemble.make_sampler(content["sampler"])
    loggers = _open_run(content, start, resumed, cost)
    guidance = content["training"]["guidance"]
    affordable = Affordable.by(sampler, content, denoiser.schedule, denoiser.sample_shape)
    meter = Meter(with_measured(affordable), data, sampler, loggers, display, guidance)
    callbacks = [
        *make_callbacks(content["callbacks"], module.monitor),
        *run_callbacks(affordable, run, meter),
    ]
    interrupts = next(c for c in callbacks if isinstance(c, Interrupts))
    tracking.show_wall_clock(loggers, lambda: interrupts.seconds)
    trainer = make_trainer(content, run, callbacks, loggers)
    _announce(display, start, content, data, denoiser, resumed)
    if fewer_threads:
        display.line(fewer_threads)
    display.meanwhile = Following(content["hardware"], display.line)
    _choose_validation(affordable, data, display)
    _say_what_is_sampled(affordable, data, display)
    found = describe_data(display, data)
    if process_rank() == 0:
        keep_description(run, found)
    if initial is not None:
        for sentence in initial.sentences(denoiser):
            display.line(sentence)
        if process_rank() == 0:
            write_json(run / directory.INITIAL, initial._asdict())
    _explain_ladder(display, run, reasons, ladder)
    if resumed is None:
        _show_real(loggers, data, content)
    try:
        with launched_processes(trainer, start, content["resume"]):
            if trains(content):
                _fit(trainer, module, data, callbacks, resumed)
                missed = next(c for c in callbacks if isinstance(c, MissedValidation))
                if missed.is_missing(trainer):  # killed after its last step: none was left to take
                    trainer.validate(module, data, verbose=False)
            else:
                trainer.validate(module, data, verbose=False)
                trainer.save_checkpoint(run / CHECKPOINTS / LAST)
            finish(trainer, module, start, affordable, meter, callbacks)
    except BaseException as stop:  # of which Ctrl-C is one
        _say_how_to_continue(display, start)
        if isinstance(stop, SIGTERMException):  # Lightning's, of several processes: status 0
            raise Stopped(signal.SIGTERM) from None
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, KeyboardInterrupt):
            raise Stopped(signal.SIGINT) from None  # Lightning makes it status 1
        raise
    finally:
        tracking.close_loggers(loggers)
    return FinishedRun(run)


def _threads_of(resumed: Path | None) -> int | None:
    """With how many threads a run that is continued was begun; ``None`` where that is unknown."""
    threads = read_header(resumed).get("threads") if resumed else None
    return threads if isinstance(threads, int) and threads > 0 else None


ONCE: Config = {"resume": None, "overwrite": False}
"""Keys of one start of a run, which its config is kept without."""


def _fit(
    trainer: Trainer,
    module: MeasuredModule,
    data: ImageDataModule,
    callbacks: list[Callback],
    resumed: Path | None,
) -> None:
    """Train, from a checkpoint where there is one."""
    try:
        trainer.fit(module, data, ckpt_path=str(resumed) if resumed else None)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        refuse_unmeasured(callbacks, trainer, error)
        begun = any(isinstance(c, Interrupts) and c.seconds_here for c in callbacks)
        other = worker_failure(error) or isinstance(error, torch.OutOfMemoryError)
        if resumed is None or begun or other:
            raise
        raise UserError(
            f"resume={resumed} cannot be continued: its weights, optimizer or counters do not fit "
            f"its config ({type(error).__name__}: {first_line(error).rstrip(':.')})"
        ) from None


def make_model(content: Config, data: ImageDataModule) -> Denoiser | ExactDenoiser:
    """Make the denoiser to train, or the oracle."""
    if not trains(content):
        return assemble.make_oracle(content, data)
    precision = precision_of(content["hardware"])
    denoiser = assemble.make_denoiser(content, data.sample_shape, data.value_range, precision)
    denoiser.moments = data.moments()
    return denoiser


def run_callbacks(affordable: Affordable, run: Path, meter: Meter) -> list[Callback]:
    """Our own callbacks, in the order in which they act."""
    data, sampler, display = meter.data, meter.sampler, meter.display
    content = affordable.content
    settings = content["training"]
    how = sampler.name
    if settings["guidance"] != 1:
        how += f", guidance {settings['guidance']:g}"

    def samples(denoiser: DenoiserLike, n: int) -> tuple[Tensor, str]:
        with display.share("sampling") as progress:
            drawn = sampler.sample(
                guided(denoiser, settings["guidance"]),
                n,
                seed=content["seed"],
                y=labels_in_turn(denoiser.num_classes, n),
                progress=progress,
            )
        say_not_finite(count_not_finite(drawn.x), n)
        return data.to_uint8(drawn.x), f"{how}, NFE {drawn.nfe}, seed {content['seed']}"

    header = {
        "format": FORMAT,
        "version": VERSION,
        "seed": content["seed"],
        "value_range": list(data.value_range),
        "sample_shape": list(data.sample_shape),
        "num_classes": data.num_classes,
        "classes": list(data.class_names),
        "plugins": plugins.versions(content),
        "config": {**content, **ONCE},
    }
    watch = Stopwatch()
    checkpoints = Checkpoints(
        run / CHECKPOINTS,
        header,
        settings["checkpoint_every"],
        data,
        watch,
        content["logger"].get("artifacts", "none"),
    )
    budget = StopOptions.parse(content["stop"]).seconds
    interrupts = Interrupts(
        display, validation_interval(content), checkpoints.save, budget, content["stop"]["grace"]
    )
    forecast = Forecast(
        watch,
        content["batch_size"],
        content["steps"],
        lambda: works(affordable, data),
        lambda: math.inf if budget is None else budget - interrupts.seconds,
    )
    return [
        SkippedSteps(settings["skip_limit"], settings["log_every"], run),
        ShowProgress(display, forecast, checkpoints),
        Metrics(forecast, settings["log_every"], data),
        checkpoints,
        interrupts,
        *_compiling(content, display),
        SampleGrids(
            run,
            samples,
            (affordable.between, affordable.shown),
            settings["sample_every"],
            watch,
            settings["wait_for_space"],
        ),
        PeriodicEvaluation(
            lambda denoiser, step: meter.log(
                meter.measure(denoiser, content["evaluation"]["n_during"]), step
            ),
            Record.of(run),
            content["evaluation"]["every"],
            watch,
        ),
        MissedValidation(validation_interval(content), Record.of(run)),
    ]


def works(affordable: Affordable, data: ImageDataModule) -> dict[str, Work]:
    """What a run does beside its steps, and how many network evaluations that takes."""
    content, nfe = affordable.content, affordable.nfe
    measured = content["evaluation"]
    one = affordable.of_measured if measured["metrics"] else 0
    between, last = nfe * affordable.between, nfe * affordable.shown
    return {
        VALIDATION: Work(PER_IMAGE * data.validated, validation_interval(content), with_last=True),
        SAMPLING: Work(between, content["training"]["sample_every"], last),
        EVALUATION: Work(one * measured["n_during"], measured["every"], one * affordable.measured),
        LIKELIHOOD: Work(after=_likelihood_cost(content, data)),
    }


def _likelihood_cost(content: Config, data: ImageDataModule) -> float:
    """Network evaluations that the likelihood at the end takes; 0 where it does not say."""
    node = content.get("likelihood")
    cost = getattr(make_estimator(node, content["seed"]), "cost", None) if node else None
    if not (node and cost):
        return 0.0
    n = min(node["n"], data.size(node["split"]))
    return float(n * cost(assemble.make_schedule(content["schedule"])))


def _choose_validation(affordable: Affordable, data: ImageDataModule, display: Display) -> None:
    """Validate on fewer images where a run is short, unless their number was given."""
    content = affordable.content
    if content["data"]["val_size"] is not None or not trains(content):
        return
    most = min(data.val_size, data.size("test"))
    data.val_size = affordable.validated(most)
    if data.val_size < most:
        share = _share(data.val_size * PER_IMAGE, affordable, validation_interval(content))
        display.line(
            f"validating on {data.val_size} of {data.size('test')} test images, {share} of so "
            f"short a training (data.val_size)"
        )


def _say_what_is_sampled(affordable: Affordable, data: ImageDataModule, display: Display) -> None:
    """Say that fewer samples are drawn or measured where a run is short, and with how many images
    they are compared where that was left open.
    """
    content, nfe = affordable.content, affordable.nfe
    settings, node = content["training"], content["evaluation"]
    shown, between, measured = affordable.shown, affordable.between, affordable.measured
    if settings["num_samples"] is None and shown < GRID_SAMPLES:
        display.line(
            f"{counted(shown, 'sample')} in a grid: more, by {nfe} network evaluations each, would "
            f"take longer than so short a training (training.num_samples, sampler.steps)"
        )
    every = settings["sample_every"]
    if between < shown and every < content["steps"]:
        display.line(
            f"{between} of {shown} samples in the grids before the last one, "
            f"{_share(between * nfe, affordable, every)} of the training (training.num_samples)"
        )
    if not node["metrics"]:
        return
    if node["n"] is None and measured < SAMPLES:
        what = f"{measured} samples are" if measured else "nothing is"
        display.line(
            f"{what} measured at the end: more would take longer than so short a training "
            f"(evaluation.n={SAMPLES} asks for {SAMPLES})"
        )
    taken = references(node["n_reference"], measured) if measured else None
    sizes = {split: data.size(split) for split in ("train", "test")}
    if node["n_reference"] == AUTO and taken and taken < max(sizes.values()):
        whole = " and ".join(f"{min(taken, n)} of {n} {split}" for split, n in sizes.items())
        display.line(
            f"{measured} samples will be compared with {whole} images, whose features are computed "
            f"once and kept (evaluation.n_reference=null compares with all)"
        )


def _share(spent: int, affordable: Affordable, steps: int) -> str:
    """What part of so many steps is spent on something that is to take a tenth of them."""
    if spent > affordable.training(steps) // 10:
        return "the fewest there can be, which take more than a tenth"
    return "which take about a tenth"


def _compiling(content: Config, display: Display) -> list[Callback]:
    if not (trains(content) and is_left_open(content["hardware"]) and can_be_compiled(content)):
        return []
    return [CompileTraining(display, cuda_graphs=content["training"]["accumulate"] == 1)]


def finish(
    trainer: Trainer,
    module: MeasuredModule,
    start: Start,
    affordable: Affordable,
    meter: Meter,
    callbacks: list[Callback],
) -> None:
    """The last samples, the evaluation, the summary and the commands that come next."""
    step, run = trainer.global_step, start.directory
    content, display, average = affordable.content, meter.display, module.average
    grids = next(c for c in callbacks if isinstance(c, SampleGrids))
    watch = next(c for c in callbacks if isinstance(c, ShowProgress)).watch
    device = trainer.strategy.root_device
    average.to(device)
    with watch.pause(device, SAMPLING):
        grids.show(trainer, module, step)
    with watch.pause(device, EVALUATION):
        found = meter.measure(average, affordable.measured)
        meter.log(found, step)
    with watch.pause(device, LIKELIHOOD):
        likelihood = meter.likelihood(average, step, run)
    if not trainer.is_global_zero:
        return
    curves = Record.of(run)
    rows: list[Result] = []
    for metric in dict.fromkeys((TRAIN_OBJECTIVE, module.monitor)):
        steps, values = curves.curve(metric)
        if len(values) > 1:
            display.curve(metric, steps, values)
    of_training = (TRAIN_OBJECTIVE, VALIDATION_OBJECTIVE, TRAIN_ERROR, module.monitor, SPEED)
    for metric in dict.fromkeys(of_training):
        values = curves.curve(metric)[1]
        if values:
            rows.append(Result(metric, values[-1]))
    rows += [*results(found), *likelihood]
    display.table(
        f"{content['name']} after {counted(step, 'step')}", COLUMNS, [row.cells for row in rows]
    )
    table = [row.numbers for row in rows]
    summary = {"step": step, "seconds": watch.shares(), "table": table}
    write_patiently(
        lambda: write_json(run / directory.SUMMARY, summary),
        run / directory.SUMMARY,
        content["training"]["wait_for_space"],
    )
    display.line(f"time       {told_shares(watch.shares())}")
    display.line(f"samples    {run}/samples/step_{step:07d}.png")
    display.line(f"metrics    {run / METRICS}")
    display.line(f"checkpoint {run / CHECKPOINTS / LAST}")
    display.line("next:")
    named = f"run={run}"
    sampled = start.command("sample", named, "n=64", "sampler=ddim", "sampler.steps=50")
    display.line(f"  {sampled}")
    display.line(f"  {start.command('evaluate', named, 'sampler=ddim,dpm_solver', '-m')}")
    if step and not parse_component("lr_schedule", content["lr_schedule"]).ends_with_the_run:
        display.line(f"  {start.command('train', f'resume={run}', f'steps={2 * step}')}")


def told_shares(seconds: Mapping[str, float]) -> str:
    """What a run spent its time on, in one line."""
    total = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    told = [f"{what} {100 * share / total:.0f} %" for what, share in shares if share > total / 200]
    return f"{clock(total)}: {', '.join(told)}"


def _say_how_to_continue(display: Display, start: Start) -> None:
    step = newest_step(start.directory)
    if step is not None:
        display.line(f"stopped; the last checkpoint is of step {step}")
        display.line(f"to continue: {start.command('train', f'resume={start.directory}')}")
    else:
        display.line("stopped before the first checkpoint")


def quiet_libraries() -> None:
    """Silence library messages that a user cannot act on."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch)\b.*")
    plain_warnings()
    torch.set_float32_matmul_precision("high")


def _describe_run(
    content: Config, start: Start, resumed: Path | None, cost: Mapping[str, int]
) -> Config:
    """Write config, overrides, package versions, git state, GPU and what the network costs, where a
    dashboard is told it; return all but the config.
    """
    run = start.directory
    run.mkdir(parents=True, exist_ok=True)
    directory.mend(run)
    if resumed is None:
        directory.clear(run, content["overwrite"])
    write_text(run / directory.CONFIG, OmegaConf.to_yaml(OmegaConf.create({**content, **ONCE})))
    environment = run / directory.ENVIRONMENT
    history = []
    earlier = read_json(environment)
    if resumed is not None and earlier:
        history = [*earlier.pop("resumed_after", []), earlier]
    described = {
        **directory.describe_environment(start.overrides),
        "plugins": plugins.versions(content),
        "gpu": gpu_name(content),
        "cost": cost,
        directory.SWEEP: start.sweep
        or (earlier.get(directory.SWEEP) if resumed is not None else None),
    }
    write_json(environment, {**described, "resumed_after": history})
    if resumed is not None:
        step = read_header(resumed, "resume")["step"]
        unfinished = not (run / directory.SUMMARY).is_file() and step >= content["steps"]
        Record.of(run).truncate(step, measured=not unfinished)
    return described


def _explain_ladder(
    display: Display, run: Path, reasons: list[str], record: dict[str, Any]
) -> None:
    """Print how each ``auto`` was resolved, and write it to ``ladder.json``."""
    for reason in reasons:
        display.line(reason)
    if record and process_rank() == 0:
        path = run / directory.LADDER
        earlier = read_json(path)
        known = [*earlier.get("reasons", []), *reasons]
        write_json(path, {**earlier, **record, "reasons": known})


def _open_run(
    content: Config, start: Start, resumed: Path | None, cost: Mapping[str, int]
) -> list[Logger]:
    """Describe the run in its directory, and make its loggers; the first process does."""
    if process_rank() != 0:
        return []
    run = start.directory
    environment = _describe_run(content, start, resumed, cost)
    shown = shown_config(content, run, environment)
    loggers = tracking.make_loggers(
        content["logger"], content["loggers"], run, shown, directory.wandb_id(run)
    )
    for logger in loggers:
        if isinstance(logger, tracking.WandbRun):
            write_text(run / directory.WANDB_ID, f"{logger.version}\n")
    return loggers


def _show_real(loggers: list[Logger], data: ImageDataModule, content: Config) -> None:
    """Show real images beside the samples to come."""
    if len(loggers) < 2:  # there is nothing but the record
        return
    number = min(content["training"]["num_samples"] or GRID_SAMPLES, data.size("train"))
    real = next(iter(data.batches("train", number, number)))
    tracking.log_picture(loggers, "real", picture(real), 0, f"real images of {data.data_name}")
    tracking.log_histogram(loggers, "pixels/real", real, 0)


def _announce(
    display: Display,
    start: Start,
    content: Config,
    data: ImageDataModule,
    denoiser: Denoiser | ExactDenoiser,
    resumed: Path | None,
) -> None:
    parameters = sum(p.numel() for p in denoiser.parameters())
    dtype = "bf16" if denoiser.precision is not None else "fp32"
    shape = "×".join(map(str, data.sample_shape))
    how = ("continuing" if resumed else "training") if trains(content) else "ground truth:"
    steps = counted(content["steps"], "step")
    what = f"{parameters:,} parameters, {dtype}, {steps} of {content['batch_size']}"
    display.line(
        f"{how} {content['model']['name']} on {content['data']['name']} ({shape}, "
        f"{data.size('train')} examples): {what if trains(content) else 'nothing to train'}, "
        f"seed {content['seed']}"
    )
    run = start.directory
    display.line(f"run directory {run}")
    offline = any((run / directory.WANDB).glob("offline-run-*"))
    if content["logger"].get("kind") == "wandb" and offline:
        words = shlex.join([*program("sync", start.here), str(run)])
        display.line(f"Weights & Biases offline; to send it there later: {words}")
