"""Where and at which times the published samplers step."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler

from betasigma.data import toy
from betasigma.errors import UserError
from betasigma.options.base import REGISTRY
from betasigma.oracles import GaussianMixture
from betasigma.randomness import Stream
from betasigma.samplers import DDIM, AdaptiveODE, Ancestral, DPMSolver, Heun, Sampler
from betasigma.samplers.sampler import time_grid
from betasigma.schedules import NoiseSchedule, cosine, geometric, linear

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("sampler", "objective", "likelihood", "schedule", "preconditioning")


def oracle(schedule: NoiseSchedule) -> GaussianMixture:
    truth = toy.mixture("two")
    return GaussianMixture(truth.weights, truth.means, truth.covariances, schedule)


def rms_error(sampler: Sampler, exact: Sampler, schedule: NoiseSchedule) -> float:
    """Of samples against a fine solution from the same start."""
    model = oracle(schedule)
    error = sampler.sample(model, 200).x - exact.sample(model, 200).x
    return error.square().mean().sqrt().item()


class TestRatioMax:
    """σ/α where sampling begins."""

    def error(self, ratio_max: float | None, schedule: NoiseSchedule | None = None) -> float:
        sampler = Heun(steps=18, ratio_max=ratio_max, dtype="float64")
        exact = Heun(steps=400, grid="uniform_log_snr", ratio_max=ratio_max, dtype="float64")
        return rms_error(sampler, exact, schedule or cosine())

    def test_steps_on_pure_noise_cost_ten_times_the_error(self) -> None:
        """A cosine schedule ends at σ/α = 20,291: nearly half of Karras' steps lie beyond 164."""
        whole, edm, default = self.error(20_291.0), self.error(81.0), self.error(None)
        assert whole == pytest.approx(0.121, rel=0.05)
        assert edm == pytest.approx(0.0094, rel=0.1)
        assert default < 0.015

    def test_the_multistep_solver_too(self) -> None:
        errors = [
            rms_error(
                DPMSolver(ratio_max=bound, dtype="float64"),
                DPMSolver(steps=400, ratio_max=bound, dtype="float64"),
                cosine(),
            )
            for bound in (20_291.0, None)
        ]
        assert errors[1] < errors[0] / 1.5

    def test_the_default_leaves_other_schedules_whole(self) -> None:
        for schedule in (linear(), geometric(100, 348.0, 0.01)):
            for sampler in (Heun(), DPMSolver(), AdaptiveODE(), Ancestral()):
                assert sampler.times(schedule)[0] == 1.0

    def test_levels_keep_the_published_end(self) -> None:
        for sampler in (Ancestral(), DDIM(), Ancestral(steps=50)):
            assert sampler.times(cosine())[0] == 1.0

    @pytest.mark.parametrize("grid", ["levels", "uniform_t", "uniform_log_snr", "karras"])
    def test_every_grid_can_begin_below_the_end(self, grid) -> None:
        schedule = linear()
        times = time_grid(schedule, 20, grid, ratio_max=10.0)
        assert len(times) == 20
        assert times[-1] == schedule.t_min
        first = schedule.ratio(times[0]).item()
        assert first <= 10 * (1 + 1e-12)
        assert first > 9.8  # a level lies near
        if grid == "levels":
            level = torch.tensor(times) * 1000
            torch.testing.assert_close(level, level.round())

    @pytest.mark.parametrize(
        ("schedule", "std"), [(linear(), 1.0), (geometric(50, 50.0, 0.01), 10.0)], ids=["vp", "ve"]
    )
    def test_it_starts_from_the_gaussian_of_that_noise(self, schedule, std: float) -> None:
        model = oracle(schedule)
        for start in ("prior", "moments"):
            sampler = Heun(ratio_max=10.0, start=start)
            x = sampler.begin(model, Stream("start", indices=range(20_000)))
            assert x.std().item() == pytest.approx(std, rel=0.02)

    def test_it_must_leave_noise_to_remove(self) -> None:
        with pytest.raises(UserError, match=r"sampler\.ratio_max=0\.001 must be above 0\.01"):
            Heun(ratio_max=0.001).sample(oracle(linear()), 1)

    def test_a_larger_one_than_the_schedule_s_is_its_end(self) -> None:
        assert time_grid(linear(), 9, "karras", ratio_max=1e6) == time_grid(linear(), 9, "karras")


