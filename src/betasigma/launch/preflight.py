"""Refuse bad input, and what this machine cannot do, before a directory is made, a job is submitted
or PyTorch is imported.

Hydra calls ``Preflight`` at the start of a run or a sweep, when the config is composed. Hydra only
logs exceptions of callbacks, so ``Preflight`` prints the error itself and ends the process.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from betasigma.commands.checks import CHECKS, AppChecks, Decision, typed_keys
from betasigma.commands.config import plain
from betasigma.data.facts import found_once
from betasigma.errors import UserError, printed
from betasigma.launch import slurm
from betasigma.launch.app import fail, is_refusal, tracebacks_wanted
from betasigma.launch.command_line import quoted, read_command_line
from betasigma.launch.configs import Configs, Studies
from betasigma.launch.consent import check_consent
from betasigma.launch.job_names import short_keys, subdirectory
from betasigma.launch.overrides import as_typed
from betasigma.launch.planning import Plan, Planner, all_keys, is_basic, set_key
from betasigma.launch.slurm import is_cluster
from betasigma.launch.snapshot import LIVE, keep_code
from betasigma.launch.submitting import announce
from betasigma.launch.sweeps import Sweep, begin_sweep
from betasigma.options.hardware import HardwareOptions
from betasigma.runs.directory import holds_run
from betasigma.runs.files import check_place
from betasigma.runs.lock import refuse_locked
from betasigma.runs.status import TORCHRUN, StartedBy, process_rank, started_by
from betasigma.runs.sweep_record import read_sweep, write_sweep
from betasigma.training.account import logged_in

LISTED_JOBS = "hydra_plugins.betasigma_sweeps.ListedJobs"
"""The sweeper that launches the jobs it is given, instead of Hydra's own."""


class Preflight(Callback):
    """Checks a run's config, or every config of a sweep, before anything starts."""

    def __init__(self, app: str) -> None:
        self._name, self._app = app, CHECKS[app]

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending(config):
            prepare_run(config, self._app)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process here if the run has failed, before Hydra prints a line of its own."""
        job_return: JobReturn = kwargs["job_return"]
        if job_return.status == JobStatus.FAILED:
            with _ending(config):
                raise job_return._return_value

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending(config):
            # the common config is composed, so the choices of one value can be plain again
            starter = started_by()
            if starter is not None:
                raise UserError(
                    f"{starter.name} starts the processes of one run, and -m is a sweep of "
                    f"several: leave out -m, or {starter.name}"
                )
            task = [as_typed(word) for word in config.hydra.overrides.task]
            sweep = Planner(config, task, self._name).plan()
            if not sweep.jobs:
                empty = [word for word in task if "(" in word] or task
                raise UserError(f"this sweep has no job: {' '.join(empty)} names no value")
            jobs = self._check_jobs(config, sweep)
            refuse_unsearched(config, task)
            given = {override.partition("=")[0] for override in task}
            decided = _decide_once([job.decision for job in jobs], given)
            several = f"{len(jobs)} jobs" if sweep.complete else "a search"
            _print_note(jobs[0].note, several if len(jobs) > 1 else "")
            requested = _request(config, [job.request for job in jobs], given)
            set_key(config, "hydra.overrides.task", [*task, *decided, *requested])
            _fix_directory(config)
            if holds_run(Path(config.hydra.sweep.dir)):
                raise UserError(
                    f"{config.hydra.sweep.dir} is the directory of a run: give another "
                    f"hydra.sweep.dir"
                )
            if not sweep.complete:
                _name_jobs(config, sweep)
            self._start(config, sweep, jobs, decided, requested)

    def _check_jobs(self, config: DictConfig, sweep: Plan) -> list[CheckedJob]:
        """Check every job of a sweep."""
        checked: list[CheckedJob] = []
        studies = Studies(config)
        with found_once():
            for job in sweep.jobs:
                composed = sweep.compose(job.overrides)
                check_consent(composed)
                studies.check(job.overrides)
                if self._app.needs_machine:
                    check_machine(composed)
                    _refuse_processes(config.hydra.launcher, composed)
                self._app.check(composed, job.overrides)
                decision = self._app.decide(composed)
                note = "" if checked else _note(self._app, composed, decision)
                request = slurm.request(composed)
                checked.append(CheckedJob(decision, note, request, composed.get("steps")))
                if job.changed:  # refused here, and not in the job, whose run would count as failed
                    directory = Path(config.hydra.sweep.dir) / job.directory
                    self._app.enter(composed, job.overrides, directory)
        return checked

    def _start(
        self,
        config: DictConfig,
        sweep: Plan,
        jobs: Sequence[CheckedJob],
        decided: list[str],
        requested: list[str],
    ) -> None:
        """Say what a cluster is asked for, record the sweep and hand its jobs to the launcher."""
        directory = Path(config.hydra.sweep.dir)
        launched = [job.launched([*decided, *requested]) for job in sweep.jobs]
        names = [job.directory for job in sweep.jobs] if sweep.complete else []
        if sweep.complete:
            size = config.hydra.sweeper.get("max_batch_size")
            listed = {"_target_": LISTED_JOBS, "max_batch_size": size}
            set_key(config, "hydra.sweeper", listed)
        else:
            launched = []
        of_cluster = config.cluster if slurm.is_cluster(config) else None
        if of_cluster is not None:
            announce(config.hydra.launcher, names, of_cluster.dry_run)
            if of_cluster.dry_run:
                print("cluster.dry_run=true: nothing was submitted", flush=True)
                sys.exit(0)
        check_place(directory, f"directory {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        begin_sweep(Sweep(directory, launched, names, self._name))
        code = keep_code(directory, of_cluster.code if of_cluster is not None else LIVE)
        write_sweep(directory, sweep.record([job.steps for job in jobs], decided, code))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the error of a run or a job into its log."""
        error = job_return._return_value
        if job_return.status == JobStatus.FAILED:
            traced = None if isinstance(error, UserError) else error
            logging.getLogger("betasigma").error("failed: %s", error, exc_info=traced)


