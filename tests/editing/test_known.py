"""Images with a part known: against the exact conditional distribution of oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, norm
from torch import Tensor

from betasigma.editing import (
    Colourisation,
    Conditioned,
    Inpainting,
    Request,
    complete,
    grey,
    outside,
)
from betasigma.editing.known import hole_of, with_repeats
from betasigma.errors import UserError
from betasigma.oracles import GaussianMixture
from betasigma.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    CountingDenoiser,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
)
from betasigma.schedules import NoiseSchedule, geometric

WEIGHTS = np.array([0.5, 0.5])
MEANS = np.array([[-0.4, 0.3], [0.4, -0.2]])
COVARIANCES = np.array([[[0.16, 0.128], [0.128, 0.16]], [[0.09, -0.075], [-0.075, 0.25]]])
HOLE = torch.tensor([[[False, True]]])
"""Of an image of two pixels, the second."""
KNOWN = 0.1
"""Value of the first."""


def mixture(schedule: NoiseSchedule) -> GaussianMixture:
    return GaussianMixture(WEIGHTS, MEANS.reshape(2, 1, 1, 2), COVARIANCES, schedule, (-2.0, 2.0))


def conditional() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and standard deviations of the painted pixel, given the known one."""
    own, across, other = COVARIANCES[:, 0, 0], COVARIANCES[:, 0, 1], COVARIANCES[:, 1, 1]
    weights = WEIGHTS * norm.pdf(KNOWN, MEANS[:, 0], np.sqrt(own))
    means = MEANS[:, 1] + across / own * (KNOWN - MEANS[:, 0])
    return weights / weights.sum(), means, np.sqrt(other - across**2 / own)


def distance(x: Tensor) -> float:
    """Kolmogorov's distance between drawn pixels and the exact conditional distribution."""
    weights, means, stds = conditional()

    def cdf(z: np.ndarray) -> np.ndarray:
        return (weights * norm.cdf(z[:, None], means, stds)).sum(1)

    return float(kstest(x[..., 1].double().flatten().numpy(), cdf).statistic)


def painted(sampler: Sampler, schedule: NoiseSchedule, repeats: int, n: int = 1000) -> Tensor:
    x0 = torch.full((n, 1, 1, 2), KNOWN)
    found = complete(mixture(schedule), sampler, x0, outside(HOLE), repeats=repeats, batch_size=n).x
    torch.testing.assert_close(found[..., 0], x0[..., 0])
    return found


CLOSE = 1.63 / 1000**0.5
"""Kolmogorov's distance of 1000 exact draws exceeds this once in a hundred."""


@pytest.mark.parametrize(
    ("sampler", "repeats"),
    [
        pytest.param(PredictorCorrector(corrector_steps=16, snr=0.3), 1, marks=pytest.mark.slow),
        (Ancestral(clip=False, variance="posterior"), 16),
    ],
    ids=["predictor_corrector", "ancestral"],
)
def test_many_steps_at_each_level_draw_from_the_exact_conditional(
    sampler: Sampler, repeats: int
) -> None:
    assert distance(painted(sampler, geometric(30, 2.0, 0.04), repeats)) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "repeats"),
    [
        (PredictorCorrector(corrector_steps=16, snr=0.3), 1),
        (PredictorCorrector("ancestral", snr=0.3, corrector_steps=8), 2),
        (Ancestral(clip=False, variance="beta"), 32),
    ],
    ids=["predictor_corrector", "corrected_ancestral", "ancestral"],
)
def test_in_either_family(sampler: Sampler, repeats: int, schedule: NoiseSchedule) -> None:
    assert distance(painted(sampler, schedule, repeats)) < 1.5 * CLOSE


class Impulses:
    """Noise that is one unit of one coordinate of one draw in each row, and nothing else."""

    def __init__(self, size: int, first: int) -> None:
        self.size, self.first, self.draws = size, first, 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        rows = torch.zeros(self.size, 4, dtype=torch.float64)
        row = self.first + 4 * self.draws
        rows[row : row + 4] = torch.eye(4, dtype=torch.float64)[: max(0, self.size - row)]
        self.draws += 1
        return rows.reshape(-1, *shape)


