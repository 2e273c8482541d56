"""What every sampler promises: addressed samples, counted evaluations, clear refusals."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from launching import quick

from betasigma.denoiser import Guided
from betasigma.errors import UserError
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import cosine, geometric, linear

SCHEDULES = {"linear": linear(), "geometric": geometric(10, 3.0, 0.02)}
SAMPLERS: dict[str, tuple[Sampler, int]] = {
    "ancestral": (Ancestral(steps=8), 8),
    "ancestral_posterior": (Ancestral("posterior", steps=8, grid="uniform_log_snr"), 8),
    "ddim": (DDIM(steps=8), 8),
    "ddim_stochastic": (DDIM(0.5, steps=8, grid="karras"), 8),
    "langevin": (AnnealedLangevin(3, 0.1, steps=4), 12),
    "langevin_denoise": (AnnealedLangevin(3, 0.1, denoise=True, steps=4), 13),
    "pc_reverse": (PredictorCorrector(steps=6, clip=True), 12),
    "pc_euler": (PredictorCorrector("euler_maruyama", 0.1, 2, 6, grid="uniform_log_snr"), 18),
    "pc_ancestral": (PredictorCorrector("ancestral", corrector_steps=0, steps=6), 6),
    "euler": (Euler(steps=8, grid="uniform_log_snr"), 8),
    "heun": (Heun(steps=6), 11),
    "heun_churn": (Heun(4.0, 0.05, 50.0, 1.01, steps=6, grid="karras"), 11),
    "dpm": (DPMSolver(steps=8), 8),
    "dpm_sde": (DPMSolver(1.0, steps=8, grid="uniform_log_snr", dtype="float64"), 8),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_schedule = pytest.mark.parametrize("family", SCHEDULES)


@pytest.mark.parametrize("off_levels", ["snap", "interpolate"])
@pytest.mark.parametrize(
    "sampler", [Ancestral, AnnealedLangevin, DDIM, DPMSolver, Euler, Heun, PredictorCorrector]
)
def test_more_steps_than_levels_have_an_effect(make_model, sampler, off_levels: str) -> None:
    """They visit times between the levels; a model that refuses those refuses such a grid."""
    model = make_model(geometric(4, 3.0, 0.02), trained_on="levels", off_levels=off_levels)
    levels, more = (sampler(steps=steps).sample(model, 8, seed=1) for steps in (4, 16))
    assert more.nfe > levels.nfe
    assert (more.x - levels.x).flatten(1).norm(dim=1).mean() > 0.01


@every_schedule
@every_sampler
def test_samples_do_not_depend_on_the_batch_and_evaluations_are_counted(
    make_model, family: str, name: str
) -> None:
    model = make_model(SCHEDULES[family])
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    sampler, expected = SAMPLERS[name]
    whole = sampler.sample(model, 64, seed=3)
    assert whole.nfe == len(calls) == expected
    assert whole.x.shape == (64, 6)
    assert whole.x.dtype == torch.float32
    assert torch.isfinite(whole.x).all()
    scale = whole.x.abs().max().item()
    by_sixteen = sampler.sample(model, 64, seed=3, batch_size=16)
    assert by_sixteen.nfe == expected
    torch.testing.assert_close(by_sixteen.x, whole.x, rtol=1e-4, atol=1e-5 * scale)
    # single samples, asked for by their indices and out of order
    wanted = [63, 0, 17]
    alone = sampler.sample(model, indices=wanted, seed=3, batch_size=1)
    torch.testing.assert_close(alone.x, whole.x[wanted], rtol=1e-4, atol=1e-5 * scale)


def test_all_of_64_samples_one_by_one(make_model) -> None:
    model = make_model(SCHEDULES["geometric"])
    for sampler in (DDIM(steps=4), PredictorCorrector(steps=3)):
        whole = sampler.sample(model, 64, batch_size=64).x
        alone = sampler.sample(model, 64, batch_size=1).x
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@every_sampler
def test_the_seed_decides(make_model, name: str) -> None:
    model, (sampler, _) = make_model(SCHEDULES["geometric"]), SAMPLERS[name]
    first = sampler.sample(model, 4, seed=0).x
    torch.rand(3)
    assert torch.equal(first, sampler.sample(model, 4, seed=0).x)
    other = sampler.sample(model, 4, seed=1).x
    # where x̂_0 is clipped, numbers of two samples can both be ±1
    assert not torch.isclose(first, other)[first.abs() != 1].any()


@every_sampler
def test_progress_adds_up_to_one(make_model, name: str) -> None:
    model, (sampler, _) = make_model(SCHEDULES["geometric"]), SAMPLERS[name]
    shares: list[float] = []
    sampler.sample(model, 10, batch_size=4, progress=shares.append)
    assert sum(shares) == pytest.approx(1)


def test_a_batch_that_does_not_fit_is_halved(make_model) -> None:
    """Where memory ends is found in the middle of a trajectory; samples are those of any batch."""
    model, sampler = make_model(SCHEDULES["geometric"], num_classes=3), DDIM(steps=4)
    y = torch.arange(14) % 3
    whole = sampler.sample(model, 14, seed=3, y=y)
    sizes: list[int] = []

    def out_of_memory(most: int):
        def hook(_, inputs) -> None:
            sizes.append(len(inputs[0]))
            if sizes[-1] > most and sizes.count(sizes[-1]) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return hook

    handle = model.network.register_forward_pre_hook(out_of_memory(4))
    shares: list[float] = []
    found = sampler.sample(model, 14, seed=3, y=y, progress=shares.append)
    torch.testing.assert_close(found.x, whole.x, rtol=1e-4, atol=1e-5)
    assert (whole.batch_size, found.nfe, found.batch_size) == (256, 4, 4)
    assert sizes == [14] * 3 + [7] * 3 + [4] * 12 + [2] * 4
    assert sum(shares) == pytest.approx(1)
    handle.remove()
    sizes.clear()
    model.network.register_forward_pre_hook(out_of_memory(0))
    with pytest.raises(torch.OutOfMemoryError):
        sampler.sample(model, 2)


@every_sampler
def test_states_are_the_trajectory(make_model, name: str) -> None:
    """From the same start and stream the last state is the sample."""
    from betasigma.randomness import Stream

    model, (sampler, _) = make_model(SCHEDULES["geometric"]), SAMPLERS[name]
    rng = Stream("sample", 5, indices=range(3))
    *path, last = sampler.states(model, sampler.begin(model, rng), rng)
    reached = sampler.reached(sampler.times(model.schedule))
    assert len(path) + 1 == len(reached)
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] == 0
    assert last.dtype == sampler.dtype
    assert not last.requires_grad
    torch.testing.assert_close(last.float(), sampler.sample(model, 3, seed=5).x)


@every_sampler
def test_a_schedule_of_one_level(make_model, name: str) -> None:
    """There is one time to visit: the sample is x̂_0 (or Langevin's state) there."""
    sampler, _ = SAMPLERS[name]
    samples = sampler.sample(make_model(geometric(1, 2.0, 0.01)), 3)
    assert torch.isfinite(samples.x).all()
    corrections = {"pc_reverse": 1, "pc_euler": 2, "langevin": 2, "langevin_denoise": 3}
    assert samples.nfe == 1 + corrections.get(name, 0)


@every_sampler
def test_guidance_costs_twice_and_is_what_is_sampled(make_model, name: str) -> None:
    model = make_model(SCHEDULES["geometric"], num_classes=3)
    sampler, nfe = SAMPLERS[name]
    y = torch.tensor([0, 1, 2, 0])
    given = sampler.sample(model, 4, y=y)
    guided = sampler.sample(Guided(model, 1.0), 4, y=y)
    assert guided.nfe == 2 * given.nfe == 2 * nfe
    torch.testing.assert_close(guided.x, given.x, rtol=1e-4, atol=1e-4)
    strong = sampler.sample(Guided(model, 3.0), 4, y=y, batch_size=1)
    assert not torch.isclose(strong.x, given.x, rtol=1e-3).all()
    # labels follow their samples through the batches
    whole = sampler.sample(Guided(model, 3.0), 4, y=y)
    torch.testing.assert_close(strong.x, whole.x, rtol=1e-4, atol=1e-4)


class TestAdaptive:
    @pytest.mark.parametrize("schedule", quick((linear, cosine, geometric), geometric))
    def test_batches_agree_to_the_tolerance(self, make_model, schedule) -> None:
        model = make_model(schedule())
        calls: list[int] = []
        shares: list[float] = []
        model.network.register_forward_hook(lambda *_: calls.append(1))
        sampler = AdaptiveODE(1e-7, 1e-7, dtype="float64")
        whole = sampler.sample(model, 8, progress=shares.append)
        assert sum(shares) == pytest.approx(1)
        assert whole.nfe == len(calls) > 10
        single = sampler.sample(model, 8, batch_size=1)
        torch.testing.assert_close(single.x, whole.x, rtol=1e-3, atol=1e-3)

    def test_the_largest_count_is_reported(self, make_model) -> None:
        model = make_model(SCHEDULES["linear"])
        sampler = AdaptiveODE(1e-4, 1e-4)
        counts = [sampler.sample(model, indices=[i]).nfe for i in range(6)]
        assert len(set(counts)) > 1
        assert sampler.sample(model, 6, batch_size=1).nfe == max(counts)

    def test_tighter_is_closer_and_costs_more(self, make_model) -> None:
        model = make_model(SCHEDULES["linear"])
        exact, fine, coarse = (
            AdaptiveODE(tolerance, tolerance, dtype="float64").sample(model, 4)
            for tolerance in (1e-9, 1e-6, 1e-2)
        )
        assert coarse.nfe < fine.nfe < exact.nfe
        assert (fine.x - exact.x).abs().max() < 0.1 * (coarse.x - exact.x).abs().max()

    def test_one_level_and_states(self, make_model) -> None:
        assert AdaptiveODE().sample(make_model(geometric(1, 2.0, 0.01)), 3).nfe == 1
        model = make_model(SCHEDULES["geometric"])
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
        at_t_min, sample = AdaptiveODE().states(model, x, None)  # type: ignore[arg-type]
        torch.testing.assert_close(sample, model(at_t_min, 0.1).x0)


def test_starts(make_model) -> None:
    from betasigma.randomness import Stream

    model = make_model(geometric(10, 3.0, 0.02), value_range=(0.0, 1.0))
    rng = Stream("sample", 0, indices=range(5000))
    prior = DDIM().begin(model, rng)
    assert prior.std().item() == pytest.approx(3.0, rel=0.02)
    uniform = DDIM(start="uniform", dtype="float64").begin(model, rng)
    assert uniform.dtype == torch.float64
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() <= 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "sampler",
    [Ancestral(steps=5, clip=True), DDIM(steps=5, clip=True), Heun(steps=5, clip=True)],
    ids=["ancestral", "ddim", "heun"],
)
def test_clipping_keeps_samples_in_range(make_model, sampler: Sampler) -> None:
    model = make_model(SCHEDULES["linear"], value_range=(0.0, 0.5))
    samples = sampler.sample(model, 16).x
    assert samples.min() == 0
    assert samples.max() == 0.5


