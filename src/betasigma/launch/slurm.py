"""Work out what a sweep requests from SLURM, and check it before anything is submitted.

A sweep is one job array, so all its jobs get the same resources. ``conf/cluster/slurm.yaml`` has
the options and passes them to the launcher. They must fit ``hardware``: SLURM starts the processes,
one per device, and Lightning finds them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from betasigma.errors import UserError
from betasigma.options.hardware import SlurmOptions
from betasigma.options.training import check_division
from betasigma.runs.slurm_queue import partitions

SETUP = (
    # srun stopped inheriting the number of CPUs per task in SLURM 22.05
    '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
)
"""Shell lines before every job's own ``cluster.setup``."""


def is_cluster(config: DictConfig) -> bool:
    """Whether the jobs of a config run on a cluster."""
    return OmegaConf.select(config, "cluster.name", default="none") != "none"


def refuse_single(config: DictConfig) -> None:
    """Refuse to submit a single run."""
    if is_cluster(config):
        raise UserError(
            f"cluster={config.cluster.name} submits the jobs of a sweep: add -m (a sweep may be of "
            f"one job)"
        )


def common_request(requests: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the resources of each job of a sweep; ``None`` for a sweep on this machine."""
    first = requests[0]
    for other in requests[1:]:
        if other != first:
            a, b = first or {"name": "none"}, other or {"name": "none"}
            keys = sorted(a, key="tasks".__eq__)  # what tasks follow from comes first
            key = next(key for key in keys if a[key] != b.get(key))
            raise UserError(
                f"cluster.{key} would be {a[key]} for one job of this sweep and {b.get(key)} for "
                f"another: SLURM gives all jobs of an array the same, so make it two sweeps"
            )
    return first


UNWRITABLE = re.compile(r"""[%'"\\\n]""")
"""Characters that SLURM does not take as they are in the path of a log."""


def check_cluster(wanted: dict[str, Any], directory: Path) -> None:
    """Check that jobs can be submitted from here, to a partition that exists and whose time limit
    is long enough.
    """
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise UserError(
                f"cluster=slurm needs SLURM's commands, and {command} is not on the PATH: run it "
                f"on a login node of the cluster"
            )
    odd = UNWRITABLE.search(str(directory.resolve()))
    if odd is not None:
        raise UserError(
            f"cluster=slurm would write its logs below {directory.resolve()}, and SLURM takes no "
            f"{odd[0]} in their path: give another hydra.sweep.dir, or stand in another directory"
        )
    known, name = partitions(), wanted["partition"]
    if known is None:
        raise UserError("cluster=slurm finds no SLURM that answers: sinfo says nothing here")
    if name is None:
        name = next((name for name, partition in known.items() if partition.default), None)
    named = [known.get(part) for part in str(name).split(",")] if name is not None else []
    if None in named:
        raise UserError(
            f"cluster.partition={name} is no partition of this cluster, which has "
            f"{', '.join(sorted(known))}"
        )
    limits = [partition.minutes for partition in named if partition and partition.minutes]
    if limits and len(limits) == len(named) and wanted["minutes"] > max(limits):
        raise UserError(
            f"cluster.minutes={wanted['minutes']} is above the {max(limits)} minutes that "
            f"partition {name} lets a job run: give at most those; a job whose time ends goes on "
            f"in another start"
        )


def request(job: DictConfig) -> dict[str, Any] | None:
    """Return the resources of one job: the complete ``cluster`` node; ``None`` on this machine."""
    if not is_cluster(job):
        return None
    wanted: Any = OmegaConf.to_container(job.cluster, resolve=True)
    SlurmOptions.parse(wanted)
    warned = OmegaConf.select(job, "hydra.launcher.signal_delay_s", default=0)
    if 60 * wanted["minutes"] <= warned:
        raise UserError(
            f"cluster.minutes={wanted['minutes']} is no longer than the {warned} s before its end "
            f"in which a job is told to stop (hydra.launcher.signal_delay_s): it would end as it "
            f"begins; give at least {warned // 60 + 1}"
        )
    hardware = job.hardware
    gpus, tasks, devices = wanted["gpus"], wanted["tasks"], hardware.devices
    if devices == "auto":
        devices = tasks or gpus or 1
    if tasks not in (None, devices):
        raise UserError(
            f"cluster.tasks={tasks} does not fit hardware.devices={devices}: SLURM starts one "
            f"process per device; leave cluster.tasks out or make them equal"
        )
    if wanted["nodes"] != hardware.nodes:
        raise UserError(
            f"cluster.nodes={wanted['nodes']} does not fit hardware.nodes={hardware.nodes}; give "
            f"only hardware.nodes"
        )
    # GPUs with a type are asked for as hydra.launcher.gres=gpu:<type>:<n>
    typed = OmegaConf.select(job, "hydra.launcher.gres") is not None
    if hardware.accelerator == "gpu" and not typed and not gpus:
        raise UserError(
            f"hardware.accelerator=gpu needs GPUs on the nodes: give cluster.gpus={devices}"
        )
    if gpus and hardware.accelerator != "cpu" and devices > gpus:
        raise UserError(
            f"hardware.devices={devices} needs as many GPUs per node: give cluster.gpus={devices} "
            f"instead of cluster.gpus={gpus}"
        )
    check_division(job.batch_size, job.training.accumulate, devices * hardware.nodes)
    return {**wanted, "tasks": devices}
