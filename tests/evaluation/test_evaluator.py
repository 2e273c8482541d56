import multiprocessing
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from betasigma.errors import UserError
from betasigma.evaluation.choice import choose
from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import FeatureExtractor, Identity
from betasigma.evaluation.features import build as build_extractor
from betasigma.evaluation.frechet import FeatureMoments, frechet_distance
from betasigma.evaluation.metrics import SampleMetric
from betasigma.evaluation.sharding import shard
from betasigma.options import plugins

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


def _worker(rank, world, rendezvous, data, sampler, cache, results):
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    evaluator = Evaluator(Identity(48), data, ALL, cache, batch_size=16)
    measured = [evaluator.evaluate(None, sampler, 40) for _ in range(2)]
    results.put((rank, *measured, evaluator.floor(40)))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:fd_identity of n")
@pytest.mark.parametrize("world", [2, 4])  # of four processes one has no samples
def test_processes_measure_what_one_does(data, sampler, tmp_path, world):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (world, tmp_path / "rendezvous", data, sampler, tmp_path / "several", results)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(world)]
    for worker in workers:
        worker.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=60) for _ in workers)}
    for worker in workers:
        worker.join()
    alone = Evaluator(Identity(48), data, ALL, tmp_path / "one", batch_size=16)
    expected = [*alone.evaluate(None, sampler, n=40), alone.floor(40)]
    assert all(values == found[0] for values in found.values())
    first, again, floor = found[0]
    assert first == again
    for a, b in zip([*first, floor], expected, strict=True):
        assert (a.name, a.n, a.split, a.n_reference) == (b.name, b.n, b.split, b.n_reference)
        assert a.value == pytest.approx(b.value, rel=1e-6)


class MeanDifference(SampleMetric):
    """A metric of one's own: |mean of samples − mean of real data|, scaled."""

    name = "mean_difference"
    needs = "images"
    splits = ("train", "test")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def compute(self):
        samples, real = self.rows().double(), self.rows(real=True).double()
        return self.scale * (samples.mean() - real.mean()).abs()


@pytest.fixture
def mylab(monkeypatch):
    """A package that the user lets in."""
    package = ModuleType("mylab")
    for own in (MeanDifference, Edges, Unnamed, Taken, Nameless, OfLogits):
        monkeypatch.setattr(own, "__module__", "mylab")
        monkeypatch.setattr(package, own.__name__, own, raising=False)
    monkeypatch.setitem(sys.modules, "mylab", package)
    monkeypatch.setitem(plugins._allowed, "mylab", None)


@pytest.mark.parametrize(
    ("entry", "scale"),
    [
        (MeanDifference(), 1),
        ("mylab.MeanDifference", 1),
        ({"_target_": "mylab.MeanDifference", "scale": 3}, 3),
    ],
)
def test_a_metric_of_ones_own(data, mylab, entry, scale):
    evaluator = Evaluator(Identity(48), data, [entry])
    samples = data.splits["test"][:20]
    found = evaluator.evaluate_images(samples)
    for m, split in zip(found, ("train", "test"), strict=True):
        assert (m.name, m.split, m.extractor) == ("mean_difference", split, "pixels")
        assert (m.n, m.n_reference) == (20, len(data.splits[split]))
        difference = samples.double().mean() - data.splits[split].double().mean()
        assert m.value == pytest.approx(scale * abs(float(difference)))
    assert evaluator.evaluate_images(samples) == found


class Edges(FeatureExtractor):
    name, dim, fingerprint = "edges", 6, "edges-1"

    def features_and_logits(self, images):
        return images.float().diff(dim=-1).abs().mean((1, 2)).repeat(1, 2), None


class Unnamed(Edges):
    fingerprint = ""


class Taken(Edges):
    name = "inception"


def test_features_of_ones_own(data, mylab):
    choice = choose("mylab.Edges", sample_shape=(3, 4, 4))
    extractor = build_extractor(choice, (3, 4, 4))
    found = Evaluator(extractor, data, ["fd", "kid"]).evaluate_images(data.splits["test"])
    assert [m.name for m in found] == ["fd_edges", "fd_edges", "kid_edges"]
    assert found[1].value == pytest.approx(0, abs=1e-3)
    with pytest.raises(UserError, match="holds is, which needs class logits"):
        Evaluator(extractor, data, ["is"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mylab.MeanDifference", "is a MeanDifference, not a subclass of .*FeatureExtractor"),
        ("mylab.Unnamed", "has fingerprint=''; it must set fingerprint to a string"),
        ("mylab.Taken", "has name='inception'; it must be an identifier other than inception"),
    ],
)
def test_no_extractor(mylab, target, message):
    with pytest.raises(UserError, match=f"evaluation.extractor={target} {message}"):
        build_extractor(choose(target), (3, 4, 4))


class Nameless(SampleMetric):
    needs = "features"


class OfLogits(SampleMetric):
    name, needs = "of_logits", "logits"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["mylab.Edges"], "holds mylab.Edges, which is a Edges and not a subclass of .*Metric"),
        (["mylab.Nameless"], "holds Nameless, which must set name to a string and needs to one of"),
        (["mylab.OfLogits"], "compares logits with those of the splits train"),
        (["fd", "fd"], "measures fd twice"),
        ([{"projections": 3}], "choose from fd, kid, .* or name a class"),
        (["my lab.metrics"], "choose from fd, kid, .* or name a class"),
    ],
)
def test_no_metric(data, mylab, metrics, message):
    with pytest.raises(UserError, match=message):
        Evaluator(Identity(48), data, metrics)


class MeanPixels(SampleMetric):
    name, needs = "mean_pixels", "images"

    def compute(self):
        return self.rows().double().mean(0)


def test_a_metric_of_many_numbers_is_refused(data):
    evaluator = Evaluator(Identity(48), data, [MeanPixels()])
    sentence = r"holds mean_pixels, whose compute returned a tensor of shape \(3, 4, 4\); it must"
    with pytest.raises(UserError, match=sentence):
        evaluator.evaluate_images(data.splits["test"][:20])


def test_outside_code_is_not_imported_unasked(data):
    sentence = r"evaluation\.metrics\._target_=os\.getcwd is not a class that"
    with pytest.raises(UserError, match=sentence):
        Evaluator(Identity(48), data, ["os.getcwd"])
