"""What the folders of images mean: splits, classes, links, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from betasigma.data.listing import list_folder, split_of
from betasigma.errors import UserError

WriteImage = Callable[..., None]
Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path, write_image: WriteImage) -> Fill:
    """``fill("train/cat", 3, …)``: a folder with so many images in each of these folders."""

    def make(*folders: str | int) -> Path:
        for folder, count in zip(folders[::2], folders[1::2], strict=True):
            for i in range(int(count)):
                write_image(tmp_path / "images" / str(folder) / f"{i}.png", (4, 4), i)
        return tmp_path / "images"

    return make


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            ("Train", "train"),
            ("TRAINING", "train"),
            ("train_set", "train"),
            ("train2017", "train"),
        ),
        *(("val", "val"), ("Validation", "val"), ("dev", "val"), ("valid", "val")),
        *(("Test", "test"), ("testing", "test"), ("test images", "test"), ("test.zip", "test")),
        *(("trains", None), ("bus", None), ("test1", None), ("validated", None)),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training", "validation"), ("train_set", "DEV")]
)
def test_splits_are_found_whatever_their_case(fill: Fill, train: str, test: str) -> None:
    found = list_folder(fill(train, 6, test, 4))
    assert found.layout == "splits"
    assert found.classes == ()
    assert {name.split("/")[0] for name in found.train.names} == {train}
    assert {name.split("/")[0] for name in found.test.names} == {test}
    assert f"6 images to train on, 4 to test ({test})" in found.sentences()[0]


def test_the_validation_split_beside_a_test_split_is_left_out_and_counted(fill: Fill) -> None:
    found = list_folder(fill("train", 5, "val", 3, "test", 2))
    assert (len(found.train.names), len(found.test.names)) == (5, 2)
    assert "left out: 3 of the split val (val/0.png, …)" in found.sentences()


def test_a_class_that_is_called_train_is_not_guessed_at(fill: Fill) -> None:
    root = fill("bus", 10, "car", 10, "train", 10)
    with pytest.raises(UserError) as refused:
        list_folder(root)
    assert str(refused.value) == (
        f"data.root={root} can be read in two ways: data.layout=classes takes bus, car, train for "
        f"classes (30 images); data.layout=splits trains on train (10 images), tests on a tenth of "
        f"them and leaves out 20. Add the one that is meant"
    )
    classes = list_folder(root, "classes")
    assert classes.classes == ("bus", "car", "train")
    assert len(classes.train.names) + len(classes.test.names) == 30
    splits = list_folder(root, "splits")
    assert splits.classes == ()
    assert splits.left_out.counts == {"in no folder of a split": 20}
    assert len(splits.train.names) + len(splits.test.names) == 10


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (
            ("train", 3, "test", 3, ".", 1),
            "layout=flat takes all 7 images.*layout=splits trains on",
        ),
        (
            ("train", 3, "test", 3, "extra", 2),
            "layout=classes takes extra, test, train for classes .8 images",
        ),
        (("bus", 3, "car", 3, "test", 2), "has test and no folder of training images.*a folder tr"),
        (("val", 3, "test", 3), "has test, val and no folder of training images"),
        (("train", 3, "Training", 3, "test", 1), "Training, train, each named as the train split"),
        (
            ("cat/train", 3, "cat/test", 2, "dog", 3),
            "layout=classes takes cat, dog.*layout=splits_in_classes takes cat for classes, trains "
            "on 3 images.*tests on 2 and leaves out 3",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    fill: Fill, folders: tuple[str | int, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        list_folder(fill(*folders))


@pytest.mark.parametrize(
    "folders", [("trainA", "trainB", "testA", "testB"), ("DIV2K_train_HR", "DIV2K_valid_HR")]
)
def test_names_that_are_almost_those_of_splits_are_no_classes(
    fill: Fill, folders: tuple[str, ...]
) -> None:
    root = fill(*(part for folder in sorted(folders) for part in (folder, 3)))
    with pytest.raises(UserError, match=f"has {', '.join(sorted(folders))}, which are named like"):
        list_folder(root)
    assert list_folder(root, "classes").classes == tuple(sorted(folders))


def test_splits_within_classes(fill: Fill) -> None:
    root = fill("cat/train", 3, "cat/Test", 2, "dog/train", 4, "dog/Test", 1)
    found = list_folder(root)
    assert found.layout == "splits_in_classes"
    assert found.classes == ("cat", "dog")
    assert found.train.labels == (0, 0, 0, 1, 1, 1, 1)
    assert found.test.labels == (0, 0, 1)


def test_a_folder_that_is_alone_is_passed_through(fill: Fill) -> None:
    found = list_folder(fill("data/Train/cat", 3, "data/Train/dog", 2, "data/Test/cat", 2))
    assert found.layout == "splits"
    assert found.classes == ("cat", "dog")
    assert found.test.labels == (0, 0)
    alone = list_folder(fill("data/Train/cat", 3).parent / "images" / "data" / "Train" / "cat")
    assert alone.layout == "flat"


def test_only_a_training_split(fill: Fill) -> None:
    found = list_folder(fill("train/cat", 9, "train/dog", 9))
    assert found.layout == "splits"
    assert found.classes == ("cat", "dog")
    assert found.train.labels is not None
    assert found.test.names
    assert "(held out)" in found.sentences()[0]


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ("splits", "finds no folder of training images .* it has cat, dog"),
        ("splits_in_classes", "finds no <class>/train"),
    ],
)
def test_a_layout_that_is_not_there(fill: Fill, layout: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list_folder(fill("cat", 3, "dog", 3), layout)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.layout=classes finds no folders"):
        list_folder(fill("cat", 3) / "cat", "classes")


def test_other_endings_are_read_or_counted(tmp_path: Path, write_image: WriteImage) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", seed=i)
    for i in range(100):
        write_image(tmp_path / f"{i}.jpg", (4, 4), i)
        (tmp_path / f"{i}.jpg").rename(tmp_path / f"{i}.jfif")
    for name in ("notes.txt", "more.TXT", "photo.heic", "drawing.eps", "README"):
        (tmp_path / name).write_text("x")
    found = list_folder(tmp_path)
    assert len(found.train.names) + len(found.test.names) == 103
    assert found.left_out.counts == {".txt": 2, ".heic": 1, ".eps": 1, "without an ending": 1}
    assert "left out: 2 .txt (more.TXT, …), 1 without an ending (README)" in str(found.sentences())


def test_a_cycle_of_links_ends(fill: Fill) -> None:
    root = fill("a", 5, "b", 5)
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "up").symlink_to(root.parent)
    (root / "b" / "itself").symlink_to(root / "b" / "itself")
    found = list_folder(root)
    assert sorted([*found.train.names, *found.test.names]) == sorted(
        f"{folder}/{i}.png" for folder in "ab" for i in range(5)
    )
    assert found.classes == ("a", "b")
    assert found.left_out.counts == {
        "linking to a folder that is read already": 2,
        "linking in a circle": 1,
    }


def test_a_link_to_an_image_that_is_there_counts_once(fill: Fill, tmp_path: Path) -> None:
    root = fill("train", 4, "test", 2)
    outside = fill("../outside", 1).parent / "outside" / "0.png"
    for name, target in {
        "train/again.png": root / "train" / "0.png",
        "test/leak.png": root / "train" / "1.png",
        "train/x.png": outside,
        "train/y.png": outside,
        "train/gone.png": root / "nowhere.png",
    }.items():
        os.symlink(target, root / name)
    found = list_folder(root)
    assert found.train.names == tuple(f"train/{n}.png" for n in ("0", "1", "2", "3", "x"))
    assert found.test.names == ("test/0.png", "test/1.png")
    assert found.left_out.counts == {
        "linking to an image that is there already": 3,
        "linking to a file that is missing": 1,
    }


def test_splits_made_of_links_into_one_folder(fill: Fill) -> None:
    """The images beside the splits are no second copy of theirs."""
    root = fill("all", 5)
    for split, numbers in {"train": (0, 1, 2), "test": (3, 4)}.items():
        (root / split).mkdir()
        for i in numbers:
            (root / split / f"{i}.png").symlink_to(root / "all" / f"{i}.png")
    with pytest.raises(UserError, match="two ways"):
        list_folder(root)
    found = list_folder(root, "splits")
    assert (len(found.train.names), len(found.test.names)) == (3, 2)


def test_what_is_no_file_is_not_opened(fill: Fill) -> None:
    root = fill(".", 3)
    os.mkfifo(root / "pipe.png")
    found = list_folder(root)
    assert found.left_out.counts == {"neither file nor folder": 1}


def test_names_that_would_move_the_cursor(fill: Fill) -> None:
    root = fill(".", 3)
    (root / "a\x1b[2J.txt").write_text("x")
    assert str(list_folder(root).left_out) == "1 .txt (a?[2J.txt)"
