"""Explicit, implicit, sliced and denoising score matching agree up to constants on q_σ.

The model's score is a family around the truth, s = true score + θ₁·x + θ₂, so gradients are known
to be zero at θ = 0 only for the true score; at another θ all objectives must have one gradient.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from launching import quick
from torch import Tensor, nn

from betasigma.denoiser import Denoiser, Prediction, perturb
from betasigma.errors import UserError
from betasigma.networks.energy import EnergyNetwork, energy_mlp
from betasigma.networks.mlp import MLP
from betasigma.objectives import (
    Denoising,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)
from betasigma.objectives.denoising import draw_times
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.schedules import geometric

SIGMA = 0.5
N = 60_000


def mixture(dim: int) -> GaussianMixture:
    """Two anisotropic components in one or two dimensions, at a single noise level."""
    means = np.array([[-1.0, 0.5], [0.8, -0.3]])[:, :dim]
    covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]])[:, :dim, :dim]
    return GaussianMixture([0.4, 0.6], means, covariances, geometric(1, SIGMA, SIGMA / 2))


class Bent(nn.Module):
    """The true score plus a·x + b·sin(x): a model with parameters, wrong unless a = b = 0."""

    def __init__(self, oracle: GaussianMixture, a: float, b: float) -> None:
        super().__init__()
        self.oracle = oracle
        self.schedule = oracle.schedule
        self.num_classes = 0
        self.theta = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        found = self.oracle(x_t, t, y)
        score = found.score + self.theta[0] * x_t + self.theta[1] * torch.sin(x_t)
        x0 = x_t + SIGMA**2 * score
        zero, one = torch.zeros_like(found.alpha), torch.ones_like(found.alpha)
        return Prediction(x_t, x0, found.alpha, found.sigma, zero, one)


def test_every_objective_tells_the_error_of_the_same_noise() -> None:
    """‖ε − ε̂‖²/d by its definition, whatever is minimised."""
    oracle = mixture(2)
    model, n = Bent(oracle, 0.3, -0.2), 64
    x0 = oracle.draw(Stream("x0", indices=range(n)))
    rng = Stream("loss", indices=range(n))
    t = draw_times(oracle.schedule, "levels", rng)
    eps = rng.normal((2,)).double()
    predicted = model(perturb(oracle.schedule, x0, t, eps), t)
    expected = (eps + SIGMA * predicted.score).square().mean(1).detach()
    tried = {**objectives(oracle), "weighted": Denoising(sigma_power=1, reduction="half_sum")}
    for name, objective in tried.items():
        terms = objective.loss(model, x0, None, Stream("loss", indices=range(n)))  # type: ignore[attr-defined]
        torch.testing.assert_close(terms.error, expected, msg=lambda text, name=name: name + text)
        assert not terms.error.requires_grad


def gradient(objective: object, model: Bent, seeds: range) -> tuple[Tensor, Tensor]:
    """Mean gradient over seeds and its standard error."""
    found = []
    for seed in seeds:
        rng = Stream("x0", seed, indices=range(N // len(seeds)))
        x0 = model.oracle.draw(rng)
        loss = objective.loss(model, x0, None, Stream("loss", seed, indices=range(len(x0)))).loss  # type: ignore[attr-defined]
        found.append(torch.autograd.grad(loss, model.theta)[0])
    stack = torch.stack(found)
    return stack.mean(0), stack.std(0) / len(found) ** 0.5


def objectives(oracle: GaussianMixture) -> dict[str, object]:
    def true_score(x: Tensor, t: Tensor) -> Tensor:
        return oracle(x, t).score

    return {
        "explicit": ExplicitScoreMatching(sigma_power=0, true_score=true_score),
        "implicit": ImplicitScoreMatching(sigma_power=0),
        "sliced": SlicedScoreMatching(sigma_power=0, projections=2),
        "sliced, variance reduced": SlicedScoreMatching(sigma_power=0, variance_reduced=True),
        "denoising": Denoising(sigma_power=0, reduction="half_sum"),
    }


@pytest.mark.parametrize("dim", quick([1, 2], 2))
def test_all_objectives_have_the_explicit_ones_gradient(dim: int) -> None:
    oracle = mixture(dim)
    model = Bent(oracle, a=0.6, b=0.5)
    exact, spread = gradient(objectives(oracle)["explicit"], model, range(10))
    assert exact.abs().min() > 20 * spread.max()  # the test can tell a wrong gradient
    for name, objective in objectives(oracle).items():
        found, error = gradient(objective, model, range(10, 20))
        assert ((found - exact).abs() < 4 * (error + spread) + 1e-9).all(), name


@pytest.mark.parametrize("dim", quick([1, 2], 2))
def test_the_true_score_is_the_minimiser(dim: int) -> None:
    oracle = mixture(dim)
    model = Bent(oracle, a=0.0, b=0.0)
    for name, objective in objectives(oracle).items():
        found, error = gradient(objective, model, range(20))
        assert (found.abs() < 4 * error + 1e-9).all(), name


def test_objectives_differ_by_constants_that_do_not_depend_on_the_model() -> None:
    oracle = mixture(2)
    x0 = oracle.draw(Stream("x0", indices=range(N)))
    gaps = []
    for a, b in ((-0.4, 0.7), (0.2, -0.3)):
        model = Bent(oracle, a, b)
        value = {
            name: objective.loss(model, x0, None, Stream("loss", indices=range(N))).loss.item()  # type: ignore[attr-defined]
            for name, objective in objectives(oracle).items()
        }
        gaps.append({name: v - value["explicit"] for name, v in value.items()})
    for name in gaps[0]:
        assert gaps[0][name] == pytest.approx(gaps[1][name], abs=0.05), name
    # E‖∇ log q_σ‖²/2 is what implicit score matching leaves out
    score = oracle.score(oracle.draw(Stream("x", indices=range(N)), 1.0, SIGMA), 1.0, SIGMA)
    constant = score.square().sum(1).mean().item() / 2
    assert -gaps[0]["implicit"] == pytest.approx(constant, abs=0.05)


def energy_denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = MLP(2, 1, width=16, depth=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return Denoiser(
        EnergyNetwork(network),
        geometric(5, 1.0, 0.1),
        Preconditioning(prediction="score", conditioning="log_sigma", levels=5),
        sample_shape=(2,),
    )


def test_an_energy_network_is_a_gradient_field_and_the_constant_drops_out() -> None:
    denoiser = energy_denoiser()
    network = denoiser.network
    assert isinstance(network, EnergyNetwork)
    x = torch.randn(7, 2, generator=torch.manual_seed(1), dtype=torch.float32)
    c = torch.full((7,), -1.0)
    step = 1e-2
    for axis in range(2):
        offset = step * torch.eye(2)[axis]
        slope = (network.energy(x + offset, c) - network.energy(x - offset, c)) / (2 * step)
        assert torch.allclose(network(x, c)[:, axis], -slope.detach(), atol=1e-3)

    def field(point: Tensor) -> Tensor:
        return network(point[None], c[:1])[0]

    jacobian = torch.autograd.functional.jacobian(field, x[0])
    assert torch.allclose(jacobian, jacobian.T, atol=1e-5)


class Quadratic(nn.Module):
    """f(x) = a·‖x‖²/2, whose score is −a·x."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        return self.a * x.square() / 2


