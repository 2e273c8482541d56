"""Options of what computes: devices, processes, precision, compilation, and a cluster's jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from betasigma.options.base import Count, Index, Options, option
from betasigma.options.composition import Composition


class HardwareOptions(Options):
    node = "hardware"

    accelerator: Literal["auto", "cpu", "gpu"] = option("auto", "what computes")
    devices: Count | Literal["auto"] = option(
        "auto",
        "devices of a node, one process each; auto: every GPU in training, one where samples are "
        "drawn",
    )
    nodes: Count = option(1, "machines")
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        "how several devices share a step; fsdp: each keeps a part of the trained network, for one "
        "that is larger than a device",
    )
    precision: Literal["auto", "bf16", "32", 32] = option("auto", "of the network's arithmetic")
    channels_last: bool | Literal["auto"] = option(
        "auto",
        "memory format of the network; auto: on GPUs, and for a U-Net on x86 CPUs, there in bf16 "
        "with AMX only; in float32 without AVX-512 as measured once",
    )
    compile: bool | Literal["auto", "cuda_graphs"] = option(
        "auto",
        "torch.compile the network; auto: on a GPU, where the work left takes minutes; where "
        "compiling fails, training goes on without",
    )
    deterministic: bool = option(
        False, "bit-for-bit repeatable on a GPU, slower; on all CPUs, whatever others do"
    )
    threads: Annotated[int, Field(ge=1, le=4096)] | None = option(
        None,
        "CPU threads; null: one for each CPU that may be used and that others leave idle, also "
        "where that changes",
    )

    def unused(self, composition: Composition) -> dict[str, str]:
        if not composition.trains:
            why = "with model=oracle, which has no network"
            return dict.fromkeys(("compile", "precision", "channels_last"), why)
        if self.strategy == "fsdp":
            why = "with hardware.strategy=fsdp, which shares out parameters in the default format"
            return {"channels_last": why}
        if composition.data.points:
            return {"channels_last": f"on data={composition.data.name}: points have no channels"}
        return {}


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
    setup: list[str] = option([], 'shell lines before a job starts, e.g. ["module load cuda"]')
    code: CodeSource = option(
        "snapshot",
        "that jobs run: a copy made when they are submitted; the clone, which refuses to start "
        "them once it has changed; the clone as it is by then",
    )
    dry_run: bool = option(False, "print what would be submitted, and submit nothing")
