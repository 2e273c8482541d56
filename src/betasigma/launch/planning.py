"""Which jobs a sweep launches: all of them, or those that are left of a sweep that was begun.

Hydra's own sweeper runs every combination, so all jobs are known. Other sweepers (Optuna, Ax, …)
choose values while they run. For these, jobs with each value of a choice and both ends of an
interval are listed, and every job is checked again when it starts. A sweep that was begun is
continued by ``python train.py -m resume=outputs/SWEEP``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from betasigma.commands.config import key_and_place
from betasigma.commands.resume import refuse_overwrite
from betasigma.errors import UserError, counted
from betasigma.launch.command_line import CommandLine, quoted
from betasigma.launch.composing import SweepLoader
from betasigma.launch.configs import dotted_keys
from betasigma.launch.job_names import job_name, repeats, short_keys
from betasigma.launch.slurm import is_cluster
from betasigma.runs import job_states, sweep_record
from betasigma.runs.directory import SUMMARY, short
from betasigma.runs.files import check_place, read_json
from betasigma.runs.header import CHECKPOINTS
from betasigma.runs.lock import refuse_locked
from betasigma.runs.status import FINISHED, RUNNING, read_status

SUBDIRECTORY = "hydra.sweep.subdir="
"""Begins the override by which a launcher knows the directory of a job."""


MANY = 100
"""Jobs whose checks take seconds, which is said."""


class PlannedJob(NamedTuple):
    """A job to launch.

    Attributes:
        directory: of its run, relative to the sweep's, or absolute.
        overrides: of its config.
        changed: whether they are others than when it was begun.
    """

    directory: str
    overrides: list[str]
    changed: bool = False

    def launched(self, more: Sequence[str]) -> list[str]:
        """Its overrides with more of them, and with its directory, as a launcher takes them."""
        return [*self.overrides, *more, f"{SUBDIRECTORY}{quoted(self.directory)}"]


class Plan(NamedTuple):
    """What a command with ``-m`` launches.

    Attributes:
        app: that each job runs.
        jobs: to launch; of a search examples of them.
        complete: whether they are all.
        swept: keys that differ between jobs.
        known: jobs that the sweep had before.
        launcher_words: words that say where the jobs run.
        compose: makes the config of a job from its overrides. It is made anew where it is needed:
            a thousand of them would take half a gigabyte.
    """

    app: str
    jobs: list[PlannedJob]
    complete: bool
    swept: list[str]
    known: list[sweep_record.RecordedJob]
    launcher_words: list[str]
    compose: Callable[[Sequence[str]], DictConfig]

    def record(
        self, steps: Sequence[int | None], decided: Sequence[str], code: dict[str, Any] | None
    ) -> sweep_record.SweepRecord:
        """What the sweep directory keeps of it."""
        jobs = {job.directory: job for job in self.known}
        if self.complete:
            for job, of_job in zip(self.jobs, steps, strict=True):
                words = changed(sweep_record.job_words(job.overrides), decided)
                jobs[job.directory] = sweep_record.RecordedJob(job.directory, words, of_job)
        return sweep_record.SweepRecord(
            self.app, [*jobs.values()], self.launcher_words, not self.complete, code
        )


def loader_of_hydra() -> ConfigLoaderImpl:
    """Return the loader that composes the configs of this process."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def set_key(config: DictConfig, key: str, value: Any) -> None:
    """Set a key of Hydra's own node."""
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config, key, value, merge=False, force_add=True)


def all_keys(config: DictConfig) -> set[str]:
    """Every dotted key of a config."""
    plain: Any = OmegaConf.to_container(config)
    return dotted_keys(plain)


