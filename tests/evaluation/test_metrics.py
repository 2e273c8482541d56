"""Each metric alone, as anybody would use it: against closed forms, torchmetrics' own classes, in a
LightningModule and in several processes."""

import copy
import io
import multiprocessing
import pickle
import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from betasigma.errors import UserError
from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import FeatureExtractor, Identity
from betasigma.evaluation.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    NeighbourRatio,
    Precision,
    Recall,
    SampleMetric,
)
from betasigma.options.plugins import check_arguments


class Linear(FeatureExtractor):
    """Features and logits that take no time."""

    name, dim, classes, fingerprint = "linear", 8, 5, "linear-1"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(48, 8)
        self.head = nn.Linear(8, 5)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.01, generator=generator)
        self.requires_grad_(False).eval()

    def features_and_logits(self, images):
        features = self.layer(images.flatten(1).float())
        return features, self.head(features)


def both(metric: SampleMetric, samples, real):
    """The metric, which has seen both in uneven batches."""
    for batch in real.split(7):
        metric.update(batch, real=True)
    for batch in samples.split(5):
        metric.update(batch)
    return metric


def test_frechet_distance_of_a_shift():
    """Equal covariances: |shift|²."""
    x = torch.randn(50, 3, dtype=torch.float64)
    metric = both(FrechetDistance(), x + torch.tensor([1.0, 2.0, 2.0]), x)
    assert metric.compute() == pytest.approx(9, rel=1e-9)


def test_frechet_distance_is_torchmetrics(images):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(Linear):
        num_features = 8

    samples, real = images(60, 0, size=4), images(90, 1, size=4)
    theirs = FrechetInceptionDistance(feature=Features(), input_img_size=(3, 4, 4))
    theirs.update(samples, real=False)
    theirs.update(real, real=True)
    ours = both(FrechetDistance(Linear()), samples, real)
    assert ours.compute() == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_kernel_distance_is_torchmetrics(images):
    """Subsets that are all there is leave nothing to chance."""
    from torchmetrics.image.kid import KernelInceptionDistance

    samples, real = images(40, 0, size=4), images(40, 1, size=4)
    theirs = KernelInceptionDistance(feature=Linear(), subsets=2, subset_size=40)
    theirs.update(samples, real=False)
    theirs.update(real, real=True)
    ours = both(KernelDistance(Linear()), samples, real)
    assert ours.compute() == pytest.approx(float(theirs.compute()[0]), rel=1e-4)
    assert ours.std == pytest.approx(0, abs=1e-5 * abs(float(ours.compute())))


def test_inception_score_of_certain_predictions():
    """As many as there are classes, but for the imbalance of random splits."""
    logits = 100 * torch.eye(4).repeat(1000, 1)
    metric = InceptionScore()
    metric.update(torch.zeros(3, 4), real=True)
    metric.update(logits)
    assert metric.compute() == pytest.approx(4, rel=1e-2)
    metric.reset()
    metric.update(torch.ones(50, 4))
    assert metric.compute() == pytest.approx(1, rel=1e-6)


def test_precision_and_recall_of_a_line():
    """Balls of radius 3 around the integers 0 … 9 of the data, of radius 0.3 around the samples."""
    real = torch.arange(10.0)[:, None]
    samples = torch.cat([0.1 * torch.arange(6.0), torch.tensor([20.0, 30.0])])[:, None]
    assert both(Precision(), samples, real).compute() == 6 / 8
    narrow = 0.1 * torch.arange(6.0)[:, None]
    assert both(Recall(), narrow, real).compute() == 1 / 10


def test_neighbours_of_copies_and_of_points_half_as_far():
    train = 10 * torch.randn(100, 2, dtype=torch.float64).round()
    ratio = NeighbourRatio(lambda: train.split(30), lambda: [train + 0.02])
    ratio.update(train[:20], real=True)
    ratio.update(train[:20] + 0.01)
    assert ratio.compute() == pytest.approx(0.5)
    ratio.reset()
    ratio.update(train[:20])
    assert ratio.compute() == 0


