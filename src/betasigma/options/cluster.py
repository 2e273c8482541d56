"""Options of where the jobs of a sweep run."""

from __future__ import annotations

from typing import Literal

from betasigma.options.base import Count, Index, Options, option

CodeSource = Literal["snapshot", "unchanged", "live"]


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
    code: CodeSource = option(
        "snapshot",
        "that jobs run: a copy made when they are submitted; the clone, which refuses to start "
        "them once it has changed; the clone as it is by then",
    )
    dry_run: bool = option(False, "print what would be submitted, and submit nothing")
