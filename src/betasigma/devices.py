"""Device, precision, memory format, threads and memory allocator of a model."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from betasigma.cpus import cpus_of_a_process
from betasigma.errors import UserError

Config = dict[str, Any]


def precision_of(hardware: Config) -> torch.dtype | None:
    """dtype of the network's arithmetic; ``auto`` is bf16 if the processor supports it."""
    wanted = str(hardware["precision"])
    if wanted == "auto":
        wanted = "bf16" if _computes_bf16(hardware["accelerator"]) else "32"
    return torch.bfloat16 if wanted == "bf16" else None


def _computes_bf16(accelerator: str) -> bool:
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or sys.platform != "linux":
        return False
    found = set(flags.read_text(encoding="utf-8", errors="ignore").split())
    return bool(found & {"avx512_bf16", "amx_bf16"})


def prepare_model(denoiser: nn.Module, hardware: Config) -> None:
    """Set memory format, number of threads and, on a CPU, the memory allocator.

    ``channels_last=auto`` is true on GPUs only: on CPUs it makes group normalisation slower.
    """
    use_threads(hardware)
    gpu = uses_gpu(hardware)
    if not gpu:
        keep_freed_memory()
    wanted = hardware["channels_last"]
    last = gpu if wanted == "auto" else wanted
    memory = torch.channels_last if last else torch.contiguous_format
    for parameter in denoiser.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory)


def use_threads(hardware: Config) -> None:
    """Set the number of PyTorch's threads: that of the config, else the environment's own, else
    this process's share of the CPUs that may be used.

    PyTorch's default counts the CPUs of a machine whatever the quota of a container is.
    """
    if hardware["threads"]:
        torch.set_num_threads(hardware["threads"])
    elif THREADS not in os.environ:
        devices = hardware["devices"]
        if devices == "auto":
            devices = max(1, torch.cuda.device_count()) if uses_gpu(hardware) else 1
        torch.set_num_threads(cpus_of_a_process(devices))


THREADS = "OMP_NUM_THREADS"
"""Environment variable of the number of threads, which a user, a cluster or joblib sets."""


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next tensors instead of returning it.

    A step frees the large tensors that the next step allocates again. glibc returns them to the
    system, which then clears every page: up to a fifth of a step on a CPU. Other C libraries are
    left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of ``mallopt`` (malloc.h): the free memory at the heap's end that is returned to the
system, −1 for never; and how many tensors may have a mapping of their own.
"""


def move_to_device(denoiser: nn.Module, hardware: Config) -> torch.device:
    """Move a denoiser to the device of the hardware config, for use outside the Trainer.

    Returns:
        The device.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    gpu = uses_gpu(hardware)
    if hardware["accelerator"] == "gpu" and not gpu:
        raise UserError("hardware.accelerator=gpu finds no GPU here; use hardware=cpu or auto")
    device = torch.device("cuda" if gpu else "cpu")
    prepare_model(denoiser.to(device), hardware)
    return device


def uses_gpu(hardware: Config) -> bool:
    """Whether a hardware config computes on a GPU here."""
    return hardware["accelerator"] != "cpu" and torch.cuda.is_available()