class Planner:
    """Finds out which jobs a command with ``-m`` launches."""

    def __init__(self, config: DictConfig, task: list[str], app: str) -> None:
        self._config, self._task, self._app = config, task, app
        self._loader = SweepLoader(loader_of_hydra().get_search_path())

    def plan(self) -> Plan:
        """Find the jobs.

        Raises:
            UserError: where the command cannot be followed.
            SystemExit: where nothing is left to do.
        """
        refuse_overwrite(self._config)
        resume = self._config.get("resume")
        if resume == "auto":
            self._task = [word for word in self._task if not word.startswith("resume=")]
            continued = self._newest()
        else:
            continued = sweep_to_continue(str(resume)) if resume is not None else None
        if continued is not None:
            set_key(self._config, "hydra.sweep.dir", str(continued[0]))
            return self._go_on(*continued)
        sweep = expand(self._config.hydra.sweeper, self._task, self._loader)
        if not sweep.complete:
            jobs = [PlannedJob("", words) for words in sweep.jobs]
            return Plan(
                self._app, jobs, False, sweep.swept, [], self._launcher_words(), self._compose
            )
        return self._begin(sweep)

    def _newest(self) -> tuple[Path, sweep_record.SweepRecord] | None:
        """The newest sweep of the same jobs, which ``resume=auto`` continues."""
        jobs = expand(self._config.hydra.sweeper, self._task, self._loader).jobs
        found = sweep_record.newest_sweep(self._app, jobs)
        if found is None:
            print("resume=auto: no sweep of these jobs was begun here; starting one", flush=True)
            return None
        print(f"resume=auto: the newest sweep of these jobs is {found}", flush=True)
        self._task = sweep_record.launcher_words(self._task)  # its jobs are those that were typed
        return sweep_to_continue(str(found))

    def _go_on(self, directory: Path, record: sweep_record.SweepRecord) -> Plan:
        """Plan a sweep that is continued by ``resume=``."""
        if record.app != self._app:
            raise UserError(f"resume={directory} is a sweep of {record.app}, not of {self._app}")
        words = [word for word in self._task if not word.startswith("resume=")]
        typed = expand(self._config.hydra.sweeper, words, self._loader)
        if typed.swept or not typed.complete:
            several = ", ".join(typed.swept) or "hydra/sweeper"
            raise UserError(
                f"resume={directory} continues the jobs of a sweep as they are, and {several} "
                f"would make others: give one value, or begin a new sweep"
            )
        launcher = [word for word in words if sweep_record.LAUNCHER_WORD.fullmatch(word)]
        wanted = {
            job.directory: [*launcher, *changed(job.overrides, typed.jobs[0])]
            for job in record.jobs
        }
        return self._left_of(wanted, record.jobs)

    def _begin(self, sweep: Expansion) -> Plan:
        """Plan a sweep of given jobs, which may have been begun in its directory."""
        if len(sweep.jobs) >= MANY:
            print(f"checking {len(sweep.jobs):,} jobs", flush=True)
        names = self._names(sweep)
        directory = Path(self._config.hydra.sweep.dir)
        record = sweep_record.read_sweep(directory)
        if record is not None and (record.app != self._app or record.search):
            raise UserError(
                f"hydra.sweep.dir={directory} holds a sweep of {record.app} whose jobs are others: "
                f"give another directory"
            )
        wanted = dict(zip(names, sweep.jobs, strict=True))
        return self._left_of(wanted, record.jobs if record else [], sweep.swept)

    def _left_of(
        self,
        wanted: dict[str, list[str]],
        known: list[sweep_record.RecordedJob],
        swept: Sequence[str] = (),
    ) -> Plan:
        """Plan those of the wanted jobs that are left to do."""
        directory = Path(self._config.hydra.sweep.dir)
        states: dict[str, job_states.JobState] = {}
        if known:
            check_place(directory, f"directory {directory}")
            refuse_locked(directory)
            read = job_states.read_jobs(directory)
            states = {job.directory: state for job, state in zip(known, read, strict=True)}
        recorded = {job.directory: job.overrides for job in known}
        to_cluster = is_cluster(self._config)
        alone: Counter[str] = Counter()
        jobs = []
        for name, words in wanted.items():
            state = states.get(name)
            if state is not None and _is_under_way(state, to_cluster):
                alone[state.state] += 1
                continue
            as_before = sorted(sweep_record.job_words(words)) == sorted(recorded.get(name, []))
            over = "overwrite=true" in [word.lower() for word in words]
            if as_before and not over and state is not None and state.state == FINISHED:
                alone[FINISHED] += 1
                continue
            run = directory / name
            finished = read_status(run).get("status") == FINISHED
            if finished and not _has_more(run, self._compose(words), words):
                alone[FINISHED] += 1
                continue
            jobs.append(PlannedJob(name, words, state is not None and not as_before))
        _say_left_alone(alone, len(jobs), directory)
        return Plan(
            self._app, jobs, True, list(swept), known, self._launcher_words(), self._compose
        )

    def _launcher_words(self) -> list[str]:
        return sweep_record.launcher_words([*self._config.hydra.overrides.hydra, *self._task])

    def _compose(self, words: Sequence[str], number: int = 0) -> DictConfig:
        config: DictConfig = self._loader.load_sweep_config(self._config, list(words))
        set_key(config, "hydra.job.num", number)
        return config

    def _names(self, sweep: Expansion) -> list[str]:
        """Directories of the jobs: of runs that are continued their own, of others as the user
        names them, or by what is swept.
        """
        own = any(w.startswith("hydra.sweep.subdir=") for w in self._config.hydra.overrides.hydra)
        by_user = own or not sweep.swept
        given: list[str | None] = []
        known: set[str] = set()
        for number, words in enumerate(sweep.jobs):
            config = self._compose(words, number)
            run = _continued_run(config)
            subdirectory = str(config.hydra.sweep.subdir) if by_user else None
            given.append(str(run) if run is not None else subdirectory)
            known |= all_keys(config)
        written = short_keys(sweep.swept, known, self._config.hydra.runtime.choices)
        numbered = repeats(sweep.jobs, written)
        names = [
            job_name(written, words, number if numbered else None) if name is None else name
            for number, (name, words) in enumerate(zip(given, sweep.jobs, strict=True))
        ]
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise UserError(f"two jobs of this sweep would write into the directory {twice[0]}")
        return names