@pytest.mark.parametrize("repeats", [1, 3])
def test_on_a_gaussian_it_is_the_recursion_of_the_paper(
    repeats: int, schedule: NoiseSchedule, gaussian: Callable, moments: Callable
) -> None:
    """Mean and covariance of each state, exactly: draw the known part of x_t from its kernel, take
    the ancestral step of the rest, and put the noise back where the step is taken again.
    """
    oracle = gaussian(schedule, (1, 2, 2))
    mu, sigma_0 = (m.numpy() for m in moments(oracle))
    hole = torch.tensor([[[False, True], [False, True]]])
    rest = np.diag([0.0, 1.0, 0.0, 1.0])
    y = torch.tensor([0.2, 0.0, -0.4, 0.0], dtype=torch.float64)
    sampler = Ancestral(clip=False, variance="posterior", dtype="float64")

    def last(size: int, first: int, start: Tensor, rng: Impulses, known: Impulses) -> Tensor:
        x0 = y.reshape(1, 1, 2, 2).expand(size, 1, 2, 2)
        model = CountingDenoiser(Conditioned(oracle, outside(hole), x0, known), False, None)
        *_, before, end = with_repeats(sampler, model, start.reshape(-1, 1, 2, 2), rng, repeats)
        torch.testing.assert_close(end[:1, 0, :, 0].flatten(), y[::2])
        return before.flatten(1)

    zero = torch.zeros(1, 4, dtype=torch.float64)
    counted = Impulses(1, 5), Impulses(1, 5)
    last(1, 5, zero, *counted)
    first_of_known = 5 + 4 * counted[0].draws
    size = first_of_known + 4 * counted[1].draws
    start = torch.zeros(size, 4, dtype=torch.float64)
    start[1:5] = torch.eye(4, dtype=torch.float64)
    states = last(size, 5, start, Impulses(size, 5), Impulses(size, first_of_known))
    found_mean, rows = states[0].numpy(), (states[1:] - states[0]).numpy()
    rows[:4] *= schedule.prior_std
    found = rest @ rows.T @ rows @ rest

    eye = np.eye(4)
    mean, covariance = np.zeros(4), schedule.prior_std**2 * eye
    levels = sampler.times(schedule)
    for t, s in pairwise(levels):
        a_t, s_t = schedule.alpha(t).item(), schedule.sigma(t).item()
        a_s, s_s = schedule.alpha(s).item(), schedule.sigma(s).item()
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        gain = a_t * sigma_0 @ np.linalg.inv(a_t**2 * sigma_0 + s_t**2 * eye)
        for left in range(repeats, 0, -1):
            mean = rest @ mean + (eye - rest) @ (a_t * y.numpy())
            covariance = rest @ covariance @ rest + s_t**2 * (eye - rest)
            of_x0, of_x = a_s * step / s_t**2, (a_t / a_s) * s_s**2 / s_t**2
            a = of_x0 * gain + of_x * eye
            mean = a @ mean + of_x0 * (mu - gain @ (a_t * mu))
            covariance = a @ covariance @ a.T + step * s_s**2 / s_t**2 * eye
            if left > 1:
                mean, covariance = (a_t / a_s) * mean, (a_t / a_s) ** 2 * covariance + step * eye
    np.testing.assert_allclose((rest @ found_mean), rest @ mean, atol=1e-10)
    np.testing.assert_allclose(found, rest @ covariance @ rest, atol=1e-10)


def test_once_a_level_the_law_is_off_and_repeats_mend_it() -> None:
    """What the page says of the approximation."""
    schedule, sampler = geometric(30, 2.0, 0.04), Ancestral(clip=False, variance="posterior")
    off = [distance(painted(sampler, schedule, repeats)) for repeats in (1, 4)]
    assert 0.12 < off[0] < 0.2
    assert off[1] < 0.75 * off[0]


@pytest.mark.parametrize(
    "sampler", [DDIM(steps=5), Heun(steps=3), DPMSolver(steps=4), AnnealedLangevin(2, steps=3)]
)
def test_any_sampler_keeps_what_is_known(sampler: Sampler, schedule: NoiseSchedule) -> None:
    found = painted(sampler, schedule, repeats=1, n=3)
    assert found.std() > 0


def test_results_do_not_depend_on_the_batch(schedule: NoiseSchedule, gaussian: Callable) -> None:
    oracle = gaussian(schedule, (3, 2, 2))
    x0 = torch.rand(5, 3, 2, 2)
    sampler = PredictorCorrector(steps=4)
    whole = complete(oracle, sampler, x0, grey, seed=3, repeats=2)
    parts = complete(oracle, sampler, x0, grey, seed=3, repeats=2, batch_size=2)
    torch.testing.assert_close(parts.x, whole.x)
    one = complete(oracle, sampler, x0[3:4], grey, indices=[3], seed=3, repeats=2)
    torch.testing.assert_close(one.x, whole.x[3:4])
    assert whole.nfe == (3 * 2 + 1) * 2


