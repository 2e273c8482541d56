"""Data sets in files of NumPy arrays."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import Launch, launch

from betasigma.data.arrays import channels_last, open_array
from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(40) % 3


def data(path: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule("array", path, batch_size=4, **options)


def everything(module: ImageDataModule) -> torch.Tensor:
    return torch.cat([module.tensor(split) for split in ("train", "test")])


def sorted_rows(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def test_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    found = data(tmp_path / "a.npy")
    assert found.sample_shape == (3, 8, 8)
    expected = torch.from_numpy(BYTES).permute(0, 3, 1, 2).contiguous()
    assert sorted_rows(everything(found)) == sorted_rows(expected)
    assert 1 <= found.size("test") <= 10


def test_the_split_is_of_content_not_of_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    np.save(tmp_path / "b.npy", BYTES[::-1])
    first, other = (data(tmp_path / f"{name}.npy") for name in "ab")
    assert sorted_rows(first.tensor("test")) == sorted_rows(other.tensor("test"))


def test_floats_need_their_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", (BYTES / 127.5 - 1).astype(np.float32))
    with pytest.raises(UserError, match=r"images of float32: data\.values=\[low,high\] must say"):
        data(tmp_path / "a.npy")
    found = data(tmp_path / "a.npy", values=(-1, 1))
    expected = torch.from_numpy(BYTES).permute(0, 3, 1, 2).contiguous()
    assert sorted_rows(everything(found)) == sorted_rows(expected)
    assert found.files is not None
    assert "its values from -1 to 1 rounded to 256 levels" in found.files.sentences()[0]
    with pytest.raises(UserError, match=r"value_range=\(0, 1\), and has values from -1 to"):
        data(tmp_path / "a.npy", values=(0, 1)).setup()


def test_twelve_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 4095, 640).reshape(10, 8, 8).astype(np.uint16))
    found = everything(data(tmp_path / "a.npy", values=(0, 4095)))
    assert (int(found.min()), int(found.max())) == (0, 255)


@pytest.mark.parametrize(
    "names",
    [
        {"x_train": "train", "y_train": "train", "x_test": "test", "y_test": "test"},
        {"train_images": "train", "train_labels": "train", "val_images": "test"}
        | {"val_labels": "test"},
    ],
)
def test_splits_of_an_archive(tmp_path: Path, names: dict[str, str]) -> None:
    """As Keras and MedMNIST name them."""
    parts = {"train": slice(0, 30), "test": slice(30, 40)}
    arrays = {
        name: (LABELS[:, None] if "label" in name or name[0] == "y" else BYTES)[parts[split]]
        for name, split in names.items()
    }
    np.savez(tmp_path / "a.npz", notes=np.zeros(3), **arrays)
    found = data(tmp_path / "a.npz")
    assert (found.size("train"), found.size("test")) == (30, 10)
    assert found.class_names == ("0", "1", "2")
    assert found.labels("test") is not None
    assert torch.equal(found.labels("test"), torch.from_numpy(LABELS[30:]))  # type: ignore[arg-type]
    assert found.files is not None
    assert "left out: 1 array (notes)" in found.files.sentences()


def test_a_third_split_is_counted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=BYTES, x_val=BYTES[:5], x_test=BYTES[:7])
    found = data(tmp_path / "a.npz")
    assert found.size("test") == 7
    assert found.describe()["left_out"] == {"of the split val": 5}


def test_resizing_and_any_number_of_channels(tmp_path: Path) -> None:
    many = RANDOM.integers(0, 256, (12, 7, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "a.npy", many)
    assert data(tmp_path / "a.npy").sample_shape == (7, 16, 16)
    small = data(tmp_path / "a.npy", image_size=(4, 8))
    assert small.sample_shape == small.tensor("train").shape[1:] == (7, 4, 8)
    with pytest.raises(UserError, match=r"data\.channels=3 does not fit .* shape \(7, 16, 16\)"):
        data(tmp_path / "a.npy", channels=3)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((3, 32, 32), False),
        ((32, 32, 3), True),
        ((3, 16, 32), False),
        ((16, 32, 1), True),
        ((3, 4, 4), False),
        ((4, 4, 3), True),
        ((7, 32, 32), False),
        ((32, 32, 7), True),
    ],
)
def test_where_the_channels_are(shape: tuple[int, ...], last: bool) -> None:
    assert channels_last(shape, None, "x") is last


@pytest.mark.parametrize("shape", [(32, 32, 32), (4, 4, 4), (12, 16, 32), (1, 28, 1)])
def test_axes_that_can_be_read_in_two_ways(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"two ways: data\.axes=CHW for .* data\.axes=HWC for"):
        channels_last(shape, None, "x")
    assert channels_last(shape, "HWC", "x")
    assert not channels_last(shape, "CHW", "x")


def test_points_keep_their_coordinates(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RANDOM.normal(size=(50, 5)).astype(np.float32))
    found = data(tmp_path / "a.npy")
    assert found.sample_shape == (5,)
    assert found.tensor("train").dtype == torch.float32
    with pytest.raises(UserError, match=r"data\.image_size does not apply .* holds points of 5 "):
        data(tmp_path / "a.npy", image_size=8)


def damaged(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9,")


def pickled(path: Path) -> None:
    np.save(path, np.array([{"x": 1}], dtype=object), allow_pickle=True)


def promised(path: Path) -> None:
    """A header that promises 10¹⁵ bytes."""
    np.save(path, BYTES)
    path.write_bytes(path.read_bytes().replace(b"(40, 8, 8, 3)", b"(10**9,8,8,3)"[:13]))


@pytest.mark.parametrize("write", [damaged, pickled, promised])
def test_a_file_that_cannot_be_read(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"data\.root=.*a\.npy cannot be read as \.npy or \.npz"):
        open_array(tmp_path / "a.npy")


def test_more_than_the_machine_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 8, 8), np.uint8))
    np.save(tmp_path / "a.npy", np.zeros((1000, 8, 8), np.uint8))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npz").read_bytes())
    for name in ("a.npz", "a.npy", "b.npy"):
        with pytest.raises(UserError, match="this machine holds 10,000: bring them as image files"):
            open_array(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None  # it was whole


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pictures": BYTES}, "has pictures; images must be under one of images, image, x, arr_0"),
        ({"images": BYTES, "labels": LABELS[:5]}, r"labels of shape \(5,\) .* do not fit 40"),
        ({"images": BYTES, "labels": LABELS / 2}, "float64 do not fit 40 examples"),
        ({"images": BYTES, "labels": LABELS - 1}, "labels from -1 to 1; they are integers from 0"),
        ({"images": BYTES, "labels": LABELS + 10**6}, "to 1000002; they are integers from 0 to"),
        ({"images": np.uint8(3)}, "has images; images must be under one of images"),
        ({"x_train": BYTES, "x_test": BYTES[:, :4]}, "splits that do not go together"),
        ({"x_train": BYTES, "y_train": LABELS, "x_test": BYTES}, "splits that do not go together"),
        ({"images": np.zeros((2, 2, 2, 2, 2), np.uint8)}, "has an array of shape"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        data(tmp_path / "a.npz")


def test_no_pytorch_before_the_config_is_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    node = {"name": "array", "root": str(tmp_path / "a.npy")}
    code = (
        "import sys; from betasigma.data.facts import find_facts; "
        f"assert find_facts({node}).shape == (3, 8, 8); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_on_an_array(here: Path, train: Launch) -> None:
    np.savez(here / "a.npz", images=BYTES.transpose(0, 3, 1, 2).repeat(2, 1), labels=LABELS)
    ended = train("data=array", "data.root=a.npz", "network.num_classes=3")
    assert "data: a.npz: whole as uint8 of shape (40, 6, 8, 8)" in ended.out
    assert "data: 3 classes (to train + to test): 0 0 " in ended.out
    assert "network=unet_8 is taken" in ended.out
    refused = launch("sample", f"run={ended.run}", "save=folder", "out=drawn")
    assert "at most 4 channels, and this model's have 6: give save=npz" in refused.err
    assert not (here / "drawn").exists()