class CheckedJob(NamedTuple):
    """What is kept of a job of a sweep when its config is checked.

    Attributes:
        decision: what its config leaves open.
        note: what it will do; of the first job.
        request: what it asks a cluster for.
        steps: that it is to take, where it trains.
    """

    decision: Decision
    note: str
    request: dict[str, Any] | None
    steps: int | None


def _decide_once(decisions: Sequence[Decision], given: set[str]) -> list[str]:
    """Return overrides for all jobs: one decision for the sweep, so that jobs can be compared."""
    values = [{k: v for k, v in d.values.items() if k not in given} for d in decisions]
    if any(other != values[0] for other in values):
        raise UserError(
            "the jobs of this sweep need different evaluations (images and points, say): make it "
            "two sweeps, or leave them out with evaluation=none"
        )
    return [f"{key}={value}" for key, value in values[0].items()]


def prepare_run(config: DictConfig, app: AppChecks) -> None:
    """Check the config of a run, choose what it leaves open, and make the run directory."""
    overrides = list(config.hydra.overrides.task)
    slurm.refuse_single(config)
    refuse_search(config)
    check_consent(config)
    Studies(config).check(overrides)
    starter, resumes = started_by(), config.get("resume") is not None
    if app.needs_machine:
        fit_processes(config, starter, overrides)
        if not resumes:
            check_machine(config)
    directory = app.check(config, overrides)
    if app.needs_machine and resumes:  # the hardware is the run's now, and so are its nodes
        earlier = config.hardware.devices
        fitted = fit_processes(config, starter, overrides)
        check_machine(config)
        if config.hardware.devices != earlier:
            directory = app.check(config, [*overrides, *fitted])
    refuse_unsearched(config, overrides)
    decision = app.decide(config)
    _print_note(_note(app, config, decision))
    for key, value in decision.values.items():
        OmegaConf.update(config, key, value)
    given = any(word.startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra)
    if starter is not None and directory is None and not given:
        raise UserError(
            f"{starter.name} starts several processes, which must write to one directory: give "
            f"hydra.run.dir=outputs/NAME"
        )
    if resumes and directory is not None and given:
        elsewhere = Path(config.hydra.run.dir)
        if elsewhere.resolve() != directory.resolve():
            raise UserError(
                f"hydra.run.dir={elsewhere} has no effect: {directory} is continued where it is; "
                f"leave it out, or resume a copy of a checkpoint, which goes on there"
            )
    # as text, because resolving it again would give another name
    set_key(config, "hydra.run.dir", str(directory or config.hydra.run.dir))
    entered = Path(config.hydra.run.dir)
    if app.writes and read_sweep(entered) is not None:  # whose jobs nothing would see any more
        raise UserError(f"{entered} is the directory of a sweep: give another one, or add -m")
    if app.writes:
        check_place(entered, f"directory {entered}")
    if process_rank() == 0 and app.writes:
        refuse_locked(entered)
    app.enter(config, overrides, entered)
    entered.mkdir(parents=True, exist_ok=True)