METRICS = {
    "fd": FrechetDistance,
    "kid": KernelDistance,
    "is": InceptionScore,
    "precision": Precision,
    "recall": Recall,
}


@pytest.mark.parametrize("kind", METRICS.values())
def test_reset_keeps_the_real_data_where_asked(images, kind):
    samples, real = images(30, 0, size=4), images(40, 1, size=4)
    keeps = both(kind(Linear(), reset_real_features=False), samples, real)
    first = keeps.compute()
    keeps.reset()
    keeps.update(samples)
    assert keeps.compute() == pytest.approx(float(first))
    forgets = both(kind(Linear()), samples, real)
    forgets.reset()
    forgets.update(samples)
    if kind is not InceptionScore:
        with pytest.raises(UserError, match=r"has seen 0 real examples; it needs at least \d"):
            forgets.compute()


@pytest.mark.parametrize("kind", METRICS.values())
def test_forward_is_the_metric_of_the_batch(images, kind):
    samples, real = images(60, 0, size=4), images(40, 1, size=4)
    metric = kind(Linear(), reset_real_features=False)
    metric.update(real, real=True)
    values = [metric(batch) for batch in samples.split(30)]
    for found, part in ((values[1], samples[30:]), (metric.compute(), samples)):
        assert found == pytest.approx(float(both(kind(Linear()), part, real).compute()))


def test_in_a_collection(images):
    samples, real = images(30, 0, size=4), images(40, 1, size=4)
    extractor = Linear()
    neighbours = NeighbourRatio(lambda: [real], lambda: [real[:9] + 1])
    alone = {name: kind(extractor) for name, kind in METRICS.items()} | {"nn": neighbours}
    expected = {
        name: float(both(metric, samples, real).compute()) for name, metric in alone.items()
    }
    for metric in alone.values():
        metric.reset()
    collection = MetricCollection(alone)
    for _ in range(2):
        for batch in real.split(20):
            collection.update(batch, real=True)
        for batch in samples.split(10):
            collection.update(batch)
        found = collection.compute()
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
        collection.reset()


def test_only_so_many_are_kept(images, monkeypatch):
    monkeypatch.setattr(Precision, "most", 20)
    samples, real = images(30, 0, size=4), images(40, 1, size=4)
    metric = both(Precision(Identity(48)), samples, real)
    expected = both(Precision(Identity(48)), samples[:20], real[:20]).compute()
    assert len(metric.rows()) == len(metric.rows(real=True)) == 20
    assert metric.compute() == expected


def test_bad_input(images):
    with pytest.raises(UserError, match="InceptionScore needs class logits, and the extractor"):
        InceptionScore(Identity(48))
    with pytest.raises(UserError, match="subset_size=1 must be at least 2"):
        KernelDistance(subset_size=1)
    with pytest.raises(UserError, match=r"FrechetDistance has seen 1 sample; .* at least 2"):
        both(FrechetDistance(Identity(48)), images(1, 0, size=4), images(9, 0, size=4)).compute()
    ratio = NeighbourRatio()
    ratio.update(images(2, 0))
    with pytest.raises(UserError, match="NeighbourRatio looks for samples among training images"):
        ratio.compute()


class Study(LightningModule):
    """Somebody's module: a parameter, and a metric of images that stand for its samples."""

    def __init__(self, images) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.images = images
        self.fd = FrechetDistance(Linear(), reset_real_features=False)
        self.kid = KernelDistance(Linear(), reset_real_features=False)

    def on_fit_start(self):
        share = self.images(40, 99, size=4).chunk(self.trainer.world_size)[self.global_rank]
        for metric in (self.fd, self.kid):
            metric.update(share, real=True)

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        for name, metric in (("val/fd", self.fd), ("val/kid", self.kid)):
            metric.update(batch)
            self.log(name, metric)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("processes", [1, 2])
