"""Device, precision, memory format, threads and memory allocator of a model."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from betasigma.cpus import THREADS_OF_USER, Look, cpus_of_a_process, idle_cpus
from betasigma.errors import UserError

Config = dict[str, Any]


def precision_of(hardware: Config) -> torch.dtype | None:
    """dtype of the network's arithmetic; ``auto`` is bf16 if the processor supports it."""
    wanted = str(hardware["precision"])
    if wanted == "auto":
        wanted = "bf16" if computes_bf16(hardware["accelerator"]) else "32"
    return torch.bfloat16 if wanted == "bf16" else None


def computes_bf16(accelerator: str) -> bool:
    """Whether what computes has instructions for bf16, and may use them; without, it is emulated,
    which takes many times as long as float32.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return False
    return bool(_cpu_features() & {"avx512_bf16", "amx_bf16"})


WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Instruction sets by which a user may limit oneDNN, which computes convolutions, without bf16."""


def _cpu_features() -> set[str]:
    """Words that Linux has for the processor, its instruction sets among them; elsewhere none."""
    told = Path("/proc/cpuinfo")
    if not told.exists() or sys.platform != "linux":
        return set()
    return set(told.read_text(encoding="utf-8", errors="ignore").split())


def prepare_model(
    denoiser: nn.Module, hardware: Config, begun_with: int | None = None
) -> str | None:
    """Set memory format, number of threads (:func:`use_threads`) and, on a CPU, the allocator of
    memory. Return why there are fewer threads than CPUs, if there are.

    ``channels_last=auto`` is true on GPUs, and on CPUs for a network that says so
    (:func:`faster_channels_last`); not where parameters are shared out, which PyTorch does in the
    default format alone.
    """
    fewer = use_threads(hardware, begun_with)
    gpu = uses_gpu(hardware)
    if not gpu:
        keep_freed_memory()
    wanted = hardware["channels_last"]
    last = gpu or faster_channels_last(denoiser) if wanted == "auto" else wanted
    if hardware["strategy"] == "fsdp":
        last = False
    use_memory_format(denoiser, memory_format(last))
    return None if gpu else fewer


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name of a memory format."""
    return torch.channels_last if channels_last else torch.contiguous_format


def use_memory_format(network: nn.Module, memory: torch.memory_format) -> None:
    """Arrange the weights of convolutions so; features follow."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            # unlike contiguous(), it also arranges a weight of one channel, which has both formats
            parameter.data = parameter.data.to(memory_format=memory)


def faster_channels_last(denoiser: nn.Module) -> bool:
    """Whether a network computes faster with channels last on this CPU.

    Convolutions of float32 take channels last as they are on x86 processors with AVX2 or AVX-512,
    and those of bfloat16 on processors with AMX, where the default format is copied before and
    after each (``benchmarks/memory_format.py``). In bfloat16 without AMX group normalisation makes
    up for it; in float32 with AVX2 alone it costs the training of a small U-Net up to 8 %, and
    sampling gains up to 19 %.
    """
    network = getattr(denoiser, "network", None)
    if getattr(denoiser, "precision", None) is None:
        faster = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    else:
        faster = "amx_bf16" in _cpu_features()
    return faster and getattr(network, "channels_last_on_cpu", False)


def use_threads(hardware: Config, begun_with: int | None = None) -> str | None:
    """Set the number of PyTorch's threads: that of the config, else the environment's own, else
    that of the run which is continued, else as many as CPUs are idle. With ``deterministic``, and
    in one of several processes, it is the share of all CPUs, whatever others do.

    PyTorch's default counts the CPUs of a machine whatever the quota of a container is.

    Args:
        hardware: the config of the hardware.
        begun_with: threads of a run that is continued, whose last bits depend on them.

    Returns:
        Why there are fewer threads than CPUs, if there are.
    """
    if hardware["threads"]:
        torch.set_num_threads(hardware["threads"])
        return None
    if os.environ.keys() & THREADS_OF_USER:
        return None
    devices = devices_of_training(hardware)
    share = cpus_of_a_process(devices)
    if begun_with is not None:
        wanted, why = begun_with, "the run began with it"
    elif follows_neighbours(hardware):
        wanted, why = idle_cpus(), NEIGHBOURS
    else:
        wanted, why = share, ""
    threads = min(share, wanted)
    torch.set_num_threads(threads)
    return None if threads == share else _fewer(threads, share, why)


NEIGHBOURS = "other processes use the rest"


def _fewer(threads: int, share: int, why: str) -> str:
    return f"{threads} of {share} CPUs, since {why}; hardware.threads={share} takes all"


