"""The promise: our numbers are torch-fidelity's on the same weights and images, to 1e-3; composed
by the evaluator or each metric alone."""

import pytest
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

N = 16


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.filterwarnings("ignore:fid of n")
def test_all_metrics_equal_calculate_metrics(inception_file, images, tensor_data, tmp_path):
    from torch_fidelity import calculate_metrics

    samples, train = images(N, 0), images(N, 1)
    theirs = calculate_metrics(
        input1=Images(samples),
        input2=Images(train),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=N // 2,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    extractor = InceptionV3(inception_file)
    kid = KernelDistance(subset_size=N // 2)
    data = tensor_data(train, train[:4])
    evaluator = Evaluator(extractor, data, ("fd", kid, "is", "precision", "recall"), tmp_path)
    ours = {m.name: m for m in evaluator.evaluate_images(samples) if m.split != "test"}
    pairs = {
        "fid": "frechet_inception_distance",
        "kid_inception": "kernel_inception_distance_mean",
        "is_inception": "inception_score_mean",
        "precision_inception": "precision",
        "recall_inception": "recall",
    }
    assert set(ours) == set(pairs)
    for name, their_name in pairs.items():
        assert ours[name].value == pytest.approx(theirs[their_name], rel=1e-3), name
    assert theirs["frechet_inception_distance"] > 1e-3
    assert ours["kid_inception"].std == pytest.approx(
        theirs["kernel_inception_distance_std"], rel=2e-2
    )
    assert ours["is_inception"].std == pytest.approx(theirs["inception_score_std"], rel=1e-2)

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
        assert float(metric.compute()) == pytest.approx(theirs[pairs[name]], rel=1e-3), name
        assert metric.std == (None if ours[name].std is None else pytest.approx(ours[name].std))
