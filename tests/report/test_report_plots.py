"""Plots of runs: what is on their axes, in which colours, and what is never joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from betasigma.options.drawing import DrawingOptions
from betasigma.plot_style import FAMILIES, SAMPLERS, family_colours, sampler_style
from betasigma.report import plots, quality
from betasigma.report.plots import draw_curves, draw_error_curves, draw_results, error_curves
from betasigma.report.quality import draw_quality, quality_of_jobs, quality_of_runs
from betasigma.report.rows import rows_of_settings, settings_of
from betasigma.report.runs import COMPOSED, read_run, read_runs
from betasigma.report.tables import drawable
from betasigma.runs.record import Record

DDPM, NCSN = FAMILIES["ddpm"], FAMILIES["ncsn"]
LOOK = DrawingOptions(dpi=40, formats=["png"])


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """Two families with two seeds each, curves, distances and evaluations."""
    for place, family in enumerate(("ddpm", "ncsn")):
        for seed in range(2):
            run = tmp_path / f"{family}{seed}"
            run.mkdir()
            config = {
                **{"name": family, "seed": seed, "batch_size": 10, "data": {"name": "some"}},
                "model": {"name": family, "family": family},
            }
            OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
            (run / ".hydra").mkdir()
            (run / ".hydra" / "overrides.yaml").write_text(json.dumps([f"model={family}"]))
            record = Record(run / "metrics.csv")
            for step in (10, 20, 30):
                record.append(step, {"val/denoising_error": 10 / step + place + seed}, {"n": 7})
            curve = {f"val/denoising_error/log_snr_{at:+d}": 0.1 * (at + 2) for at in (-1, 0, 1)}
            record.append(30, curve, {"n": 7})
            drawn = {"n": 200, "nfe": 10, "sampler": "ddim", "settings": "steps=10"}
            record.append(30, {"val/fd_some": 5.0 + place + seed}, drawn)
            record.append(30, {"val/fd_some_test": 6.0 + place + seed}, drawn)
            record.append(30, {"val/fd_some_floor": 2.0}, {"n": 200})
            for name, steps in (("ddim", (10, 20)), ("ancestral", (20,))):
                for nfe in steps:
                    own = {**drawn, "nfe": nfe, "sampler": name, "settings": f"steps={nfe}"}
                    record.append(30, {"eval/fd_some": 90 / nfe + place + seed}, own)
            record.append(30, {"eval/fd_some": 1.0}, {**drawn, "n": 50})
            record.append(30, {"eval/fd_some_floor": 2.0}, {"n": 200})
    return [str(tmp_path)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written."""
    figures: list[Figure] = []

    def keep(original: Callable[..., Path]) -> Callable[..., Path]:
        def save(figure: Figure, *args: Any) -> Path:
            figures.append(figure)
            return original(figure, *args)

        return save

    for module in (plots, quality):
        monkeypatch.setattr(module, "save_figure", keep(module.save_figure))
    return figures


