import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from betasigma.errors import UserError
from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import Identity
from betasigma.evaluation.frechet import FeatureMoments, frechet_distance
from betasigma.evaluation.sharding import shard

ALL = ("fd", "kid", "precision", "recall", "neighbours")


@pytest.fixture
def data(images, tensor_data):
    return tensor_data(images(90, 0, size=4), images(60, 1, size=4))


@pytest.fixture
def evaluator(data):
    return Evaluator(Identity(48), data, ALL, batch_size=16)


@pytest.fixture
def sampler(noise_sampler):
    return noise_sampler((3, 4, 4))


def test_every_number_says_what_it_depends_on(evaluator, sampler):
    found = evaluator.evaluate(None, sampler, n=50, seed=3)
    names = [(m.name, m.split, m.extractor) for m in found]
    assert names == [
        ("fd_identity", "train", "identity"),
        ("fd_identity", "test", "identity"),
        ("kid_identity", "train", "identity"),
        ("precision_identity", "train", "identity"),
        ("recall_identity", "train", "identity"),
        ("nn_distance_ratio", "train", "pixels"),
    ]
    assert {(m.n, m.nfe, m.sampler, m.seed) for m in found} == {(50, 7, "noise", 3)}
    assert found[2].std is not None


def test_a_batch_that_did_not_fit_is_not_tried_again(evaluator, sampler, noise_sampler):
    narrow = noise_sampler((3, 4, 4), fits=5)
    expected = evaluator.evaluate(None, sampler, n=48)[0].value
    assert evaluator.evaluate(None, narrow, n=48)[0].value == pytest.approx(expected, rel=1e-9)
    assert sampler.asked == [(16, 16)] * 3
    assert narrow.asked == [(16, 16)] + [(5, 5)] * 6 + [(2, 5)]


def test_it_measures_what_the_sampler_draws(evaluator, data, sampler):
    drawn = sampler.sample(None, indices=range(50), seed=3, y=None, batch_size=50, progress=None)
    images = data.to_uint8(drawn.x)
    by_sampler = evaluator.evaluate(None, sampler, n=50, seed=3)
    by_images = evaluator.evaluate_images(images, sampler="noise", nfe=7, seed=3)
    for a, b in zip(by_sampler, by_images, strict=True):
        assert a.name == b.name
        assert a.value == pytest.approx(b.value, rel=1e-9)
    expected = frechet_distance(
        FeatureMoments(48).update(images.flatten(1)),
        FeatureMoments(48).update(data.splits["train"].flatten(1)),
    )
    assert by_images[0].value == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:fd_identity of n")
def test_labels_reach_their_samples(evaluator, sampler):
    shifted = evaluator.evaluate(None, sampler, 40, y=torch.arange(40) % 2)
    assert shifted[0].value != evaluator.evaluate(None, sampler, 40)[0].value
    with pytest.raises(UserError, match="n=40 samples need as many class labels, not 3"):
        evaluator.evaluate(None, sampler, 40, y=torch.zeros(3))


def test_progress_adds_up_to_one(evaluator, sampler):
    steps = []
    with warnings.catch_warnings(action="ignore"):
        evaluator.evaluate(None, sampler, 40, progress=steps.append)
    assert sum(steps) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:fd_identity of n")
def test_copies_are_found_out(evaluator, data):
    copies = evaluator.evaluate_images(data.splits["train"][:40])
    fresh = evaluator.evaluate_images(data.splits["test"][:40])
    assert copies[-1].value == 0
    assert fresh[-1].value == pytest.approx(1, rel=0.2)
    assert copies[0].value < fresh[0].value


def test_floor_is_data_against_data(evaluator, data):
    found = evaluator.floor(50)
    assert (found.name, found.n, found.split, found.nfe) == ("fd_identity_floor", 50, "train", None)
    expected = evaluator.evaluate_images(data.splits["test"][:50])[0].value
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert evaluator.floor(1000).n == 60