def test_in_a_lightning_module(images, tmp_path, processes):
    """As the page has it: two processes report what one does."""
    samples = images(30, 0, size=4)
    study = Study(images)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loader = DataLoader(samples, batch_size=8)
    trainer.fit(study, loader, loader)
    real = images(40, 99, size=4)
    for name, kind in (("val/fd", FrechetDistance), ("val/kid", KernelDistance)):
        expected = both(kind(Linear()), samples, real).compute()
        assert trainer.callback_metrics[name] == pytest.approx(float(expected), rel=1e-5)
    assert list(study.state_dict()) == ["weight"]
    assert [name for name, _ in study.named_parameters()] == ["weight"]
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert list(saved["state_dict"]) == ["weight"]


def test_copies_share_the_extractor(images):
    metric = both(FrechetDistance(Linear()), images(20, 0, size=4), images(30, 1, size=4))
    copied = copy.deepcopy(nn.ModuleDict({"metric": metric}))["metric"]
    assert copied.extractor is metric.extractor
    copied.update(images(20, 2, size=4))
    fresh = pickle.load(io.BytesIO(pickle.dumps(metric)))
    assert fresh.compute() == metric.compute() != copied.compute()


def test_the_extractor_moves_with_the_metric():
    metric = FrechetDistance(Linear())
    nn.ModuleList([metric]).to("meta")
    assert metric.extractor.device.type == metric.device.type == "meta"


def _worker(rank, world, rendezvous, parts, results):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    samples, real = parts[rank]
    train = parts[0][1]
    found = {}
    neighbours = NeighbourRatio(lambda: [train], lambda: [train[:9] + 1])
    for name, metric in [*((n, kind(Linear())) for n, kind in METRICS.items()), ("nn", neighbours)]:
        for _ in range(2):
            both(metric, samples, real)
            first = float(metric.compute())
            metric.reset()
        found[name] = first
    results.put((rank, found))
    dist.destroy_process_group()


@pytest.mark.parametrize("cut", [17, 40])  # at 40, the second process has seen no samples
def test_two_processes_measure_what_one_does(images, tmp_path, cut):
    samples, real = images(40, 0, size=4), images(50, 1, size=4)
    parts = [(samples[:cut], real[:30]), (samples[cut:][:, :, :4], real[30:])]
    if cut == 40:
        parts[1] = (samples[:0], real[30:])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (2, tmp_path / "rendezvous", parts, results)
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert found[0] == found[1]
    for name, kind in METRICS.items():
        expected = float(both(kind(Linear()), samples, real).compute())
        assert found[0][name] == pytest.approx(expected, rel=1e-6), name
    alone = NeighbourRatio(lambda: [real[:30]], lambda: [real[:9] + 1])
    assert found[0]["nn"] == pytest.approx(float(both(alone, samples, real).compute()))


@pytest.mark.slow
def test_the_page_runs(images, tensor_data, capsys):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    alone, own = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(alone, names)
    fd, kid, std = map(float, capsys.readouterr().out.split())
    assert fd > 0
    assert kid > std > 0
    exec(own, names)
    data = tensor_data(images(90, 0, size=4), images(60, 1, size=4))
    evaluator = Evaluator(Identity(48), data, [names["SlicedWasserstein"](64)])
    near, far = (
        evaluator.evaluate_images(x)[0] for x in (data.splits["test"], data.splits["test"] // 2)
    )
    assert (near.name, near.n, near.n_reference) == ("sliced_wasserstein", 60, 90)
    assert near.value < far.value


def test_a_metric_without_a_constructor_of_its_own_takes_what_torchmetrics_does() -> None:
    class Own(SampleMetric):
        needs = "images"

    check_arguments(Own, {"sync_on_compute": False}, "evaluation.metrics", partial=True)
    with pytest.raises(UserError, match=r"evaluation\.metrics\.foo=2 is unknown: Own takes reset_"):
        check_arguments(Own, {"foo": 2}, "evaluation.metrics", partial=True)


def test_what_a_metric_needs_is_a_word_that_there_is() -> None:
    """Told where the class is written, and not by the evaluation after a training."""
    with pytest.raises(UserError, match=r"Wrong\.needs=pixels must be one of images, features, lo"):

        class Wrong(SampleMetric):
            name, needs = "wrong", "pixels"
