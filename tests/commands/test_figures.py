"""The pictures of the theory, and the numbers beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from launching import TINY, launch
from PIL import Image

SMALL = ("n=30", "grid=9", "learned_from=200", "frames=4", "sampler.inner_steps=3")


def drawn(*words: str) -> tuple[Path, dict[str, Any], str]:
    """Directory, numbers and terminal of one call of ``figures.py``."""
    outcome = launch("figures", *SMALL, *words)
    assert outcome.status == 0, outcome.err
    folders = Path.cwd().glob("outputs/*_figures_*")
    out = max(folders, key=lambda path: path.stat().st_mtime_ns)
    return out, json.loads((out / "figures.json").read_text()), outcome.out


def colours(path: Path) -> int:
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or ())


def test_everything_is_drawn_without_a_run(here: Path) -> None:
    out, numbers, told = drawn("sigmas=[0.05,0.4]")
    for name in ("filmstrip", "vector_field", "score_error", "mode_weights"):
        assert colours(out / f"{name}.png") > 20
    small, large = numbers["score_error"]
    assert (small["sigma"], large["sigma"]) == (pytest.approx(0.05), pytest.approx(0.4))
    assert small["between"] > 5 * small["at_modes"]  # 200 points say nothing of the gap
    assert large["between"] < small["between"] / 5  # more noise covers it
    assert large["total_variation"] > small["total_variation"] + 0.3  # and is less the data
    plain, annealed = numbers["mode_weights"]
    assert (plain["dynamics"], annealed["dynamics"]) == ("plain Langevin", "annealed Langevin")
    assert plain["nfe"] == annealed["nfe"] == 30
    assert plain["sigma_max"] == plain["sigma_min"] == pytest.approx(0.05)
    for row in (plain, annealed):
        assert (row["n"], row["true"]) == (30, 0.2)
        assert row["low"] < row["weight"] < row["high"]
        assert f"{row['low']:.3f} – {row['high']:.3f}" in told
    with (out / "mode_weights.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [float(row["weight"]) for row in kept] == [plain["weight"], annealed["weight"]]


def test_trained_runs_are_drawn(here: Path, ddpm_run: Path, ncsn_run: Path) -> None:
    """A network trained at one small σ is wrong where it saw no data: section 2.2.6."""
    own = [word for word in TINY if not word.startswith(("network", "sampler", "batch", "steps"))]
    words = ("steps=200", "batch_size=128", "network.width=64", "optimizer.lr=0.003")
    outcome = launch("train", *own, "experiment=langevin_mixture", *words)
    assert outcome.status == 0, outcome.err
    runs = f"runs=[{outcome.run},{ddpm_run},{ncsn_run}]"
    out, numbers, _ = drawn(runs, "figures=[filmstrip,score_error,mode_weights]")
    row = numbers["score_error"][0]
    assert row["score"] == "network, one σ"
    assert row["sigma"] == pytest.approx(0.05)
    assert row["at_modes"] < 0.3
    assert row["between"] > 5 * row["at_modes"]
    labels = [(row["dynamics"], row["score"]) for row in numbers["mode_weights"]]
    assert labels[2:] == [("plain Langevin", "network, one σ")]
    assert colours(out / "filmstrip.png") > 20
    assert not (out / "vector_field.png").exists()


def test_runs_of_another_mixture_are_refused(here: Path) -> None:
    own = [word for word in TINY if not word.startswith("network")]
    outcome = launch("train", *own, "data=mixture", "network.width=16", "network.depth=1")
    assert outcome.status == 0, outcome.err
    refused = launch("figures", f"runs=[{outcome.run}]")
    assert refused.status == 1
    assert "was trained on data.mixture=ring" in refused.err
    assert len(refused.err.splitlines()) == 1