def test_too_few_samples(evaluator, sampler):
    with pytest.raises(UserError, match="n=1 is too few samples for"):
        evaluator.evaluate(None, sampler, n=1)
    with pytest.raises(UserError, match="n=0 is too few samples for"):
        evaluator.evaluate_images(torch.empty(0, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match="n=1"):
        evaluator.floor(1)
    with pytest.warns(UserWarning, match="n=40 samples is biased upwards, since n is below"):
        evaluator.evaluate(None, sampler, n=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fd", "ssim")}, "evaluation.metrics holds ssim"),
        ({"metrics": ("is",)}, "class logits"),
        ({"batch_size": 0}, "evaluation.batch_size=0"),
        ({"n_reference": 1}, "evaluation.n_reference=1"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(UserError, match=message):
        Evaluator(Identity(48), data, **options)


@pytest.mark.filterwarnings("ignore:fd_identity of n")
def test_reference_can_be_limited(data, sampler):
    limited = Evaluator(Identity(48), data, ("fd",), n_reference=30)
    limited.evaluate(None, sampler, n=20)
    assert data.given == 60


def test_points(tensor_data, noise_sampler):
    """Against √(AB) by scipy, from the moments of the very points."""
    generator = torch.Generator().manual_seed(0)
    data = tensor_data(*(torch.randn(n, 2, generator=generator) for n in (400, 300)))
    sampler = noise_sampler((2,))
    found = Evaluator(Identity(2), data, ALL).evaluate(None, sampler, n=200)
    drawn = sampler.sample(None, indices=range(200), seed=0, y=None, batch_size=200, progress=None)
    distances = {m.split: m.value for m in found if m.name == "fd_identity"}
    assert distances.keys() == data.splits.keys()
    for split, points in data.splits.items():
        a, b = drawn.x.double().numpy(), points.double().numpy()
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        means = ((a.mean(0) - b.mean(0)) ** 2).sum()
        expected = means + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
        assert distances[split] == pytest.approx(expected, rel=1e-5)
    assert next(m.value for m in found if m.name == "nn_distance_ratio") < 1


@pytest.mark.parametrize(("n", "world"), [(100, 1), (100, 2), (100, 3), (10, 4), (0, 2)])
def test_shards_follow_one_another(n, world):
    shares = [shard(n, rank, world) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(n))
    assert all(share.start % 16 == 0 for share in shares if share)


def test_parts_add_up_to_the_whole(evaluator, data, sampler):
    """What two processes would have gathered, without processes."""
    n = 75

    def collected(rank, world):
        drawn = evaluator._draw(None, sampler, shard(n, rank, world), 0, None, None)
        return evaluator._collect(drawn)

    for world in (2, 3):
        joined = collected(0, world)
        for rank in range(1, world):
            joined = joined + collected(rank, world)
        whole = collected(0, 1)
        assert torch.equal(joined.features, whole.features)
        assert torch.equal(joined.images, whole.images)
        torch.testing.assert_close(joined.moments.scatter, whole.moments.scatter)
        assert joined.moments.count == n


def _worker(rank, rendezvous, data, sampler, cache, results):
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    evaluator = Evaluator(Identity(48), data, ALL, cache, batch_size=16)
    measured = evaluator.evaluate(None, sampler, n=40, rank=rank, world_size=2)
    results.put((rank, measured, evaluator.floor(40, rank=rank, world_size=2), data.given))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:fd_identity of n")
def test_two_processes_measure_what_one_does(data, sampler, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (tmp_path / "rendezvous", data, sampler, tmp_path / "two", results)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=60) for _ in workers)}
    for worker in workers:
        worker.join()
    alone = Evaluator(Identity(48), data, ALL, tmp_path / "one", batch_size=16)
    expected = [*alone.evaluate(None, sampler, n=40), alone.floor(40)]
    assert found[0][:2] == found[1][:2]
    for a, b in zip([*found[0][0], found[0][1]], expected, strict=True):
        assert (a.name, a.n, a.split) == (b.name, b.n, b.split)
        assert a.value == pytest.approx(b.value, rel=1e-6)
