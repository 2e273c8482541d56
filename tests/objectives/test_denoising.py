"""The denoising objective against both papers' losses, written out from their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy import stats
from torch import Tensor, nn

from betasigma.denoiser import Denoiser, perturb
from betasigma.errors import UserError
from betasigma.likelihood import ContinuousBound, DiscreteBound
from betasigma.networks.mlp import MLP
from betasigma.objectives import Denoising
from betasigma.objectives.denoising import Noised, draw_times, drop_labels
from betasigma.objectives.error_curve import (
    GRID,
    covered,
    denoising_error,
    to_schedule_log_snr,
)
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.schedules import NoiseSchedule, geometric, linear

VP, VE = linear(), geometric()


def network(num_classes: int = 0) -> MLP:
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=2, num_classes=num_classes)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return net


def make(schedule: NoiseSchedule, prediction="epsilon", conditioning="timestep", **options):
    preconditioning = Preconditioning(prediction, conditioning, levels=schedule.levels)
    net = network(options.get("num_classes", 0))
    return Denoiser(net, schedule, preconditioning, (2,), **options)


def data(n: int = 32) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def stream(n: int = 32, step: int = 0) -> Stream:
    return Stream("train", 0, step, indices=range(n))


def drawn(schedule: NoiseSchedule, n: int = 32) -> tuple[Tensor, Tensor]:
    """Times and noise that the objective will draw."""
    rng = stream(n)
    return draw_times(schedule, "levels", rng), rng.normal((2,))


def test_ddpm_s_loss_is_the_mean_squared_error_of_eps() -> None:
    """Ho et al. 2020, algorithm 1: ‖ε − ε_θ(√ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, t)‖², t ∈ {1 … T}."""
    denoiser, x0 = make(VP), data()
    t, eps = drawn(VP)
    i = (t * 1000).round().long() - 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[i]
    alpha_bar = alpha_bar.float()[:, None]
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    expected = nn.functional.mse_loss(denoiser.network(x_t, i.float()), eps)
    terms = Denoising().loss(denoiser, x0, None, stream())
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.per_sample.mean(), terms.loss.detach())
    assert torch.equal(terms.t, t)
    assert not terms.per_sample.requires_grad


@pytest.mark.parametrize("power", [2.0, 1.0, 0.0])
def test_ncsn_s_loss_is_multi_sigma_score_matching(power: float) -> None:
    """Song & Ermon 2019, equations 5 and 6: ½·λ(σ)·‖s(x̃, σ) + (x̃ − x)/σ²‖², λ(σ) = σ^p."""
    denoiser, x0 = make(VE, "raw_score", "log_sigma"), data()
    t, eps = drawn(VE)
    sigma = torch.exp(torch.linspace(math.log(0.01), math.log(1.0), 10))[
        (t * 10).round().long() - 1
    ]
    perturbed = x0 + sigma[:, None] * eps
    score = denoiser.network(perturbed, sigma.log())
    target = -(perturbed - x0) / sigma[:, None] ** 2
    expected = (0.5 * ((score - target) ** 2).sum(-1) * sigma**power).mean()
    objective = Denoising(sigma_power=power, reduction="half_sum")
    loss = objective.loss(denoiser, x0, None, stream()).loss
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)


def test_with_lambda_sigma_squared_it_is_half_of_sigma_s_plus_eps() -> None:
    """½·E‖σ·s_θ(x̃, σ) + ε‖², the sentence after (2.21), with the output divided by σ (NCSNv2)."""
    denoiser, x0 = make(VE, "score", "log_sigma"), data()
    t, eps = drawn(VE)
    sigma = VE.sigma(t).float()[:, None]
    output = denoiser.network(x0 + sigma * eps, sigma[:, 0].log())
    score = output / sigma
    expected = 0.5 * (sigma * score + eps).square().sum(1).mean()
    loss = Denoising(reduction="half_sum").loss(denoiser, x0, None, stream()).loss
    torch.testing.assert_close(loss, expected)
    # and d/2 times DDPM's reduction
    mean = Denoising(reduction="mean").loss(denoiser, x0, None, stream()).loss
    torch.testing.assert_close(loss, mean)


def test_the_gradient_reaches_the_network() -> None:
    denoiser = make(VE, "score", "log_sigma")
    Denoising(reduction="half_sum").loss(denoiser, data(), None, stream()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in denoiser.network.blocks.parameters())


@pytest.mark.parametrize("schedule", [VP, VE])
def test_perturbation_has_the_kernel_s_moments(schedule: NoiseSchedule) -> None:
    x0 = torch.full((40_000, 2), 0.7)
    eps = Stream("noise", indices=range(40_000)).normal((2,))
    for t in (schedule.t_min, 0.5, 1.0):
        x_t = perturb(schedule, x0, torch.tensor(t, dtype=torch.float64), eps)
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        assert x_t.mean().item() == pytest.approx(alpha * 0.7, abs=5 * sigma / 280)
        assert x_t.std().item() == pytest.approx(sigma, rel=0.02)


def test_times_are_uniform_on_the_levels_or_on_the_curve() -> None:
    t = draw_times(VE, "levels", stream(20_000))
    level = (t * 10).round()
    torch.testing.assert_close(t, level / 10, rtol=0, atol=1e-15)
    counts = np.bincount(level.long().numpy(), minlength=11)[1:]
    assert counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 1e-3
    t = draw_times(VE, "continuous", stream(20_000))
    assert t.dtype == torch.float64
    assert stats.kstest(t.numpy(), "uniform", args=(0.1, 0.9)).pvalue > 1e-3
    continuous = Denoising(times="continuous").loss(make(VP), data(), None, stream())
    assert continuous.t.min() >= VP.t_min
    assert (continuous.t * 1000 % 1).any()


def test_an_example_s_loss_does_not_depend_on_its_batch() -> None:
    denoiser, x0 = make(VP), data()
    whole = Denoising().loss(denoiser, x0, None, stream()).per_sample
    parts = [
        Denoising().loss(denoiser, x0[i : i + 8], None, Stream("train", 0, 0, indices=rows))
        for i, rows in ((i, range(i, i + 8)) for i in range(0, 32, 8))
    ]
    torch.testing.assert_close(whole, torch.cat([part.per_sample for part in parts]))


def test_labels_are_hidden_with_their_probability() -> None:
    y = torch.arange(20_000) % 3
    hidden = drop_labels(y, 3, 0.2, stream(20_000))
    assert hidden is not None
    dropped = hidden == 3
    assert torch.equal(hidden[~dropped], y[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert drop_labels(y, 3, 0.0, stream(20_000)) is y
    assert drop_labels(None, 3, 0.5, stream()) is None


def test_the_network_sees_the_labels_that_are_left() -> None:
    denoiser, x0, y = make(VP, num_classes=3), data(), torch.arange(32) % 3

    def loss(probability: float) -> Tensor:
        return Denoising(label_dropout=probability).loss(denoiser, x0, y, stream()).per_sample

    free = Denoising().loss(denoiser, x0, None, stream()).per_sample
    given = loss(0.0)
    assert not torch.isclose(given, free).all()
    half = loss(0.5)
    seen = torch.isclose(half, given)
    torch.testing.assert_close(half[~seen], free[~seen])
    assert 5 < seen.sum() < 27


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_label_dropout_is_a_probability(probability: float) -> None:
    with pytest.raises(UserError, match=rf"objective\.label_dropout={probability}"):
        Denoising(label_dropout=probability)


class TestWeighting:
    def per_sample(self, denoiser: Denoiser, **knobs) -> Tensor:
        return Denoising(**knobs).loss(denoiser, data(), None, stream()).per_sample

    def test_the_simple_loss_is_2_9_reweighted(self) -> None:
        """(2.9): 1/(2β̃_t)·β_t²/((1 − ᾱ_t)·α_t)·‖ε − ε̂‖² for t ≥ 2; (2.10) drops the weight."""
        denoiser = make(linear(1e-4, 0.02, 8))
        beta = np.linspace(1e-4, 0.02, 8)
        alpha_bar = np.cumprod(1 - beta)
        before = np.concatenate([[1.0], alpha_bar[:-1]])
        beta_tilde = beta * (1 - before) / (1 - alpha_bar)
        t, _ = drawn(denoiser.schedule)
        i = (t * 8).round().long().numpy() - 1
        later = i > 0
        assert 0 < later.sum() < 32
        with np.errstate(divide="ignore"):  # β̃_1 = 0
            printed = beta[i] ** 2 / (2 * beta_tilde[i] * (1 - beta[i]) * (1 - alpha_bar[i]))
        simple = self.per_sample(denoiser, reduction="mean").numpy() * 2  # ‖ε − ε̂‖² in 2-D
        found = self.per_sample(denoiser, weighting="vlb", reduction="half_sum").numpy()
        np.testing.assert_allclose(found[later], 8 * (printed * simple)[later], rtol=1e-4)
        # level 1 has a decoder N(x̂_0, σ_1²/α_1²): ½·α_1²/σ_1²·‖x_0 − x̂_0‖² = ½·‖ε − ε̂‖²
        np.testing.assert_allclose(found[~later], 8 * simple[~later] / 2, rtol=1e-4)

    @pytest.mark.parametrize("schedule", [linear(1e-4, 0.5, 6), geometric(6)])
    def test_weighted_by_2_9_it_is_the_bound_s_diffusion_term(self, schedule) -> None:
        covariance = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]])
        model = GaussianMixture([0.4, 0.6], np.eye(2), covariance, schedule)
        n = 12_000
        x0 = model.draw(Stream("x0", indices=range(n)))
        bound = DiscreteBound(variance="posterior").bits_per_dim(model, x0)
        objective = Denoising(weighting="vlb", reduction="half_sum")
        terms = objective.loss(model, x0, None, stream(n))  # type: ignore[arg-type]
        found = terms.per_sample
        level = (terms.t * 6).round().long()
        for i in range(2, 7):
            ours = found[level == i] / 6
            theirs = bound.per_level[:, i - 2] * math.log(2) * 2  # bits/dim → nats
            error = (ours.var() / len(ours) + theirs.var() / n).sqrt().item()
            assert abs(ours.mean() - theirs.mean()).item() < 4 * error
            assert error < 0.05 * theirs.mean().item()
        nats = bound.diffusion.mean().item() * math.log(2) * 2
        assert torch.where(level > 1, found, 0).mean().item() == pytest.approx(nats, rel=0.05)

    @pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
    def test_min_snr(self, prediction: str) -> None:
        """Hang et al. 2023, section 3.4, with the SNR that diffusers' training examples take."""
        denoiser, x0 = make(VP, prediction), data()
        t, eps = drawn(VP)
        step = (t * 1000).round().long() - 1
        scheduler = DDPMScheduler()
        snr = compute_snr(scheduler, step)
        assert (snr > 5).any()
        assert (snr < 5).any()
        x_t = scheduler.add_noise(x0, eps, step)
        output = denoiser.network(x_t, step.float())
        if prediction == "epsilon":
            weight, target = snr.clamp(max=5) / snr, eps
        elif prediction == "x0":
            weight, target = snr.clamp(max=5), x0
        else:
            weight, target = snr.clamp(max=5) / (snr + 1), scheduler.get_velocity(x0, eps, step)
        expected = weight * (output - target).square().mean(1)
        found = self.per_sample(denoiser, weighting="min_snr")
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
        other = self.per_sample(denoiser, weighting="min_snr", gamma=1.0)
        torch.testing.assert_close(
            (other / found), (snr.clamp(max=1) / snr.clamp(max=5)), rtol=1e-3, atol=0
        )

    def test_gamma_means_the_same_in_both_ranges(self) -> None:
        """Images and noise halved together are as noisy as before."""
        wide = make(geometric(10, 2.0, 0.02), value_range=(-1.0, 1.0))
        narrow = make(geometric(10, 1.0, 0.01), value_range=(0.0, 1.0))
        objective, t = Denoising(weighting="min_snr"), VE.times()
        torch.testing.assert_close(objective.weight(wide, t), objective.weight(narrow, t))
        assert objective.weight(wide, t)[0] < 1 == objective.weight(wide, t)[-1]

    def test_weightings_that_contradict_each_other(self) -> None:
        with pytest.raises(UserError, match=r"objective\.sigma_power=0 .*weighting=min_snr"):
            Denoising(weighting="min_snr", sigma_power=0)
        with pytest.raises(UserError, match=r"objective\.weighting=vlb .*times=continuous"):
            Denoising(weighting="vlb", times="continuous")