def refuse_search(config: DictConfig) -> None:
    """Refuse without ``-m`` what is of sweeps alone."""
    chosen = config.hydra.runtime.choices.get("search")
    if chosen is not None:
        raise UserError(f"search={chosen} is a sweep of many runs: add -m")
    for word in config.hydra.overrides.hydra:
        if word.startswith(("hydra/launcher=", "hydra/sweeper=")):
            raise UserError(f"{word} has no effect on a single run: add -m, or leave it out")


def refuse_unsearched(config: DictConfig, overrides: list[str]) -> None:
    """Refuse an objective where nothing searches: no sweeper, and no Weights & Biases, whose sweeps
    read it from the run.
    """
    searched = not is_basic(config.hydra.sweeper)
    if searched or OmegaConf.select(config, "logger.kind") == "wandb":
        return
    for word in overrides:
        if word.startswith("objective_metric="):
            raise UserError(
                f"{word} has no effect without a sweeper that searches: leave it out, or add -m "
                f"and search=optuna_lr or hydra/sweeper=optuna"
            )


def _request(
    config: DictConfig, requests: Sequence[dict[str, Any] | None], given: set[str]
) -> list[str]:
    """Set what the launcher asks the cluster for, and return overrides for all jobs.

    Hydra makes the launcher from the common config of the sweep, which lacks the values of the
    jobs.
    """
    wanted = slurm.common_request(requests)
    if wanted is None:
        return []
    slurm.check_cluster(wanted, Path(config.hydra.sweep.dir))
    setup = [*slurm.SETUP, *wanted["setup"]]
    with open_dict(config):
        config.cluster = {**wanted, "gpus": wanted["gpus"] or None, "setup": setup}
    keys = {"cluster.tasks", "hardware.devices"} - given
    return [f"{key}={wanted['tasks']}" for key in sorted(keys)]


def _fix_directory(config: DictConfig) -> None:
    """Fix the name of the sweep directory for all jobs.

    Each job composes its config again, possibly where the resolver of the name does not exist.
    """
    directory = str(config.hydra.sweep.dir)
    set_key(config, "hydra.sweep.dir", directory)
    own = [w for w in config.hydra.overrides.hydra if not w.startswith("hydra.sweep.dir=")]
    set_key(config, "hydra.overrides.hydra", [*own, f"hydra.sweep.dir={quoted(directory)}"])


def _name_jobs(config: DictConfig, sweep: Plan) -> None:
    """Name the directories of a search's jobs by what is swept, unless the user names them."""
    own = list(config.hydra.overrides.hydra)
    if sweep.swept and not any(word.startswith("hydra.sweep.subdir=") for word in own):
        known = {key for job in sweep.jobs for key in all_keys(sweep.compose(job.overrides))}
        written = short_keys(sweep.swept, known, config.hydra.runtime.choices)
        name = subdirectory(written, numbered=True)
        set_key(config, "hydra.overrides.hydra", [*own, f"hydra.sweep.subdir='{name}'"])


def _note(app: AppChecks, config: DictConfig, decision: Decision) -> str:
    """What a command will do, and what was decided for it."""
    return "\n".join(filter(None, [app.preview(config), decision.note]))


def _print_note(note: str, several: str = "") -> None:
    """Print a note on rank 0; of several jobs that of the first."""
    if note and process_rank() == 0:
        print(f"{several}; the first {note}" if several else note, flush=True)


@contextmanager
def _ending(config: DictConfig) -> Iterator[None]:
    """Print what is wrong in one sentence and end the process.

    With ``HYDRA_FULL_ERROR=1``, and for bugs, print the traceback.
    """
    try:
        with printed():
            yield
    except Exception as error:  # Hydra would only warn and continue
        sources = [s.path for s in config.hydra.runtime.config_sources if s.provider == "main"]
        line = read_command_line(sys.argv[1:])
        configs = Configs(Path(sources[0]), config.hydra.job.config_name, line)
        if tracebacks_wanted() or not is_refusal(error, configs):
            traceback.print_exc()
            raise SystemExit(1) from None
        fail(error, configs)


