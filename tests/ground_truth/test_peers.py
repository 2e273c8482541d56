"""The same ε-network, start and noise through other people's samplers: trajectories agree to 1e-4.

The peers are diffusers 0.42 (DDPM, DDIM, DPM-Solver++, predictor–corrector of Score-SDE, EDM's
churn), azula 0.11 (posterior-variance ancestral, DDIM, Euler and Heun in σ/α, on both families),
torchdiffeq (Euler in t) and, for annealed Langevin, the loop of the official NCSN code. They have
their schedules from their own tables, in float32 where they hold them so.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import azula.sample
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm, scheduling_sde_ve
from diffusers.schedulers.deprecated import scheduling_karras_ve, scheduling_sde_vp
from torch import Tensor
from torchdiffeq import odeint

from betasigma.samplers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import (
    NoiseSchedule,
    VariancePreserving,
    cosine,
    geometric,
    linear,
)

BATCH = 3
DDPM_SCHEDULES = {
    "linear": (linear(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "cosine": (cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    "short": (linear(1e-4, 0.02, 60), {"beta_schedule": "linear", "num_train_timesteps": 60}),
}


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 1
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        error = (mine - other).abs().max().item()
        assert error < 1e-4, f"state {step} differs by {error:.2g}"


def given(draws: Tensor) -> Callable[..., Tensor]:
    """What stands in for a peer's function that draws noise."""
    supply = iter(draws)
    return lambda *args, **kwargs: next(supply)


def on(monkeypatch, sampler: Sampler, times: list[float]) -> None:
    """Let the sampler visit these times."""
    monkeypatch.setattr(sampler, "times", lambda schedule: times)