@pytest.mark.parametrize("name", ["explicit", "implicit", "sliced", "denoising"])
@pytest.mark.parametrize("a", quick([0.4, 1 / 0.85, 2.0], 2.0))
def test_an_energy_network_learns_by_any_objective(name: str, a: float) -> None:
    """Of N(0, v·I) in the plane q_σ has the score −x/(v + σ²), and every objective the gradient
    2·(a·(v + σ²) − 1): it is 0 at the truth, and falls towards it from either side.
    """
    variance, n = 0.6, 80_000
    oracle = GaussianMixture(
        [1.0], np.zeros((1, 2)), variance * np.eye(2)[None], geometric(1, SIGMA, 0.1)
    )
    denoiser = Denoiser(
        EnergyNetwork(Quadratic(a)), oracle.schedule, Preconditioning("raw_score", levels=1), (2,)
    )
    x0 = oracle.draw(Stream("x0", indices=range(n))).float()
    loss = objectives(oracle)[name].loss(denoiser, x0, None, Stream("e", indices=range(n))).loss  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(loss, list(denoiser.parameters()))
    # one example's gradient has a standard deviation of 4.6 at most (sliced, a = 2)
    assert gradient.item() == pytest.approx(2 * (a * (variance + SIGMA**2) - 1), abs=4 * 5 / n**0.5)


