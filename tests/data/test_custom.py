"""Data sets of the user: every form that a callable may return, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from betasigma.data.custom import OpenedSplits, as_examples, open_examples
from betasigma.data.sources import InMemory
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.testing import check_dataset

IMAGES = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8)
LABELS = np.array([0, 1, 2, 1, 0])


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def test_files_of_numpy_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    plain = as_examples(str(tmp_path / "a.npy"), "faces")
    labelled = as_examples(tmp_path / "a.npz", "faces")
    assert plain.images.numpy().tolist() == IMAGES[:, None].tolist()
    assert torch.equal(labelled.images, plain.images)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == LABELS.tolist()
    assert labelled.num_classes == 3


def test_bytes_are_scaled_from_a_stated_range() -> None:
    bits = (IMAGES % 2).astype(np.uint8)
    assert as_examples(bits, "bits").images.max() == 1
    scaled = as_examples(bits, "bits", value_range=(0, 1)).images
    assert scaled.numpy().tolist() == (255 * bits[:, None]).tolist()


def test_arrays_that_pytorch_does_not_take_as_they_are() -> None:
    turned = as_examples(IMAGES[:, :, ::-1], "turned").images
    assert turned.numpy().tolist() == IMAGES[:, None, :, ::-1].tolist()
    swapped = as_examples((IMAGES.astype(">i2"), LABELS.astype(">u2")), "swapped", (0, 255))
    assert swapped.images.numpy().tolist() == IMAGES[:, None].tolist()
    assert swapped.labels is not None
    assert swapped.labels.tolist() == LABELS.tolist()
    points = torch.ones(4, 2, requires_grad=True)
    assert len(as_examples(points, "points").images.numpy()) == 4


def test_pytorch_s_own_data_set_of_tensors_is_one() -> None:
    """Its items are tuples, also of one tensor."""
    images, labels = torch.from_numpy(IMAGES)[:, None], torch.from_numpy(LABELS)
    for own, classes in ((TensorDataset(images), 0), (TensorDataset(images, labels), 3)):
        assert torch.equal(as_examples(own, "own").images, images)
        check_dataset(own, num_classes=classes)


def test_a_class_that_only_test_examples_have_counts() -> None:
    images = torch.from_numpy(IMAGES)[:, None]
    train = InMemory(images, torch.tensor([0, 1, 0, 1, 0]), 2)
    test = InMemory(images, torch.from_numpy(LABELS), 3)
    splits = OpenedSplits(train, test, None)
    assert splits.facts("faces").num_classes == 3
    with pytest.raises(UserError, match="labels in one split only"):
        OpenedSplits(train, InMemory(images), None)


@pytest.mark.parametrize(
    ("found", "value_range", "sentence"),
    [
        (np.full((4, 8, 8), np.nan, np.float32), (0, 1), "values that are not finite"),
        (np.array([[0.0, np.inf], [1.0, 2.0]]), None, "values that are not finite"),
        (np.zeros((4, 8, 8)), (1, 1), r"value_range=\(1, 1\), which is empty"),
        (np.zeros((4, 8, 8)), None, "state the range"),
        (IMAGES, (0, 100), "has values from 0 to 255"),
        (Items([(IMAGES[0], 1), (IMAGES[1], None)]), None, "1 of 2 examples without a label"),
        (Items([{"picture": IMAGES[0]}]), None, "items without an image"),
        ("no_such.npy", None, "cannot be read as .npy or .npz"),
        (np.array(["a.png", "b.png"]), None, "returned a ndarray of <U5; images and points are"),
        (torch.zeros(4, 8, 8) * 1j, (0, 1), r"returned a tensor of torch\.complex64; images"),
        (Items(["a.png"]), None, "has a str of <U5 in the place of image 0; an image is a PIL"),
        ((IMAGES, ["a", "b", "c", "d", "e"]), None, "<U1 do not fit 5 examples; there must be"),
        ((IMAGES, [[0], [1, 2]]), None, "labels that are not integers from 0"),
        ((IMAGES, torch.ones(len(IMAGES), requires_grad=True)), None, "that are not integers"),
        ((IMAGES, LABELS * 10**9), None, "labels from 0 to 2000000000; they are integers from 0"),
    ],
)
def test_what_is_no_data_set_is_refused(found: Any, value_range: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        as_examples(found, "faces", value_range)


def test_a_folder_that_nobody_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "custom_faces.py").write_text(
        "import numpy as np\n\n\ndef faces():\n    return np.zeros((4, 8, 8), np.uint8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", {})
    plugins.allow(["custom_faces"])
    node = {"_target_": "custom_faces.faces"}
    assert open_examples(node, None, 0).facts("faces").shape == (1, 8, 8)
    with pytest.raises(UserError, match=r"data\.root=there has no effect: faces has no parameter"):
        open_examples(node, "there", 0)


def test_a_split_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_allowed", {"mylab": None})
    node = {"_target_": "mylab.data.Discs", "split": "test"}
    with pytest.raises(UserError, match=r"data\.source\.split=test cannot be chosen here: every"):
        open_examples(node, None, 0)
