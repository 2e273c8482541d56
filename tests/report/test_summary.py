"""Runs in one table: which of them make a row, and what stands in it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from betasigma.errors import UserError
from betasigma.report.runs import read_runs
from betasigma.report.summary import draw_summary, summarise, table_of, write_summary
from betasigma.runs.record import Record


def make_run(path: Path, fd: float | None, seed: int, **config: Any) -> Path:
    """A run of 30 steps of 10 examples: 20 at 100 a second, 10 at 50."""
    path.mkdir(parents=True)
    content = {"name": "some", "seed": seed, "batch_size": 10, "tags": [path.name], **config}
    OmegaConf.save(OmegaConf.create(content), path / "config.yaml")
    record = Record(path / "metrics.csv")
    record.append(20, {"train/images_per_second": 100.0})
    record.append(30, {"train/images_per_second": 50.0})
    if fd is not None:
        told = {"n": 200, "nfe": 1000, "sampler": "ddim", "seed": seed}
        record.append(20, {"val/fd_small": 99.0}, {**told, "n": 50})
        record.append(30, {"val/fd_small": fd, "val/kid_small": 7.0}, {**told, "split": "train"})
        record.append(30, {"val/fd_small_test": fd + 1}, {**told, "split": "test"})
        record.append(30, {"val/fd_small_floor": 0.5}, {"n": 200})
        bits = {"total": 3 + fd, "prior": 1.0, "diffusion": fd, "decoder": 2.0}
        values = {f"val/bits_per_dim/some_bound/{name}_test": value for name, value in bits.items()}
        record.append(30, values, {"n": 256, "nfe": 34, "split": "test"})
    return path


def bridge(point: int) -> dict[str, Any]:
    return {"study": {"name": "bridge", "point": point, "label": f"change {point}"}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep over two points and three seeds, begun at the far end."""
    values = {6: (3.0, 5.0, 10.0), 0: (20.0, 20.5, 21.0)}
    jobs = [(point, seed) for point in values for seed in range(3)]
    for number, (point, seed) in enumerate(jobs, start=9):
        make_run(
            tmp_path / "sweep" / f"{number}_bridge_{point}_seed{seed}",
            values[point][seed],
            seed,
            **bridge(point),
            hardware={"threads": number},
        )
    (tmp_path / "sweep" / "slurm").mkdir()
    return tmp_path / "sweep"


def test_a_row_is_a_setting_with_the_spread_over_its_seeds(sweep: Path, tmp_path: Path) -> None:
    runs = read_runs([str(sweep)])
    assert [run.config["hardware"]["threads"] for run in runs] == list(range(9, 15))
    rows = summarise(runs)
    title, header, cells = table_of(rows)
    assert title.endswith("over the seeds; FD: fd_small; bits/dim: some_bound")
    assert header == [
        *("run", "seeds", "FD train", "FD test", "FD floor", "bits/dim"),
        *("n", "NFE", "training s"),
    ]
    assert cells == [
        ["0 change 0", "3", "20.5 ± 0.5", "21.5 ± 0.5", "0.5", "23.5 ± 0.5", "200", "1000", "4"],
        ["6 change 6", "3", "6 ± 3.6", "7 ± 3.6", "0.5", "9 ± 3.6", "200", "1000", "4"],
    ]
    write_summary(rows, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["fd_small train"]) == pytest.approx(np.mean([3, 5, 10]))
    assert float(last["some_bound diffusion"]) == pytest.approx(6)
    assert float(last["some_bound prior"]) == pytest.approx(1)
    assert float(last["fd_small train std"]) == pytest.approx(np.std([3, 5, 10], ddof=1))


def test_what_differs_in_more_than_its_seed_is_not_averaged(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"{number}", 1.0, seed=number, ema={"decay": decay})
        for number, decay in enumerate((0.0, 0.9))
    ]
    rows = summarise(read_runs([str(path) for path in paths]))
    assert [(row.label, row.seeds) for row in rows] == [("some (0)", 1), ("some (1)", 1)]
    assert [row.std("fd_small train") for row in rows] == [None, None]


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "0", None, seed=0, **bridge(3))
    rows = summarise(read_runs([str(tmp_path)]))
    assert table_of(rows)[1:] == (["run", "seeds", "training s"], [["3 change 3", "1", "4"]])
    assert not draw_summary(rows, tmp_path / "plot.png")
    make_run(tmp_path / "1", 2.0, seed=1, **bridge(3))
    (row,) = summarise(read_runs([str(tmp_path)]))
    assert (row.seeds, row.mean("fd_small train"), row.std("fd_small train")) == (2, 2.0, None)


def test_the_plot_shows_its_rows(sweep: Path, tmp_path: Path) -> None:
    assert draw_summary(summarise(read_runs([str(sweep)])), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    three = {(31, 119, 180), (255, 127, 14), (44, 160, 44)}
    assert three | {(214, 39, 40)} <= colours, "three distances; a bound and its three terms"


def test_a_run_is_not_named_through_its_sweep_again(sweep: Path) -> None:
    with pytest.raises(UserError, match="names a run twice"):
        read_runs([str(sweep), str(next(sweep.glob("9_*")))])
