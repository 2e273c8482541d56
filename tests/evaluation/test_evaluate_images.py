"""``scripts/evaluate.py images=…``: images that no model of ours made."""

from __future__ import annotations

import csv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from launching import Outcome, launch
from PIL import ExifTags, Image

from betasigma.data.image_sets import open_images
from betasigma.errors import UserError

N = 12


def folder(path: Path, images) -> Path:
    """The images as PNG files."""
    path.mkdir(parents=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image.squeeze()).save(path / f"{number:03d}.png")
    return path


def measured(*words: str) -> tuple[dict[str, dict[str, str]], Outcome]:
    """What ``evaluate.py`` recorded, by name, and what it said."""
    outcome = launch("evaluate", *words)
    assert outcome.status == 0, outcome.err
    out = max(Path.cwd().glob("outputs/*_evaluate_*"), key=lambda path: path.stat().st_mtime_ns)
    with (out / "metrics.csv").open() as file:
        rows = {row["metric"].removeprefix("eval/"): row for row in csv.DictReader(file)}
    return rows, outcome


def test_links_to_images_elsewhere_count_as_often_as_they_are(tmp_path: Path, images) -> None:
    files = sorted(folder(tmp_path / "images", images(2, 0)).iterdir())
    sample = tmp_path / "sample"
    sample.mkdir()
    for number in range(4):
        (sample / f"{number}.png").symlink_to(files[number % 2])
    assert len(open_images(sample, "images")) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fid of n")
def test_two_folders_are_as_far_apart_as_torch_fidelity_says(
    here: Path, images, inception_file, fidelity
) -> None:
    a, b = folder(here / "a", images(N, 0)), folder(here / "b", images(N, 1))
    theirs = fidelity(str(a), str(b), N)
    metrics = "[fd,{_target_: betasigma.evaluation.metrics.KernelDistance, subset_size: 12}"
    words = (
        f"evaluation.metrics={metrics},is,precision,recall,neighbours]",
        f"evaluation.inception_weights={inception_file}",
        "hardware=cpu",
    )
    rows, outcome = measured("images=a", "reference=b", *words)
    assert rows.keys() == {name for name in theirs if not name.endswith("_std")}
    for name, row in rows.items():
        assert float(row["value"]) == pytest.approx(theirs[name], rel=1e-3), name
    row = rows["fid"]
    assert (row["n"], row["sampler"], row["split"]) == (str(N), "a", "reference")
    assert (row["nfe"], row["seed"], row["n_reference"]) == ("", "", str(N))
    assert "nn_distance_ratio left out: needs a test split, and reference=b has none" in outcome.err


