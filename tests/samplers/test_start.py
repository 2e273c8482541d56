"""Where sampling begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.oracles import EmpiricalDenoiser, GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.samplers import DDIM
from betasigma.schedules import geometric, linear

LADDER = geometric(10, 1.0, 0.01)
WEIGHTS = np.array([0.2, 0.8])
MEANS = np.array([[0.2, 0.9], [0.7, 0.4]])
COVARIANCES = np.array([[[0.02, 0.01], [0.01, 0.04]], [[0.05, -0.02], [-0.02, 0.01]]])


def test_matched_moments_are_those_of_the_noisiest_data() -> None:
    for schedule in (LADDER, linear(steps=50)):
        oracle = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, schedule, (0.0, 1.0))
        x = DDIM(start="moments").begin(oracle, Stream("start", indices=range(40_000)))
        kernel = schedule.alpha(1.0).item(), schedule.sigma(1.0).item()
        truth = oracle.draw(Stream("truth", indices=range(40_000)), *kernel)
        assert torch.allclose(x.double().mean(0), truth.mean(0), atol=0.03)
        assert torch.allclose(x.double().std(0), truth.std(0), rtol=0.03)
        assert abs(torch.corrcoef(x.T)[0, 1]) < 0.02  # each dimension on its own


def test_moments_of_a_data_set_are_those_of_its_ideal_denoiser() -> None:
    data = ImageDataModule("digits", value_range=(0.0, 1.0))
    images = data.from_uint8(data.tensor("train"))
    pixels = images.double().numpy()
    oracle = EmpiricalDenoiser(images, LADDER, value_range=(0.0, 1.0), chunk=100)
    for found in (data.moments(), oracle.moments):
        assert np.allclose(found.mean.numpy(), pixels.mean(0), atol=1e-9)
        assert np.allclose(found.variance.numpy(), pixels.var(0), atol=1e-9)


def test_a_model_without_moments_says_so() -> None:
    network = torch.nn.Identity()
    denoiser = Denoiser(network, LADDER, Preconditioning(levels=10), sample_shape=(2,))
    with pytest.raises(UserError, match="which this checkpoint does not have"):
        DDIM(start="moments").sample(denoiser, 1)
