"""Options of where the jobs of a sweep run."""

from __future__ import annotations

from typing import Literal

from betasigma.options.base import Count, Index, Options, option


class SlurmOptions(Options):
    node = "cluster"

    name: Literal["slurm"] = option("slurm", "jobs through SLURM (submitit)")
    partition: str | None = option(None, "null: the cluster's default, here and below")
    account: str | None = option(None, "that pays")
    qos: str | None = option(None, "quality of service")
    minutes: Count = option(1440, "time limit of a job")
    nodes: Count = option(1, "machines of a job; follows hardware.nodes")
    tasks: Count | None = option(None, "processes per node; null: one per device")
    gpus: Index = option(0, "per node")
    cpus: Count | None = option(None, "per task")
    memory_gb: Count | None = option(None, "per node")
    parallel: Count = option(256, "jobs that run at the same time")
    setup: list[str] = option([], "shell lines before a job starts")