@pytest.mark.slow
def test_images_are_compared_with_a_data_set_as_samples_are(here: Path, ddpm_run: Path) -> None:
    """Samples of a run score the same as files as they do in the evaluation of the run, from the
    same statistics.
    """
    words = ("sampler=ddim", "sampler.steps=2", "hardware.precision=32")
    few = ("evaluation.metrics=[fd,neighbours]", "evaluation.n_reference=20")
    own, _ = measured(f"run={ddpm_run}", "n=10", "error_curve=0", *words, *few)
    own = {name: row for name, row in own.items() if not name.startswith("sample/")}
    drawn = launch("sample", f"run={ddpm_run}", "n=10", *words, "save=folder", "out=drawn")
    assert drawn.status == 0, drawn.err
    for compared in ("data=digits", f"run={ddpm_run}"):
        rows, outcome = measured("images=drawn", compared, *few)
        assert rows.keys() == own.keys()
        assert "to be kept" not in outcome.out
        for name in ("fd_efficientnet_lite0", "fd_efficientnet_lite0_test", "nn_distance_ratio"):
            assert float(rows[name]["value"]) == pytest.approx(float(own[name]["value"]), rel=1e-3)
            assert rows[name]["split"] == own[name]["split"]
            assert rows[name]["n_reference"] == own[name]["n_reference"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["images=none"], "images=none is compared with one of: a data set (data=cifar10, say), t"),
        (["images=none", "data=digits"], "images=none is not there: give a folder, a zip archive"),
        (["images=.", "reference=none"], "reference=none is not there: give a folder, a zip"),
        (["images=.", "reference=.", "data=digits"], "images=. is compared with one of: a data"),
        (["images=.", "data=mixture"], "data=mixture are points, and images=… are images"),
        (["images=.", "data=digits", "n=5"], "n=5 has no effect: images=. are measured, all of"),
        (["images=.", "data=digits", "sampler=ddim"], "sampler=ddim has no effect: images=. are"),
        (["images=.", "data=digits", "~sampler"], "~sampler has no effect: images=. are measured"),
        (["images=.", "data=digits", "network=unet"], "network=unet has no effect: nothing is"),
        (["images=.", "data=digits", "optimizer=sgd"], "optimizer=sgd has no effect: nothing is"),
        (["reference=."], "run has no value; give run=…, or images=… to measure images"),
        (["run=x", "images=.", "data=digits"], "images=. is compared with one of: a data"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(
    here: Path, words: list[str], sentence: str
) -> None:
    outcome = launch("evaluate", *words)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {sentence}")
    assert outcome.err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_images_of_another_shape_are_refused(here: Path, images) -> None:
    folder(here / "a", images(4, 0, 1, 16))
    earlier = here / "measured" / "metrics.csv"
    earlier.parent.mkdir()
    earlier.write_text("of an earlier evaluation")
    outcome = launch("evaluate", "images=a", "data=digits", "hydra.run.dir=measured")
    assert earlier.read_text() == "of an earlier evaluation"
    assert outcome.err.startswith(
        "error: images=a are 1×16×16, and data=digits has images of 1×8×8: they must have one shape"
        "\n"
    )
    one = launch("evaluate", "images=a", "reference=a/000.png").err
    assert one.endswith(
        "reference=a/000.png has 1 example, and metrics compare with at least 2: "
        "give more, or evaluation=none\n"
    )
    outcome = launch("evaluate", "images=a", "data=image_folder", "data.root=a", "data.channels=1")
    assert outcome.err.endswith("one shape, which data.image_size=[16,16] would give\n")


# ---------------------------------------------------------------- sets


def test_a_set_is_read_in_the_order_of_names(tmp_path: Path, images) -> None:
    grey = images(3, 0, 1, 8)
    found = open_images(folder(tmp_path / "a", grey), "images")
    assert (len(found), found.shape) == (3, (1, 8, 8))
    assert np.array_equal(found.take(np.arange(3))["image"], grey)
    # of a set of which some have colours all have
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "a" / "z.png")
    found = open_images(tmp_path / "a", "images")
    assert found.take(np.array([3, 0]))["image"][:, :, 0, 0].tolist() == [
        [9, 8, 7],
        [int(grey[0, 0, 0, 0])] * 3,
    ]
    assert open_images(tmp_path / "a" / "z.png", "images").shape == (3, 8, 8)
    (tmp_path / "a" / "note.txt").write_text("")
    with pytest.warns(UserWarning, match=r"left out 1 \.txt \(note\.txt\)"):
        open_images(tmp_path / "a", "images", (3, 4, 4))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_a_set_is_as_upright_as_its_images(tmp_path: Path, images, ending: str) -> None:
    turned = Image.fromarray(images(1, 0, 3, 8).numpy()[0].transpose(1, 2, 0)[:4])
    tags = turned.getexif()
    tags[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / f"a.{ending}", exif=tags, lossless=True)
    found = open_images(tmp_path, "images")
    assert found.shape == (3, 8, 4)
    expected = np.rot90(np.asarray(turned), -1).transpose(2, 0, 1)
    assert found.take(np.array([0]))["image"][0].tolist() == expected.tolist()


def test_what_reading_a_set_loses_is_said(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="^transparent parts of 1 of 1 image show white"):
        open_images(tmp_path, "images")
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="become 15 of 255: spread them over their range first"):
        open_images(tmp_path, "images")


def test_an_archive_and_an_array_are_the_same_set(tmp_path: Path, images) -> None:
    drawn = images(5, 0)
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder(tmp_path / "a", drawn).iterdir()):
            archive.write(path, f"deep/{path.name}")
    np.savez(tmp_path / "a.npz", arr_0=drawn.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(5))
    np.save(tmp_path / "a.npy", drawn.numpy())
    for name in ("a", "a.zip", "a.npz", "a.npy"):
        found = open_images(tmp_path / name, "images")
        assert np.array_equal(found.take(np.arange(5))["image"], drawn)
    labels = open_images(tmp_path / "a.npz", "images").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_set_of_images(tmp_path: Path, images) -> None:
    a = folder(tmp_path / "a", images(3, 0))
    Image.new("RGB", (9, 8)).save(a / "odd.png")
    with pytest.raises(UserError, match=r"several sizes, 3 of 16×16 \(000.png\), 1 of 9×8"):
        open_images(a, "images")
    (a / "odd.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"has odd.png, which cannot be decoded"):
        open_images(a, "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images in it"):
        open_images(tmp_path / "empty", "reference")
    arrays = {
        "float": {"arr_0": np.zeros((2, 4, 4, 3))},
        "flat": {"arr_0": np.zeros((2, 4, 4), np.uint8)},
        "five": {"arr_0": np.zeros((2, 5, 5, 5), np.uint8)},
        "other": {"latents": np.zeros(3)},
        "pickled": {"arr_0": np.array([{}], dtype=object)},
    }
    for name, content in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(UserError, match=rf"^images={tmp_path}/{name}.npz"):
            open_images(tmp_path / f"{name}.npz", "images")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(UserError, match=r"cannot be read as .npy or .npz"):
        open_images(tmp_path / "broken.npy", "images")
