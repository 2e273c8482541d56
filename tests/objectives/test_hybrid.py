"""The hybrid objective against the bound written with torch.distributions, and against the exact
reverse variance of Gaussian data.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from betasigma.denoiser import Denoiser, Prediction
from betasigma.errors import UserError
from betasigma.likelihood import DiscreteBound
from betasigma.objectives import Denoising, Hybrid
from betasigma.objectives.denoising import draw_times
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, geometric, linear, posterior, transition

BETA = np.linspace(1e-4, 0.3, 4)
SHORT = linear(1e-4, 0.3, 4)
POINTS, IMAGES = (2,), (1, 2, 2)
N = 64


class Doubled(nn.Module):
    """Two affine maps side by side: ε̂ and the place of the variance."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = math.prod(shape)
        self.shape = shape
        self.mean, self.place = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        parts = [layer(x.flatten(1)).reshape(-1, *self.shape) for layer in (self.mean, self.place)]
        return torch.cat(parts, dim=1)


def make(shape: tuple[int, ...], schedule: NoiseSchedule = SHORT) -> Denoiser:
    return Denoiser(Doubled(shape), schedule, Preconditioning(levels=schedule.levels), shape)


def data(shape: tuple[int, ...]) -> Tensor:
    """Bytes, two of which are the ends of the range."""
    pixels = torch.randint(0, 256, (N, *shape), generator=torch.Generator().manual_seed(3))
    pixels[0], pixels[1] = 0, 255
    return pixels / 127.5 - 1


def stream() -> Stream:
    return Stream("train", 0, 0, indices=range(N))


def bits_by_hand(denoiser: Denoiser, x0: Tensor, terms) -> Tensor:
    """L_t/d in bits of each example, with DDPM's own table of β and torch.distributions."""
    alpha_bar = np.cumprod(1 - BETA)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    beta_tilde = BETA * (1 - before) / (1 - alpha_bar)
    least = np.log(np.concatenate([beta_tilde[1:2], beta_tilde[1:]]))
    rng = stream()
    draw_times(SHORT, "levels", rng)
    eps = rng.normal(x0.shape[1:])
    found = []
    for x, e, t in zip(x0.double(), eps.double(), terms.t, strict=True):
        i = round(t.item() * 4) - 1
        x_t = (math.sqrt(alpha_bar[i]) * x + math.sqrt(1 - alpha_bar[i]) * e)[None]
        output = denoiser.network(x_t.float(), torch.tensor([float(i)]))[0].double()
        eps_hat, place = output.chunk(2)
        x0_hat = (x_t[0] - math.sqrt(1 - alpha_bar[i]) * eps_hat) / math.sqrt(alpha_bar[i])
        w = (place + 1) / 2
        std = torch.exp((w * math.log(BETA[i]) + (1 - w) * least[i]) / 2)
        if i > 0:
            means = [
                math.sqrt(before[i]) * BETA[i] / (1 - alpha_bar[i]) * x0_or
                + math.sqrt(1 - BETA[i]) * (1 - before[i]) / (1 - alpha_bar[i]) * x_t[0]
                for x0_or in (x, x0_hat)
            ]
            q = Normal(means[0], math.sqrt(beta_tilde[i]))
            nats = kl_divergence(q, Normal(means[1], std))
        elif x.ndim == 1:
            nats = -Normal(x0_hat, std).log_prob(x)
        else:
            p = Normal(x0_hat, std)
            upper = torch.where(x > 0.999, 1.0, p.cdf(x + 1 / 255))
            lower = torch.where(x < -0.999, 0.0, p.cdf(x - 1 / 255))
            nats = -torch.log((upper - lower).clamp(min=1e-12))  # as Nichol & Dhariwal's code
        found.append(nats.mean() / math.log(2))
    return torch.stack(found)