def test_colours_have_the_grey_values_of_the_image(
    schedule: NoiseSchedule, gaussian: Callable
) -> None:
    oracle = gaussian(schedule, (3, 2, 2))
    images = torch.rand(2, 3, 2, 2)
    request = Request(oracle, Ancestral(steps=6), images, variants=4)
    found = Colourisation(repeats=2).apply(request)
    assert found.x.shape == (2, 6, 3, 2, 2)
    assert found.columns == ["image", "known", "result 0", "result 1", "result 2", "result 3"]
    # the model of this oracle has no range, so that nothing but the sampler's clipping moves grey
    free = complete(oracle, Ancestral(steps=6, clip=False), images, grey).x
    torch.testing.assert_close(free.mean(1), images.mean(1))
    assert not torch.allclose(free, images, atol=0.05)
    torch.testing.assert_close(found.x[:, 1], images.mean(1, keepdim=True).expand(2, 3, 2, 2))


def test_greys_are_colourised_as_the_papers_basis_does(gaussian: Callable) -> None:
    """Song et al. replace the first coordinate of an orthonormal basis that begins with grey."""
    basis = np.linalg.qr(np.stack([np.ones(3), [1, -1, 0], [0, 1, -1]], axis=1))[0]
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 2))
    in_basis = np.einsum("ck,ncij->nkij", basis, x)
    in_basis[:, 1:] = 0
    expected = np.einsum("ck,nkij->ncij", basis, in_basis)
    np.testing.assert_allclose(grey(torch.tensor(x)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("left", slice(None), slice(0, 3)),
        ("right", slice(None), slice(3, 6)),
        ("top", slice(0, 2), slice(None)),
        ("bottom", slice(2, 4), slice(None)),
        ("center", slice(1, 3), slice(1, 5)),
    ],
)
def test_holes(name: str, rows: slice, columns: slice) -> None:
    expected = torch.zeros(1, 4, 6, dtype=torch.bool)
    expected[:, rows, columns] = True
    assert torch.equal(hole_of(name, (3, 4, 6)), expected)


def test_a_picture_says_where_to_paint(tmp_path: Path, gaussian: Callable) -> None:
    drawn = np.zeros((2, 3), dtype=np.uint8)
    drawn[1, 2] = 255
    path = tmp_path / "hole.png"
    Image.fromarray(drawn).save(path)
    hole = hole_of(str(path), (1, 2, 3))
    assert hole.nonzero().tolist() == [[0, 1, 2]]
    images = torch.zeros(1, 1, 2, 3)
    oracle = gaussian(geometric(5), (1, 2, 3))
    found = Inpainting(str(path)).apply(Request(oracle, Ancestral(clip=False), images, variants=2))
    known = ~hole
    assert bool((found.x[0, 2:][:, known] == 0).all())
    assert found.x[0, 2, 0, 1, 2] != found.x[0, 3, 0, 1, 2]
    assert found.x[0, 1, 0, 1, 2] == -1.0  # what is to be painted is shown as the lowest value
    for value, message in ((255, "all white"), (0, "nowhere white")):
        Image.fromarray(np.full((2, 3), value, dtype=np.uint8)).save(path)
        with pytest.raises(UserError, match=message):
            hole_of(str(path), (1, 2, 3))
    with pytest.raises(UserError, match="is 3×2, and the model's images are 2×2"):
        hole_of(str(path), (1, 2, 2))
    with pytest.raises(UserError, match=r"edit.hole=leftt is neither left"):
        hole_of("leftt", (1, 2, 2))


def test_a_picture_of_where_to_paint_starts_no_program(tmp_path: Path) -> None:
    path = tmp_path / "hole.png"
    Image.new("RGB", (3, 2)).save(path, format="EPS")
    with pytest.raises(UserError, match="cannot identify image file"):
        hole_of(str(path), (1, 2, 3))


def test_what_cannot_be_done(gaussian: Callable) -> None:
    oracle, x0 = gaussian(geometric(5), (1, 1, 2)), torch.zeros(1, 1, 1, 2)
    known = outside(HOLE)
    with pytest.raises(UserError, match="sampler=adaptive_ode chooses its steps"):
        complete(oracle, AdaptiveODE(), x0, known)
    for sampler in (DPMSolver(), AnnealedLangevin()):
        with pytest.raises(UserError, match=rf"edit.repeats=2 does not .* sampler={sampler.name}"):
            complete(oracle, sampler, x0, known, repeats=2)
    with pytest.raises(UserError, match=r"edit.repeats=0"):
        complete(oracle, Ancestral(), x0, known, repeats=0)
    with pytest.raises(UserError, match=r"needs a model of colour images; .* 1×1×2"):
        Colourisation().apply(Request(oracle, Ancestral(), x0))
    with pytest.raises(UserError, match="needs a model of images"):
        Inpainting().apply(Request(gaussian(geometric(5), (2,)), Ancestral(), torch.zeros(1, 2)))
