"""The promise: our numbers are torch-fidelity's on the same weights and images, to 1e-3."""

import pytest
from torch.utils.data import Dataset

from betasigma.evaluation import metrics
from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import InceptionV3

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
    wanted = ("fd", "kid", "is", "precision", "recall")
    data = tensor_data(train, train[:4])
    evaluator = Evaluator(InceptionV3(inception_file), data, wanted, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "KID_SUBSET", N // 2)
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
