"""Likelihoods of a data set, against entropies that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from betasigma.data import toy
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.order import subset
from betasigma.evaluation.likelihood import LikelihoodMeter, error_curve
from betasigma.likelihood import ContinuousBound, DiscreteBound, FlowLikelihood, GaussianPrior
from betasigma.oracles import EmpiricalDenoiser, GaussianMixture
from betasigma.schedules import NoiseSchedule, geometric, linear

MNIST = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"


def ideal(schedule: NoiseSchedule, value_range: tuple[float, float]):
    """The digits, and the denoiser that has learned them by heart."""
    data = ImageDataModule("digits", value_range=value_range)
    images = data.from_uint8(data.tensor("train"))
    return data, EmpiricalDenoiser(images, schedule, value_range=value_range)


@pytest.mark.parametrize(
    ("schedule", "value_range"),
    [(linear(), (-1.0, 1.0)), (geometric(10, 10.0, 0.01), (0.0, 1.0))],
    ids=["ddpm", "ncsn"],
)
def test_the_bound_of_a_memory_is_the_entropy_of_what_it_remembers(schedule, value_range) -> None:
    data, oracle = ideal(schedule, value_range)
    assert len(torch.unique(data.tensor("train"), dim=0)) == 1437
    estimator = ContinuousBound(draws=64)
    found = LikelihoodMeter(estimator, data, "moments", n=96, split="train").measure(oracle)
    terms = {m.name.rpartition("/")[2]: m for m in found.measurements}
    exact = math.log2(1437) / 64
    total = terms["total"]
    assert total.value == pytest.approx(
        sum(terms[name].value for name in ("prior", "diffusion", "decoder"))
    )
    assert total.value > exact - 4 * total.std
    assert total.value == pytest.approx(exact, abs=0.01 if schedule.levels == 1000 else 0.02)
    assert terms["decoder"].value < 1e-3
    assert (total.n, total.nfe, total.split) == (96, 65, "train")


def test_a_decoder_is_not_fitted_to_the_images_that_it_scores() -> None:
    """A memory is exact on training digits and some grey levels off on others: a decoder that knew
    of these would need the 8 bits of a byte at most, one that trusts the memory far more.
    """
    data, oracle = ideal(geometric(6, 3.0, 0.01), (0.0, 1.0))
    values = []
    for batch_size in (24, 10):
        estimator = DiscreteBound(decoder_std="fitted")
        meter = LikelihoodMeter(estimator, data, "standard", 24, "test", batch_size)
        terms = {m.name.rpartition("/")[2]: m.value for m in meter.measure(oracle).measurements}
        values.append(terms["decoder"])
    assert values[0] > 100
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    x0 = data.from_uint8(data.tensor("test")[:24])
    assert estimator.bits_per_dim(oracle, x0).decoder.mean() < 8


def test_one_example_has_no_standard_error() -> None:
    data, oracle = ideal(geometric(2, 1.0, 0.1), (0.0, 1.0))
    for n in (1, 2):
        meter = LikelihoodMeter(DiscreteBound(), data, "standard", n, "test")
        found = meter.measure(oracle).measurements
        assert [m.std is None for m in found] == [n == 1] * len(found)


def test_batches_and_processes_change_nothing() -> None:
    data, oracle = ideal(geometric(6, 3.0, 0.05), (0.0, 1.0))
    values = []
    for batch_size in (40, 7):
        estimator = DiscreteBound(decoder_std="fitted")
        meter = LikelihoodMeter(estimator, data, "standard", 40, "train", batch_size)
        found = meter.measure(oracle)
        values.append([m.value for m in found.measurements])
        assert len(found.per_level) == 5
        assert found.per_level.sum().item() == pytest.approx(found.measurements[2].value)
    assert np.allclose(*values, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "value_range"),
    [(linear(), (-1.0, 1.0)), (geometric(10, 10.0, 0.01), (0.0, 1.0))],
    ids=["ddpm", "ncsn"],
)
def test_the_flow_takes_bytes_where_the_model_knows_them(schedule, value_range) -> None:
    """A memory's q at the smallest noise s is N(y_i, s²) with probability 1/1437, and data spread
    over bins of 1/255 of the range around y_i are on average a twelfth of a bin's square away.
    """
    data, oracle = ideal(schedule, value_range)
    meter = LikelihoodMeter(FlowLikelihood(tolerance=1e-4), data, "moments", 64, split="train")
    (found,) = meter.measure(oracle).measurements
    s, bin_width = schedule.ratio(schedule.t_min).item(), (value_range[1] - value_range[0]) / 255
    nats = math.log(1437) / 64 + (math.log(2 * math.pi * s**2) + bin_width**2 / 12 / s**2) / 2
    exact = nats / math.log(2) - math.log2(bin_width)
    assert found.std < 0.015
    assert found.value == pytest.approx(exact, abs=4 * found.std)


def test_the_flow_of_points_is_their_density() -> None:
    data = ImageDataModule("mixture", mixture="two")
    truth = toy.two()
    schedule = geometric(10, 20.0, 0.01)
    oracle = GaussianMixture(truth.weights, truth.means, truth.covariances, schedule)
    meter = LikelihoodMeter(FlowLikelihood(trace="exact"), data, "moments", n=64)
    (found,) = meter.measure(oracle).measurements
    assert found.name == "density_bits_per_dim/flow/total"
    x = data.tensor("test")[subset(10_000, 64)]
    exact = -oracle.log_density(x, 1.0, 0.01).mean().item() / 2 / math.log(2)
    assert found.value == pytest.approx(exact, abs=0.005)


def test_error_curve_of_a_gaussian_is_its_posterior_variance() -> None:
    data = ImageDataModule("mixture", mixture="two", val_size=10)
    flat = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], geometric(8, 3.0, 0.1))
    points = data.tensor("test").double()
    curve = error_curve(flat, data, 10_000)
    assert list(curve) == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    for log_snr, error in curve.items():
        sigma = math.exp(-log_snr / 2)
        # the denoiser of N(0, I) leaves x_0 − x̂_0 = (σ²·x_0 − σ·ε)/(1 + σ²)
        expected = (sigma**4 * points.square().mean().item() + sigma**2) / (1 + sigma**2) ** 2
        assert error == pytest.approx(expected / sigma**2, rel=0.03)


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not in ../shared/data/mnist")
def test_the_prior_term_of_ddpm_on_mnist() -> None:
    data = ImageDataModule("mnist", MNIST, value_range=(-1.0, 1.0))
    x0 = data.from_uint8(data.tensor("test")[:2000])
    bits = GaussianPrior.standard(linear()).kl(linear(), x0).mean().item() / 784 / math.log(2)
    assert bits == pytest.approx(2.7e-5, rel=0.03)
