"""Zip archives that are read where they are, and files of labels."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from betasigma.data import sources
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.file_tree import Files
from betasigma.data.listing import Listing, list_folder
from betasigma.errors import UserError

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10_jpeg"

WriteImage = Callable[..., None]


@pytest.fixture
def images(tmp_path: Path, write_image: WriteImage) -> Path:
    """Twenty-four images in two folders."""
    for i in range(24):
        write_image(tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png", (9, 8), i)
    return tmp_path / "images"


def zipped(folder: Path, path: Path, **more: str) -> Path:
    """An archive of a folder's files, and of more texts by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder).as_posix())
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def test_the_folder_that_packing_puts_around_images_decides_nothing(images: Path) -> None:
    for layout in ("classes", "flat"):
        folder = list_folder(images, layout)
        packed = list_folder(zipped(images.parent, images.parent / "packed.zip"), layout)
        for split in ("train", "test"):
            names = packed.split(split).names
            assert (
                tuple(name.removeprefix("images/") for name in names) == folder.split(split).names
            )


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_archive_is_the_folder_that_it_was_made_of(images: Path, in_memory: bool) -> None:
    archive = zipped(images, images.parent / "images.zip")
    for split in ("train", "test"):
        folder, zip_ = (
            sources.load("image_folder", root, split, 8, in_memory=in_memory)  # type: ignore[arg-type]
            for root in (images, archive)
        )
        numbers = np.arange(len(folder))
        a, b = folder.take(numbers), zip_.take(numbers)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
        assert folder.order_key() == zip_.order_key()


def test_the_key_of_an_archive_is_of_its_content(images: Path, write_image: WriteImage) -> None:
    def key(path: Path) -> str:
        return sources.load("image_folder", path, "train", 8, in_memory=False).content_key()

    first, again = (zipped(images, images.parent / f"{i}.zip") for i in range(2))
    assert key(first) == key(again)
    write_image(images / list_folder(images).train.names[3], (9, 8), 99)
    assert key(zipped(images, images.parent / "other.zip")) != key(first)


def test_archives_of_splits_beside_each_other(images: Path) -> None:
    root = images.parent / "splits"
    root.mkdir()
    zipped(images, root / "Train.zip")
    zipped(images / "a", root / "validation.zip")
    zipped(images, root / "old.zip")
    found = list_folder(root)
    assert (len(found.train.names), len(found.test.names)) == (24, 12)
    assert found.classes == ()  # the images of one of them are in no folders
    assert found.left_out.counts == {".zip": 1}


def take(source: sources.Source) -> torch.Tensor:
    return source.take(np.arange(5))["image"]


def test_workers_read_an_archive_at_once(images: Path) -> None:
    archive = zipped(images, images.parent / "images.zip")
    data = ImageDataModule(
        "image_folder", archive, batch_size=8, image_size=8, workers=2, in_memory=False
    )
    source = data.source("train")
    expected = take(source)
    assert torch.equal(take(pickle.loads(pickle.dumps(source))), expected)
    batches = [b["image"] for b, _ in zip(data.train_dataloader(), range(6), strict=False)]
    data.workers = 0
    alone = [b["image"] for b, _ in zip(data.train_dataloader(), range(6), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(batches, alone, strict=True))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(torch.equal(t, expected) for t in pool.map(take, [source] * 8))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: b"PK" + content[2:-30], "neither a folder nor a zip archive that can be"),
        (lambda content: b"no archive at all", "neither a folder nor a zip archive that can be"),
        (lambda content: b"", "neither a folder nor a zip archive that can be"),
    ],
)
def test_a_damaged_archive(images: Path, damage: Callable[[bytes], bytes], sentence: str) -> None:
    archive = zipped(images, images.parent / "images.zip")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match=sentence):
        list_folder(archive)