@pytest.mark.parametrize("shape", [POINTS, IMAGES], ids=["points", "images"])
def test_it_is_the_simple_loss_and_a_thousandth_of_the_bound(shape: tuple[int, ...]) -> None:
    denoiser, x0 = make(shape), data(shape)
    with torch.no_grad():  # near enough to the truth for a decoder's mass not to underflow
        denoiser.network.mean.weight.mul_(0.01)
        denoiser.network.mean.bias.mul_(0.01)
    terms = Hybrid().loss(denoiser, x0, None, stream())
    simple = Denoising().loss(denoiser, x0, None, stream())
    assert torch.equal(terms.t, simple.t)
    level = (terms.t * 4).round()
    assert set(level.tolist()) == {1, 2, 3, 4}
    expected = bits_by_hand(denoiser, x0, terms)
    # 2^-40 and less is where their clamp begins
    kept = (level > 1) | (expected < 20)
    assert (kept & (level == 1)).any()
    found = (terms.per_sample - simple.per_sample).double() / (0.001 * 4)
    torch.testing.assert_close(found[kept], expected[kept], rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(terms.loss.detach(), terms.per_sample.mean())
    doubled = Hybrid(vlb_weight=0.002).loss(denoiser, x0, None, stream()).per_sample
    torch.testing.assert_close(
        doubled - simple.per_sample,
        2 * (terms.per_sample - simple.per_sample),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [POINTS, IMAGES], ids=["points", "images"])
def test_the_bound_trains_the_variance_and_the_simple_loss_the_mean(shape) -> None:
    denoiser, x0 = make(shape), data(shape)
    network = denoiser.network

    def gradients(objective: Denoising) -> list[Tensor | None]:
        denoiser.zero_grad()
        objective.loss(denoiser, x0, None, stream()).loss.backward()
        return [network.mean.weight.grad, network.place.weight.grad]

    mean, place = gradients(Hybrid(vlb_weight=10.0))
    simple, untouched = gradients(Denoising())
    torch.testing.assert_close(mean, simple)
    assert untouched is None or not untouched.any()
    assert place is not None
    assert place.isfinite().all()
    assert place.any()


class Placed(nn.Module):
    """The exact denoiser of N(0, s²·I) with a place of the variance for each level."""

    def __init__(self, schedule: NoiseSchedule, s: float) -> None:
        super().__init__()
        truth = GaussianMixture([1.0], np.zeros((1, 2)), s**2 * np.eye(2)[None], schedule)
        self.truth, self.schedule, self.num_classes = truth, schedule, 0
        self.value_range, self.sample_shape = (-1.0, 1.0), (2,)
        self.place = nn.Parameter(torch.zeros(schedule.levels, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        found = self.truth(x_t, t, y)
        level = (torch.as_tensor(t) * self.schedule.levels).round().long() - 1
        found.interpolation = self.place[level].reshape(-1, 1).expand_as(x_t)
        return found


@pytest.mark.parametrize(
    "schedule",
    [linear(0.05, 0.4, 4), pytest.param(geometric(4, 2.0, 0.1), marks=pytest.mark.slow)],
)
def test_the_bound_is_least_at_the_exact_reverse_variance(schedule: NoiseSchedule) -> None:
    """q(x_s | x_t) of N(0, s²) data has the variance β̃ + c_x0²·Var(x_0 | x_t)."""
    s = 0.7
    model, n = Placed(schedule, s), 40_000
    x0 = model.truth.draw(Stream("x0", indices=range(n)))
    optimizer = torch.optim.LBFGS([model.place], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = Hybrid(vlb_weight=1.0).loss(model, x0, None, Stream("l", indices=range(n))).loss  # type: ignore[arg-type]
        loss.backward()
        return loss

    optimizer.step(closure)
    share = (model.place.detach() + 1) / 2
    for i in range(1, 4):
        t, before = (i + 1) / 4, i / 4
        c_x0, _, least = posterior(schedule, t, before)
        _, most = transition(schedule, t, before)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        exact = least + c_x0**2 * s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
        found = torch.exp(share[i] * most.log() + (1 - share[i]) * least.log())
        assert found.item() == pytest.approx(exact.item(), rel=0.02)
        assert abs(exact - most) > 0.05 * most
        assert abs(exact - least) > 0.05 * least


def test_the_discrete_bound_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the two ends of the range it is the bound with β̃ and with β, and at the exact variance
    less than either.
    """
    schedule, s = linear(0.05, 0.4, 4), 0.7
    model = Placed(schedule, s)
    x0 = model.truth.draw(Stream("x0", indices=range(4000)))

    def diffusion(variance, place: float | Tensor = 0.0) -> Tensor:
        with torch.no_grad():
            model.place.copy_(torch.as_tensor(place).expand(4))
        return DiscreteBound(variance=variance).bits_per_dim(model, x0).per_level.mean(0)  # type: ignore[arg-type]

    torch.testing.assert_close(diffusion("learned", -1.0), diffusion("posterior"))
    torch.testing.assert_close(diffusion("learned", 1.0), diffusion("beta"))
    best = []
    for i in range(1, 4):
        t, before = (i + 1) / 4, i / 4
        c_x0, _, least = posterior(schedule, t, before)
        _, most = transition(schedule, t, before)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        exact = least + c_x0**2 * s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
        best.append(2 * torch.log(exact / least) / torch.log(most / least) - 1)
    learned = diffusion("learned", torch.stack([torch.tensor(0.0), *best]))
    assert (learned < diffusion("posterior")).all()
    assert (learned < diffusion("beta")).all()


def test_the_learned_decoder_is_the_network_s_gaussian_on_the_bins() -> None:
    """With the place at 1 the variance of level 1 is β_1."""
    denoiser, x0 = make(IMAGES, linear(0.01, 0.3, 4)), data(IMAGES)
    with torch.no_grad():
        denoiser.network.mean.weight.zero_()
        denoiser.network.mean.bias.zero_()
        denoiser.network.place.weight.zero_()
        denoiser.network.place.bias.fill_(1.0)
    found = DiscreteBound(decoder_std="learned").bits_per_dim(denoiser, x0).decoder
    rng = Stream("bound", 0, indices=torch.arange(N))
    for _ in range(3):
        rng.normal(IMAGES)
    x_1 = math.sqrt(0.99) * x0 + math.sqrt(0.01) * rng.normal(IMAGES)
    p = Normal((x_1 / math.sqrt(0.99)).double(), 0.1)
    upper = torch.where(x0 > 0.999, 1.0, p.cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, p.cdf(x0 - 1 / 255))
    expected = -torch.log2(upper - lower).flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_has_no_learned_variance_says_so() -> None:
    oracle = GaussianMixture([1.0], np.zeros((1, 2)), np.eye(2)[None], SHORT)
    with pytest.raises(UserError, match=r"variance=learned .*objective=hybrid"):
        DiscreteBound(variance="learned").bits_per_dim(oracle, torch.zeros(2, 2))
    with pytest.raises(UserError, match=r"objective\.times=continuous must be levels"):
        Hybrid(times="continuous")
    with pytest.raises(UserError, match=r"weighting=vlb does not fit objective=hybrid"):
        Hybrid(weighting="vlb")
    with pytest.raises(UserError, match=r"must be at least 2"):
        Hybrid().loss(make(POINTS, geometric(1)), data(POINTS), None, stream())
