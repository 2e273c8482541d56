"""The machine, its software, and what it can do at best."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from betasigma.devices import computes_bf16
from betasigma.runs.directory import version
from harness.timing import interleaved

Result = TypeVar("Result")

PACKAGES = (
    "betasigma",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "diffusers",
    "denoising-diffusion-pytorch",
    "accelerate",
    "ema-pytorch",
    "torch-fidelity",
    "torchmetrics",
    "wandb",
    "numpy",
    "scipy",
)


def describe() -> dict[str, Any]:
    """Processor, memory, threads, load and versions. No names of hosts or paths."""
    cpu = _first("/proc/cpuinfo", "model name")
    memory = _first("/proc/meminfo", "MemTotal")
    flags = set(_first("/proc/cpuinfo", "flags").split())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "bf16": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "gpus": gpus,
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def limits(rounds: int) -> dict[str, float]:
    """GFLOP/s of a matrix product (2048³) and of a 3x3 convolution (16x128x32x32 → 128), in
    float32 and, where the processor computes in it, bfloat16; the convolution in both memory
    formats.
    """
    candidates: dict[str, Callable[[], object]] = {}
    work: dict[str, float] = {}
    for name, dtype in dtypes().items():
        a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
        candidates[f"matmul {name}"] = _product(a, b)
        work[f"matmul {name}"] = 2 * 2048**3
        for form, memory in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            x = torch.randn(16, 128, 32, 32, dtype=dtype).to(memory_format=memory)
            w = torch.randn(128, 128, 3, 3, dtype=dtype).to(memory_format=memory)
            candidates[f"conv3x3 {form} {name}"] = _convolution(x, w)
            work[f"conv3x3 {form} {name}"] = 2 * 16 * 32 * 32 * 128 * 128 * 9
    with torch.inference_mode():
        timings = interleaved(candidates, rounds, warmup=2)
    return {name: work[name] / timings.median(name) / 1e9 for name in candidates}


def dtypes() -> dict[str, torch.dtype]:
    """What is worth computing in on this processor, by name."""
    found = {"fp32": torch.float32}
    return found | ({"bf16": torch.bfloat16} if computes_bf16("cpu") else {})


NO_BF16 = "This processor has no instructions for bf16: nothing was measured in it."


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], object]:
    return lambda: a @ b


def _convolution(x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    return lambda: F.conv2d(x, w, padding=1)


def fastest_convolution(found: dict[str, float], dtype: str) -> float:
    """GFLOP/s of the faster memory format, of ``fp32`` or ``bf16``."""
    return max(value for name, value in found.items() if "conv" in name and dtype in name)


def peak_memory(task: Callable[[], object], modules: Sequence[str] = ()) -> float:
    """MiB that ``task`` needs at most, beyond what its imports left, in a process of its own.

    Args:
        task: can be pickled: a module's function, or a ``functools.partial`` of one.
        modules: what it imports by itself.
    """
    return alone(_peak, task, modules)


def alone(task: Callable[..., Result], *arguments: object) -> Result:
    """What ``task`` returns in a process of its own; it and its arguments can be pickled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def _peak(task: Callable[[], object], modules: Sequence[str]) -> float:
    for module in modules:
        import_module(module)
    before = _resident("VmRSS")
    task()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    """MiB in memory now (``VmRSS``) or at most so far (``VmHWM``). Not from getrusage: there a
    process inherits the peak of the one that started it.
    """
    return int(_first("/proc/self/status", what).split()[0]) / 1024


def _first(path: str, key: str) -> str:
    """Value of the first line ``key : value`` of a file; empty where there is none."""
    file = Path(path)
    lines = file.read_text(encoding="utf-8", errors="ignore").splitlines() if file.exists() else []
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")