def test_a_curve_is_a_setting_with_a_band_over_its_seeds(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    path = draw_curves(
        settings_of(read_runs(study)), ["val/denoising_error"], tmp_path / "curves", LOOK
    )
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert {label: line.get_color() for label, line in lines.items()} == {
        "model=ddpm (2 seeds)": DDPM,
        "model=ncsn (2 seeds)": NCSN,
    }
    assert lines["model=ddpm (2 seeds)"].get_ydata().tolist() == pytest.approx(
        [10 / step + 0.5 for step in (10, 20, 30)]
    )
    assert len(axes.collections) == 2
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((1 / 3, 2.0)), "± half of the difference of two"
    assert (axes.get_title(), axes.get_ylabel()) == (
        "denoising error in validation",
        "‖ε − ε̂‖²/d, n=7",
    )
    with Image.open(path) as image:
        assert image.size[0] == pytest.approx(4.2 * 40, abs=2)


def test_results_have_no_line_between_settings_and_say_n(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    runs = read_runs(study)
    rows = rows_of_settings(runs)
    draw_results(rows, drawable(rows), tmp_path / "results", error_curves(runs), LOOK)
    distances, error, by_noise = drawn[0].axes
    assert distances.get_xlabel() == "Fréchet distance, NFE=10, n=200"
    assert [tick.get_text() for tick in distances.get_yticklabels()] == [
        "model=ddpm (2 seeds)",
        "model=ncsn (2 seeds)",
    ]
    joined = [line for line in distances.lines if len(set(line.get_ydata())) > 1]
    assert len(joined) == 1, "the floor alone runs over the settings"
    assert {line.get_linestyle() for line in distances.lines[:-1]} <= {"None", "-"}
    assert (error.get_title(), error.get_xlabel()) == ("denoising_error", "‖ε − ε̂‖²/d, n=7")
    assert by_noise.get_xlabel() == "log-SNR of data in [−1, 1]"


def test_error_curves_are_in_the_colours_of_their_families(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    draw_error_curves(error_curves(read_runs(study)), tmp_path / "error", LOOK)
    (axes,) = drawn[0].axes
    assert [line.get_color() for line in axes.lines] == [DDPM, NCSN]
    assert axes.get_ylabel().endswith("²/d, n=7")
    Record.of(tmp_path / "ddpm0").append(30, {"eval/denoising_error/log_snr_+0": 0.2}, {"n": 256})
    draw_error_curves(error_curves(read_runs(study)), tmp_path / "error", LOOK)
    assert drawn[1].axes[0].get_ylabel().endswith("²/d, n=7 or 256")


def test_a_seed_that_was_run_twice_counts_once(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    """Else the band is too narrow, and the legend counts too many seeds."""
    shutil.copytree(tmp_path / "ddpm0", again := tmp_path / "ddpm0 again")
    told = {"n": 200, "nfe": 20, "sampler": "ddim", "settings": "steps=20"}
    Record.of(again).append(30, {"eval/fd_some": 6.5}, told)
    runs = read_runs(study)
    assert [len(one.curves) for one in error_curves(runs)] == [2, 2]
    draw_curves(settings_of(runs), ["val/denoising_error"], tmp_path / "x", LOOK)
    names = [str(line.get_label()) for line in drawn[0].axes[0].lines]
    assert names == ["model=ddpm (2 seeds)", "model=ncsn (2 seeds)"]
    for found in quality_of_runs(runs).values():
        assert all(len(seeds) == 2 for by in found.lines.values() for seeds in by.values())
        for line, by_nfe in found.lines.items():
            if (line.family, line.sampler, 20 in by_nfe) == ("ddpm", "ddim", True):
                assert by_nfe[20] == [5.5, 5.5], "4.5 and 6.5 in the mean, as in tables"


def test_evaluations_of_classes_and_of_weights_are_told_apart(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    """Classes have an axis of their own, and weights of guidance shades."""
    told = {"n": 50, "nfe": 10, "sampler": "ddim", "settings": "steps=10"}
    for weight in (1.0, 2.0):
        given = {"eval_of_3/fd_some": weight, "eval_of_3/fd_some_floor": 0.5}
        Record.of(tmp_path / "ddpm0").append(30, given, {**told, "guidance": weight})
    found = quality_of_runs(read_runs(study))
    (classes,) = [terms for terms in found if terms.classes]
    assert (classes.title, found[classes].floor) == ("fd_some of 3", [0.5])
    draw_quality({classes: found[classes]}, tmp_path / "frontier", LOOK)
    colours = {c.get_label(): c.lines[0].get_color() for c in drawn[0].axes[0].containers}
    assert list(colours) == ["ddim guidance=1", "ddim guidance=2"]
    assert len(set(colours.values())) == 2


def test_checkpoints_of_a_run_have_lines_of_their_own(study: list[str], tmp_path: Path) -> None:
    (folder,) = study
    jobs = []
    for number, place in enumerate(("", "/checkpoints/last.ckpt", "/checkpoints/best.ckpt")):
        for family in ("ddpm", "ncsn"):
            job = tmp_path / "sweep" / f"{family}{number}"
            (job / ".hydra").mkdir(parents=True)
            OmegaConf.save(OmegaConf.create({"run": f"{folder}/{family}0{place}"}), job / COMPOSED)
            told = {"n": 50, "nfe": 10, "sampler": "ddim", "settings": "steps=10", "seed": 0}
            Record(job / "metrics.csv").append(30, {"eval/fd_some": float(number)}, told)
            jobs.append(read_run(job, COMPOSED))
    (found,) = quality_of_jobs(jobs).values()
    values = {(line.model, line.family): by_nfe[10] for line, by_nfe in found.lines.items()}
    assert values == {
        **{(f"model={family}", family): [1.0] for family in ("ddpm", "ncsn")},
        **{(f"model={family} best.ckpt", family): [2.0] for family in ("ddpm", "ncsn")},
    }


def test_distances_of_other_n_are_on_another_axis(
    study: list[str], drawn: list[Figure], tmp_path: Path
) -> None:
    found = quality_of_runs(read_runs(study))
    assert [terms.n for terms in found] == ["200", "50"]
    first = next(iter(found.values()))
    values = {(line.family, line.sampler): by_nfe for line, by_nfe in first.lines.items()}
    assert values["ncsn", "ddim"] == {10: [10.0, 11.0], 20: [5.5, 6.5]}
    assert first.floor == [2.0] * 4
    draw_quality(found, tmp_path / "frontier", LOOK)
    axes, other = drawn[0].axes
    assert (axes.get_ylabel(), other.get_ylabel()) == (
        "distance to training images, n=200",
        "distance to training images, n=50",
    )
    styles = {c.get_label(): c.lines[0] for c in axes.containers}
    assert styles["model=ddpm, ddim (2 seeds)"].get_color() == DDPM
    assert styles["model=ncsn, ddim (2 seeds)"].get_linestyle() == SAMPLERS["ddim"][0]
    assert styles["model=ncsn, ancestral (2 seeds)"].get_marker() == SAMPLERS["ancestral"][1]


def test_settings_of_one_family_are_shades_of_its_colour() -> None:
    shades = family_colours(["ddpm", "mylab", "ddpm"])
    assert len(set(shades)) == 3
    assert DDPM not in shades
    assert family_colours(["ddpm", "ncsn"]) == [DDPM, NCSN]
    known = [sampler_style(name)["marker"] for name in SAMPLERS]
    assert len(set(known)) == len(known)
    assert sampler_style("mylab")["marker"] not in known


def test_a_plot_is_written_in_every_format_and_the_same_each_time(
    study: list[str], tmp_path: Path
) -> None:
    look = DrawingOptions(dpi=30, formats=["svg", "pdf", "png"])
    written = []
    for folder in ("a", "b"):
        path = draw_error_curves(error_curves(read_runs(study)), tmp_path / folder / "x", look)
        assert path.name == "x.svg"
        written.append([(path.with_suffix(f".{form}")).read_bytes() for form in look.formats])
    assert written[0] == written[1]
    assert written[0][1].startswith(b"%PDF")
