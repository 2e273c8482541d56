"""Classes by name: from folders to samples and measurements of one of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from launching import TINY, launch
from PIL import Image


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with images of two classes and a run on them."""
    place = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 24), ("test", 8)):
        for number, shape in enumerate(("circle", "square")):
            folder = place / "images" / split / shape
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([i, number, split == "test"])
                pixels = rng.integers(100 * number, 100 * number + 100, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ended = launch(
            "train",
            *TINY,
            *("data=image_folder", "data.root=images", "data.image_size=8", "data.channels=1"),
            *("network.num_classes=2", "objective.label_dropout=0.1", "hydra.run.dir=outputs/run"),
        )
    assert ended.status == 0, ended.err
    return place


def test_what_was_found_is_in_the_run_directory(shapes: Path) -> None:
    found = json.loads((shapes / "outputs" / "run" / "data.json").read_text())
    assert found["layout"] == "splits"
    assert found["classes"] == [
        {"number": 0, "name": "circle", "train": 24, "test": 8},
        {"number": 1, "name": "square", "train": 24, "test": 8},
    ]
    assert (found["train"]["examples"], found["test"]["examples"]) == (48, 16)


def test_labels_by_name(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shapes)
    for label in ("square", "1"):
        outcome = launch(
            "sample", "run=outputs/run", f"labels=[{label}]", "n=3", f"hydra.run.dir=by_{label}"
        )
        assert outcome.status == 0, outcome.err
    by_name, by_number = (np.load(f"by_{label}/samples.npz") for label in ("square", "1"))
    assert by_name["arr_1"].tolist() == [1, 1, 1]
    assert np.array_equal(by_name["arr_0"], by_number["arr_0"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sample labels=[sqare]", "labels=sqare is no class of the model; did you mean square?"),
        ("sample labels=[2]", "labels=2 is no class of the model, which has 0 circle, 1 square"),
        ("evaluate labels=[xyz]", "labels=xyz is no class of the model, which has 0 circle, 1 squ"),
        ("sample labels=[]", "labels=[] names no class: leave it out for all 2"),
        ("evaluate data.root=others", "data.root=others has the classes circle, disc, and the mod"),
    ],
)
def test_what_is_no_class(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, words: str, sentence: str
) -> None:
    monkeypatch.chdir(shapes)
    if not (shapes / "others").exists():
        shutil.copytree(shapes / "images", shapes / "others")
        for split in ("train", "test"):
            (shapes / "others" / split / "square").rename(shapes / "others" / split / "disc")
    app, *overrides = words.split()
    outcome = launch(app, "run=outputs/run", *overrides)
    assert outcome.status == 1
    assert sentence in outcome.err


def test_one_class_is_measured_against_its_images(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shapes)
    outcome = launch(
        "evaluate",
        *("run=outputs/run", "labels=[circle]", "n=20", "evaluation.extractor=identity"),
        *("evaluation.metrics=[fd]", "hydra.run.dir=measured", "evaluation.cache=cache"),
        "guidance=2",
    )
    assert outcome.status == 0, outcome.err
    assert "data: 24 examples to train on, 8 to test, of circle" in outcome.out
    assert "is of class square" not in outcome.err
    with (shapes / "measured" / "metrics.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    measured = rows["eval_of_circle/fd_identity"]
    assert (measured["n_reference"], measured["guidance"]) == ("24", "2.0")
    assert not any(name.startswith("eval/") for name in rows)


def test_data_that_have_changed_since_a_run_began(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shapes / "images", "images")
    shutil.copytree(shapes / "outputs", "outputs")
    shutil.copy("images/train/circle/0.png", "images/train/circle/more.png")
    measured = launch("evaluate", "run=outputs/run", "evaluation=none", "error_curve=20")
    assert measured.status == 0, measured.err
    assert "denoising error of 16 examples" in measured.out  # all that there are
    assert "train split is not the one that outputs/run has recorded in data.json" in measured.err
    assert "the test split" not in measured.err
    outcome = launch("train", "resume=outputs/run", "steps=8")
    assert outcome.status == 0, outcome.err
    assert "warning: the train split has changed since this run was last started (48" in outcome.err
    kept = json.loads(Path("outputs/run/data.json").read_text())
    assert kept["train"]["examples"] == 49
    assert [earlier["train"]["examples"] for earlier in kept["before"]] == [48]