def check_machine(config: DictConfig) -> None:
    """Refuse a run that is impossible on this machine."""
    if not is_cluster(config):  # whose nodes have GPUs that this machine has not
        _check_gpus(config)
    if OmegaConf.select(config, "logger.mode") == "online" and not logged_in():
        raise UserError(
            "logger.mode=online needs an account: type wandb login first, or leave it at auto"
        )


def fit_processes(
    config: DictConfig, starter: StartedBy | None, overrides: Sequence[str]
) -> list[str]:
    """Set in ``hardware`` how many processes there are, unless the user types a number. Return the
    override that does so; none where nothing has started processes.

    Raises:
        UserError: where it says another number, or of processes on other machines that nothing
            would start.
    """
    hardware = _hardware(config)
    if hardware is None:
        return []
    nodes, devices = hardware.nodes, hardware.devices
    if starter is None and TORCHRUN in os.environ:
        starter = StartedBy("torchrun", 1)
    if starter is None:
        if nodes > 1:
            raise UserError(
                f"hardware.nodes={nodes} needs something that starts the processes of other "
                f"machines: torchrun, srun, or a sweep with cluster=slurm"
            )
        return []
    if devices == "auto" or not any("hardware.devices" in typed_keys(word) for word in overrides):
        devices = config.hardware.devices = max(starter.processes // nodes, 1)
    if devices * nodes != starter.processes:
        raise UserError(
            f"hardware.devices={devices} and hardware.nodes={nodes} are {devices * nodes} "
            f"processes, and {starter.name} has started {starter.processes}: make them equal"
        )
    if starter.name == "srun":  # which leaves it out, or keeps that of the allocation
        os.environ["SLURM_NTASKS_PER_NODE"] = str(devices)
    return [f"hardware.devices={devices}"]


def _refuse_processes(launcher: DictConfig, config: DictConfig) -> None:
    """Refuse several devices in a worker of joblib's: Lightning starts the processes of the others
    by the command of this one, which is not ours there.
    """
    if ".hydra_joblib_launcher." not in launcher._target_ or launcher.n_jobs == 1:
        return
    hardware = _hardware(config)
    if hardware is None:
        return
    devices: int | str = hardware.devices
    if (
        devices == "auto"
        and hardware.accelerator != "cpu"
        and any(Path("/dev").glob("nvidia[0-9]"))
    ):
        from betasigma.devices import devices_of_training  # imports PyTorch

        devices = devices_of_training(plain(config.hardware))
    if devices not in ("auto", 1):
        raise UserError(
            f"hardware.devices={hardware.devices} is {devices} processes, which a job of "
            f"hydra/launcher=joblib cannot start: give hardware.devices=1, hydra.launcher.n_jobs=1 "
            f"or another launcher"
        )


def _hardware(config: DictConfig) -> HardwareOptions | None:
    """The options ``hardware`` of a command that has them, which are checked before the others."""
    node = config.get("hardware")
    return None if node is None else HardwareOptions.parse(plain(node))


def _check_gpus(config: DictConfig) -> None:
    hardware = _hardware(config)
    if hardware is None or hardware.accelerator == "cpu":
        return
    several = hardware.devices != "auto" and hardware.devices > 1
    if hardware.accelerator == "auto" and not several:
        return
    import torch  # seconds, which only a run that asks for GPUs or several devices spends

    found = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if not found and hardware.accelerator == "auto":
        return  # the processes compute on the CPU
    if not found:
        raise UserError(
            "hardware.accelerator=gpu finds no GPU that this PyTorch can use on this machine: "
            "leave hardware at auto, or give hardware=cpu"
        )
    if hardware.devices != "auto" and hardware.devices > found:
        starter, fewer = started_by(), " or fewer" if found > 1 else ""
        cure = f"give hardware.devices={found}{fewer}"
        if starter is not None:
            cure = f"have {starter.name} start {found}{fewer} on each machine"
        raise UserError(
            f"hardware.devices={hardware.devices} are more GPUs than this machine has: {cure}, or "
            f"give hardware.accelerator=cpu"
        )
