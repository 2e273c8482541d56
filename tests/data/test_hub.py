"""Data sets of Hugging Face: folders, Parquet files and names."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import TINY, Launch, launch
from PIL import Image

from betasigma.data import sources
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.hub import open_table
from betasigma.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra [hub] is not installed")
constants = pytest.importorskip("huggingface_hub.constants")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def rows(count: int, first: int = 0, **more: Any) -> Any:
    """``count`` rows with a picture and a class of two."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    data = {
        "image": [picture(first + i) for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(data, features=features)


def test_a_folder_with_splits(tmp_path: Path) -> None:
    whole = {"train": rows(12), "validation": rows(3, 90), "test": rows(4, 50)}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "saved")
    data = ImageDataModule("hub", tmp_path / "saved", batch_size=4, image_size=8, workers=0)
    assert (data.size("train"), data.size("test")) == (12, 4)
    assert data.class_names == ("cat", "dog")
    assert data.labels("test") is not None
    assert data.labels("test").tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]
    assert data.describe()["left_out"] == {"of the split val": 3}
    expected = sources.image_files.Decoder((8, 8), 3)
    for i in (0, 11):
        file = io.BytesIO()
        picture(i).save(file, "PNG")
        assert torch.equal(data.tensor("train")[i], expected.decode(file).image)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_parquet(tmp_path: Path, form: str) -> None:
    rows(30).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    root = tmp_path / "train-00000-of-00001.parquet" if form == "file" else tmp_path
    if form == "folder":
        rows(5, 70).to_parquet(tmp_path / "test.parquet")
    memory, stream = (
        ImageDataModule("hub", root, batch_size=4, image_size=8, workers=0, in_memory=held)
        for held in (True, False)
    )
    assert memory.size("train") + memory.size("test") == (30 if form == "file" else 35)
    for split in ("train", "test"):
        numbers = np.arange(memory.size(split))  # type: ignore[arg-type]
        a, b = (d.source(split).take(numbers) for d in (memory, stream))  # type: ignore[arg-type]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
    again = pickle.loads(pickle.dumps(stream.source("train")))
    assert again.content_key() == stream.content_key("train")


def test_what_is_held_out_is_of_content_not_of_order(tmp_path: Path) -> None:
    whole = rows(40)
    for name, part in {"a": whole, "b": whole.select(range(39, -1, -1))}.items():
        part.to_parquet(tmp_path / f"{name}.parquet")
    found = []
    for name in "ab":
        table = open_table(str(tmp_path / f"{name}.parquet"), None, download=False)
        found.append({table.stamp(row) for row in table.split("test").names})
    assert found[0] == found[1]


def test_labels_that_are_names_or_numbers(tmp_path: Path) -> None:
    for column, classes in {
        ("b", "a", "b"): ("a", "b"),
        (0, 3, 1): ("0", "1", "2", "3"),
        (True, False, True): ("0", "1"),
    }.items():
        table = datasets.Dataset.from_dict(
            {"img": [picture(i) for i in range(3)], "label": list(column)}
        )
        table.to_parquet(tmp_path / "a.parquet")
        found = open_table(str(tmp_path / "a.parquet"), None, download=False)
        assert found.classes == classes
        assert {type(label) for label in found.split("train").labels or ()} == {int}


@pytest.mark.parametrize(("first", "label"), [(0, 10**9), (0, None), (0, -1), ("a", None)])
def test_labels_that_are_none(tmp_path: Path, first: int | str, label: int | None) -> None:
    rows_of = {"img": [picture(i) for i in range(2)], "label": [first, label]}
    datasets.Dataset.from_dict(rows_of).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"labels like {label}; .*data\.columns=\[img\] leaves th"):
        open_table(str(tmp_path / "a.parquet"), None, download=False)