def _continued_run(config: DictConfig) -> Path | None:
    """The directory of the run that a job continues, if it does."""
    resume = config.get("resume")
    if resume is None:
        return None
    if resume == "auto":
        raise UserError("resume=auto is for all jobs of a sweep, and cannot be one of several")
    path = Path(resume).expanduser()
    if sweep_record.read_sweep(path) is not None:
        raise UserError(
            f"resume={resume} is a sweep: continue one at a time, by -m resume={resume}"
        )
    if path.is_file() and path.parent.name == CHECKPOINTS:
        return path.parents[1].resolve()
    return path.resolve() if path.is_dir() else None


def _is_under_way(state: job_states.JobState, to_cluster: bool) -> bool:
    """Whether somebody works on a job, or SLURM will start it. A stalled process holds the lock of
    its run while it lives, so a job of it may be tried. So may one of a SLURM that does not answer,
    where the user takes it elsewhere.
    """
    known = state.state in (RUNNING, job_states.QUEUED, job_states.PREEMPTED) or (
        state.state == job_states.UNKNOWN and to_cluster
    )
    return known or bool(state.state == job_states.STALLED and state.slurm)


def _has_more(run: Path, config: DictConfig, words: Sequence[str]) -> bool:
    """Whether a run that has finished is given more to do, or is begun over."""
    if config.get("overwrite"):
        return True
    keys = {word.partition("=")[0] for word in words}
    return config.get("steps", 0) > read_json(run / SUMMARY).get("step", 0) or bool(
        keys & {"stop.minutes", "stop.hours"}
    )