class TestLevels:
    """Which levels are taken."""

    def indices(self, sampler: Sampler, schedule: NoiseSchedule) -> list[int]:
        times = torch.tensor(sampler.times(schedule), dtype=torch.float64)
        return (times.flip(0) * schedule.levels).round().int().sub(1).tolist()

    def test_ddim50(self) -> None:
        """As in DDIM's code, and as diffusers has it under the name "leading"."""
        scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=0)
        scheduler.set_timesteps(50)
        taken = self.indices(DDIM(steps=50, grid="strided"), linear())
        assert taken == list(range(0, 1000, 20)) == scheduler.timesteps.flip(0).tolist()

    def test_a_stride_is_whole(self) -> None:
        assert self.indices(DDIM(steps=334, grid="strided"), linear())[-1] == 999
        with pytest.raises(UserError, match=r"sampler\.steps=300 .* are 250 and 334"):
            DDIM(steps=300, grid="strided").times(linear())

    def test_sections(self) -> None:
        """iDDPM's example: 300 levels in sections of 100, of which 10, 15 and 20 are taken."""
        taken = self.indices(Ancestral(steps=[10, 15, 20]), linear(steps=300))
        assert len(taken) == 45
        assert taken[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
        assert taken[10:13] == [100, 107, 114]
        assert taken[-2:] == [294, 299]

    def test_one_section_is_the_number_itself(self) -> None:
        for steps in (2, 25, 100, 250, 999, 1000):
            whole = self.indices(Ancestral(steps=steps), linear())
            assert whole == self.indices(Ancestral(steps=[steps]), linear())

    def test_levels_that_there_are_not(self) -> None:
        with pytest.raises(UserError, match=r"sampler\.steps=\[10, 20\] takes 20 levels of a sec"):
            Ancestral(steps=[10, 20]).times(linear(steps=30))
        with pytest.raises(UserError, match=r"sampler\.steps=\[5\] .* needs sampler\.grid=levels"):
            Heun(steps=[5])


def test_the_last_of_few_steps_has_order_one() -> None:
    """DPM-Solver++'s code: a step of order 1 is one of DDIM."""
    model, x = oracle(linear()), torch.randn(5, 2, dtype=torch.float64)
    for steps, lower in ((8, True), (10, True), (11, False), (8, False)):
        sampler = DPMSolver(steps=steps, dtype="float64", lower_order_final=lower or steps == 11)
        times, states = sampler.times(model.schedule), [*sampler.states(model, x, None)]  # type: ignore[arg-type]
        before, after = states[-3], states[-2]
        ddim = DDIM(clip=False, dtype="float64").step(model, before, *times[-2:], None)  # type: ignore[arg-type]
        assert torch.allclose(after, ddim, atol=1e-12) == lower


class TestStart:
    """A start that does not match the data at the first time is said."""

    @pytest.mark.parametrize(
        ("schedule", "start", "bits"),
        [
            (linear(1e-4, 0.02, 100), "prior", "0.0"),
            (geometric(10, 1.0, 0.01), "prior", "0.0"),
            (geometric(10, 50.0, 0.01), "uniform", "."),
        ],
    )
    def test_it_is_said(self, schedule, start, bits: str) -> None:
        with pytest.warns(UserWarning, match=rf"sampler\.start={start}, [\d.e+]*{bits}") as said:
            DDIM(start=start, steps=2).sample(oracle(schedule), 2)
        assert "sampler.start=moments" in str(said[0].message)

    @pytest.mark.parametrize(
        ("schedule", "sampler"),
        [
            (linear(), DDIM(steps=2)),
            (linear(steps=100), DDIM(steps=2)),
            (cosine(), Heun(steps=2)),
            (geometric(10, 50.0, 0.01), DDIM(steps=2)),
            (geometric(10, 1.0, 0.01), DDIM(steps=2, start="moments")),
        ],
    )
    def test_a_start_that_matches_needs_no_word(self, schedule, sampler: Sampler) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampler.sample(oracle(schedule), 2)

    def test_the_excess_is_a_divergence(self) -> None:
        """Against torch's own KL of independent Gaussians."""
        from torch.distributions import Normal, kl_divergence

        from betasigma.prior import GaussianPrior

        data = GaussianPrior(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0]))
        start = GaussianPrior(torch.tensor([0.0, 0.5]), 1.5)
        expected = kl_divergence(
            Normal(data.mean, torch.as_tensor(data.variance).sqrt()),
            Normal(start.mean, math.sqrt(1.5)),
        )
        assert start.excess_bits(data) == pytest.approx(expected.mean().item() / math.log(2))


@pytest.mark.parametrize(
    "path",
    [
        path
        for group in GROUPS
        for path in sorted((CONF / group).glob("*.yaml"))
        if "defaults:" not in path.read_text(encoding="utf-8")
    ],
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_a_class_has_the_defaults_of_its_config(path: Path) -> None:
    """Its options have, and tests/options/test_one_home.py compares these with the constructor."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    node = content.get(path.parent.name, content)
    if node is None:
        pytest.skip("it has no class")
    options = REGISTRY[path.parent.name][node["_target_"]]
    read = {key for key, value in node.items() if str(value).startswith("${")}
    for key in node.keys() - read - {"_target_"}:
        assert node[key] == options.model_fields[key].default, key
    knobs = content.get(options.knobs) if options.knobs else None
    for key, value in (knobs or {}).items():
        key = {knob: key for key, knob in options.turned.items()}.get(key, key)
        assert value == options.model_fields[key].default, key
