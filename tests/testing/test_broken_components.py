"""A check that cannot fail is a defect: for every contract, a class that breaks it is told so."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import Metric
from torchvision.transforms.functional import to_pil_image

from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.likelihood import ContinuousBound, Terms
from betasigma.modules import DDPM
from betasigma.networks.mlp import MLP
from betasigma.objectives import Denoising, LossTerms
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import DDIM, Samples
from betasigma.schedules import Kernel, NoiseSchedule, VariancePreserving, linear
from betasigma.testing import (
    ContractError,
    check_dataset,
    check_likelihood,
    check_metric,
    check_module,
    check_network,
    check_objective,
    check_preconditioning,
    check_sampler,
    check_schedule,
)

ROOT = Path(__file__).resolve().parents[2]
Check = Callable[[], None]
BROKEN: dict[str, list[Check]] = {}
"""For each contract, checks of what breaks it."""


def breaks(contract: str, check: Callable[..., None], *arguments: Any, **options: Any) -> None:
    BROKEN.setdefault(contract, []).append(lambda: check(*arguments, **options))


# ---------------------------------------------------------------------------- networks


class Good(nn.Module):
    """A network that keeps the contract."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 8, 3, padding=1)
        self.told = nn.Linear(1, 8)
        self.label = nn.Embedding(4, 8)
        self.leave = nn.Conv2d(8, 2, 3, padding=1)

    def features(self, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
        y = torch.full((len(x),), 3) if y is None else y
        shift = self.told(c_noise[:, None]) + self.label(y)
        return torch.sin(self.enter(x) + shift[:, :, None, None])

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return self.leave(self.features(x, c_noise, y))


def network(change: Callable[[Good, Tensor, Tensor, Tensor | None], Tensor]) -> Any:
    """Good, with another forward."""

    class Changed(Good):
        def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
            return change(self, x, c_noise, y)

    return Changed


def plain(net: Good, *inputs: Any) -> Tensor:
    return Good.forward(net, *inputs)


class Unregistered(Good):
    """Random features that are no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = torch.randn(8)

    def features(self, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
        return super().features(x, c_noise, y) * self.frequencies.to(x)[:, None, None]


class Unused(Good):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


class Uncopied(Good):
    def __init__(self) -> None:
        super().__init__()
        self.words = (word for word in "ab")


class Shared(Good):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class OwnGenerator(Good):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def features(self, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
        h = super().features(x, c_noise, y)
        return h * self.rng.random() if self.training else h


def changes_input(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    output = plain(net, x, c_noise, y)
    x.mul_(0.5)
    return output


def seeds_the_process(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    torch.manual_seed(3)
    return plain(net, x, c_noise, y)


def joins_two_classes(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    return plain(net, x, c_noise, None if y is None else y.where(y != 1, 0))


def batch_statistics(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    return plain(net, x - x.mean(0), c_noise, y)


def position_in_batch(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    rank = torch.arange(len(x), dtype=x.dtype)
    return plain(net, x, c_noise, y) + rank[:, None, None, None]


def view_of_memory(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    if not x.is_contiguous():
        x = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
    return plain(net, x, c_noise, y)


def overflows_in_bfloat16(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    h = net.leave(net.features(x, c_noise, y))
    return h / 0 if h.dtype == torch.bfloat16 else h


def null_class_apart(net: Good, x: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
    return plain(net, x, c_noise, torch.zeros(len(x), dtype=torch.long) if y is None else y)


SHAPE = (2, 8, 8)
for contract, build in {
    "network.shape": network(lambda net, x, c, y: plain(net, x, c, y)[:, :1]),
    "network.inputs": network(changes_input),
    "network.dtype": network(lambda net, x, c, y: plain(net, x, c, y).float()),
    "network.autocast": network(overflows_in_bfloat16),
    "network.deterministic": network(
        lambda net, x, c, y: nn.functional.dropout(plain(net, x, c, y), 0.5)
    ),
    "network.c_noise": network(lambda net, x, c, y: plain(net, x, 0 * c, y)),
    "network.null_class": network(null_class_apart),
    "network.labels": network(lambda net, x, c, y: plain(net, x, c, None)),
    "network.independent": network(batch_statistics),
    "network.batch_size": network(position_in_batch),
    "network.layout": network(view_of_memory),
    "network.state": Unregistered,
    "network.gradients": Unused,
    "network.dropout": OwnGenerator,
}.items():
    breaks(contract, check_network, build, SHAPE, num_classes=3)
breaks("network.c_noise", check_network, Good, SHAPE, num_classes=3, conditional=False)
breaks("network.deterministic", check_network, network(seeds_the_process), SHAPE, num_classes=3)
breaks("network.labels", check_network, network(joins_two_classes), SHAPE, num_classes=3)
breaks("network.copy", check_network, Uncopied, SHAPE, num_classes=3)
breaks("network.copy", check_network, Shared, SHAPE, num_classes=3)


def test_a_good_network_passes_and_exceptions_can_be_named() -> None:
    check_network(Good, SHAPE, num_classes=3)
    check_network(Unused, SHAPE, num_classes=3, without_gradient=["spare.*"])


# ---------------------------------------------------------------------------- schedules


def schedule(**methods: Any) -> NoiseSchedule:
    """The linear schedule in 50 steps, with other methods."""
    made = linear(2e-3, 0.3, 50)
    return type("Changed", (VariancePreserving,), methods)(made._log_snr)


Base = VariancePreserving


def wavy(self: Any, t: Any) -> Tensor:
    exact = Base.log_snr(self, t)
    return torch.where(exact.isinf(), exact, exact + 3 * torch.sin(40 * torch.as_tensor(t)))


def ve_view(self: Any, t: Any) -> Kernel:
    """A curve of its own, without contradiction."""
    log_snr = self.log_snr(t)
    return Kernel(torch.ones_like(log_snr), torch.exp(-log_snr / 2), log_snr)


def muddled(self: Any, t: Any) -> Kernel:
    kernel = Base.at(self, t)
    return kernel._replace(log_snr=kernel.log_snr * 1.01)


def bent_at_the_end(self: Any, t: Any) -> Tensor:
    exact, time = Base.log_snr(self, t), torch.as_tensor(t)
    return torch.where((time > 0.999) & (time < 1), exact - 1, exact)


def noisy_when_clean(self: Any, t: Any) -> Kernel:
    kernel = Base.at(self, t)
    return kernel._replace(sigma=kernel.sigma.clamp(min=1e-4))


def clamped(self: Any, x: Any) -> Tensor:
    low, high = self._log_snr[-1], self._log_snr[0]
    return Base.t_of_log_snr(self, torch.as_tensor(x).clamp(low, high))


GIVEN: dict[str, Any] = {"sde": lambda self, t: linear(2e-3, 0.3, 50).sde(t)}
"""f and g² as they are, whatever the slopes."""


def lenient(self: Any, t: Any) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


for contract, methods in {
    "schedule.levels": {"times": lambda self: Base.times(self).flip(0)},
    "schedule.dtype": {"alpha": lambda self, t: Base.alpha(self, t).float()},
    "schedule.values": {"sigma": lambda self, t: -Base.sigma(self, t)},
    "schedule.log_snr": {"sigma": lambda self, t: 2 * Base.sigma(self, t)},
    "schedule.monotone": {"log_snr": wavy},
    "schedule.inverse": {"t_of_log_snr": lambda self, x: Base.t_of_log_snr(self, x) ** 2},
    "schedule.clean": {"_alpha": lambda self, x: torch.sigmoid(x.clamp(max=20)).sqrt()},
    "schedule.prior": {"prior_std": float("inf")},
    "schedule.range": {"_check": lenient},
    "schedule.transition": {"at": muddled},
    "schedule.posterior": {"at": ve_view},
    "schedule.sde": {"_log_alpha_slope": lambda self, x: torch.sigmoid(-x)},
}.items():
    breaks(contract, check_schedule, schedule(**methods))
breaks("schedule.type", check_schedule, lambda: np.linspace(0, 1, 10))
breaks("schedule.type", check_schedule, np.linspace(0, 1, 10))
breaks("metric.type", check_metric, 3)
breaks("network.type", check_network, Good(), (2, 8, 8))
breaks("network.type", check_network, lambda: 3, (2, 8, 8))
breaks("network.call", check_network, lambda: nn.Conv2d(2, 2, 1), (2, 8, 8))
for classes in (0, 3):  # of which y=None is the first that it is given, or the last
    needy = network(lambda net, x, c, y: plain(net, x, c, y.long()))
    breaks("network.null_class", check_network, needy, (2, 8, 8), num_classes=classes)
# what no other view of the curve gives away
for contract, methods in (
    ("schedule.log_snr", {"ratio": lambda self, t: self.sigma(t)}),
    ("schedule.monotone", {"log_snr": bent_at_the_end}),
    ("schedule.inverse", {"t_of_ratio": lambda self, x: torch.as_tensor(x) / 40}),
    ("schedule.clean", {"at": noisy_when_clean}),
    ("schedule.prior", {"prior_std": 0.5}),
    ("schedule.prior", {"start_std": lambda self, t: 2 * Base.start_std(self, t)}),
    ("schedule.prior", {"ratio_max": 0.0}),
    ("schedule.range", {"t_of_log_snr": clamped}),
    (
        "schedule.sde",
        {"log_alpha_slope": lambda self, t: 2 * Base.log_alpha_slope(self, t)} | GIVEN,
    ),
    ("schedule.sde", {"log_snr_slope": lambda self, t: 2 * Base.log_snr_slope(self, t)} | GIVEN),
):
    breaks(contract, check_schedule, schedule(**methods))


# ---------------------------------------------------------------------------- preconditionings


def preconditioning(change: Callable[[Tensor, Any], Any]) -> Any:
    good = Preconditioning("epsilon", "log_sigma")
    return lambda t, alpha, sigma: change(t, good(t, alpha, sigma))


for contract, change in {
    "preconditioning.shape": lambda t, c: c._replace(c_in=c.c_in.float()),
    "preconditioning.finite": lambda t, c: c._replace(c_skip=c.c_skip / (t < 1)),
    "preconditioning.c_noise": lambda t, c: c._replace(c_noise=(10 * t).floor()),
    "preconditioning.recovers": lambda t, c: c._replace(c_out=c.c_out * (t < 1)),
}.items():
    breaks(contract, check_preconditioning, preconditioning(change), linear())
breaks(
    "preconditioning.shape",
    check_preconditioning,
    preconditioning(lambda t, c: c._replace(c_noise=c.c_noise - c.c_noise.mean())),
    linear(),
)


breaks(
    "preconditioning.recovers",
    check_preconditioning,
    preconditioning(lambda t, c: c._replace(c_in=torch.where(t > 0.9, 0.0, c.c_in))),
    linear(),
)


# ---------------------------------------------------------------------------- objectives


class Changed(Denoising):
    """Denoising, with what it returns changed."""

    def __init__(self, change: Callable[[LossTerms, Any], LossTerms]) -> None:
        super().__init__()
        object.__setattr__(self, "change", change)

    def loss(self, denoiser: Any, x0: Any, y: Any, rng: Any) -> LossTerms:
        return self.change(super().loss(denoiser, x0, y, rng), denoiser)  # type: ignore[attr-defined]


class Per(Denoising):
    """Another loss of each example."""

    def __init__(self, value: Callable[[Any, Any, Any], Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "of", value)

    def value(self, denoiser: Any, noised: Any, rng: Any) -> Tensor:
        return self.of(denoiser, noised, denoiser(noised.x_t, noised.t, noised.y))  # type: ignore[attr-defined]


class Unchanging(Denoising):
    """The same noise at every step."""

    def loss(self, denoiser: Any, x0: Any, y: Any, rng: Any) -> LossTerms:
        t = torch.full((len(x0),), 0.5, dtype=torch.float64)
        error = (denoiser(x0 + 0.3, t, y).eps - 0.3).square().flatten(1).mean(1)
        return LossTerms(error.mean(), error.detach(), t)


class WithArguments(Denoising):
    """Denoising, called with other arguments."""

    def __init__(self, change: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        super().__init__()
        object.__setattr__(self, "change", change)

    def loss(self, denoiser: Any, x0: Any, y: Any, rng: Any) -> LossTerms:
        return super().loss(denoiser, *self.change(x0, y), rng)  # type: ignore[attr-defined]


def seeds_the_process_for_this(x0: Tensor, y: Any) -> tuple[Tensor, Any]:
    torch.manual_seed(7)
    return x0, y


def detached(terms: LossTerms, denoiser: Any) -> LossTerms:
    weight = next(denoiser.parameters())
    return terms._replace(loss=terms.loss.detach() + 0 * weight.sum())


def flat(error: Tensor) -> Tensor:
    return error.flatten(1).mean(1)


for contract, objective in {
    "objective.terms": Changed(lambda terms, _: terms.loss),
    "objective.loss": Changed(lambda terms, _: terms._replace(loss=terms.loss.detach())),
    "objective.per_sample": Changed(lambda terms, _: terms._replace(per_sample=terms.loss)),
    "objective.mean": Changed(lambda terms, _: terms._replace(loss=terms.loss * 32)),
    "objective.times": Changed(lambda terms, _: terms._replace(t=terms.t * 1000)),
    "objective.inputs": WithArguments(lambda x0, y: (x0.mul_(0.9), y)),
    "objective.gradient": Changed(detached),
    "objective.seeded": Per(lambda _, n, p: n.error(p) * torch.rand(len(n.x0))),
    "objective.micro_batch": Per(lambda _, n, p: n.error(p) / n.error(p).mean().detach()),
    "objective.step": Unchanging(),
    "objective.stationary": Per(lambda _, n, p: flat((n.eps - p.eps - 0.2).square())),
    "objective.minimum": Per(lambda _, n, p: -n.error(p)),
}.items():
    breaks(contract, check_objective, objective)
# the median instead of the mean; and dividing by what depends on the answer
for other in (3, nn.Linear(2, 2), Denoising, lambda truth: truth):
    breaks("objective.type", check_objective, other)
breaks("objective.stationary", check_objective, Per(lambda _, n, p: flat((n.eps - p.eps).abs())))
breaks(
    "objective.stationary", check_objective, Per(lambda _, n, p: n.error(p) / (1 + flat(p.eps**2)))
)
breaks("objective.times", check_objective, Changed(lambda s, _: s._replace(t=s.t.float())))
breaks("objective.times", check_objective, Changed(lambda s, _: s._replace(t=1.01 - s.t)))
breaks("objective.seeded", check_objective, WithArguments(seeds_the_process_for_this))
breaks("objective.labels", check_objective, WithArguments(lambda x0, y: (x0, None)), num_classes=2)


def test_another_minimiser_on_purpose() -> None:
    absolute = Per(lambda _, n, p: flat((n.eps - p.eps).abs()))
    check_objective(absolute, minimised_by_the_truth=False)


# ---------------------------------------------------------------------------- samplers


class Resampled(DDIM):
    """DDIM, with its samples changed."""

    def __init__(self, change: Callable[[Samples], Samples]) -> None:
        super().__init__(steps=8)
        self.change = change

    def sample(self, *arguments: Any, **options: Any) -> Samples:
        return self.change(super().sample(*arguments, **options))


class WithOptions(DDIM):
    """DDIM, called with other options."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(steps=8)
        self.change = change

    def sample(self, denoiser: Any, n: Any = None, **options: Any) -> Samples:
        return super().sample(denoiser, **self.change({"n": n, **options}))


class Stepping(DDIM):
    """DDIM, with its state changed after each step."""

    def __init__(self, change: Callable[..., Tensor]) -> None:
        super().__init__(steps=8)
        self.change = change

    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        return self.change(self, model, super().step(model, x, t, s, rng), s)


class AsksForTheFamily(DDIM):
    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        x = super().step(model, x, t, s, rng)
        return x * 1.01 if isinstance(model.schedule, VariancePreserving) else x


class LooksForTheFamily(DDIM):
    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        x = super().step(model, x, t, s, rng)
        return x * 1.01 if hasattr(model.schedule, "alpha_bar") else x


class Unclipped(DDIM):
    def trajectory(self, model: Any, x: Tensor, rng: Any) -> Any:
        model._range = None
        return super().trajectory(model, x, rng)


class JumpsToTheMean(DDIM):
    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        return model(0.01 * x, 1.0).x0 if s == 0 else super().step(model, x, t, s, rng)


class StepsInPlace(DDIM):
    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        return x.copy_(super().step(model, x, t, s, rng))


class BeginsItsOwnWay(DDIM):
    def begin(self, denoiser: Any, rng: Any) -> Tensor:
        return rng.normal(denoiser.sample_shape, self.dtype) * denoiser.schedule.prior_std


class LabelsAtTheEnd(DDIM):
    def step(self, model: Any, x: Tensor, t: float, s: float, rng: Any) -> Tensor:
        y, model._y = model._y, None if s else model._y
        x = super().step(model, x, t, s, rng)
        model._y = y
        return x


class AlwaysFromNoise(DDIM):
    def from_first(self, times: list[float]) -> list[float]:
        return times


def seeds_the_process_on_the_way(self: DDIM, model: Any, x: Tensor, s: float) -> Tensor:
    torch.manual_seed(7)
    return x


def drifts_when_fine(self: DDIM, model: Any, x: Tensor, s: float) -> Tensor:
    return x - 0.25 if s == 0 and (self.steps or 0) > 20 else x


def uncounted(self: DDIM, model: Any, x: Tensor, s: float) -> Tensor:
    """A correction whose evaluation goes past the count."""
    return model._denoiser(x, s, None).x0 if s > 0.99 else x + 0 * model._denoiser(x, 1.0).x0


def by_index(options: dict[str, Any]) -> dict[str, Any]:
    indices = options.pop("indices", None)
    return {**options, "n": options["n"] if indices is None else len(indices)}


for contract, sampler in {
    "sampler.type": nn.Identity(),
    "sampler.result": Resampled(lambda s: s._replace(x=s.x.double())),
    "sampler.start": BeginsItsOwnWay(steps=8),
    "sampler.none": Resampled(lambda s: s._replace(nfe=s.nfe + 1)),
    "sampler.progress": WithOptions(lambda o: {**o, "progress": None}),
    "sampler.seeded": Stepping(lambda self, m, x, s: x + 0.01 * torch.randn_like(x)),
    "sampler.seed": WithOptions(lambda o: {**o, "seed": 0}),
    "sampler.batch_size": Stepping(lambda self, m, x, s: x / x.std()),
    "sampler.indices": WithOptions(by_index),
    "sampler.nfe": Stepping(uncounted),
    "sampler.states": StepsInPlace(steps=8),
    "sampler.begun_at": AlwaysFromNoise(steps=8),
    "sampler.family": AsksForTheFamily(steps=8),
    "sampler.labels": WithOptions(lambda o: {**o, "y": None}),
    "sampler.clip": Unclipped(steps=8),
    "sampler.law": JumpsToTheMean(steps=8),
}.items():
    breaks(contract, check_sampler, sampler)
breaks("sampler.type", check_sampler, AlwaysFromNoise)  # no object of it
breaks("sampler.family", check_sampler, LooksForTheFamily(steps=8))
breaks("sampler.seeded", check_sampler, Stepping(seeds_the_process_on_the_way))
breaks("sampler.converges", check_sampler, Stepping(drifts_when_fine), bias=1.0)
breaks("sampler.labels", check_sampler, LabelsAtTheEnd(steps=8))
# labels that stay behind when the batches go on
breaks(
    "sampler.labels",
    check_sampler,
    WithOptions(lambda o: {**o, "y": None if o.get("y") is None else o["y"].sort().values}),
)


# ---------------------------------------------------------------------------- data sets


class Images(Dataset):
    """Examples made by a function of their number."""

    def __init__(self, make: Callable[[int], Any], length: int = 40) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def picture(i: int) -> Tensor:
    generator = torch.Generator().manual_seed(i)
    return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator)