def test_a_damaged_file_of_an_archive_is_named(images: Path) -> None:
    archive = zipped(images, images.parent / "images.zip")
    name = list_folder(archive).train.names[0]
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(name)
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 20] = bytes(20)
    archive.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"skipped an image that cannot be decoded: .*{name}"):
        source = sources.load("image_folder", archive, "train", 8)
    assert len(source) == len(list_folder(archive).train.names) - 1


def test_a_file_that_unpacks_to_more_than_an_image_is_not_unpacked(images: Path) -> None:
    (images / "a" / "bomb.png").write_bytes(bytes(2_000_000))
    archive = zipped(images, images.parent / "images.zip")
    with pytest.warns(UserWarning, match=r"bomb\.png \(it has 2,000,000 bytes when unpacked\)"):
        sources.load("image_folder", archive, "train", 8, max_pixels=1000, layout="flat")


def test_a_file_that_understates_its_size_is_not_unpacked(images: Path) -> None:
    size = 200_000_000
    (images / "a" / "bomb.png").write_bytes(bytes(size))
    archive = zipped(images, images.parent / "images.zip")
    (images / "a" / "bomb.png").unlink()
    content = archive.read_bytes().replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(content)
    files = Files(archive)
    tracemalloc.start()
    with pytest.raises(zipfile.BadZipFile):
        files.open("a/bomb.png", 10**6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 20


def test_an_archive_with_a_password(images: Path) -> None:
    archive = zipped(images, images.parent / "images.zip")
    content = bytearray(archive.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 8] |= 1  # the bit that says so, in the directory
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted: unpack it first"):
        list_folder(archive)


# ---------------------------------------------------------------- labels


def edm(images: Path, labels: object) -> Path:
    """An archive as EDM's and StyleGAN's ``dataset_tool.py`` writes them."""
    return zipped(images, images.parent / "edm.zip", **{"dataset.json": json.dumps(labels)})


def test_labels_of_an_archive_made_for_edm(images: Path) -> None:
    names = [file.relative_to(images).as_posix() for file in sorted(images.rglob("*.png"))]
    archive = edm(images, {"labels": [[name, i % 3] for i, name in enumerate(names)]})
    found = list_folder(archive)
    assert found.layout == "flat"  # its folders are parts, no classes
    assert found.classes == ("0", "1", "2")
    labels = dict(zip(found.train.names, found.train.labels or (), strict=True))
    assert labels == {name: i % 3 for i, name in enumerate(names) if name in labels}
    assert "labels of dataset.json" in found.sentences()[0]
    assert list_folder(archive, "classes").classes == ("a", "b")


def test_an_archive_made_for_edm_without_labels_has_no_classes(images: Path) -> None:
    assert list_folder(edm(images, {"labels": None})).classes == ()
    assert list_folder(edm(images, {"version": 1})).classes == ("a", "b")


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_table_of_labels_with_splits(
    images: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [file.relative_to(images).as_posix() for file in sorted(images.rglob("*.png"))]
    rows = [
        f"./{name};{'cat' if i % 3 else 'dog'};{('train', 'Train', 'test')[i % 3]}"
        for i, name in enumerate(names[:-1])
    ]
    folder = images if where == "inside" else images.parent
    text = "\n".join(["File_Name;Class;split", *rows, "gone.png;cat;train"])
    (folder / "table.csv").write_text(text, encoding="utf-8-sig")
    monkeypatch.chdir(images.parent)
    found = list_folder(images, labels="table.csv")
    assert found.classes == ("cat", "dog")
    assert found.train.names == tuple(name for i, name in enumerate(names[:-1]) if i % 3 != 2)
    assert found.train.labels == tuple(int(i % 3 == 0) for i in range(23) if i % 3 != 2)
    assert {
        "named in table.csv and not there": 1,
        "without a label in table.csv": 1,
    }.items() <= found.left_out.counts.items()


def test_other_forms_of_json(images: Path) -> None:
    names = [file.relative_to(images).as_posix() for file in sorted(images.rglob("*.png"))]
    for content in (
        {name: "x" for name in names},
        [[name, "x"] for name in names],
        [{"image": name, "label": "x"} for name in names],
    ):
        (images / "labels.json").write_text(json.dumps(content))
        found = list_folder(images, labels="labels.json")
        assert found.classes == ("x",)
        assert set(found.train.labels or ()) == {0}


def test_numbers_of_a_column_that_once_had_gaps(images: Path) -> None:
    """pandas writes whole numbers beside a missing one as 2.0: they are numbers, not names."""
    names = [file.relative_to(images).as_posix() for file in sorted(images.rglob("*.png"))]
    labels = [float(i % 11) for i in range(len(names))]
    rows = ["file,label", *map("{},{}".format, names, labels)]
    (images / "labels.csv").write_text("\n".join(rows))
    (images / "labels.json").write_text(json.dumps(dict(zip(names, labels, strict=True))))
    for file in ("labels.csv", "labels.json"):
        found = list_folder(images, labels=file)
        assert found.classes == tuple(map(str, range(11)))
        given = dict(zip(names, labels, strict=True))
        assert [given[name] for name in found.train.names] == list(found.train.labels or ())


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "name,colour\nx.png,red", "columns name, colour, and none of them is of labels"),
        ("a.csv", "nothing", "none of them is of images"),
        ("a.csv", "file,label\na/00.png,1\na/00.png,2", "gives a/00.png two labels, 1 and 2"),
        ("a.csv", "file,label\na/00.png,", "gives a/00.png the label ''"),
        pytest.param(
            "a.csv", "file,label\na/00.png," + "9" * 5000, "or above 99999", id="5,000 digits"
        ),
        ("a.csv", "file,label\nx.png,1", "has labels of x.png and others, and of no image that is"),
        ("a.csv", "file,label,split\na/00.png,1,now", "has a/00.png in split 'now'"),
        ("a.csv", "file,label\n\xff\x00,1", "is no CSV file that can be read"),
        ("a.json", "[" * 100_000, "is no JSON that can be read"),
        ("a.json", "3", "gives no labels"),
        ("a.json", '{"labels": [["a/00.png", [0.5, 1]]]}', r"the label \[0.5, 1\]: a label is an"),
        ("a.json", "{}", "gives no labels: it names no image"),
        ("a.csv", "file,label\n", "gives no labels: it names no image"),
        ("a.json", '{"a/00.png": true}', "the label True"),
        ("a.json", '{"a/00.png": -1}', "has a label that is below 0 or above 99999"),
        ("a.json", '{"a/00.png": 1000000000}', "has a label that is below 0 or above 99999"),
        ("a.xlsx", "", "must be a CSV or JSON file"),
    ],
)
def test_what_is_no_file_of_labels(images: Path, name: str, text: str, sentence: str) -> None:
    (images / name).write_text(text, encoding="latin-1" if "\xff" in text else "utf-8")
    with pytest.raises(UserError, match=sentence):
        list_folder(images, labels=name)
    with pytest.raises(UserError, match=r"data\.labels=none\.csv cannot be read"):
        list_folder(images, labels="none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        list_folder(images, labels="~of-no-user/labels.csv")


# ---------------------------------------------------------------- real pictures


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"there are no pictures in {CIFAR10}")
def test_the_pictures_of_cifar10() -> None:
    data = ImageDataModule(
        "image_folder", CIFAR10, batch_size=8, image_size=32, in_memory=False, workers=0
    )
    assert isinstance(data.files, Listing)
    assert (len(data.files.train.names), len(data.files.test.names)) == (50_000, 10_000)
    assert data.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    alone = list_folder(CIFAR10 / "test.zip")
    assert set(alone.train.names) | set(alone.test.names) == {
        name.removeprefix("test.zip/") for name in data.files.test.names
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = sources.load("image_folder", CIFAR10 / "test.zip", "test", 32)
    assert isinstance(images, sources.InMemory)
    assert len(images) == len(alone.test.names)
    # the colours of the data set, known from its 50,000 originals: .491, .482, .447
    mean = images.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.02)