def continuous_vp() -> VariancePreserving:
    """Song et al.'s VP curve, β(t) from 0.1 to 20, on a table so fine that its slopes are β(t)."""
    t = np.arange(1, 200_001) / 200_000
    log_alpha_bar = -0.5 * t**2 * (20.0 - 0.1) - t * 0.1
    return VariancePreserving(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


class TestDiffusers:
    """Schedulers of diffusers around the network of the model."""

    def run(self, scheduler, model, x: Tensor, **options) -> list[Tensor]:
        states = []
        for i in scheduler.timesteps:
            eps = model(x, (i.item() + 1) / model.schedule.levels).eps
            extra = {key: next(value) for key, value in options.items()}
            x = scheduler.step(eps, i, x, **extra).prev_sample
            states.append(x)
        return states

    @pytest.mark.parametrize(("name", "steps"), [("short", 60), ("linear", 40), ("cosine", 40)])
    @pytest.mark.parametrize(
        ("variance", "theirs"), [("beta", "fixed_large"), ("posterior", "fixed_small")]
    )
    @pytest.mark.parametrize("clip", [False, True])
    def test_ancestral(
        self, eps_model, replay, noise, monkeypatch, name, variance, theirs, clip, steps
    ) -> None:
        schedule, options = DDPM_SCHEDULES[name]
        scheduler = DDPMScheduler(
            **options, variance_type=theirs, clip_sample=clip, timestep_spacing="linspace"
        )
        scheduler.set_timesteps(steps)
        model, x, draws = eps_model(schedule), noise(BATCH, 4), noise(steps, BATCH, 4, seed=1)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", given(draws))
        sampler = Ancestral(variance, steps=steps, clip=clip, dtype="float64")
        close(list(sampler.states(model, x, replay(draws))), self.run(scheduler, model, x))

    @pytest.mark.parametrize(("name", "steps"), [("short", 60), ("linear", 40), ("cosine", 40)])
    def test_learned_variance(self, eps_model, replay, noise, monkeypatch, name, steps) -> None:
        """On all levels and respaced, where β and β̃ are those of the longer steps."""
        schedule, options = DDPM_SCHEDULES[name]
        scheduler = DDPMScheduler(
            **options,
            variance_type="learned_range",
            clip_sample=True,
            timestep_spacing="linspace",
        )
        scheduler.set_timesteps(steps)
        model = eps_model(schedule, doubled=True)
        x, draws = noise(BATCH, 4), noise(steps, BATCH, 4, seed=1)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", given(draws))
        theirs, state = [], x
        for i in scheduler.timesteps:
            output = model.network(state, i.double().expand(BATCH))
            state = scheduler.step(output, i, state).prev_sample
            theirs.append(state)
        sampler = Ancestral("learned", steps=steps, clip=True, dtype="float64")
        ours = list(sampler.states(model, x, replay(draws)))
        close(ours, theirs)
        fixed = Ancestral("beta", steps=steps, clip=True, dtype="float64")
        others = list(fixed.states(model, x, replay(draws)))
        assert (ours[-2] - others[-2]).abs().max() > 1e-2
        assert (ours[0] - theirs[0]).abs().max() < 1e-5  # a single step

    @pytest.mark.parametrize("name", ["linear", "cosine"])
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("clip", [False, True])
    def test_ddim(self, eps_model, replay, noise, monkeypatch, name, eta, clip) -> None:
        schedule, options = DDPM_SCHEDULES[name]
        scheduler = DDIMScheduler(**options, clip_sample=clip, timestep_spacing="trailing")
        scheduler.set_timesteps(50)
        model, x, draws = eps_model(schedule), noise(BATCH, 4), noise(50, BATCH, 4, seed=1)
        settings = {"eta": eta, "use_clipped_model_output": True}
        theirs = self.run(
            scheduler,
            model,
            x,
            variance_noise=iter(draws),
            **{key: iter([value] * 50) for key, value in settings.items()},
        )
        sampler = DDIM(eta, clip=clip, dtype="float64")
        on(monkeypatch, sampler, [(i + 1) / 1000 for i in scheduler.timesteps.tolist()])
        close(list(sampler.states(model, x, replay(draws))), theirs)

    @pytest.mark.parametrize("name", ["linear", "cosine"])
    @pytest.mark.parametrize(("eta", "algorithm"), [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
    @pytest.mark.parametrize("grid", ["levels", "uniform_log_snr"])
    def test_dpm_solver(
        self, eps_model, replay, noise, monkeypatch, name, eta, algorithm, grid
    ) -> None:
        schedule, options = DDPM_SCHEDULES[name]
        scheduler = DPMSolverMultistepScheduler(**options, algorithm_type=algorithm)
        sampler = DPMSolver(eta, steps=20, grid=grid, dtype="float64")
        # they only know levels; and cosine's last, β = 0.999, leaves 1 − β four digits in float32
        level = np.unique((1000 * np.array(sampler.times(schedule))).round())[::-1]
        level = level[1:] if name == "cosine" else level
        on(monkeypatch, sampler, (level / 1000).tolist())
        scheduler.set_timesteps(timesteps=(level - 1).astype(int).tolist())
        steps = len(level)
        model, x, draws = eps_model(schedule), noise(BATCH, 4), noise(steps, BATCH, 4, seed=1)
        theirs = self.run(scheduler, model, x, variance_noise=iter(draws))
        close(list(sampler.states(model, x, replay(draws))), theirs)

    def test_predictor_corrector_on_a_ladder(self, eps_model, replay, noise, monkeypatch) -> None:
        """Their corrector takes ‖z‖ where ours takes √d: noise of that norm makes them equal; and
        the mean of ‖score‖ over the batch: one sample at a time.
        """
        schedule = geometric(30, 20.0, 0.01)
        scheduler = scheduling_sde_ve.ScoreSdeVeScheduler(
            snr=0.16, sigma_min=0.01, sigma_max=20.0, sampling_eps=1e-5
        )
        scheduler.set_timesteps(30)
        scheduler.set_sigmas(30)
        model = eps_model(schedule)
        x, draws = 20 * noise(1, 4), noise(90, 1, 4, seed=1)
        for correction in (0, 1):
            draws[correction::3] *= 2 / draws[correction::3].norm(dim=-1, keepdim=True)
        monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", given(draws))
        sampler = PredictorCorrector("reverse_diffusion", 0.16, 2, dtype="float64")
        ours = list(sampler.states(model, x, replay(draws)))
        theirs = []
        for level, t in zip(range(30, 0, -1), scheduler.timesteps, strict=True):
            sigma = schedule.sigma(level / 30).item()

            for _ in range(2):
                x = scheduler.step_correct(-model(x, level / 30).eps / sigma, x).prev_sample
            found = scheduler.step_pred(-model(x, level / 30).eps / sigma, t, x)
            x = found.prev_sample
            theirs.append(x)
        theirs[-1] = found.prev_sample_mean
        close(ours, theirs)

    def test_euler_maruyama_on_the_vp_sde(self, replay, noise, eps_model, monkeypatch) -> None:
        scheduler = scheduling_sde_vp.ScoreSdeVpScheduler(beta_min=0.1, beta_max=20.0)
        scheduler.set_timesteps(200)
        schedule = continuous_vp()
        model, x, draws = eps_model(schedule), noise(BATCH, 4), noise(200, BATCH, 4, seed=1)
        monkeypatch.setattr(scheduling_sde_vp, "randn_tensor", given(draws))
        sampler = PredictorCorrector("euler_maruyama", corrector_steps=0, dtype="float64")
        times = [1 - i / 200 for i in range(200)]
        on(monkeypatch, sampler, times)
        *ours, _ = sampler.states(model, x, replay(draws))
        theirs = []
        for time in times[:-1]:
            now = torch.tensor([time], dtype=torch.float64)
            # what they call score is the network's output, which they divide by −σ themselves
            x, _ = scheduler.step_pred(model(x, time).eps, x, now)
            theirs.append(x)
        close(ours, theirs)

    def test_heun_with_churn(self, eps_model, replay, noise, monkeypatch) -> None:
        """EDM's algorithm 2; the first step starts at the schedule's end and is not churned."""
        schedule = geometric(1000, 20.0, 0.01)
        options = {"s_churn": 8.0, "s_min": 0.05, "s_max": 15.0, "s_noise": 1.007}
        scheduler = scheduling_karras_ve.KarrasVeScheduler(**options)
        scheduler.num_inference_steps = 12
        sampler = Heun(**options, steps=12, grid="karras", dtype="float64")
        times = sampler.times(schedule)
        sigmas = schedule.sigma(torch.tensor([*times, 0.0], dtype=torch.float64)).tolist()
        model, x, draws = eps_model(schedule), 20 * noise(BATCH, 4), noise(12, BATCH, 4, seed=1)
        churned = [i for i, sigma in enumerate(sigmas) if 0.05 <= sigma <= 15.0]
        assert 0 < len(churned) < 11
        ours = list(sampler.states(model, x, replay(draws[churned])))
        monkeypatch.setattr(scheduling_karras_ve, "randn_tensor", given(draws))

        def output(x: Tensor, sigma: float) -> Tensor:
            # their network predicts (x̂_0 − x)/σ = −ε̂
            return -model(x, schedule.t_of_ratio(sigma).item()).eps

        theirs = []
        for sigma, lower in pairwise(sigmas):
            x_hat, sigma_hat = scheduler.add_noise_to_input(x, sigma)
            found = scheduler.step(output(x_hat, sigma_hat), sigma_hat, lower, x_hat)
            x = found.prev_sample
            if lower:
                x = scheduler.step_correct(
                    output(x, lower), sigma_hat, lower, x_hat, x, found.derivative
                ).prev_sample
            theirs.append(x)
        close(ours, theirs)


class TestAzula:
    """Samplers of azula around our model, on both families."""

    schedules = pytest.mark.parametrize(
        "schedule", [linear(), cosine(), geometric(100, 20.0, 0.01)], ids=["vp", "cosine", "ve"]
    )

    def run(self, make, schedule: NoiseSchedule, model, x: Tensor, times: list[float], **options):
        def kernel(t: Tensor) -> tuple[Tensor, Tensor]:
            return schedule.alpha(t), schedule.sigma(t)

        def denoiser(x: Tensor, t: Tensor) -> SimpleNamespace:
            alpha, sigma = kernel(t)
            return SimpleNamespace(mean=(x - sigma * model(x, t).eps) / alpha)

        denoiser.schedule = kernel
        theirs = make(denoiser, steps=len(times), silent=True, **options)
        states = []
        grid = torch.tensor(times, dtype=torch.float64)
        for t, s in pairwise(grid):
            x = theirs.step(x, t, s)
            states.append(x)
        return states

    @schedules
    @pytest.mark.parametrize(
        ("sampler", "make", "options"),
        [
            (Ancestral("posterior", clip=False), azula.sample.DDPMSampler, {}),
            (DDIM(0.0, clip=False), azula.sample.DDIMSampler, {"eta": 0.0}),
            (DDIM(1.0, clip=False), azula.sample.DDIMSampler, {"eta": 1.0}),
            (DDIM(0.0, clip=False), azula.sample.EulerSampler, {}),
            (Heun(), azula.sample.HeunSampler, {}),
        ],
        ids=["ancestral", "ddim", "ddim_1", "euler_in_ratio", "heun"],
    )
    @pytest.mark.parametrize("grid", ["levels", "karras"])
    def test_same_states(
        self, eps_model, replay, noise, monkeypatch, schedule, sampler, make, options, grid
    ) -> None:
        sampler.steps, sampler.grid, sampler.dtype = 25, grid, torch.float64
        times = sampler.times(schedule)
        model, draws = eps_model(schedule), noise(25, BATCH, 4, seed=1)
        x = schedule.prior_std * noise(BATCH, 4)
        *ours, _ = sampler.states(model, x, replay(draws))
        monkeypatch.setattr(torch, "randn_like", given(draws))
        close(ours, self.run(make, schedule, model, x, times, **options))


def test_euler_in_t_is_torchdiffeq_s(eps_model, noise) -> None:
    """Their Euler steps of dx/dt = −½β(t)·(x + score) with β(t) linear, on the same times."""
    schedule = continuous_vp()
    model, x = eps_model(schedule), noise(BATCH, 4)
    sampler = Euler(steps=300, grid="uniform_t", dtype="float64")
    times = torch.tensor(sampler.times(schedule), dtype=torch.float64)

    def flow(t: Tensor, x: Tensor) -> Tensor:
        beta = 0.1 + t * (20.0 - 0.1)
        sigma = torch.sqrt(-torch.expm1(-0.5 * t**2 * (20.0 - 0.1) - t * 0.1))
        return -0.5 * beta * (x - model(x, t).eps / sigma)

    _, *theirs = odeint(flow, x, times, method="euler")
    *ours, _ = sampler.states(model, x, None)
    # near t = 0 log-SNR falls like −log t, and even this table is coarse for the last times
    close(ours[:-1], theirs[:-1])


def test_annealed_langevin_is_the_official_loop(eps_model, replay, noise) -> None:
    """ermongroup/ncsn, runners/anneal_runner.py: step_lr·(σ_i/σ_L)², algorithm 1 of the paper with
    α_i/2 written as step_size; NCSNv2 adds the last denoising step.
    """
    schedule = geometric(10, 1.0, 0.01)
    model, x, draws = eps_model(schedule), noise(BATCH, 4), noise(50, BATCH, 4, seed=1)
    sigmas = np.exp(np.linspace(np.log(1.0), np.log(0.01), 10))
    step_lr = 2e-5  # the official default, sampler.step = step_lr/σ_L² = 0.2
    states, supply_ = [], iter(draws)
    x_mod = x
    for c, sigma in enumerate(sigmas):
        level = (10 - c) / 10
        step_size = step_lr * (sigma / sigmas[-1]) ** 2
        for _ in range(5):
            grad = -model(x_mod, level).eps / sigma
            x_mod = x_mod + step_size * grad + next(supply_) * np.sqrt(step_size * 2)
            states.append(x_mod)
    denoised = x_mod + sigmas[-1] ** 2 * (-model(x_mod, level).eps / sigmas[-1])
    plain = AnnealedLangevin(5, 0.2, dtype="float64").states(model, x, replay(draws))
    close(list(plain), [*states, x_mod])
    ended = AnnealedLangevin(5, 0.2, denoise=True, dtype="float64").states(model, x, replay(draws))
    close(list(ended), [*states, denoised])