class Unsized(Dataset):
    def __getitem__(self, i: int) -> Any:
        return picture(i)


class InOneBuffer(Images):
    """Every example in the same memory."""

    buffer = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def __getitem__(self, i: int) -> Any:
        return self.buffer.copy_(self.make(i))


def points_and_labels(label: Any) -> Images:
    return Images(lambda i: (picture(i), label(i)))


GOOD = Images(picture)
for contract, data, options in (
    ("dataset.length", Unsized(), {}),
    ("dataset.length", Images(picture, 0), {}),
    ("dataset.length", (np.zeros((40, 8, 8), np.uint8), np.zeros(39, int)), {}),
    ("dataset.type", Images(lambda i: "a picture"), {}),
    ("dataset.type", [np.zeros((8, 8), np.uint8)], {}),
    ("dataset.type", lambda: {"images": np.zeros((9, 8, 8), np.uint8)}, {}),
    ("dataset.shape", Images(lambda i: picture(i)[:, : 4 + i % 2]), {}),
    ("dataset.shape", np.zeros((10, 1, 3, 8, 8), np.uint8), {}),
    ("dataset.shape", np.zeros((10, 8), np.uint8), {}),
    ("dataset.shape", GOOD, {"test": Images(lambda i: picture(100 + i)[:1])}),
    ("dataset.values", Images(lambda i: picture(i) / 255), {}),
    ("dataset.values", Images(lambda i: picture(i) / 255), {"value_range": (-1.0, 0.9)}),
    ("dataset.values", Images(lambda i: picture(i).long()), {"value_range": (0.0, 255.0)}),
    ("dataset.values", torch.full((4, 2), torch.nan), {"value_range": (0.0, 1.0)}),
    ("dataset.values", torch.full((4, 2), torch.inf), {}),
    ("dataset.labels", points_and_labels(lambda i: i % 4), {"num_classes": 3}),
    ("dataset.labels", points_and_labels(lambda i: 0.5), {"num_classes": 3}),
    ("dataset.labels", GOOD, {"num_classes": 3}),
    ("dataset.labels", points_and_labels(lambda i: -1), {}),
    ("dataset.labels", points_and_labels(lambda i: "cat"), {}),
    ("dataset.deterministic", Images(lambda i: picture(i).roll(int(torch.rand(1) * 8))), {}),
    ("dataset.deterministic", InOneBuffer(picture), {}),
    ("dataset.content", lambda: torch.rand(8, 1, 4, 4), {"value_range": (0.0, 1.0)}),
    ("dataset.disjoint", GOOD, {"test": Images(lambda i: picture(i + 39))}),
):
    breaks(contract, check_dataset, data, **options)


