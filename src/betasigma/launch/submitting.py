"""Submit the jobs of a sweep to SLURM, and wait for each of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from betasigma.launch.planning import SUBDIRECTORY
from betasigma.launch.snapshot import from_copy
from betasigma.launch.sweeps import JobFailed
from betasigma.runs.slurm_queue import queued_jobs
from betasigma.runs.status import summary
from betasigma.runs.sweep_record import note_slurm_jobs, read_sweep

if TYPE_CHECKING:
    import submitit

    from hydra_plugins.betasigma_sweeps import SlurmJobs

LARGEST_ARRAY = 1000
"""Jobs of one array; SLURM's own default limit is 1,001."""

LISTED = 20
"""Jobs that are listed before they are submitted; of more only the first ones."""

FIRST_LOOK, LAST_LOOK = 1.0, 20.0
"""Seconds between two looks at the jobs, which grow from the one to the other."""

LOOKS = 3
"""Looks at which a job without a result must be unknown to SLURM before it counts as ended."""

OF_EXECUTOR = ("max_num_timeout", "submitit_folder", "_target_")
"""Keys of ``hydra.launcher`` that are no parameters of SLURM."""

COMMON = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes"),
    *("name", "stderr_to_stdout"),
)
"""Keys of ``hydra.launcher`` that submitit knows under the same names for every cluster."""


def announce(launcher: DictConfig, names: Sequence[str], dry: bool) -> None:
    """Print what will be submitted: the parameters of ``sbatch``, and the directories of the jobs,
    of many only the first ones unless nothing follows (``dry``).
    """
    params: Any = OmegaConf.to_container(launcher, resolve=True)
    executor = _executor(params)
    executor.parameters["map_count"] = min(len(names), LARGEST_ARRAY) if len(names) > 1 else None
    text = executor._make_submission_file_text("…", "")
    asked = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    print("to SLURM:", *asked, sep="\n  ")
    for line in params.get("setup") or []:
        print(f"  {line}")
    listed = names if dry else names[:LISTED]
    for name in listed:
        print(f"  job {name}")
    if len(listed) < len(names):
        print(f"  and {len(names) - len(listed)} more")


def submit(
    launcher: SlurmJobs, params: dict[str, Any], jobs: Sequence[Sequence[str]], first: int
) -> list[submitit.Job[JobReturn]]:
    """Submit jobs, and note in the sweep's record which SLURM has taken."""
    assert launcher.config is not None
    assert launcher.hydra_context is not None
    sweep = Path(launcher.config.hydra.sweep.dir)
    record = read_sweep(sweep)
    copy = ((record.code if record else None) or {}).get("path")
    setup = list(params.get("setup") or [])
    if copy is not None:
        launcher.hydra_context = from_copy(launcher.hydra_context, Path(copy))
        setup.append(f"export PYTHONPATH='{copy}/src'${{PYTHONPATH:+:$PYTHONPATH}}")
    executor = _executor({**params, "setup": setup})
    state = Singleton.get_state()
    calls = [
        (list(words), "hydra.sweep.dir", number, f"job_id_for_{number}", state)
        for number, words in enumerate(jobs, first)
    ]
    submitted: list[submitit.Job[JobReturn]] = []
    for start in range(0, len(calls), LARGEST_ARRAY):
        part = calls[start : start + LARGEST_ARRAY]
        submitted += executor.map_array(launcher, *zip(*part, strict=True))
        done = zip(jobs, submitted, strict=False)
        note_slurm_jobs(sweep, {_directory(words): job.job_id for words, job in done})
    ids = sorted({job.job_id.partition("_")[0] for job in submitted}, key=int)
    print(f"submitted as SLURM job {', '.join(ids)}; waiting, which Ctrl-C ends", flush=True)
    return submitted


def wait_for(jobs: Sequence[submitit.Job[JobReturn]]) -> list[JobReturn]:
    """Wait until every job has ended, however the others did.

    A job has ended when its result is there, or when it is no longer in SLURM's queue: a job that
    was killed leaves no result.
    """
    results: dict[int, JobReturn] = {}
    unknown: Counter[int] = Counter()
    pause = FIRST_LOOK
    while len(results) < len(jobs):
        queue = queued_jobs()
        for number, job in enumerate(jobs):
            if number in results:
                continue
            if job.task(0).paths.result_pickle.is_file():
                results[number] = _result(job.task(0))
            elif queue is not None and job.job_id not in queue:
                unknown[number] += 1
                if unknown[number] >= LOOKS:
                    results[number] = _failed("SLURM has ended it without a result")
            else:
                unknown[number] = 0
        if len(results) < len(jobs):
            time.sleep(pause)
            pause = min(LAST_LOOK, 1.2 * pause)
    return [results[number] for number in range(len(jobs))]


def _result(job: submitit.Job[JobReturn]) -> JobReturn:
    try:
        return job.result()
    except Exception as error:  # of any kind: it is the job's
        return _failed(summary(error))


def _failed(reason: str) -> JobReturn:
    failed = JobReturn()
    failed.status = JobStatus.FAILED
    failed.return_value = JobFailed(reason)
    return failed


def _directory(words: Sequence[str]) -> str:
    """The directory of a job, among its overrides; empty where its sweeper has named it."""
    own = [word for word in words if word.startswith(SUBDIRECTORY)]
    return own[-1].removeprefix(SUBDIRECTORY).strip("'") if own else ""


def _executor(params: dict[str, Any]) -> Any:
    """submitit's executor, with the parameters of ``hydra.launcher``."""
    import submitit

    executor = submitit.AutoExecutor(
        cluster="slurm",
        folder=params["submitit_folder"],
        slurm_max_num_timeout=params.get("max_num_timeout", 0),
    )
    named = {k: v for k, v in params.items() if k not in OF_EXECUTOR and v is not None}
    executor.update_parameters(
        **{key if key in COMMON else f"slurm_{key}": value for key, value in named.items()}
    )
    return executor._executor