class TestErrorCurve:
    def test_log_snr_is_that_of_data_in_minus_one_to_one(self) -> None:
        """At one log-SNR of the grid, images on either range are equally noisy."""
        for log_snr in GRID:
            ratios = []
            for value_range in ((-1.0, 1.0), (0.0, 1.0)):
                schedule = geometric(50, 4.0, 0.001)
                t = schedule.t_of_log_snr(to_schedule_log_snr(log_snr, value_range))
                ratios.append((value_range[1] - value_range[0]) / schedule.sigma(t).item())
            assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
        assert to_schedule_log_snr(1.5, (-1.0, 1.0)) == 1.5

    def test_the_default_schedules_cover_the_grid(self) -> None:
        for log_snr in GRID:
            assert covered(VP, to_schedule_log_snr(log_snr, (-1.0, 1.0)))
            assert covered(VE, to_schedule_log_snr(log_snr, (0.0, 1.0)))
        assert not covered(VE, 9.3)
        assert not covered(VE, -0.1)

    def test_error_of_a_network_that_knows_nothing_is_one(self) -> None:
        net = MLP(2, width=8, depth=1)  # its last layer starts at 0: ε̂ = 0
        denoiser = Denoiser(net, VP, Preconditioning("epsilon"), (2,))
        rng = Stream("validation", indices=range(5000))
        error = denoising_error(denoiser, torch.zeros(5000, 2), None, 2.0, rng)
        assert error.shape == (5000,)
        assert error.mean().item() == pytest.approx(1.0, abs=0.05)

    @pytest.mark.parametrize(("schedule", "value_range"), [(VP, (-1.0, 1.0)), (VE, (0.0, 1.0))])
    def test_it_is_the_error_of_eps_at_that_noise(self, schedule, value_range) -> None:
        denoiser = make(schedule, "v", value_range=value_range, trained_on="continuous")
        x0 = data()
        error = denoising_error(denoiser, x0, None, 3.0, stream())
        t = schedule.t_of_log_snr(3.0 + 2 * math.log(2 / (value_range[1] - value_range[0])))
        eps = stream().normal((2,))
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        found = denoiser(alpha * x0 + sigma * eps, t)
        torch.testing.assert_close(error, (eps - found.eps).square().mean(1))
        # the same number as SNR·‖x_0 − x̂_0‖²/d
        by_x0 = (alpha / sigma) ** 2 * (x0 - found.x0).square().mean(1)
        torch.testing.assert_close(error, by_x0, rtol=1e-3, atol=1e-4)
        assert not error.requires_grad