def _say_left_alone(alone: Counter[str], left: int, directory: Path) -> None:
    """Say which jobs are left alone. If no other is left to do, end the process.

    Raises:
        SystemExit: with status 0, where nothing is left to do.
    """
    if not alone:
        return
    states = ", ".join(f"{number} {state}" for state, number in alone.items())
    print(f"{short(directory)}: {counted(left, 'job')} to do; left alone: {states}", flush=True)
    if not left:
        sys.exit(0)


def add_place(line: CommandLine) -> CommandLine:
    """Add to ``-m resume=SWEEP`` the words that say where the sweep's jobs run, unless the command
    line says it.
    """
    named = [word for word in line.overrides if word.startswith("resume=")]
    if (
        not line.sweeps
        or len(named) != 1
        or any(word.startswith(("cluster=", "hydra/launcher=")) for word in line.overrides)
    ):
        return line
    directory = Path(named[0].removeprefix("resume=").strip("'\""))
    record = sweep_record.read_sweep(directory)
    if record is None:
        return line
    launcher = sweep_record.recorded_launcher_words(record, directory, line.overrides)
    return line._replace(overrides=[*launcher, *line.overrides])


def sweep_to_continue(resume: str) -> tuple[Path, sweep_record.SweepRecord] | None:
    """The sweep that ``resume`` names, and its record; ``None`` where it names a run."""
    directory = Path(resume).expanduser()
    record = sweep_record.read_sweep(directory)
    if record is None:
        if directory.is_file() or (directory / CHECKPOINTS).is_dir():
            return None
        raise UserError(
            f"resume={resume} is no sweep, which has a {sweep_record.SWEEP}, and no run, which has "
            f"{CHECKPOINTS}; with -m give the directory of a sweep or of runs"
        )
    if record.search:
        raise UserError(
            f"resume={resume} is a search, whose jobs its sweeper chooses: continue it with the "
            f"sweeper's own storage (of Optuna hydra.sweeper.storage and hydra.sweeper.study_name)"
        )
    sweep_record.check_words(record, directory)
    return directory, record


def changed(recorded: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The recorded words of a job; a typed word replaces the recorded one of its key."""
    new = sweep_record.job_words(typed)
    keys = {key_and_place(word) for word in new}
    return [*(word for word in recorded if key_and_place(word) not in keys), *new]


BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


class Expansion(NamedTuple):
    """The jobs of a sweep."""

    jobs: list[list[str]]
    """Overrides of each job; of a sweeper that searches, of examples."""
    swept: list[str]
    """Keys that differ between jobs."""
    complete: bool
    """Whether the list has all jobs."""


def is_basic(sweeper: Any) -> bool:
    """Whether a config's ``hydra.sweeper`` is Hydra's own."""
    return bool(sweeper.get("_target_") == BASIC)


def expand(sweeper: DictConfig, typed: list[str], loader: ConfigLoader) -> Expansion:
    """List the jobs of a sweep."""
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *typed])
    last = {override.get_key_element(): override for override in parsed}
    if is_basic(sweeper):
        jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        swept = [key for key, override in last.items() if len(_values(override)) > 1]
        return Expansion(jobs, swept, complete=True)
    values = {key: _values(override) for key, override in last.items()}
    swept = [key for key, known in values.items() if len(known) > 1]
    return Expansion(list(_samples(values)), swept, complete=False)


def _values(override: Override) -> list[str]:
    """Return the known values of one override."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return list(dict.fromkeys(override.sweep_string_iterator()))


def _samples(values: dict[str, list[str]]) -> Iterable[list[str]]:
    """Yield jobs that cover every known value, changing one key at a time."""
    first = {key: known[0] for key, known in values.items()}
    yield [f"{key}={value}" for key, value in first.items()]
    for key, known in values.items():
        for other in known[1:]:
            yield [f"{k}={value}" for k, value in {**first, key: other}.items()]