def test_an_energy_network_samples_in_inference_mode() -> None:
    denoiser = energy_denoiser().eval().requires_grad_(False)
    x = torch.randn(3, 2, generator=torch.manual_seed(3))
    expected = denoiser(x, 1.0).score
    with torch.inference_mode():
        found = denoiser(x.clone(), 1.0).score
    assert torch.allclose(found, expected)


def test_exact_trace_in_many_dimensions_is_refused_with_its_cost() -> None:
    oracle = GaussianMixture([1.0], np.zeros((1, 300)), np.eye(300)[None], geometric(1, 1.0, 0.1))
    model = Bent(oracle, 0.0, 0.0)
    x0 = torch.zeros(2, 300, dtype=torch.float64)
    with pytest.raises(UserError, match=r"300 dimensions.*sliced_vr or denoising"):
        ImplicitScoreMatching().loss(model, x0, None, Stream("x", indices=range(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["explicit", "implicit", "sliced", "denoising"])
def test_reduction_and_weight_mean_the_same_for_every_objective(name: str) -> None:
    """In 3-D, ``mean`` is 2/3 of ``half_sum`` and λ(σ) = σ^p is a factor: at one level σ = 0.5."""
    oracle = GaussianMixture([1.0], np.zeros((1, 3)), np.eye(3)[None], geometric(1, SIGMA, 0.1))
    model = Bent(oracle, 0.3, 0.2)
    plain = objectives(oracle)[name]
    x0 = oracle.draw(Stream("x0", indices=range(64)))

    def loss(**knobs: object) -> float:
        objective = dataclasses.replace(plain, **knobs)  # type: ignore[type-var]
        return objective.loss(model, x0, None, Stream("l", indices=range(64))).loss.item()  # type: ignore[attr-defined]

    assert loss(reduction="mean") == pytest.approx(2 / 3 * loss(reduction="half_sum"))
    for power in (1.0, 2.0):
        assert loss(sigma_power=power) == pytest.approx(0.5**power * loss(sigma_power=0.0))


@pytest.mark.parametrize(
    "objective", [ImplicitScoreMatching(), SlicedScoreMatching(variance_reduced=True)]
)
def test_objectives_can_be_measured_in_inference_mode(objective: object) -> None:
    """Lightning validates in it."""
    denoiser = energy_denoiser()
    x0 = torch.randn(8, 2, generator=torch.manual_seed(2))
    expected = objective.loss(denoiser, x0, None, Stream("e", indices=range(8))).loss  # type: ignore[attr-defined]
    with torch.inference_mode():
        found = objective.loss(denoiser, x0 + 0, None, Stream("e", indices=range(8))).loss  # type: ignore[attr-defined]
    torch.testing.assert_close(found, expected.detach())


def test_every_weight_of_an_energy_mlp_has_a_gradient() -> None:
    """DistributedDataParallel waits for all of them."""
    torch.manual_seed(0)
    network = energy_mlp(2, width=8, depth=1)
    denoiser = Denoiser(network, geometric(1, 1.0, 0.1), Preconditioning("score"), (2,))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    x0 = torch.randn(8, 2, generator=torch.manual_seed(2))
    SlicedScoreMatching(variance_reduced=True).loss(
        denoiser, x0, None, Stream("e", indices=range(8))
    ).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