def test_points_need_no_range_as_in_training() -> None:
    check_dataset(torch.randn(20, 2), torch.randn(10, 2))


class InDouble(ImageDataModule):
    def prepare_batch(self, batch: Any) -> Any:
        prepared = super().prepare_batch(batch)
        return prepared | {"x": prepared["x"].double()}


class OutOfRange(ImageDataModule):
    def prepare_batch(self, batch: Any) -> Any:
        prepared = super().prepare_batch(batch)
        return prepared | {"x": 2 * prepared["x"]}


class AlwaysFromTheStart(ImageDataModule):
    def _step(self) -> int:
        return 0


class WholeInEveryPart(ImageDataModule):
    def division(self) -> Any:
        return type(super().division())(self.batch_size)


for contract, kind in (
    ("dataset.batch", InDouble),
    ("dataset.batch", OutOfRange),
    ("dataset.order", AlwaysFromTheStart),
    ("dataset.shares", WholeInEveryPart),
):
    breaks(contract, check_dataset, kind("digits", batch_size=8))


def test_good_data_pass(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, images=np.stack([picture(i).numpy() for i in range(9)]), labels=np.arange(9))
    check_dataset(GOOD, Images(lambda i: picture(100 + i)))
    check_dataset(points_and_labels(lambda i: torch.tensor(i % 3)), num_classes=3)
    check_dataset(lambda: np.stack([picture(i).numpy() for i in range(9)]))
    check_dataset(torch.rand(9, 2), value_range=(0.0, 1.0))
    check_dataset((np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 2), num_classes=2)
    check_dataset(Images(lambda i: {"image": picture(i), "label": i % 3}), num_classes=3)
    check_dataset(Images(lambda i: to_pil_image(picture(i))))
    check_dataset(Images(lambda i: (picture(i), i % 3)))
    check_dataset(lambda: str(file))
    np.save(tmp_path / "images.npy", np.zeros((9, 8, 8), np.uint8))
    check_dataset(lambda: tmp_path / "images.npy")


