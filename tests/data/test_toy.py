import numpy as np
import pytest

from betasigma.data import toy
from betasigma.errors import UserError
from betasigma.randomness import philox


@pytest.mark.parametrize("name", toy.BY_NAME)
def test_parameters_are_a_distribution_within_the_unit_square(name):
    mixture = toy.mixture(name)
    k = len(mixture.weights)
    assert mixture.means.shape == (k, 2)
    assert mixture.covariances.shape == (k, 2, 2)
    assert mixture.weights.sum() == pytest.approx(1)
    deviation = np.sqrt(np.linalg.eigvalsh(mixture.covariances).max(axis=1))
    assert (np.abs(mixture.means) + 5 * deviation[:, None]).max() <= 1 + 1e-12


@pytest.mark.parametrize("name", toy.BY_NAME)
def test_samples_have_the_moments_of_the_parameters(name):
    mixture = toy.mixture(name)
    x, component = toy.sample(mixture, 40_000, philox("test"))
    assert x.shape == (40_000, 2)
    share = np.bincount(component, minlength=len(mixture.weights)) / len(x)
    np.testing.assert_allclose(share, mixture.weights, atol=0.01)
    for k, mean in enumerate(mixture.means):
        mine = x[component == k]
        deviation = np.sqrt(mixture.covariances[k].diagonal())
        np.testing.assert_allclose(mine.mean(axis=0), mean, atol=5 * deviation.max() / 35)
        np.testing.assert_allclose(
            np.cov(mine.T), mixture.covariances[k], atol=0.15 * deviation[0] ** 2
        )


def test_unknown_mixture():
    with pytest.raises(UserError, match=r"data\.mixture=swirl"):
        toy.mixture("swirl")