def test_state_dtype(make_model) -> None:
    model = make_model(SCHEDULES["linear"])
    single = DDIM(steps=20, clip=False).sample(model, 4).x
    double = DDIM(steps=20, clip=False, dtype="float64").sample(model, 4).x
    # another stream of numbers (Philox draws float64 its own way), the same scale
    assert single.shape == double.shape
    assert not torch.equal(single, double)


def test_no_samples_and_which_samples(make_model) -> None:
    model = make_model(SCHEDULES["geometric"])
    assert DDIM().sample(model, 0).x.shape == (0, 6)
    assert DDIM().sample(model, indices=[]).nfe == 0
    for both_or_none in ({}, {"n": 3, "indices": [0, 1, 2]}):
        with pytest.raises(UserError, match="either n, the number of samples, or their indices"):
            DDIM().sample(model, **both_or_none)


def test_off_the_levels_the_model_s_policy_decides(make_model) -> None:
    def model(policy: str):
        return make_model(SCHEDULES["geometric"], trained_on="levels", off_levels=policy)

    on, between = DDIM(steps=5, clip=False), DDIM(steps=50, clip=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on.sample(model("refuse"), 2)
    with pytest.raises(UserError, match=r"sampler\.grid=levels with at most sampler\.steps=10"):
        between.sample(model("refuse"), 2)
    with pytest.warns(UserWarning, match="10 noise levels"):
        snapped = between.sample(model("snap"), 2).x
    with pytest.warns(UserWarning, match="10 noise levels"):
        interpolated = between.sample(model("interpolate"), 2).x
    assert not torch.equal(snapped, interpolated)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(steps=0), r"sampler\.steps=0 must be at least 1"),
        (lambda: Ancestral(grid="even"), r"sampler\.grid=even must be 'levels', 'strided'"),
        (lambda: Heun(rho=0.0), r"sampler\.rho=0\.0 must be above 0"),
        (
            lambda: Euler(start="zeros"),
            r"sampler\.start=zeros must be 'prior', 'uniform' or 'moments'",
        ),
        (lambda: DDIM(dtype="float16"), r"sampler\.dtype=float16 must be 'float32' or 'float64'"),
        (
            lambda: Ancestral("fixed"),
            r"sampler\.variance=fixed must be 'beta', 'posterior' or 'learned'",
        ),
        (lambda: DDIM(1.5), r"sampler\.eta=1\.5 must be at most 1"),
        (lambda: DPMSolver(-0.1), r"sampler\.eta=-0\.1 must be at least 0"),
        (lambda: AnnealedLangevin(0), r"sampler\.inner_steps=0 must be at least 1"),
        (lambda: AnnealedLangevin(step=1.0), r"sampler\.step=1\.0 must be below 1"),
        (
            lambda: PredictorCorrector("heun"),
            r"sampler\.predictor=heun must be 'reverse_diffusion', 'euler_maruyama'",
        ),
        (lambda: PredictorCorrector(snr=0.0), r"sampler\.snr=0\.0 must be above 0"),
        (lambda: PredictorCorrector(corrector_steps=-1), r"sampler\.corrector_steps=-1"),
        (lambda: Heun(-1.0), r"sampler\.s_churn=-1\.0 must be at least 0"),
        (lambda: Heun(s_min=2.0, s_max=1.0), r"sampler\.s_min=2 must be at most sampler\.s_max=1"),
        (lambda: Heun(s_noise=0.0), r"sampler\.s_noise=0\.0 must be above 0"),
        (lambda: AdaptiveODE(rtol=0.0), r"sampler\.rtol=0\.0 must be above 0"),
        (lambda: AdaptiveODE(atol=-1e-3), r"sampler\.atol=-0\.001 must be above 0"),
    ],
)
def test_bad_options_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_corrector_of_a_network_that_answers_zero(make_model) -> None:
    """An untrained network's score is exactly 0: the corrector's step is bounded by σ², not ∞."""
    model = make_model(SCHEDULES["geometric"])
    model.network.forward = lambda x, c_noise, y=None: torch.zeros_like(x)
    samples = PredictorCorrector(steps=5).sample(model, 4).x
    assert torch.isfinite(samples).all()
    # five corrections of variance 2σ_i² and four predictions of σ_i² − σ_{i+1}², ε̂ = 0
    assert samples.abs().max() < 8 * math.sqrt(9 + 5 * 18 + 9)


def test_a_class_of_ones_own_has_a_name_and_keeps_the_shape(make_model) -> None:
    class Cropping(Sampler):
        def step(self, model, x, t, s, rng):  # type: ignore[no-untyped-def]
            return x[..., :1]

    class Mine(DDIM):
        pass

    assert (Mine.name, DDIM.name) == ("Mine", "ddim")
    sampler = Cropping(steps=1)
    assert sampler.name == "Cropping"
    with pytest.raises(UserError, match=r"sampler=Cropping ends at a state of shape \(2, 1\)"):
        sampler.sample(make_model(linear()), 2)