def in_halves(split: str) -> Images:
    return Images(lambda i: picture(i + 100 * (split == "test")))


def test_a_function_of_the_split_gives_both() -> None:
    check_dataset(in_halves)
    with pytest.raises(ContractError, match="no example of the test split"):
        check_dataset(lambda split: GOOD)


# ---------------------------------------------------------------------------- metrics


class MeanGap(Metric):
    """Square of the difference of the mean values, from sums: keeps the contract."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool = False) -> None:
        values = images.double().flatten(1).mean(1)
        self.sums[int(real)] += torch.stack([values.sum(), torch.tensor(float(len(values)))])

    def compute(self) -> Tensor:
        (low, n), (high, m) = self.sums
        return ((low / n - high / m) / 255) ** 2


class MeanOfBatches(MeanGap):
    def update(self, images: Tensor, real: bool = False) -> None:
        self.sums[int(real)] += torch.stack(
            [images.double().std() * 50, torch.tensor(1.0, dtype=torch.float64)]
        )


class FirstImagesOnly(MeanGap):
    def update(self, images: Tensor, real: bool = False) -> None:
        room = 30 - int(self.sums[int(real), 1])
        super().update(images[: max(room, 0)], real)


class NotSummed(MeanGap):
    def __init__(self) -> None:
        super().__init__()
        self._reductions["sums"] = lambda gathered: gathered[0]


class NeverForgets(MeanGap):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def update(self, images: Tensor, real: bool = False) -> None:
        super().update(images, real)
        self.seen += len(images)

    def compute(self) -> Tensor:
        return super().compute() + max(0, self.seen - 96)


class Centres(MeanGap):
    def update(self, images: Tensor, real: bool = False) -> None:
        super().update(images.sub_(images[:1].clone()), real)


class Heavy(MeanGap):
    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Linear(3, 3)


def gap(value: Callable[[Tensor], Any]) -> Metric:
    class Other(MeanGap):
        def compute(self) -> Any:
            return value(super().compute())

    return Other()


for contract, metric in {
    "metric.type": nn.Identity(),
    "metric.inputs": Centres(),
    "metric.one_number": gap(lambda value: value.expand(2)),
    "metric.finite": gap(lambda value: value / 0),
    "metric.batching": MeanOfBatches(),
    "metric.order": FirstImagesOnly(),
    "metric.processes": NotSummed(),
    "metric.reset": NeverForgets(),
    "metric.best": gap(lambda value: value + 1),
    "metric.sensitive": gap(lambda value: 0 * value),
    "metric.checkpoint": Heavy(),
}.items():
    breaks(contract, check_metric, metric, best=0.0)


def test_good_metrics_pass() -> None:
    check_metric(MeanGap(), best=0.0)
    check_metric(MeanGap(), (2,), best=0.0)
    both = gap(lambda value: {"gap": value, "likeness": 1 - value})
    check_metric(both, best={"gap": 0.0, "likeness": 1.0})


# ---------------------------------------------------------------------------- likelihoods


class Told(ContinuousBound):
    """The continuous bound, with what it says changed."""

    def __init__(self, change: Callable[[Terms], Terms]) -> None:
        super().__init__(draws=4, decoder_std=0.02)
        object.__setattr__(self, "change", change)

    def terms(self, *arguments: Any, **options: Any) -> Terms:
        return self.change(super().terms(*arguments, **options))  # type: ignore[attr-defined]


class Asked(ContinuousBound):
    """The continuous bound, asked for something else."""

    def __init__(self, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        super().__init__(draws=4, decoder_std=0.02)
        object.__setattr__(self, "change", change)

    def terms(self, denoiser: Any, examples: Any, prior: Any = None) -> Terms:
        return super().terms(denoiser, *self.change(examples, prior))  # type: ignore[attr-defined]


def shifted(by: float) -> Callable[[Terms], Terms]:
    def change(terms: Terms) -> Terms:
        bits = terms.bits
        return terms._replace(
            bits={**bits, "total": bits["total"] + by, "prior": bits["prior"] + by}
        )

    return change


def smoothed(terms: Terms) -> Terms:
    bits = terms.bits
    return terms._replace(bits={"total": bits["total"].mean() + 0 * bits["total"]})


def jittered(terms: Terms) -> Terms:
    return shifted(float(torch.rand(1)))(terms)


for contract, told in {
    "likelihood.terms": lambda t: t._replace(bits={k: v.float() for k, v in t.bits.items()}),
    "likelihood.sum": lambda t: t._replace(bits={**t.bits, "prior": t.bits["prior"] + 1}),
    "likelihood.nfe": lambda t: t._replace(nfe=t.nfe - 1),
    "likelihood.seeded": jittered,
    "likelihood.batch": smoothed,
    "likelihood.bound": shifted(-1.0),
    "likelihood.exact": shifted(1.0),
}.items():
    breaks(contract, check_likelihood, Told(told))
for contract, change in {
    "likelihood.seeded": seeds_the_process_for_this,
    "likelihood.labels": lambda examples, prior: (examples._replace(y=None), prior),
    "likelihood.prior": lambda examples, prior: (examples, None),
}.items():
    breaks(contract, check_likelihood, Asked(change), gap=2.0)


# ---------------------------------------------------------------------------- modules


class Third(DDPM):
    family = "third"


class CountsOnItself(Third):
    """Something that training depends on and no checkpoint has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1
        return super().training_step(batch, batch_idx) * self.count


