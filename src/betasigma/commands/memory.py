"""Say beforehand what will not fit into memory, and what would.

What a run needs is estimated from below, from its options alone: what is refused cannot work, and
what passes may still be too large. PyTorch is imported only to ask a GPU, where much is needed.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

from betasigma.cpus import control_groups
from betasigma.data import catalog
from betasigma.errors import UserError
from betasigma.options import DataFacts
from betasigma.options.apps import Evaluate, ModelConfig, Sample, Train
from betasigma.options.evaluation import most_measured
from betasigma.options.hardware import HardwareOptions
from betasigma.options.networks import NetworkOptions
from betasigma.options.optimizers import AdamOptions

SMALL = 2**30
"""Bytes that are not worth asking for: any machine that runs PyTorch has them."""

OF_A_PROCESS = 200 * 2**20
"""Bytes of a process that has imported PyTorch, at least."""

FLOAT = 4


class Memory(NamedTuple):
    """Memory of a device."""

    size: int
    """In bytes."""
    where: str


def check_training(options: Train, facts: DataFacts) -> None:
    """Refuse a training run that needs more memory than there is."""
    _check_held(options, facts)
    hardware, node = options.hardware, options.evaluation
    count = hardware.devices if isinstance(hardware.devices, int) else 1
    there, needed = _of_machine(), count * OF_A_PROCESS
    fits = f"hardware.devices={there.size // OF_A_PROCESS} or fewer would fit"
    _check(f"hardware.devices={count}", needed, " for as many processes", there, fits)
    if options.model.trains:
        _check_steps(options, facts)
    if node.metrics:
        drawn, key = most_measured(dict(node)), "evaluation.batch_size"
        _check_batch(key, node.batch_size, drawn, hardware, options.network, facts)


def check_sampling(asked: Sample, saved: ModelConfig, facts: DataFacts) -> None:
    """Refuse samples that would not fit into memory."""
    size, n = asked.batch_size, asked.total
    _check_batch("batch_size", size, n, asked.hardware, saved.network, facts)
    if asked.save != "folder":
        _check_drawn(asked, facts)


def check_evaluation(asked: Evaluate, saved: ModelConfig, facts: DataFacts) -> None:
    """Refuse samples to be measured that would not fit into memory."""
    if asked.evaluation.metrics:
        key, size = "evaluation.batch_size", asked.evaluation.batch_size
        _check_batch(key, size, asked.n, asked.hardware, saved.network, facts)


def _check(key: str, needed: int, why: str, there: Memory, fits: str) -> None:
    """Refuse what needs more than there is, and more than is worth asking for."""
    if needed > max(SMALL, there.size):
        raise UserError(
            f"{key} needs at least {_shown(needed)}{why}, and {there.where} has "
            f"{_shown(there.size)}: {fits}"
        )


def _check_steps(options: Train, facts: DataFacts) -> None:
    """Refuse a network or a batch that is too large for a step of the optimizer."""
    hardware, network = options.hardware, options.network
    size = network.size(facts.shape)
    copies = 5 if isinstance(options.optimizer, AdamOptions) else 3
    held = FLOAT * copies * size.weights  # weights, gradients, their averages, averaged weights
    width = FLOAT if hardware.precision in ("32", 32) else FLOAT // 2
    an_example = width * size.kept + 3 * FLOAT * facts.dimensions
    devices = hardware.devices if isinstance(hardware.devices, int) else 1
    parts = options.training.accumulate * devices * hardware.nodes
    batch = max(options.batch_size // parts, 1)
    if held + batch * an_example <= SMALL:
        return
    there = _gpu(hardware) or _of_machine()
    key = next((key for key in ("channels", "width") if hasattr(network, key)), None)
    named = f"network.{key}={getattr(network, key)}" if key else f"data={facts.name}"
    why = " for weights, gradients, their averages and one example"
    _check(named, held + an_example, why, there, "take a smaller network or images")
    most = parts * max((there.size - held) // an_example, 1)
    _check(
        f"batch_size={options.batch_size}",
        held + batch * an_example,
        f" for a micro-batch of {batch}",
        there,
        f"batch_size={most} would fit, or a larger training.accumulate",
    )


def _check_held(options: ModelConfig, facts: DataFacts) -> None:
    """Refuse data that are held in memory and have no room there."""
    node = options.data
    known = catalog.DATA_SETS.get(node.name) if node.source is None else None
    if known is None or not known.in_memory or not known.train or facts.points:
        return
    there = _of_machine()
    fits = math.isqrt(there.size // (known.train * facts.shape[0]))
    _check(
        f"data.image_size={node.image_size}",
        known.train * facts.dimensions,
        f" for {known.train} images that are held in memory",
        there,
        f"data.image_size={fits} would fit",
    )


def _check_batch(
    key: str,
    batch_size: int,
    n: int,
    hardware: HardwareOptions,
    network: NetworkOptions,
    facts: DataFacts,
) -> None:
    """Refuse to draw more samples at once than fit: on a GPU fewer are taken by themselves."""
    a_sample = FLOAT * (3 * facts.dimensions + 2 * network.size(facts.shape).widest)
    needed = min(batch_size, n) * a_sample
    if needed > SMALL and not _gpu(hardware):
        there = _of_machine()
        fits = f"{key}={max(there.size // a_sample, 1)} would fit"
        _check(f"{key}={batch_size}", needed, "", there, fits)


def _check_drawn(asked: Sample, facts: DataFacts) -> None:
    """Refuse more samples than there is room to keep: as they are drawn and joined; of several
    processes also as they are sent and received; for a picture also enlarged and in its grid.
    """
    hardware, n = asked.hardware, asked.total
    shared = hardware.nodes > 1 or hardware.devices not in ("auto", 1)
    pictured = asked.save != "npz" and not facts.points
    a_sample = (2 + 2 * shared + 2 * pictured) * (FLOAT if facts.points else 1) * facts.dimensions
    there = _of_machine()
    _check(
        f"drawing {n:,} samples (n, seeds, indices)",
        n * a_sample,
        " among several processes" if shared else "",
        there,
        f"{there.size // a_sample:,} would fit, and save=folder writes them as they are drawn",
    )


def _gpu(hardware: HardwareOptions) -> Memory | None:
    """Memory of the smallest GPU; ``None`` where the CPU computes."""
    if hardware.accelerator == "cpu":
        return None
    import torch  # seconds, which only a run that needs much spends

    if not torch.cuda.is_available():
        return None
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    least = min(cards, key=lambda card: card.total_memory)
    return Memory(least.total_memory, f"the {least.name}")


def _of_machine() -> Memory:
    """Memory that this process may use."""
    return Memory(min(_limits()), "this machine")


def _limits() -> Iterator[int]:
    """Bytes that there are, and that a limit of the shell, a container or a job allows."""
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shell = resource.getrlimit(resource.RLIMIT_AS)[0]
    if shell != resource.RLIM_INFINITY:
        yield shell
    for version, folder in control_groups("memory"):
        file = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        try:
            yield int(file.read_text())
        except (OSError, ValueError):  # "max", or there is none
            continue


def _shown(size: int) -> str:
    """Bytes as a reader takes them in: ``41 GB``."""
    value, unit = size / 2**30, "GB"
    if value >= 1024:
        value, unit = value / 1024, "TB"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
