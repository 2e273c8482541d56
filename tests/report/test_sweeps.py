"""What a sweep of trainings ends with, whatever it sweeps over."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from launching import TINY, launch
from PIL import Image

from betasigma.runs.record import Record


def summary(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_sweep_of_trainings_ends_with_a_table(here: Path) -> None:
    outcome = launch("train", "-m", *TINY, "seed=1,2", "ema.decay=0,0.9", "steps=2")
    assert outcome.status == 0, outcome.err
    (sweep,) = here.glob("outputs/*_sweep_*")
    rows = summary(sweep)
    assert [(row["run"], row["seeds"]) for row in rows] == [
        ("ema.decay=0", "2"),
        ("ema.decay=0.9", "2"),
    ]
    errors = [
        Record(path).curve("val/denoising_error")[1][-1] for path in sweep.glob("*/metrics.csv")
    ]
    means = [float(row["denoising_error"]) for row in rows]
    assert sum(means) / 2 == pytest.approx(sum(errors) / 4)
    assert "ema.decay=0.9" in outcome.out
    assert "glyph" not in outcome.out + outcome.err, "what writes a PDF says nothing"
    assert (sweep / "summary.pdf").is_file()


@pytest.mark.slow
def test_jobs_that_finished_are_told_of_where_others_failed(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    (here / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(here / "images" / f"{number}.png")
    (here / "images" / "cut.png").write_bytes((here / "images" / "0.png").read_bytes()[:40])
    own = ("data=image_folder", f"data.root={here}/images", "data.image_size=8", "data.channels=1")
    outcome = launch("train", "-m", *TINY, *own, "data.on_corrupt=warn,error", "seed=1,2")
    assert outcome.status == 1
    assert "2 of 4 jobs failed" in outcome.err
    (sweep,) = here.glob("outputs/*_sweep_*")
    assert [row["seeds"] for row in summary(sweep)] == ["2"]


def test_one_run_is_no_comparison(here: Path) -> None:
    outcome = launch("train", "-m", *TINY, "seed=1", "steps=1")
    assert outcome.status == 0, outcome.err
    assert not list(here.glob("outputs/*_sweep_*/summary.csv"))


@pytest.mark.slow
def test_a_study_of_ones_own(here: Path) -> None:
    """Rows are its points in their order; a word that chooses the model as well is refused."""
    group = here / "configs" / "depth"
    group.mkdir(parents=True)
    start = "# @package _global_\ndefaults:\n  - override /model: ncsn\n"
    for point, label in enumerate(("shallow", "deep")):
        study = f"study: {{name: depth, point: {point}, label: {label}}}\n"
        (group / f"{label}.yaml").write_text(f"{start}{study}network: {{blocks: {point + 1}}}\n")
    own = [word for word in TINY if not word.startswith(("network.blocks", "steps"))]
    words = ("--config-dir", str(here / "configs"), "-m", *own, "steps=1", "+depth=deep,shallow")
    outcome = launch("train", *words)
    assert outcome.status == 0, outcome.err
    (sweep,) = here.glob("outputs/*_sweep_*")
    assert [row["run"] for row in summary(sweep)] == ["0 shallow", "1 deep"]
    assert (sweep / "summary.png").is_file()

    where = f"hydra.searchpath=[file://{here / 'configs'}]"
    for started in (words, (where, "+depth=deep")):
        refused = launch("train", *started, "model=ddpm")
        assert refused.status == 1
        sentence = "depth=deep and model=ddpm both choose the model; leave one out"
        assert refused.err == f"error: {sentence}\n"


def test_points_of_a_study_may_be_numbers(here: Path) -> None:
    group = here / "configs" / "depth"
    group.mkdir(parents=True)
    for point in range(2):
        study = f"study: {{name: depth, point: {point}, label: p{point}}}\n"
        (group / f"{point}.yaml").write_text(f"# @package _global_\n{study}")
    for words in (("-m", "+depth=0,1"), ("+depth=1",)):
        found = launch("train", "--config-dir", str(here / "configs"), *words, "steps=0")
        assert found.err.startswith("error: steps=0 must be greater")