class TestPublishedWeights:
    @pytest.mark.parametrize("schedule", [linear(), geometric(1000, 20.0, 0.01)], ids=["vp", "ve"])
    def test_weighted_by_likelihood_it_is_the_continuous_bound(self, schedule) -> None:
        """g²/σ² against a derivative of σ², and half of the loss against the bound's integral."""
        covariance = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]])
        model = GaussianMixture([0.4, 0.6], np.eye(2), covariance, schedule)
        n = 20_000
        x0 = model.draw(Stream("x0", indices=range(n)))
        knobs = {"weighting": "likelihood", "times": "continuous", "reduction": "half_sum"}
        objective = Denoising(**knobs)
        t, h = torch.tensor([0.0105, 0.3005, 0.9005], dtype=torch.float64), 1e-4
        alpha, sigma = schedule.alpha, schedule.sigma
        grown = sigma(t + h) ** 2 - (alpha(t + h) / alpha(t - h)) ** 2 * sigma(t - h) ** 2
        torch.testing.assert_close(
            objective.weight(model, t), grown / (2 * h) / sigma(t) ** 2, rtol=2e-2, atol=0
        )
        found = objective.loss(model, x0, None, stream(n)).per_sample  # type: ignore[arg-type]
        bound = ContinuousBound(draws=16).bits_per_dim(model, x0[:2000])
        nats = bound.diffusion.mean().item() * math.log(2) * 2
        error = (found.std() / n**0.5).item()
        assert found.mean().item() * (1 - schedule.t_min) == pytest.approx(nats, abs=4 * error)
        assert error < 0.08 * nats

    def test_edm(self) -> None:
        """Karras et al. 2022, table 1: λ(σ)·‖x_0 − D‖² with λ = (σ² + σ_d²)/(σ·σ_d)²."""
        denoiser = make(geometric(1000, 80.0, 0.002), "edm", value_range=(-1.0, 1.0))
        objective = Denoising(weighting="edm", times="log_normal", sigma_data=0.4)
        x0, rng = data(), stream()
        found = objective.loss(denoiser, x0, None, rng)
        rng = stream()
        t = draw_times(denoiser.schedule, "log_normal", rng)
        sigma = denoiser.schedule.sigma(t)
        noise = rng.normal((2,))
        denoised = denoiser(x0 + sigma[:, None].float() * noise, t).x0
        weight = (sigma**2 + 0.4**2) / (sigma * 0.4) ** 2
        expected = weight * (x0 - denoised).square().mean(1)
        torch.testing.assert_close(found.per_sample.double(), expected.double(), rtol=1e-3, atol=0)

    @pytest.mark.parametrize("schedule", [geometric(1000, 80.0, 0.002), linear()], ids=["ve", "vp"])
    def test_log_normal_noise(self, schedule) -> None:
        """Of the law that EDM draws from, cut at the ends of the curve."""
        t = draw_times(schedule, "log_normal", stream(20_000), -1.2, 1.2)
        drawn = schedule.ratio(t).log().numpy()
        ends = [math.log(schedule.ratio(end).item()) for end in (schedule.t_min, 1.0)]
        law = stats.truncnorm(*[(end + 1.2) / 1.2 for end in ends], loc=-1.2, scale=1.2)
        assert stats.kstest(drawn, law.cdf).pvalue > 0.01

    def test_one_level_has_no_slope(self) -> None:
        with pytest.raises(UserError, match="noise schedule of one level has no slope"):
            Denoising(weighting="likelihood").loss(make(geometric(1)), data(), None, stream())


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_that_is_not_one_of_each_example_is_refused(whole: bool) -> None:
    """Its mean would be minimised all the same, and the log by noise level be wrong."""

    class Summed(Denoising):
        def value(self, denoiser: Denoiser, noised: Noised, rng: Stream) -> Tensor:
            error = (denoiser(noised.x_t, noised.t).eps - noised.eps).square()
            return error.mean() if whole else error

    model = Denoiser(network(), VP, Preconditioning(), (2,))
    with pytest.raises(UserError, match="objective=Summed returned a loss of shape"):
        Summed().loss(model, torch.zeros(3, 2), None, Stream("train", 0, indices=range(3)))
