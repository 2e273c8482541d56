"""The contract of a metric: a number that says the same of the same images.

A metric is a ``torchmetrics.Metric`` with ``update(images, real=…)`` and ``compute()``. However the
images are cut into batches, in whatever order they come and however many processes share them, the
value is that of the sets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from betasigma.testing.contract import of_kind, require


def check_metric(
    metric: Metric | Callable[[], Metric],
    sample_shape: tuple[int, ...] = (3, 32, 32),
    *,
    n: int = 48,
    best: float | Mapping[str, float] | None = None,
    ordered: bool = False,
    tolerance: float = 1e-3,
) -> None:
    """Assert the contract of a metric.

    Args:
        metric: one without a state, which is copied, or a function that returns one.
        sample_shape: of an image, drawn as bytes (uint8); of one number, ``(d,)``, points are drawn
            in float32.
        n: images of each set.
        best: value where both sets are the same, by name where ``compute`` gives several; ``None``
            where the metric has none.
        ordered: whether the value may depend on the order of the images on purpose, as that of the
            Inception score does, a mean over parts.
        tolerance: relative difference up to which two values count as equal.

    Raises:
        ContractError: at the first contract that does not hold.
    """
    made: Metric = of_kind(metric, Metric, "metric.type", "a torchmetrics.Metric")
    real, generated = _sets(sample_shape, n)
    whole = _value(made, (real, True), (generated, False))
    for name, value in whole.items():
        finite = value == value and abs(value) != float("inf")
        require(finite, "metric.finite", "a finite value", f"{name} is {value}")
    pieces = [(part, True) for part in real.split(7)]
    pieces += [(part, False) for part in generated.split(7)]
    _compare(
        "metric.batching",
        "the same value in batches of 7",
        _value(made, *pieces),
        whole,
        tolerance,
    )
    if not ordered:
        turned = _value(made, (generated.flip(0), False), (real.flip(0), True))
        expected = "the same value where the images come in another order"
        _compare("metric.order", expected, turned, whole, tolerance)
    _compare(
        "metric.processes",
        "the same value from two processes that share the images",
        _shared(made, real, generated),
        whole,
        tolerance,
    )
    _check_reset(made, real, generated, whole, tolerance)
    if best is not None:
        _check_best(made, real, whole, best, tolerance)
    kept = list(made.state_dict())
    require(
        not kept,
        "metric.checkpoint",
        "nothing of the metric in a state_dict: it would end up in every checkpoint and average",
        f"there are {len(kept)} tensors, {kept[0] if kept else ''} first",
    )


def _sets(sample_shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Smooth patterns, the generated ones fainter and lighter."""
    generator = torch.Generator().manual_seed(0)
    if len(sample_shape) == 1:
        real, other = (torch.randn(n, *sample_shape, generator=generator) for _ in range(2))
        return real / 4, other / 8 + 0.2
    channels, height, width = sample_shape
    coarse = torch.rand(2 * n, channels, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    real, other = (images[:n] * 255, images[n:] * 160 + 80)
    return real.round().byte(), other.round().byte()


def _compute(metric: Metric) -> dict[str, float]:
    value = metric.compute()
    named = value if isinstance(value, Mapping) else {"the value": value}
    sizes = {name: torch.as_tensor(number).numel() for name, number in named.items()}
    several = next((name for name, size in sizes.items() if size != 1), "")
    found = f"{several} has {sizes.get(several)} numbers"
    require(not several, "metric.one_number", "one number, or several by name", found)
    return {name: float(number) for name, number in named.items()}


def _value(metric: Metric, *updates: tuple[Tensor, bool]) -> dict[str, float]:
    fresh = copy.deepcopy(metric)
    for images, real in updates:
        given = images.clone()
        fresh.update(given, real=real)
        require(
            torch.equal(given, images),
            "metric.inputs",
            "update to leave its images as they are: other metrics are given them too",
            "it changed them in place",
        )
    return _compute(fresh)


def _shared(metric: Metric, real: Tensor, generated: Tensor) -> dict[str, float]:
    """Value on one of two processes, the other's states handed over as torchmetrics gathers them:
    tensor by tensor. The shares are unequal.
    """
    first, second = copy.deepcopy(metric), copy.deepcopy(metric)
    cut = len(real) // 3
    for process, rows in ((first, slice(0, cut)), (second, slice(cut, None))):
        process.update(real[rows], real=True)
        process.update(generated[rows], real=False)
    sent: list[Tensor] = []

    def send(tensor: Tensor, group: Any = None) -> list[Tensor]:
        sent.append(tensor)
        return [tensor]

    def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
        return [tensor, sent.pop(0)]

    second.sync(dist_sync_fn=send, distributed_available=lambda: True)
    first.dist_sync_fn = gather
    first.distributed_available_fn = lambda: True
    return _compute(first)


def _check_reset(
    metric: Metric, real: Tensor, generated: Tensor, whole: dict[str, float], tolerance: float
) -> None:
    used = copy.deepcopy(metric)
    used.update(generated, real=True)
    used.update(real, real=False)
    used.compute()
    used.reset()
    used.update(real, real=True)
    used.update(generated, real=False)
    _compare("metric.reset", "reset to forget all it has seen", _compute(used), whole, tolerance)


def _check_best(
    metric: Metric,
    real: Tensor,
    whole: dict[str, float],
    best: float | Mapping[str, float],
    tolerance: float,
) -> None:
    declared = best if isinstance(best, Mapping) else dict.fromkeys(whole, best)
    equal = _value(metric, (real, True), (real.flip(0), False))
    for name, wanted in declared.items():
        scale = max(abs(wanted), abs(whole[name] - wanted))
        require(
            abs(equal[name] - wanted) <= tolerance * scale,
            "metric.best",
            f"{name} to be {wanted:g} where both sets are the same",
            f"it is {equal[name]:g} (and {whole[name]:g} where they differ)",
        )
        require(
            abs(whole[name] - wanted) > tolerance * abs(wanted),
            "metric.sensitive",
            f"{name} to differ from its best value {wanted:g} where the sets differ",
            f"it is {whole[name]:g}",
        )


def _compare(
    contract: str, expected: str, found: dict[str, float], whole: dict[str, float], tolerance: float
) -> None:
    for name, value in whole.items():
        require(
            abs(found[name] - value) <= tolerance * max(abs(value), 1e-9),
            contract,
            expected,
            f"{name} is {found[name]:g} instead of {value:g}",
        )
