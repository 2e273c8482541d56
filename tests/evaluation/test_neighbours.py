import pytest
import torch

from betasigma.evaluation.neighbours import distance_ratio, nearest


def brute_force(queries, train, k):
    distances = torch.cdist(queries.flatten(1).double(), train.flatten(1).double())
    return distances.topk(k, largest=False)


@pytest.mark.parametrize("k", [1, 3])
def test_images_against_brute_force(images, k):
    queries, train = images(40, 0, size=8), images(500, 1, size=8)
    expected = brute_force(queries, train, k)
    for batch in (33, 1000):
        found = nearest(queries, train.split(batch), k)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.distances, expected.values)


def test_points_against_brute_force():
    queries, train = torch.randn(30, 2), torch.randn(200, 2)
    found = nearest(queries, train.split(64), 2)
    expected = brute_force(queries, train, 2)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.distances, expected.values)


def test_points_that_float32_cannot_tell_apart():
    train = 1 + torch.rand(5000, 2) * 1e-4
    found = nearest(train[:50], [train])
    assert torch.equal(found.distances, torch.zeros(50, 1, dtype=torch.float64))


def test_a_copy_is_at_distance_zero(images):
    train = images(300, 0, size=32)
    found = nearest(train[[7, 250]], train.split(100))
    assert found.indices.flatten().tolist() == [7, 250]
    assert found.distances.flatten().tolist() == [0.0, 0.0]


def test_fewer_examples_than_neighbours(images):
    found = nearest(images(2, 0), [images(3, 1)], k=5)
    assert found.indices[:, 3:].eq(-1).all()
    assert found.distances[:, 3:].isinf().all()


def test_ratio():
    assert distance_ratio(torch.tensor([1.0, 3.0]), torch.tensor([4.0])) == 0.5
    assert torch.tensor(distance_ratio(torch.ones(2), torch.zeros(2))).isnan()
