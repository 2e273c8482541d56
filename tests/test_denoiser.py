"""Denoisers: conversions, what the network is shown and told, policies off the levels, guidance."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser, Guided, Prediction
from betasigma.errors import UserError
from betasigma.preconditioning import Preconditioning
from betasigma.schedules import NoiseSchedule, geometric, linear, posterior

SCHEDULES = {"vp": linear(), "ve": geometric()}
PREDICTIONS = ("epsilon", "score", "raw_score", "x0", "v", "edm")


class Recorder(nn.Module):
    """A network that answers with what it was given and remembers how it was asked."""

    def __init__(self, channels: int = 3, out: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(channels, out or channels, 1)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        self.x, self.c_noise, self.y = x, c_noise, y
        told = c_noise if y is None else c_noise + y
        return self.mix(x) + torch.sin(told)[:, None, None, None]


def make(schedule: NoiseSchedule, network: nn.Module | None = None, **options) -> Denoiser:
    prediction = options.pop("prediction", "epsilon")
    conditioning = options.pop("conditioning", "timestep")
    preconditioning = Preconditioning(
        prediction,
        conditioning,
        input_scaling=options.pop("input_scaling", "none"),
        levels=schedule.levels,
    )
    return Denoiser(network or Recorder(), schedule, preconditioning, (3, 4, 4), **options)


def batch(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("family", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_coordinates_agree(family: str, prediction: str) -> None:
    """x_t = α·x̂_0 + σ·ε̂ and score = (α·x̂_0 − x_t)/σ² = −ε̂/σ, whatever the network predicts."""
    schedule = SCHEDULES[family]
    denoiser = make(schedule, Recorder().double(), prediction=prediction)
    x_t = batch(dtype=torch.float64)
    t = schedule.times()[torch.linspace(0, schedule.levels - 1, 5).long()]
    found = denoiser(x_t, t)
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (schedule.alpha(t), schedule.sigma(t)))
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x_t, rtol=1e-9, atol=1e-9)
    score = (alpha * found.x0 - x_t) / sigma**2
    torch.testing.assert_close(found.score, score, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.score, -found.eps / sigma, rtol=1e-12, atol=0)


def test_the_output_is_eps_to_the_last_bit() -> None:
    for schedule in SCHEDULES.values():
        for t in (schedule.t_min, 0.5, 1.0):
            found = make(schedule)(batch(), t)
            assert torch.equal(found.eps, found.output)
            found = make(schedule, prediction="score")(batch(), t)
            assert torch.equal(found.eps, -found.output)
            found = make(schedule, prediction="x0")(batch(), t)
            assert torch.equal(found.x0, found.output)


def test_score_of_ncsn_is_the_output_over_sigma() -> None:
    schedule = SCHEDULES["ve"]
    found = make(schedule, prediction="score", conditioning="log_sigma")(batch(), 0.4)
    sigma = 0.01 * 100 ** (3 / 9)
    torch.testing.assert_close(found.score, found.output / sigma)
    raw = make(schedule, prediction="raw_score")(batch(), 0.4)
    torch.testing.assert_close(raw.score, raw.output)


def test_what_the_network_is_shown_and_told() -> None:
    network = Recorder()
    x_t = batch()
    make(SCHEDULES["vp"], network)(x_t, 0.25)
    assert torch.equal(network.x, x_t)
    assert torch.equal(network.c_noise, torch.full((5,), 249.0))
    make(SCHEDULES["vp"], network)(x_t, torch.tensor([0.001, 0.002, 0.5, 0.999, 1.0]))
    torch.testing.assert_close(network.c_noise, torch.tensor([0.0, 1.0, 499.0, 998.0, 999.0]))
    make(SCHEDULES["ve"], network, conditioning="log_sigma", input_scaling="unit_variance")(
        x_t, 1.0
    )
    torch.testing.assert_close(network.c_noise, torch.zeros(5))
    torch.testing.assert_close(network.x, x_t / (0.5**2 + 1) ** 0.5)


def test_one_time_is_that_time_for_each() -> None:
    denoiser = make(SCHEDULES["ve"], prediction="v")
    scalar = denoiser(batch(), 0.3)
    each = denoiser(batch(), torch.full((5,), 0.3, dtype=torch.float64))
    for name in ("x0", "eps", "score"):
        torch.testing.assert_close(getattr(scalar, name), getattr(each, name))


def test_posterior_mean_through_eps_is_2_8() -> None:
    """x_t/√α_t − (1 − α_t)/(√(1 − ᾱ_t)·√α_t)·ε̂, with the α_t = 1 − β_t of the text."""
    schedule = linear()
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    denoiser, x_t = make(schedule), batch()
    for step in (2, 300, 1000):
        found = denoiser(x_t, step / 1000)
        c_x0, c_xt, _ = posterior(schedule, step / 1000, (step - 1) / 1000)
        mean = c_x0.item() * found.x0 + c_xt.item() * x_t
        b, bar = beta[step - 1].item(), alpha_bar[step - 1].item()
        printed = x_t / (1 - b) ** 0.5 - b / ((1 - bar) * (1 - b)) ** 0.5 * found.eps
        torch.testing.assert_close(mean, printed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SCHEDULES)
def test_score_of_the_kernel_is_minus_eps_over_sigma(family: str) -> None:
    """∇ log N(x̃; α·x, σ²·I), differentiated by PyTorch: what a network that knows x_0 answers."""
    schedule, t = SCHEDULES[family], 0.5
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = batch().double(), batch().flip(0).double()
    x_t = (alpha * x0 + sigma * eps).requires_grad_(True)
    log_q = torch.distributions.Normal(alpha * x0, sigma).log_prob(x_t).sum()
    (expected,) = torch.autograd.grad(log_q, x_t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    found = Prediction(x_t.detach(), x0, alpha, sigma, zero, one)
    torch.testing.assert_close(found.score, expected)
    torch.testing.assert_close(found.score, -eps / sigma)


def test_clipping_carries_over_to_eps_and_score() -> None:
    schedule = SCHEDULES["vp"]
    found = make(schedule)(10 * batch(), 0.7)
    clipped = found.clipped(-1.0, 1.0)
    alpha, sigma = schedule.alpha(0.7).item(), schedule.sigma(0.7).item()
    assert found.x0.abs().max() > 1
    assert torch.equal(clipped.x0, found.x0.clamp(-1, 1))
    torch.testing.assert_close(alpha * clipped.x0 + sigma * clipped.eps, 10 * batch())
    torch.testing.assert_close(clipped.score, -clipped.eps / sigma)
    inside = make(schedule, prediction="x0")(0 * batch(), 0.7)
    torch.testing.assert_close(inside.clipped(-9.0, 9.0).eps, inside.eps)


def test_learned_variance_is_split_off() -> None:
    network = Recorder(out=6)
    found = make(SCHEDULES["vp"], network)(batch(), 0.5)
    assert found.interpolation is not None
    whole = network(batch(), torch.full((5,), 499.0))
    torch.testing.assert_close(found.output, whole[:, :3])
    torch.testing.assert_close(found.interpolation, whole[:, 3:])
    assert make(SCHEDULES["vp"])(batch(), 0.5).interpolation is None


def test_state_keeps_its_dtype_and_autocast_is_inside() -> None:
    network = Recorder()
    found = make(SCHEDULES["vp"], network, precision=torch.bfloat16)(batch(), 0.5)
    assert found.x0.dtype == torch.float32
    exact = make(SCHEDULES["vp"], network)(batch(), 0.5)
    assert not torch.equal(found.eps, exact.eps)
    torch.testing.assert_close(found.eps, exact.eps, rtol=0.05, atol=0.05)
    doubled = make(SCHEDULES["vp"], network)(batch(dtype=torch.float64), 0.5)
    assert doubled.x0.dtype == torch.float64
    assert network.x.dtype == torch.float32


class TestOffTheLevels:
    """Ten levels: 0.42 lies between level 4 and level 5."""

    def told(self, t: float, **options) -> float:
        network = Recorder()
        denoiser = make(SCHEDULES["ve"], network, conditioning="log_sigma", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.found = denoiser(batch(), t)
        return network.c_noise[0].item()

    def test_snap(self) -> None:
        log_sigma = SCHEDULES["ve"].sigma(0.4).log().item()
        assert self.told(0.42, off_levels="snap") == pytest.approx(log_sigma)
        # the network is told another level; the kernel is that of t
        assert self.found.sigma == SCHEDULES["ve"].sigma(0.42)

    def test_interpolate(self) -> None:
        log_sigma = SCHEDULES["ve"].sigma(0.42).log().item()
        assert self.told(0.42, off_levels="interpolate") == pytest.approx(log_sigma)
        network = Recorder()
        with pytest.warns(UserWarning, match="10 noise levels"):
            make(SCHEDULES["ve"], network)(batch(), 0.42)
        assert network.c_noise[0].item() == pytest.approx(3.2)

    def test_refuse(self) -> None:
        with pytest.raises(UserError, match=r"trained on 10 noise levels only.*off_levels=refuse"):
            self.told(0.42, off_levels="refuse")
        assert self.told(0.4, off_levels="refuse") == pytest.approx(
            SCHEDULES["ve"].sigma(0.4).log().item()
        )

    @pytest.mark.parametrize("policy", ["snap", "interpolate", "refuse"])
    def test_continuous_training_has_no_levels_to_be_off(self, policy) -> None:
        log_sigma = SCHEDULES["ve"].sigma(0.42).log().item()
        told = self.told(0.42, off_levels=policy, trained_on="continuous")
        assert told == pytest.approx(log_sigma)

    def test_it_is_said_once(self) -> None:
        denoiser = make(SCHEDULES["ve"], off_levels="snap")
        with pytest.warns(UserWarning, match="the nearest one"):
            denoiser(batch(), 0.42)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            denoiser(batch(), 0.47)
            make(SCHEDULES["ve"])(batch(), 0.4)
            make(SCHEDULES["vp"])(batch(), 0.33333)


class TestGuidance:
    y = torch.tensor([0, 1, 2, 1, 0])

    def guided(self, weight: float, schedule: NoiseSchedule = SCHEDULES["vp"], **options) -> Guided:
        return Guided(make(schedule, num_classes=3, **options), weight)

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    @pytest.mark.parametrize("t", [0.5, torch.tensor([0.1, 0.2, 0.5, 0.9, 1.0])])
    def test_eps_moves_from_free_to_given(self, prediction: str, t) -> None:
        guided = self.guided(2.5, prediction=prediction)
        found = guided(batch(), t, self.y)
        given = guided.denoiser(batch(), t, self.y).eps
        free = guided.denoiser(batch(), t, torch.full_like(self.y, 3)).eps
        torch.testing.assert_close(found.eps, free + 2.5 * (given - free), rtol=1e-4, atol=1e-4)
        assert found.x_t.shape == found.x0.shape == (5, 3, 4, 4)

    def test_weights_0_and_1_are_the_plain_models(self) -> None:
        given = self.guided(1.0)
        expected = given.denoiser(batch(), 0.5, self.y).eps
        torch.testing.assert_close(given(batch(), 0.5, self.y).eps, expected)
        null = torch.full_like(self.y, 3)
        free = self.guided(0.0)
        expected = free.denoiser(batch(), 0.5, null).eps
        torch.testing.assert_close(free(batch(), 0.5, self.y).eps, expected)

    def test_it_costs_two_evaluations_and_keeps_the_model_s_description(self) -> None:
        guided = self.guided(2.0, value_range=(0.0, 1.0))
        assert guided.evaluations_per_call == 2
        assert Guided(guided.denoiser, 3.0).schedule is guided.denoiser.schedule
        assert guided.value_range == (0.0, 1.0)
        assert guided.num_classes == 3
        assert guided.device.type == "cpu"

    def test_learned_variance_is_that_of_the_given_label(self) -> None:
        guided = self.guided(2.0, network=Recorder(out=6))
        variance = guided(batch(), 0.5, self.y).interpolation
        assert variance is not None
        expected = guided.denoiser(batch(), 0.5, self.y).interpolation
        torch.testing.assert_close(variance, expected)

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match=r"guidance=2\.0 needs a model trained with"):
            Guided(make(SCHEDULES["vp"]), 2.0)
        with pytest.raises(UserError, match=r"guidance=-1\.0 must be at least 0"):
            self.guided(-1.0)
        with pytest.raises(UserError, match="needs class labels"):
            self.guided(2.0)(batch(), 0.5)


def test_prediction_of_x0_converts_both_ways() -> None:
    """A closed form is a prediction with c_skip = 0 and c_out = 1."""
    one = torch.ones((), dtype=torch.float64)
    x_t, x0 = batch(dtype=torch.float64), torch.full((5, 3, 4, 4), 0.5, dtype=torch.float64)
    found = Prediction(x_t, x0, 0.6 * one, 0.8 * one, 0 * one, one)
    torch.testing.assert_close(found.eps, (x_t - 0.3) / 0.8)
    torch.testing.assert_close(found.score, (0.3 - x_t) / 0.64)


def test_a_policy_that_there_is_not_is_refused() -> None:
    """It meant interpolate, in silence."""
    with pytest.raises(UserError, match=r"^denoiser\.off_levels=snapp must be 'snap', 'interpolat"):
        make(SCHEDULES["ve"], off_levels="snapp")