def follows_neighbours(hardware: Config) -> bool:
    """Whether the number of threads follows from what other processes do: not where it is given;
    on a GPU it is not the threads that compute, and processes of a run would see one another.
    """
    given = hardware["threads"] or os.environ.keys() & THREADS_OF_USER
    processes = devices_of_training(hardware) * hardware["nodes"]
    return not (given or hardware["deterministic"] or uses_gpu(hardware) or processes > 1)


LOOK_EVERY = 5.0
"""Seconds of a look at the machine while it computes."""


class Following:
    """Has PyTorch take as many threads as CPUs are idle while work goes on, too.

    A neighbour that comes later would make each step several times as long. Two looks in a row
    must agree, so that one who leaves within five seconds changes nothing.

    Args:
        hardware: the config of the hardware.
        tell: is called with each change.
    """

    def __init__(self, hardware: Config, tell: Callable[[str], None]) -> None:
        self._share = cpus_of_a_process(1) if follows_neighbours(hardware) else 0
        self._tell = tell
        self._seen: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._look = Look() if self._share > 1 else None

    def __call__(self) -> None:
        """To be called now and then, from the thread that computes."""
        passed = time.monotonic() - self._since
        if self._look is None or passed < LOOK_EVERY:
            return
        idle = self._look.idle(passed)
        self._begin()
        threads = torch.get_num_threads()
        wanted = threads if idle is None else max(1, min(idle, self._share))
        if wanted == self._seen != threads:
            torch.set_num_threads(wanted)
            every = wanted == self._share
            self._tell(
                f"all {wanted} CPUs from here on, since they are idle"
                if every
                else f"from here on {_fewer(wanted, self._share, NEIGHBOURS)}"
            )
        self._seen = wanted


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next tensors instead of returning it.

    A step frees the large tensors that the next step allocates again. glibc returns them to the
    system, which then clears every page: up to a fifth of a step on a CPU. Other C libraries are
    left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
        if threading.current_thread() is threading.main_thread():  # others have heaps of their own
            _use_huge_pages()


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of ``mallopt`` (malloc.h): the free memory at the heap's end that is returned to the
system, −1 for never; and how many tensors may have a mapping of their own.
"""

HUGE_PAGE, MADV_HUGEPAGE = 2**21, 14
"""Bytes of a huge page, and the advice to use them (sys/mman.h)."""

MOST_RESERVED = 2**36
"""Bytes of address space that the heap is extended by, at most."""


@cache
def _use_huge_pages() -> None:
    """Let what the heap grows into have huge pages, where Linux leaves that to programs, as most
    distributions do.

    Clearing and addressing pages of 4 KiB took up to a fifth of a step on a virtual machine, and at
    other hours nothing (``benchmarks/huge_pages.py``). The heap is extended once, by address space:
    memory is taken as it is used. That is left out where address space is limited or counted as
    memory, and where the C library is told to fill what it hands out.
    """
    import resource

    if "MALLOC_PERTURB_" in os.environ or "perturb" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    limited = any(limit != resource.RLIM_INFINITY for limit in limits)
    counted = Path("/proc/sys/vm/overcommit_memory")
    if limited or (counted.exists() and counted.read_text(encoding="utf-8").strip() == "2"):
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    size = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, MOST_RESERVED)
    reserved = library.malloc(ctypes.c_size_t(size))
    if reserved:
        first = -(-reserved // HUGE_PAGE) * HUGE_PAGE
        whole = (reserved + size - first) // HUGE_PAGE * HUGE_PAGE
        library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(reserved))


def move_to_device(
    denoiser: nn.Module,
    hardware: Config,
    device: torch.device | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> torch.device:
    """Move a denoiser to the device of the hardware config, for use outside the Trainer.

    Args:
        denoiser: the model.
        hardware: the config's node.
        device: this process's, where several processes share the work.
        tell: is called with why there are fewer threads than CPUs, if there are.

    Returns:
        The device.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    gpu = uses_gpu(hardware)
    if hardware["accelerator"] == "gpu" and not gpu:
        raise UserError("hardware.accelerator=gpu finds no GPU here; use hardware=cpu or auto")
    device = device or torch.device("cuda" if gpu else "cpu")
    fewer = prepare_model(denoiser.to(device), hardware)
    if fewer:
        tell(fewer)
    return device


def devices_of_training(hardware: Config) -> int:
    """Devices of this machine that a training takes: as many as it is told, else every GPU."""
    if hardware["devices"] != "auto":
        return int(hardware["devices"])
    return max(1, torch.cuda.device_count()) if uses_gpu(hardware) else 1


def uses_gpu(hardware: Config) -> bool:
    """Whether a hardware config computes on a GPU here."""
    return hardware["accelerator"] != "cpu" and torch.cuda.is_available()
