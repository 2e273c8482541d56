import torch

from betasigma.evaluation.neighbours import distance_ratio, nearest


def brute_force(queries, train):
    return torch.cdist(queries.flatten(1).double(), train.flatten(1).double()).min(1).values


def test_images_against_brute_force(images):
    queries, train = images(40, 0, size=8), images(500, 1, size=8)
    for batch in (33, 1000):
        found = nearest(queries, train.split(batch))
        torch.testing.assert_close(found, brute_force(queries, train))


def test_points_against_brute_force():
    queries, train = torch.randn(30, 2), torch.randn(200, 2)
    torch.testing.assert_close(nearest(queries, train.split(64)), brute_force(queries, train))


def test_points_that_float32_cannot_tell_apart():
    train = 1 + torch.rand(5000, 2) * 1e-4
    assert torch.equal(nearest(train[:50], [train]), torch.zeros(50, dtype=torch.float64))


def test_a_copy_is_at_distance_zero(images):
    train = images(300, 0, size=32)
    assert nearest(train[[7, 250]], train.split(100)).tolist() == [0.0, 0.0]


def test_no_training_examples(images):
    assert nearest(images(2, 0), []).isinf().all()


def test_ratio():
    assert distance_ratio(torch.tensor([1.0, 3.0]), torch.tensor([4.0])) == 0.5
    assert torch.tensor(distance_ratio(torch.ones(2), torch.zeros(2))).isnan()
