import os
import subprocess
import sys
from pathlib import Path

import pytest

from betasigma.errors import UserError
from betasigma.evaluation.choice import INCEPTION_FILES, Choice, checkpoint_dir, choose
from betasigma.options.evaluation import check_metrics, check_n, references


def test_without_weights_it_is_efficientnet_and_one_line_says_so():
    choice = choose()
    assert choice.extractor == "efficientnet_lite0"
    assert choice.note is not None
    assert "\n" not in choice.note
    assert "evaluation.download=true" in choice.note


def test_given_weights_are_taken(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    assert choose(inception_weights=file) == Choice("inception", str(file))
    assert choose("inception", file) == Choice("inception", str(file))


@pytest.mark.parametrize("name", INCEPTION_FILES)
def test_cached_weights_are_found_by_either_name(name):
    checkpoint_dir().mkdir(parents=True)
    (checkpoint_dir() / name).touch()
    assert choose() == Choice("inception", str(checkpoint_dir() / name))
    assert choose(download=True).download is False


def test_torch_hub_agrees_on_the_directory(monkeypatch, tmp_path):
    import torch

    assert str(checkpoint_dir()) == os.path.join(torch.hub.get_dir(), "checkpoints")
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(checkpoint_dir()) == os.path.join(torch.hub.get_dir(), "checkpoints")


def test_download_only_when_asked_for():
    assert choose(download=True) == Choice("inception", None, download=True)
    with pytest.raises(UserError, match=r"evaluation\.extractor=inception finds no weights"):
        choose("inception")


def test_points_are_their_own_features():
    assert choose(sample_shape=(2,)).extractor == "identity"
    with pytest.raises(UserError, match="reads images"):
        choose("inception", sample_shape=(2,))


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"evaluation\.extractor=vgg is unknown; choose from auto"):
        choose("vgg")
    with pytest.raises(UserError, match=r"evaluation\.inception_weights=/nowhere does not exist"):
        choose(inception_weights="/nowhere")
    with pytest.raises(UserError, match="choose from fd, kid"):
        check_metrics(["fd", "fdd"], "inception")
    with pytest.raises(UserError, match="class logits"):
        check_metrics(["is"], "identity")
    with pytest.raises(UserError, match="n=1 is too few samples for fd, which needs at least 2"):
        check_n(1, ["fd"])


def test_it_imports_nothing_heavy():
    source = Path(__file__).parents[2] / "src"
    code = "import sys, betasigma.evaluation.choice as c; c.choose(); print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("asked", "n", "taken"),
    [
        ("auto", 50, 1500),
        ("auto", 500, 2500),
        ("auto", 2000, 5000),
        ("auto", 10_000, None),
        (None, 50, None),
        (70, 10_000, 70),
    ],
)
def test_images_to_compare_with_are_as_many_as_the_samples_are_worth(asked, n, taken):
    assert references(asked, n) == taken
