"""examples/langevin: what it computes, against closed forms; what it draws; what it refuses."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch
from launching import ROOT, TINY, launch
from PIL import Image

from betasigma.data import toy
from betasigma.oracles import EmpiricalDenoiser
from betasigma.samplers import DDIM, AnnealedLangevin
from betasigma.schedules import NoiseSchedule, geometric, linear
from langevin_figures import plane
from langevin_figures.film import film, levels_to_show

APP = "examples/langevin/figures"
CONFIGS = ("--config-dir", str(ROOT / "examples" / "langevin" / "conf"))
SMALL = ("n=30", "grid=9", "learned_from=200", "frames=4", "sampler.inner_steps=3")


def drawn(*words: str) -> tuple[Path, dict[str, Any], str]:
    """Directory, numbers and terminal of one call of ``figures.py``."""
    outcome = launch(APP, *SMALL, *words)
    assert outcome.status == 0, outcome.err
    folders = Path.cwd().glob("outputs/*_figures_*")
    out = max(folders, key=lambda path: path.stat().st_mtime_ns)
    return out, json.loads((out / "figures.json").read_text()), outcome.out


def colours(path: Path) -> int:
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or ())


@pytest.mark.slow
def test_everything_is_drawn_without_a_run(here: Path) -> None:
    out, numbers, told = drawn("sigmas=[0.05,0.4]")
    for name in ("filmstrip", "vector_field", "score_error", "mode_weights"):
        assert colours(out / f"{name}.png") > 20
    small, large = numbers["score_error"]
    assert (small["sigma"], large["sigma"]) == (pytest.approx(0.05), pytest.approx(0.4))
    assert small["between"] > 5 * small["at_modes"]  # 200 points say nothing of the gap
    assert large["between"] < small["between"] / 5  # more noise covers it
    assert large["total_variation"] > small["total_variation"] + 0.3  # and is less the data
    plain, annealed = numbers["mode_weights"]
    assert (plain["dynamics"], annealed["dynamics"]) == ("plain Langevin", "annealed Langevin")
    assert plain["nfe"] == annealed["nfe"] == 30
    assert plain["sigma_max"] == plain["sigma_min"] == pytest.approx(0.05)
    for row in (plain, annealed):
        assert (row["n"], row["true"]) == (30, 0.2)
        assert row["low"] < row["weight"] < row["high"]
        assert f"{row['low']:.3f} – {row['high']:.3f}" in told
    with (out / "mode_weights.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [float(row["weight"]) for row in kept] == [plain["weight"], annealed["weight"]]


@pytest.mark.slow
def test_trained_runs_are_drawn(here: Path, ddpm_run: Path, ncsn_run: Path) -> None:
    """A network trained at one small σ is wrong where it saw no data: section 2.2.6."""
    own = [word for word in TINY if not word.startswith(("network", "sampler", "batch", "steps"))]
    words = ("steps=200", "batch_size=128", "network.width=64", "optimizer.lr=0.003")
    outcome = launch("train", *CONFIGS, *own, "experiment=langevin_mixture", *words)
    assert outcome.status == 0, outcome.err
    runs = f"runs=[{outcome.run},{ddpm_run},{ncsn_run}]"
    out, numbers, _ = drawn(runs, "figures=[filmstrip,score_error,mode_weights]")
    row = numbers["score_error"][0]
    assert row["score"] == "network, one σ"
    assert row["sigma"] == pytest.approx(0.05)
    assert row["at_modes"] < 0.3
    assert row["between"] > 5 * row["at_modes"]
    labels = [(row["dynamics"], row["score"]) for row in numbers["mode_weights"]]
    assert labels[2:] == [("plain Langevin", "network, one σ")]
    assert colours(out / "filmstrip.png") > 20
    assert not (out / "vector_field.png").exists()


def test_runs_of_another_mixture_are_refused(here: Path) -> None:
    own = [word for word in TINY if not word.startswith("network")]
    outcome = launch("train", *own, "data=mixture", "network.width=16", "network.depth=1")
    assert outcome.status == 0, outcome.err
    refused = launch(APP, f"runs=[{outcome.run}]")
    assert refused.status == 1
    assert "was trained on data.mixture=ring" in refused.err
    assert len(refused.err.splitlines()) == 1


BAD = {
    "runs=[nothing]": r"runs=nothing does not exist",
    "figures=[filmstip]": r"figures\[0\]=filmstip must be 'filmstrip'",
    "figures=[]": r"figures=\[\] must have at least 1 item",
    "image=360": r"image=360 is not among the 360 test images of data=digits",
    "sampler=ddim": r"sampler\._target_=betasigma\.samplers\.DDIM must be",
    "sigmas=[0.5,0.1]": r"sigmas=\[0\.5, 0\.1\] must rise",
    "frames=2": r"frames=2 must be at least 3",
}
"""Words that are refused, and what is said."""


def test_what_cannot_work_is_refused_at_once(here: Path) -> None:
    """In one sentence, before anything heavy is imported and a directory is made."""
    done = subprocess.run(
        [sys.executable, launching.__file__],
        input=json.dumps([[APP, *words.split()] for words in BAD]),
        capture_output=True,
        text=True,
        check=True,
    )
    *outcomes, heavy = json.loads(done.stdout)
    for words, (status, out, err) in zip(BAD, outcomes, strict=True):
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert re.search(BAD[words], err), err
    assert heavy == []
    assert list(here.iterdir()) == []


def test_help_lists_the_groups_that_come_with_betasigma(here: Path) -> None:
    outcome = launch(APP, "--help")
    assert outcome.status == 0, outcome.err
    assert "schedule: cosine, geometric" in outcome.out
    assert "learned_from: 1000" in outcome.out


# ---------------------------------------------------------------- the plane, against closed forms

TWO = toy.two()
SPREAD = 0.1
"""Standard deviation of both modes."""


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.25])
def test_total_variation_of_separate_round_modes(sigma: float) -> None:
    """Of N(0, a²I) and N(0, b²I) in the plane: ‖x‖² is exponential under both, and the densities
    cross at r² = 2·log(b²/a²)/(1/a² − 1/b²)."""
    a, b = SPREAD**2, SPREAD**2 + sigma**2
    r = 2 * np.log(b / a) / (1 / a - 1 / b)
    expected = np.exp(-r / (2 * b)) - np.exp(-r / (2 * a))
    assert plane.total_variation(TWO, sigma) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("schedule", [geometric(3, 0.5, 0.05), linear(1e-4, 0.02, 20)])
def test_score_error_of_a_displaced_mixture(schedule) -> None:
    """At a mode far from the other the score of N(αμ, C) is −(x − αμ)/C, C = α²a² + σ²."""
    shift = np.array([0.03, -0.04])
    displaced = plane.truth(replace(TWO, means=TWO.means + shift), schedule)
    t = schedule.t_min
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    expected = sigma * alpha * 0.05 / (alpha**2 * SPREAD**2 + sigma**2)
    found = plane.score_errors(displaced, TWO, torch.from_numpy(TWO.means), t)
    torch.testing.assert_close(found, torch.full((2,), expected).double(), rtol=1e-6, atol=0)
    exact = plane.truth(TWO, schedule)
    assert plane.score_error(exact, TWO, plane.square_grid(9), t) < 1e-12


def test_places_are_where_data_are_and_where_none_are() -> None:
    means = torch.from_numpy(TWO.means)
    inside, between = plane.at_the_modes(TWO, 2000, 0), plane.between_the_modes(2000, 0)
    away = torch.cdist(inside, means).amin(1)
    assert away.square().mean().item() == pytest.approx(2 * SPREAD**2, rel=0.1)
    assert torch.cdist(between, means).amin() > 5 * SPREAD
    assert between.norm(dim=1).max() <= plane.GAP
    assert between.square().sum(1).mean().item() == pytest.approx(plane.GAP**2 / 2, rel=0.1)


def test_shares_and_their_interval() -> None:
    x = torch.tensor([[-0.4, -0.6]] * 10 + [[0.5, 0.5]] * 89 + [[0.9, -0.8]])
    few, many = plane.shares(x, TWO)
    assert (few.count, many.count, few.n) == (10, 90, 100)
    # Wilson (1927): (p + z²/2n ± z·√(p(1−p)/n + z²/4n²))/(1 + z²/n)
    p, n, z = 0.1, 100, 1.959964
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    assert few.low == pytest.approx((middle - reach) / scale, abs=1e-6)
    assert few.high == pytest.approx((middle + reach) / scale, abs=1e-6)
    assert plane.astray(x, TWO) == 1


def lesser_weight(levels: int, steps: int) -> plane.Share:
    schedule = geometric(levels, 0.05 if levels == 1 else 1.0, 0.05)
    sampler = AnnealedLangevin(inner_steps=steps, step=0.2)
    *_, x = plane.langevin(sampler, plane.truth(TWO, schedule), 480, seed=0)
    assert plane.astray(x, TWO) == 0
    return plane.shares(x, TWO)[0]


def test_plain_langevin_cannot_tell_the_weights_and_annealed_can() -> None:
    """Song & Ermon 2019, sections 3.2.2 and 4.3: from a symmetric start plain dynamics falls where
    it began, whatever the weights (1/5 and 4/5)."""
    plain = lesser_weight(1, 200)
    assert plain.low < 0.5 < plain.high
    assert plain.low > 0.4
    annealed = lesser_weight(10, 100)
    assert annealed.low < 0.2 < annealed.high
    assert annealed.high < 0.3


def test_langevin_starts_uniformly_and_every_model_at_the_same_points() -> None:
    sampler = AnnealedLangevin(inner_steps=1)
    explodes, preserves = geometric(2), linear(1e-4, 0.02, 5)
    first = next(plane.langevin(sampler, plane.truth(TWO, explodes), 4000, seed=0))
    other = next(plane.langevin(sampler, plane.truth(TWO, preserves), 4000, seed=0))
    assert first.abs().max() <= 0.8
    torch.testing.assert_close(first.var(0), torch.full((2,), 1.6**2 / 12), rtol=0.05, atol=0)
    torch.testing.assert_close(other / preserves.alpha(1.0).item(), first)


# ---------------------------------------------------------------- the film
# What is known of a data set of one example: its ideal denoiser is that example, and DDIM then
# moves on the straight line α·x_0 + σ·ε.

SHAPE = (1, 20, 20)


def of_one_image(schedule: NoiseSchedule, value_range: tuple[float, float]) -> EmpiricalDenoiser:
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return EmpiricalDenoiser(image[None], schedule, None, value_range)


@pytest.mark.parametrize("schedule", [linear(1e-4, 0.02, 50), geometric(10)])
def test_frames_are_at_the_noise_levels_they_are_labelled_with(schedule: NoiseSchedule) -> None:
    denoiser = of_one_image(schedule, (-1.0, 1.0))
    x0 = denoiser.data[0].reshape(SHAPE)
    made = film(denoiser, DDIM(steps=None, dtype="float64"), x0, 6, seed=3)
    assert made.steps == schedule.levels
    assert made.log_snr[0] == math.inf
    assert torch.equal(made.forward[-1], made.reverse[-1])
    for log_snr, sigma, forward, reverse in zip(
        made.log_snr[1:], made.sigma[1:], made.forward[1:], made.reverse[1:], strict=True
    ):
        assert sigma**-2 == pytest.approx(math.exp(log_snr))
        alpha = schedule.alpha(schedule.t_of_log_snr(log_snr)).item()
        noise = (forward - alpha * x0) / (alpha * sigma)
        assert noise.std().item() == pytest.approx(1, abs=0.15)
        ending = (made.reverse[-1] - schedule.alpha(1.0) * x0) / schedule.sigma(1.0)
        expected = alpha * (x0 + sigma * ending)
        torch.testing.assert_close(reverse, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.reverse[0], x0)


def test_langevin_frames_are_taken_at_the_end_of_their_level() -> None:
    """There it is distributed as q_σ, a few per cent wider; it enters with the σ of the level
    before, 1.67 times this one's."""
    denoiser = of_one_image(geometric(10), (0.0, 1.0))
    x0 = denoiser.data[0].reshape(SHAPE)
    made = film(denoiser, AnnealedLangevin(inner_steps=30), x0, 6, seed=0)
    assert made.steps == 10 * 30 + 1
    for sigma, frame in zip(made.sigma[1:], made.reverse[1:], strict=True):
        assert (frame - x0).std().item() == pytest.approx(1.05 * sigma, rel=0.15)


def test_log_snr_is_that_of_data_in_minus_one_to_one() -> None:
    """At σ = 1, data in [0, 1] have a quarter of the variance of the same in [−1, 1]."""
    for value_range, expected in (((0.0, 1.0), -math.log(4)), ((-1.0, 1.0), 0.0)):
        denoiser = of_one_image(geometric(3), value_range)
        x0 = denoiser.data[0].reshape(SHAPE)
        made = film(denoiser, DDIM(steps=None), x0, 3, seed=0)
        assert made.log_snr[-1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "count"), [(linear(), 7), (geometric(4), 9), (geometric(1), 3)]
)
def test_levels_shown_are_the_schedule_s_own(schedule: NoiseSchedule, count: int) -> None:
    times = levels_to_show(schedule, count)
    assert len(times) <= min(count, schedule.levels)
    assert times[-1] == 1
    assert times[0] == pytest.approx(schedule.t_min)
    assert set(times) <= {i / schedule.levels for i in range(1, schedule.levels + 1)}