def test_images_of_no_class_are_told_before_there_is_a_run_directory(here: Path) -> None:
    """The hub's own word for an image without a label is -1."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(2)})
    rows_of = {"img": [picture(i) for i in range(2)], "label": [0, -1]}
    datasets.Dataset.from_dict(rows_of, features=features).to_parquet(here / "a.parquet")
    ended = launch("train", "data=hub", "data.root=a.parquet", "data.image_size=8", *TINY)
    assert ended.err == (
        "error: data.root=a.parquet has a column label of labels like -1; labels are integers from "
        "0 to 1: data.columns=[img] leaves them out\n"
    )
    assert not (here / "outputs").exists()


def test_columns_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["a", "b"])
    features = {"img": datasets.Image(), "fine": labels, "coarse": labels}
    datasets.Dataset.from_dict(
        {"img": [picture(i) for i in range(8)], "fine": [0, 1] * 4, "coarse": [0] * 8},
        features=datasets.Features(features),
    ).to_parquet(tmp_path / "a.parquet")
    root = str(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"fine and coarse the labels: data\.columns=\[image,label"):
        open_table(root, None, download=False)
    assert open_table(root, ["img", "fine"], download=False).classes == ("a", "b")
    assert open_table(root, ["img"], download=False).classes == ()
    with pytest.raises(UserError, match="has no column finer; it has img, fine, coarse"):
        open_table(root, ["img", "finer"], download=False)


def test_columns_of_types_that_no_image_and_no_label_has(tmp_path: Path) -> None:
    lists, root = [[0, 1], [1, 0]], str(tmp_path / "a.parquet")
    columns = {"img": [picture(0), picture(1)], "number": [0, 1], "tags": lists}
    datasets.Dataset.from_dict(columns).to_parquet(root)
    for image in ("number", "tags"):
        with pytest.raises(UserError, match=rf"no images in its column {image}, .*data=array"):
            open_table(root, [image], download=False)
    for label in ("img", "tags"):
        with pytest.raises(UserError, match=rf"no labels in its column {label}, .*\[img\] leaves"):
            open_table(root, ["img", label], download=False)
    assert open_table(root, ["img", "number"], download=False).classes == ("0", "1")


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    whole, broken = [picture(i) for i in range(12)], [{"bytes": b"no image", "path": None}] * 12
    features = datasets.Features({"img": datasets.Image(), "mask": datasets.Image()})
    table = datasets.Dataset.from_dict({"img": whole, "mask": broken}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageDataModule(
            "hub", tmp_path / "a.parquet", batch_size=4, image_size=8, columns=["img"]
        )
        assert data.size("train") + data.size("test") == 12


def test_a_cell_without_an_image_is_named(tmp_path: Path) -> None:
    """A table of a stranger may name any path; only files are opened, and those as images."""
    cells = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "/dev/zero"}]
    picture(9).save(tmp_path / "own.png")  # of the user, and no picture of the table
    cells.append({"bytes": None, "path": str(tmp_path / "own.png")})
    for i in range(6):
        file = io.BytesIO()
        picture(i).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    for split, chosen in {"train": cells, "test": cells[-1:]}.items():
        cell = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table = pyarrow.table({"image": pyarrow.array(chosen, cell)})
        parquet.write_table(table, tmp_path / f"{split}.parquet")  # theirs would read the path
    data = ImageDataModule("hub", tmp_path, batch_size=4, image_size=8)
    with pytest.warns(
        UserWarning,
        match=r"skipped 3 images .*train/0 \(not an image\), .*train/1 \(the cell holds no image; ",
    ):
        assert data.size("train") == 6


def test_a_file_that_the_library_has_fetched_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set of the hub may be files, which its table names where they were put."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "fetched"))
    paths = [tmp_path / folder / "a.png" for folder in ("fetched", "other")]
    for path in paths:
        path.parent.mkdir()
        picture(3).save(path)
    cell = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows_of = pyarrow.array([{"bytes": None, "path": str(path)} for path in paths], cell)
    fetched = datasets.Dataset(pyarrow.table({"image": rows_of}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *words: {"train": fetched})
    table = open_table("owner/name", None, download=True)
    with table.open("train/0", 10**6) as file:
        assert file.read() == paths[0].read_bytes()
    with pytest.raises(ValueError, match="a path of a file there is not followed"):
        table.open("train/1", 10**6)


def test_a_column_of_texts_holds_no_images(tmp_path: Path) -> None:
    table = pyarrow.table({"image": ["a.png", "b.png", "c.png"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = ImageDataModule("hub", tmp_path / "a.parquet", batch_size=4, image_size=8)
    with pytest.raises(UserError, match=r"no image in .* that can be decoded"):
        data.size("train")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty", "has neither Parquet files nor what save_to_disk writes"),
        ("broken.parquet", "cannot be opened"),
        ("nobody/nothing", r"cannot be opened .*data\.download=true fetches"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=sentence):
        open_table(name, None, download=False)


def test_a_run_on_a_table(here: Path, train: Launch) -> None:
    rows(30).to_parquet(here / "a.parquet")
    ended = train("data=hub", "data.root=a.parquet", "data.image_size=8", "network.num_classes=2")
    assert (
        "data: whole (test images held out): images in column image, labels in label" in ended.out
    )
    assert "0 cat " in ended.out