class Nameless(DDPM):
    family = ""


class NoAverage(Third):
    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        self.average.load_state_dict(self.denoiser.state_dict())


def module(kind: Any = Third, lr: float = 1e-2, after: Callable[[Any], Any] = lambda m: m) -> Any:
    def build() -> Any:
        network = MLP(2, width=8, depth=1)
        denoiser = Denoiser(network, linear(), Preconditioning(), (2,))
        made = kind(denoiser, Denoising(), lambda weights: torch.optim.SGD(weights, lr=lr))
        return after(made)

    return build


def with_gradients(module: Any) -> Any:
    module.average.requires_grad_(True)
    return module


breaks("module.type", check_module, lambda: nn.Linear(2, 2))
breaks("module.family", check_module, module(Nameless))
breaks("module.average", check_module, module(after=with_gradients))
breaks("module.average", check_module, module(NoAverage))
breaks("module.trains", check_module, module(lr=0.0))
breaks("module.trains", check_module, module(lr=float("nan")))
breaks("module.resume", check_module, module(CountsOnItself))


def test_a_good_module_passes() -> None:
    check_module(module())


# ---------------------------------------------------------------------------- all of them


CASES = [(contract, i) for contract, checks in BROKEN.items() for i in range(len(checks))]


@pytest.mark.parametrize(("contract", "i"), CASES)
def test_what_breaks_a_contract_is_told_so_in_one_sentence(contract: str, i: int) -> None:
    with pytest.raises(ContractError) as caught:
        BROKEN[contract][i]()
    assert caught.value.contract == contract, str(caught.value)
    message = str(caught.value)
    assert re.fullmatch(
        rf"expected .+, but .+ \(contract {contract}, see docs/conformance\.md\)", message
    )
    assert "\n" not in message


def asserted() -> set[str]:
    """The contracts that the kit names."""
    found = set()
    for path in (ROOT / "src/betasigma/testing").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^[a-z]+\.[a-z_0-9]+$", node.value))
    return found - {"noun.what"}


def test_every_contract_can_be_broken() -> None:
    assert set(BROKEN) == asserted()


def test_the_page_explains_every_contract() -> None:
    page = (ROOT / "docs/conformance.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+\.[a-z_0-9]+)` \|", page, re.MULTILINE)) == asserted()


def test_the_kit_needs_no_test_runner() -> None:
    for path in (ROOT / "src/betasigma/testing").glob("*.py"):
        assert "pytest" not in path.read_text()
