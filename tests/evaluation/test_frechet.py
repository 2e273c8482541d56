import numpy as np
import pytest
import scipy.linalg
import torch

from betasigma.evaluation.frechet import (
    FeatureMoments,
    cholesky_factor,
    frechet_distance,
    gaussian_distance,
)


def covariance(dim, seed, rank=None):
    factor = torch.randn(
        dim, rank or 2 * dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return factor @ factor.T / factor.shape[1]


def by_square_root(mean_a, cov_a, mean_b, cov_b):
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * np.trace(
        root
    )


def test_commuting_gaussians_have_a_closed_form():
    """Diagonal in one basis: d² = Σ (m_a − m_b)² + (√a − √b)²."""
    a, b = torch.rand(2, 20, dtype=torch.float64)
    m_a, m_b = torch.randn(2, 20, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    expected = (m_a - m_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    turned = [(basis * x) @ basis.T for x in (a, b)]
    got = gaussian_distance(m_a, turned[0], m_b, turned[1])
    assert got == pytest.approx(float(expected), rel=1e-10)


def test_other_gaussians_agree_with_the_matrix_square_root():
    mean_a, mean_b = torch.randn(2, 30, dtype=torch.float64)
    a, b = covariance(30, 0), covariance(30, 1)
    expected = by_square_root(mean_a, a, mean_b, b)
    assert gaussian_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)
    assert gaussian_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-9)


def test_one_dimension():
    two, five = torch.tensor([[4.0]]), torch.tensor([[25.0]])
    assert gaussian_distance(torch.zeros(1), two, torch.ones(1), five) == pytest.approx(1 + 9)


@pytest.mark.parametrize("ranks", [(5, None), (None, 5), (5, 7), (1, 1), (39, None), (40, 41)])
def test_singular_covariances(ranks):
    """Against the singular values of XYᵀ, where A = XᵀX and B = YᵀY: exact without any root."""
    x, y = (
        torch.randn(rank or 80, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(s))
        for s, rank in enumerate(ranks)
    )
    a, b, zero = x.T @ x, y.T @ y, torch.zeros(40, dtype=torch.float64)
    expected = a.trace() + b.trace() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(float(expected), rel=1e-9)
    assert gaussian_distance(zero, b, zero, a) == pytest.approx(float(expected), rel=1e-9)
    assert gaussian_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-5 * float(a.trace()))


def test_no_variance_at_all_and_not_finite():
    zero, some = torch.zeros(3, 3), covariance(3, 0)
    assert gaussian_distance(torch.zeros(3), zero, torch.ones(3), zero) == 3
    assert gaussian_distance(torch.zeros(3), zero, torch.zeros(3), some) == pytest.approx(
        float(some.trace())
    )
    assert np.isnan(gaussian_distance(torch.full((3,), torch.nan), some, torch.ones(3), some))


@pytest.mark.parametrize("n", [30, 300])
def test_it_is_torch_fidelitys_and_torchmetrics_distance(n):
    """Also with fewer vectors than dimensions."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(n)
    mix = torch.randn(64, 64, generator=generator)
    x = torch.randn(n, 64, generator=generator) @ mix
    y = torch.randn(n + 10, 64, generator=generator) @ mix + 0.5
    a, b = FeatureMoments(64).update(x), FeatureMoments(64).update(y)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(x.double()), fid_features_to_statistics(y.double()), False
    )["frechet_inception_distance"]
    metrics = float(_compute_fid(a.mean, a.cov, b.mean, b.cov))
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(metrics, rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("rank", "columns"), [(4, 4), (None, 12)])
def test_cholesky_finds_rank_and_factor(rank, columns):
    matrix = covariance(12, 0, rank)
    factor = cholesky_factor(matrix)
    assert factor.shape == (12, columns)
    torch.testing.assert_close(factor @ factor.T, matrix)


@pytest.mark.parametrize("small", [0, 1e-9])  # the latter is a pivot that no rounding hides
def test_a_direction_without_variance_is_not_in_the_factor(small):
    matrix = covariance(12, 0)
    matrix[3] *= small
    matrix[:, 3] *= small
    factor = cholesky_factor(matrix)
    assert factor.shape == (12, 11)
    torch.testing.assert_close(factor @ factor.T, matrix)


def test_moments_do_not_depend_on_how_the_stream_is_cut():
    x = torch.randn(100, 6) * 3 + 1e4
    whole = FeatureMoments(6).update(x)
    parts = FeatureMoments(6)
    for batch in x.split([1, 0, 7, 50, 42]):
        parts.update(batch)
    merged = FeatureMoments(6).update(x[:33]).merge(FeatureMoments(6))
    merged.merge(FeatureMoments(6).update(x[33:]))
    for other in (parts, merged, whole.to("cpu")):
        assert other.count == 100
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.mean, x.double().mean(0))
    torch.testing.assert_close(whole.cov, x.double().T.cov())


def test_one_vector_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        _ = FeatureMoments(3).update(torch.randn(1, 3)).cov
