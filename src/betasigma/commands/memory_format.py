"""The memory format of a network on a processor that no rule is known for: measured once, kept.

On GPUs, and for sampling and training on most x86 processors, one format is the faster one
(:func:`betasigma.devices.faster_channels_last`). With AVX2 alone, training a U-Net in float32 may
be faster in either, by some percent, and what holds for other processors is not known. There a few
steps of each are timed, in turns, when such a network is trained (or sampled from) for the first
time, and what came out is kept in the cache for this processor, this network and this PyTorch. So
runs on one machine have one format, on which the last bits of their sums depend.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from betasigma.denoiser import Denoiser
from betasigma.devices import devices_of_training, memory_format, use_memory_format, uses_gpu
from betasigma.runs.directory import cache_folder
from betasigma.runs.files import read_json, write_json

Config = dict[str, Any]

WORTH = 2**19
"""Weights of the smallest network that is measured: below, the formats hardly differ."""

BATCH, SECONDS, ROUNDS = 8, 3.0, (3, 15)
"""Images of a step, seconds of all steps, and the number of each format's steps: no fewer, however
long they take, and no more.
"""


def choose_memory_format(
    denoiser: nn.Module, hardware: Config, trains: bool, tell: Callable[[str], None]
) -> None:
    """Give a network the faster memory format where no rule says which that is.

    Not with ``hardware.deterministic``, nor where several processes share a run, whose formats must
    be the same: there the rule holds.

    Args:
        denoiser: the model, on its device and with the threads that it will have.
        hardware: the config of the hardware.
        trains: whether it will be trained; else it is sampled from.
        tell: is called with what was measured.
    """
    if not isinstance(denoiser, Denoiser) or not _is_open(denoiser, hardware, trains):
        return
    file = cache_folder() / "memory_formats" / f"{_key(denoiser.network, trains)}.json"
    last = read_json(file).get("channels_last")
    if not isinstance(last, bool):
        seconds = _measured(denoiser, trains)
        last = seconds[True] < seconds[False]
        with contextlib.suppress(OSError):  # a cache that cannot be written: measured each time
            write_json(file, {"channels_last": last, "seconds": list(seconds.values())})
        fast, slow = ("channels last", "the default one")[:: 1 if last else -1]
        ratio = seconds[not last] / seconds[last]
        tell(f"memory format: {fast}, {ratio:.2f} × as fast as {slow}; kept for this processor")
    use_memory_format(denoiser, memory_format(last))


def _is_open(denoiser: Denoiser, hardware: Config, trains: bool) -> bool:
    given = hardware["channels_last"] != "auto" or hardware["deterministic"]
    several = devices_of_training(hardware) * hardware["nodes"] > 1
    if given or several or uses_gpu(hardware) or denoiser.precision is not None:
        return False
    known = {"AVX512"} if trains else {"AVX512", "AVX2"}
    weights = sum(p.numel() for p in denoiser.network.parameters())
    declares = getattr(denoiser.network, "channels_last_on_cpu", False)
    unknown = torch.backends.cpu.get_cpu_capability() not in known
    return bool(declares and unknown and weights >= WORTH)


def _key(network: nn.Module, trains: bool) -> str:
    shapes = [tuple(p.shape) for p in network.parameters()]
    facts = [type(network).__qualname__, shapes, trains, torch.get_num_threads()]
    known = [torch.__version__, torch.backends.cpu.get_cpu_capability(), _processor()]
    return hashlib.sha256(json.dumps([facts, known]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What the system calls the processor."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = told.read_text(encoding="utf-8", errors="ignore").partition("\n\n")[0].splitlines()
    named = ("vendor", "cpu family", "model", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.startswith(named))


def _measured(denoiser: Denoiser, trains: bool) -> dict[bool, float]:
    """Least seconds of a step in the default format and with channels last."""
    networks = {last: copy.deepcopy(denoiser.network).train(trains) for last in (False, True)}
    for last, network in networks.items():
        use_memory_format(network, memory_format(last))
    least = dict.fromkeys(networks, math.inf)
    fewest, most = ROUNDS
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(trains):
        x, c_noise = torch.randn(BATCH, *denoiser.sample_shape), torch.zeros(BATCH)
        y = torch.zeros(BATCH, dtype=torch.int64) if denoiser.num_classes else None
        begun = time.monotonic()
        for number in range(most + 1):
            for last, network in networks.items():
                began = time.perf_counter()
                output = network(x.to(memory_format=memory_format(last)), c_noise, y)
                if trains:
                    output.square().mean().backward()
                    network.zero_grad()
                if number:  # the first makes what PyTorch keeps
                    least[last] = min(least[last], time.perf_counter() - began)
            if number >= fewest and time.monotonic() - begun > SECONDS:
                break
    return least
