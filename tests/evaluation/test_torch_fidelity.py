"""The promise: our numbers are torch-fidelity's on the same weights and images, to 1e-3; composed
by the evaluator or each metric alone."""

import pytest
import torch
from torch.utils.data import Dataset

from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import InceptionV3
from betasigma.evaluation.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Precision,
    Recall,
)

N = 12


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def theirs(images, fidelity):
    return fidelity(Images(images(N, 0)), Images(images(N, 1)), N // 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fid of n")
def test_all_metrics_equal_calculate_metrics(inception_file, images, tensor_data, tmp_path, theirs):
    samples, train = images(N, 0), images(N, 1)
    kid = KernelDistance(subset_size=N // 2)
    data = tensor_data(train, train[:4])
    evaluator = Evaluator(
        InceptionV3(inception_file), data, ("fd", kid, "is", "precision", "recall"), tmp_path
    )
    ours = {m.name: m for m in evaluator.evaluate_images(samples) if m.split != "test"}
    assert set(ours) == {name for name in theirs if not name.endswith("_std")}
    for name, measured in ours.items():
        assert measured.value == pytest.approx(theirs[name], rel=1e-3), name
    assert ours["kid_inception"].std == pytest.approx(theirs["kid_inception_std"], rel=2e-2)
    assert ours["is_inception"].std == pytest.approx(theirs["is_inception_std"], rel=1e-2)


@pytest.mark.slow
def test_a_metric_alone_equals_them(inception_file, images, theirs):
    samples, train = images(N, 0), images(N, 1)
    extractor = InceptionV3(inception_file)
    known, (features, logits) = extractor.extract(train)[0], extractor.extract(samples)
    alone = {
        "kid_inception": KernelDistance(subset_size=N // 2),
        "is_inception": InceptionScore(),
        "precision_inception": Precision(),
        "recall_inception": Recall(),
    }
    for metric in alone.values():
        metric.update(known, real=True)
        metric.update(logits if metric.needs == "logits" else features)
    alone["fid"] = FrechetDistance(extractor)
    alone["fid"].update(train, real=True)
    for batch in samples.split(5):
        alone["fid"].update(batch)
    for name, metric in alone.items():
        assert float(metric.compute()) == pytest.approx(theirs[name], rel=1e-3), name
    assert alone["kid_inception"].std == pytest.approx(theirs["kid_inception_std"], rel=2e-2)
    assert alone["is_inception"].std == pytest.approx(theirs["is_inception_std"], rel=1e-2)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_precision_and_recall_of_features_equal_theirs(shift):
    from torch_fidelity.metric_prc import prc_features_to_metric

    generator = torch.Generator().manual_seed(0)
    samples, known = torch.randn(2, 80, 4, generator=generator)
    samples = 0.7 * samples + shift
    theirs = prc_features_to_metric(samples, known, verbose=False)
    for metric in (Precision(), Recall()):
        metric.update(known, real=True)
        metric.update(samples)
        value = float(metric.compute())
        assert value == pytest.approx(theirs[metric.name.removesuffix("_inception")])
        assert 0 < value < 1
