"""scripts/plot.py: each figure of a paper by one command, of both families."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image

from betasigma.commands import paper_figures
from betasigma.commands.load import load_run
from betasigma.commands.paper_figures import Filmstrip, Model
from betasigma.evaluation.neighbours import nearest, nearest_examples
from betasigma.report.plots import Sheet, draw_sheets
from betasigma.runs.record import Record


def figure(here: Path, name: str, *words: str, formats: str = "png") -> np.ndarray:
    """The picture that a command leaves, as an array."""
    out = here / "figure"
    shutil.rmtree(out, ignore_errors=True)
    words = (f"figure={name}", *words, f"formats=[{formats}]", "dpi=60", f"hydra.run.dir={out}")
    outcome = launch("plot", *words)
    assert outcome.status == 0, outcome.err
    (picture,) = out.glob("*.png")
    assert f"figure figure/{picture.name}" in outcome.out
    if "pdf" in formats:
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    with Image.open(picture) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("filmstrip", [["sample 0", "sample 1", "sample 2"]] * 2),
        pytest.param("denoising", [["noisy", "ddpm", "ncsn"]], marks=pytest.mark.slow),
        pytest.param(
            "neighbours",
            [["image", "nearest 1", "nearest 2", "nearest 3"]] * 3,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_figures_of_models_show_both_families(
    here: Path,
    ddpm_run: Path,
    ncsn_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rows: list[list[str]],
) -> None:
    drawn: list[Sheet] = []

    def draw(sheets: list[Sheet], *args: Any) -> Path:
        drawn.extend(sheets)
        return draw_sheets(sheets, *args)

    monkeypatch.setattr(paper_figures, "draw_sheets", draw)
    steps = () if name == "denoising" else ("sampler=ddim", "sampler.steps=3")
    runs = f"runs=[{ddpm_run},{ncsn_run}]"
    shown = figure(here, name, runs, *steps, formats="png,pdf")
    assert [list(sheet.rows) for sheet in drawn] == rows
    assert (shown < 128).mean() > 0.1
    for sheet in drawn:
        for row in sheet.cells:
            images = [cell for cell in row if cell is not None]
            assert {tuple(image.shape) for image in images} == {(1, 8, 8)}
            assert len({image.numpy().tobytes() for image in images}) > 1


def test_a_strip_ends_with_the_sample_and_is_empty_where_there_is_no_state(ddpm_run: Path) -> None:
    loaded = load_run(ddpm_run)
    sampler = loaded.sampler  # 2 steps
    model = Model("ddpm", loaded, sampler, {})
    grid = np.linspace(*model.ends(), 11)
    strip = Filmstrip(samples=2, columns=12)._strip(model, 7, grid)
    drawn = sampler.sample(loaded.denoiser, 2, seed=7).x
    bytes_ = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    for row, sample in zip(strip, bytes_, strict=True):
        assert row[-1] is not None
        assert torch.equal(row[-1], sample)
        assert sum(cell is not None for cell in row) <= 3
        assert row[0] is not None, "the noise that it began with"


def test_neighbours_are_those_of_the_metric_and_sorted() -> None:
    rng = np.random.default_rng(0)
    train = torch.from_numpy(rng.integers(0, 256, (50, 1, 4, 4), dtype=np.uint8))
    queries = torch.cat([train[7:8], 255 - train[9:10]])
    distances, places = nearest_examples(queries, train.split(8), number=3)
    assert distances[:, 0].tolist() == pytest.approx(nearest(queries, [train]).tolist())
    assert places[0, 0] == 7
    assert (distances.diff(dim=1) >= 0).all()
    whole = torch.cdist(queries.flatten(1).double(), train.flatten(1).double()).sort(1)
    assert torch.allclose(distances, whole.values[:, :3])
    assert torch.equal(places, whole.indices[:, :3])


def test_figures_of_records(here: Path, ddpm_run: Path, ncsn_run: Path) -> None:
    for run in (ddpm_run, ncsn_run):
        shutil.copytree(run, here / "runs" / run.name)
        record = Record.of(here / "runs" / run.name)
        for nfe in (10, 20):
            drawn = {"n": 50, "nfe": nfe, "sampler": "ddim", "settings": f"steps={nfe}"}
            record.append(6, {"eval/fd_some": 100.0 / nfe}, drawn)
    for name in ("frontier", "error_by_noise", "bridge"):
        assert (figure(here, name, "runs=[runs]") < 250).mean() > 0.01
    job = here / "evaluations" / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "config.yaml").write_text(f"run: {here}/runs/{ddpm_run.name}\n")
    Record.of(job).append(6, {"eval/fd_some": 5.0}, {"n": 50, "nfe": 20, "sampler": "ddim"})
    assert (figure(here, "frontier", "runs=[evaluations]") < 250).mean() > 0.01
    mixed = launch("plot", "figure=frontier", "runs=[evaluations,runs]")
    assert mixed.status == 1
    assert "runs=[runs] is no sweep of evaluations, as others of runs=[…] are" in mixed.err


def test_runs_that_stand_too_deep_are_said_to_be_left_out(here: Path, ddpm_run: Path) -> None:
    for place in ("runs/one", "runs/sweep/two"):
        shutil.copytree(ddpm_run, here / place)
    for app, *own in (["compare"], ["plot", "figure=error_by_noise"]):
        outcome = launch(app, *own, "runs=[runs]", "formats=[png]")
        assert outcome.status == 0, outcome.err
        assert "warning: 1 run in runs/sweep left out: runs=[…] names runs or sweeps" in outcome.err
    assert "left out" not in launch("compare", "runs=[runs/sweep]", "formats=[png]").err


def test_what_cannot_be_drawn_is_refused(here: Path, ddpm_run: Path) -> None:
    def refused(*words: str) -> str:
        outcome = launch("plot", *words)
        assert outcome.status == 1
        assert not list(here.glob("outputs/*"))
        return outcome.err.strip()

    runs = f"runs=[{ddpm_run}]"
    assert refused("figure=filmstrip", "runs=[nowhere]").startswith("error: runs=nowhere")
    assert "runs=[nowhere] does not exist" in refused("figure=frontier", "runs=[nowhere]")
    assert "seed=3 has no effect" in refused("figure=frontier", runs, "seed=3")
    assert "figure.columns=1 must be at least 2" in refused(
        "figure=filmstrip", runs, "figure.columns=1"
    )
    assert "formats" in refused("figure=frontier", runs, "formats=[bmp]")
    assert "frontiers" in refused("figure=frontiers", runs)
