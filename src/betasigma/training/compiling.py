"""``hardware.compile=auto``: compile the network where the work left repays the time it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from betasigma.denoiser import Denoiser, DenoiserLike
from betasigma.display import Display, clock
from betasigma.modules import DiffusionModule
from betasigma.networks.compiled import compile_in_place, is_compiled
from betasigma.options.base import parse_component
from betasigma.samplers import Sampler
from betasigma.samplers.evaluations import evaluations
from betasigma.training.steps import StepCallback

REPAID_AFTER = (80.9 - 5.6) / (1 - 21.7 / 57)
"""Seconds of uncompiled work (122) from which on compiling is faster, of DDPM's CIFAR-10 network on
an H100 (docs/benchmarks.md): its first steps ended after 80.9 s instead of 5.6, and each took 21.7
ms instead of 57. x seconds become 75.3 + x·21.7/57.
"""

SETTLING, MEASURED = 20, 20
"""Steps that pass before those that are timed, and how many are timed."""

TIMED_CALLS = 3


def is_left_open(hardware: Mapping[str, Any]) -> bool:
    """Whether ``hardware`` leaves the choice to what is measured on a GPU.

    A deterministic run is left alone: one that is resumed would change its kernels at another step.
    So is a network in parts, of which that was not measured.
    """
    exempt = hardware["deterministic"] or hardware["strategy"] == "fsdp"
    return hardware["compile"] == "auto" and not exempt


def can_be_compiled(content: Mapping[str, Any]) -> bool:
    """Whether a training step differentiates once, as a compiled network must. Of an objective of
    the user's own it is not known.
    """
    objective = parse_component("objective", content["objective"])
    network = parse_component("network", content["network"])
    ours = objective.target.startswith("betasigma.")
    return ours and not objective.differentiates and not network.differentiates


class CompileTraining(StepCallback):
    """Times the first steps of a training, and compiles the network if enough of them are left.
    With ``cuda_graphs`` a single process replays compiled steps as CUDA graphs.
    """

    def __init__(self, display: Display, cuda_graphs: bool) -> None:
        super().__init__()
        self._display, self._cuda_graphs = display, cuda_graphs
        self._first: int | None = None
        self._since = 0.0
        self._decided = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._first = None  # its time is not that of a step

    def on_step(self, trainer: Trainer, module: DiffusionModule, step: int) -> None:
        if self._decided or module.device.type != "cuda":
            return
        if self._first is None:
            self._first = step
        passed = step - self._first
        if passed == SETTLING:
            self._since = _now(module.device)
        elif passed == SETTLING + MEASURED:
            self._decided = True
            seconds = (_now(module.device) - self._since) / MEASURED
            # all ranks decide alike
            seconds = trainer.strategy.broadcast(seconds)
            left = seconds * (trainer.max_steps - step)
            graphs = self._cuda_graphs and trainer.world_size == 1
            how = "" if graphs else ", without CUDA graphs, which take one device and whole batches"
            if is_repaid(left, "training", self._display, how):
                compile_in_place(module.denoiser.network, graphs)


def compile_for_sampling(
    denoiser: DenoiserLike,
    hardware: Mapping[str, Any],
    sampler: Sampler,
    n: int,
    batch_size: int,
    display: Display,
    guidance: float,
) -> None:
    """Compile a network that is about to draw samples, if ``hardware`` says so or leaves it open
    and drawing them takes long enough.
    """
    if not isinstance(denoiser, Denoiser) or is_compiled(denoiser.network) or n < 1:
        return
    if hardware["compile"] not in (False, "auto"):
        compile_in_place(denoiser.network, cuda_graphs=hardware["compile"] == "cuda_graphs")
        return
    if denoiser.device.type != "cuda" or not is_left_open(hardware):
        return
    size = min(n, batch_size)
    x = torch.randn(size, *denoiser.sample_shape, device=denoiser.device)
    y = None
    if denoiser.num_classes:
        y = torch.zeros(size, dtype=torch.int64, device=denoiser.device)

    @torch.inference_mode()
    def evaluate() -> None:
        denoiser(x, 1.0, y)

    nfe = evaluations(sampler, denoiser.schedule, denoiser.sample_shape, guidance)
    calls = nfe * -(-n // size)
    try:
        left = _seconds_of(evaluate, denoiser.device) * calls
    except torch.OutOfMemoryError:  # the sampler halves its batches
        return
    if is_repaid(left, "sampling", display):
        compile_in_place(denoiser.network, cuda_graphs=False)


def is_repaid(left: float, work: str, display: Display, how: str = "") -> bool:
    """Whether compiling repays when ``left`` seconds of work are left; says what was decided, and
    why.

    Args:
        how: it would be compiled.
    """
    repaid = left >= REPAID_AFTER
    decision = f"compiling the network{how}" if repaid else "not compiling the network"
    display.line(
        f"{decision}: uncompiled, {clock(left)} of {work} would be left, and it repays from "
        f"{clock(REPAID_AFTER)} on (hardware.compile=auto)"
    )
    return repaid


def _seconds_of(call: Callable[[], None], device: torch.device) -> float:
    for _ in range(2):
        call()
    since = _now(device)
    for _ in range(TIMED_CALLS):
        call()
    return (_now(device) - since) / TIMED_CALLS


def _now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
