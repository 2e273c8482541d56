"""Runs in one table: which of them make a row, and what stands in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from omegaconf import OmegaConf

from betasigma.display import Bold
from betasigma.errors import UserError
from betasigma.report.rows import Row, rows_of_evaluations, rows_of_settings
from betasigma.report.runs import COMPOSED, Run, read_run, read_runs
from betasigma.report.tables import clearly_least, full_table, report_runs, short_table, write_csv
from betasigma.runs.directory import OVERRIDES
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
            stop={"grace": 30.0 if number % 2 else 30},  # as of a run that was continued
        )
    (tmp_path / "sweep" / "slurm").mkdir()
    return tmp_path / "sweep"


def test_a_row_is_a_setting_with_the_spread_over_its_seeds(sweep: Path, tmp_path: Path) -> None:
    runs = read_runs([str(sweep)])
    assert [run.config["hardware"]["threads"] for run in runs] == list(range(9, 15))
    rows = rows_of_settings(runs)
    title, header, cells = short_table("results", rows)
    assert title == (
        "results; FD: fd_small; bits/dim: some_bound; ± one standard error over the seeds, "
        "bold (*): least by over two of them"
    )
    assert header == [
        *("run", "seeds", "FD train", "FD test", "FD floor", "bits/dim"),
        *("n", "NFE", "training s"),
    ]
    assert cells == [
        [
            *("0 change 0", "3", "20.5 ± 0.29", "21.5 ± 0.29", "0.5", "23.5 ± 0.29"),
            *("200", "1000", "4"),
        ],
        ["6 change 6", "3", "6 ± 2.1", "7 ± 2.1", "0.5", "9 ± 2.1", "200", "1000", "4"],
    ]
    bold = [[isinstance(cell, Bold) for cell in line] for line in cells]
    assert bold == [[False] * 9, [False, False, True, True, False, True, False, False, False]]
    write_csv(full_table(rows), tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["fd_small train"]) == pytest.approx(np.mean([3, 5, 10]))
    assert float(last["some_bound diffusion"]) == pytest.approx(6)
    assert float(last["some_bound prior"]) == pytest.approx(1)
    assert float(last["fd_small train se"]) == pytest.approx(scipy.stats.sem([3, 5, 10]))


def test_what_differs_in_more_than_its_seed_is_not_averaged(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"{number}", 1.0, seed=number, ema={"decay": decay})
        for number, decay in enumerate((0.0, 0.9))
    ]
    rows = rows_of_settings(read_runs([str(path) for path in paths]))
    assert [row.described for row in rows] == [
        {"run": "ema.decay=0", "seeds": "1"},
        {"run": "ema.decay=0.9", "seeds": "1"},
    ]
    assert [row.error("fd_small train") for row in rows] == [None, None]


def test_another_arithmetic_is_another_setting(tmp_path: Path) -> None:
    """It enters what is measured, where the machine and its number of threads do not."""
    paths = [
        make_run(tmp_path / precision, fd, 0, hardware={"threads": fd, "precision": precision})
        for precision, fd in (("32", 3.0), ("bf16", 4.0))
    ]
    rows = rows_of_settings(read_runs([str(path) for path in paths]))
    assert [(row.described["run"], row.mean("fd_small train")) for row in rows] == [
        ("hardware.precision=32", 3.0),
        ("hardware.precision=bf16", 4.0),
    ]


def test_a_seed_that_was_run_twice_is_no_second_one(tmp_path: Path) -> None:
    found = {"first": (1.0, 3), "again": (2.0, 3), "other": (4.0, 5)}
    for name, (fd, seed) in found.items():
        make_run(tmp_path / name, fd, seed)
    runs = read_runs([str(tmp_path / name) for name in found])
    (row,) = rows_of_settings(runs[:2])
    assert row.described["seeds"] == "1 (2 runs)"
    assert (row.mean("fd_small train"), row.error("fd_small train")) == (1.5, None)
    (row,) = rows_of_settings(runs)
    assert row.values["fd_small train"] == [1.5, 4.0]
    assert row.error("fd_small train") == pytest.approx(scipy.stats.sem([1.5, 4.0]))
    assert row.size("n") == 200


def test_a_row_is_of_one_step(tmp_path: Path) -> None:
    """A run that was continued with evaluation=none has the distance of an earlier step."""
    run = make_run(tmp_path / "run", 3.0, 0)
    (row,) = rows_of_settings(read_runs([str(run)]))
    assert row.mean("fd_small train") == 3
    Record.of(run).append(60, {"val/denoising_error": 0.25})
    (row,) = rows_of_settings(read_runs([str(run)]))
    measured = {column: values for column, values in row.values.items() if column != "training s"}
    assert measured == {"denoising_error": [0.25]}


def test_a_model_that_was_not_typed_is_named_beside_one_that_was(tmp_path: Path) -> None:
    typed = {"ddpm": ["sampler.steps=2"], "ncsn": ["model=ncsn", "sigma.levels=10"]}
    for number, (model, words) in enumerate(typed.items()):
        run = make_run(tmp_path / "sweep" / str(number), 1.0, 0, model={"name": model})
        (run / OVERRIDES).parent.mkdir()
        (run / OVERRIDES).write_text(json.dumps(words))
    labels = [row.label for row in rows_of_settings(read_runs([str(tmp_path / "sweep")]))]
    assert labels == ["model=ddpm sampler.steps=2", "model=ncsn sigma.levels=10"]


def test_rows_are_named_by_what_was_asked_for(tmp_path: Path) -> None:
    """A family changes many keys, but one word was typed."""
    many = {
        model: {key: {"value": f"{model} {key}"} for key in ("model", "schedule", "sampler", "x")}
        for model in ("ddpm", "ncsn")
    }
    for seed in (0, 1):
        for model, config in many.items():
            for decay in (0.0, 0.9):
                run = make_run(
                    tmp_path / f"{model},{decay},{seed}", 1.0, seed, ema={"decay": decay}, **config
                )
                (run / ".hydra").mkdir()
                asked = [f"model={model}", f"ema.decay={decay}", f"seed={seed}", "steps=30"]
                (run / ".hydra" / "overrides.yaml").write_text(json.dumps(asked))
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.described for row in rows] == [
        {"run": f"model={model} ema.decay={decay}", "seeds": "2"}
        for model in many
        for decay in (0.0, 0.9)
    ]


def test_a_row_of_several_seeds_is_not_named_by_one_of_them(tmp_path: Path) -> None:
    """Too many keys differ for a name: that of the directory stays."""
    for number, sweep in enumerate(("first", "second")):
        other = {f"key{i}": number for i in range(5)}
        for seed in (1, 2):
            make_run(tmp_path / sweep / f"seed={seed}", 1.0, seed, ema=other)
    make_run(tmp_path / "lr=0.1,seed=1", 1.0, 1)
    rows = rows_of_settings(read_runs([str(path) for path in sorted(tmp_path.iterdir())]))
    assert [row.described for row in rows] == [
        {"run": "first", "seeds": "2"},
        {"run": "lr=0.1", "seeds": "1"},
        {"run": "second", "seeds": "2"},
    ]


def test_what_a_search_has_drawn_is_named_in_four_digits_where_that_tells(tmp_path: Path) -> None:
    drawn = (0.00044303752452182633, 0.00778015557690142)
    for lr in drawn:
        make_run(tmp_path / str(lr), 1.0, 0, optimizer={"lr": lr})
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.label for row in rows] == ["optimizer.lr=0.000443", "optimizer.lr=0.00778"]
    make_run(tmp_path / "near", 1.0, 0, optimizer={"lr": drawn[0] + 1e-12})
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert f"optimizer.lr={drawn[0]}" in [row.label for row in rows]


def test_points_of_a_study_with_another_key_keep_their_place(tmp_path: Path) -> None:
    for point in (1, 0):
        for decay in (0.0, 0.9):
            make_run(tmp_path / f"{point},{decay}", 1.0, 0, ema={"decay": decay}, **bridge(point))
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.label for row in rows] == [
        f"{point} change {point}, ema.decay={decay}" for point in (0, 1) for decay in (0, 0.9)
    ]


def test_runs_that_differ_in_too_much_keep_their_directories_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, 1.0, 0, **{f"key{i}": name for i in range(9)})
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.label for row in rows] == ["a", "b"]


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "0", None, seed=0, **bridge(3))
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert short_table("", rows)[1:] == (["run", "seeds", "training s"], [["3 change 3", "1", "4"]])
    report_runs(read_runs([str(tmp_path)]), tmp_path)
    assert (tmp_path / "summary.csv").is_file()
    assert not (tmp_path / "summary.png").exists()
    make_run(tmp_path / "1", 2.0, seed=1, **bridge(3))
    (row,) = rows_of_settings(read_runs([str(tmp_path)]))
    assert row.described["seeds"] == "2"
    assert (row.mean("fd_small train"), row.error("fd_small train")) == (2.0, None)


def test_what_was_measured_with_other_n_or_at_another_step_is_not_averaged(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"{seed}", 1.0 + seed, seed)
    told = {"n": 50, "nfe": 1000, "sampler": "ddim"}
    Record(make_run(tmp_path / "2", 3.0, 2) / "metrics.csv").append(30, {"val/fd_small": 9.0}, told)
    stopped = make_run(tmp_path / "3", None, 3)
    Record(stopped / "metrics.csv").append(20, {"val/denoising_error": 0.5})
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.described for row in rows] == [
        {"run": "some, at step 30", "seeds": "2"},
        {"run": "some, at step 30", "seeds": "1"},
        {"run": "some, at step 20", "seeds": "1"},
    ]
    assert [row.size("n") for row in rows] == [200, 50, None]


def test_a_row_of_runs_that_were_stopped_says_at_which_step(tmp_path: Path) -> None:
    for seed, steps in enumerate((30, 40)):
        make_run(tmp_path / f"{steps}", 1.0, seed, steps=steps)
    rows = rows_of_settings(read_runs([str(tmp_path)]))
    assert [row.label for row in rows] == ["steps=30", "steps=40, at step 30"]


def make_evaluation(
    path: Path, values: dict[str, float], seed: int, labels: str = "", **told: Any
) -> Run:
    """A job of a sweep of evaluations."""
    (path / COMPOSED).parent.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"run": "outputs/run", "seed": seed}), path / COMPOSED)
    words = [f"seed={seed}", *([f"labels={labels}"] if labels else [])]
    OmegaConf.save(OmegaConf.create(words), path / OVERRIDES)
    Record.of(path).append(20, values, {"n": 50, "nfe": 10, "sampler": "ddim", **told})
    return read_run(path, COMPOSED)


def test_evaluations_of_classes_share_columns_beside_their_labels(tmp_path: Path) -> None:
    jobs = [
        make_evaluation(
            tmp_path / f"{labels}{seed}",
            {f"{prefix}/fd_small": fd + 0.1 * seed, f"{prefix}/kid_small": 7.0},
            seed,
            labels,
        )
        for labels, prefix, fd in (("[0]", "eval_of_0", 3.0), ("[1,2]", "eval_of_1+2", 4.0))
        for seed in range(2)
    ]
    first, second = rows = rows_of_evaluations(jobs)
    assert [row.described["labels"] for row in rows] == ["[0]", "[1,2]"]
    assert first.values["fd_small train"] == [3.0, 3.1]
    assert second.values["kid_small"] == [7.0, 7.0]
    assert clearly_least(rows, "fd_small train") == [], "each is compared with images of its own"
    (alone,) = rows_of_evaluations(jobs[:2])
    assert alone.described["labels"] == "[0]", "also where all jobs are of the same classes"


def test_a_likelihood_of_a_class_was_measured_by_no_sampler(tmp_path: Path) -> None:
    told = {"sampler": "prior=moments trace=exact", "settings": "prior=moments trace=exact"}
    values = {"eval_of_0/bits_per_dim/flow/total_test": 3.0}
    (row,) = rows_of_evaluations([make_evaluation(tmp_path / "job", values, 0, "[0]", **told)])
    assert (row.described["sampler"], row.values["flow total"]) == ("", [3.0])
    assert short_table("", [row]).header[3:] == ["bits/dim", "n", "NFE"]


def test_seeds_are_one_row_also_where_a_solver_has_taken_other_steps(tmp_path: Path) -> None:
    jobs = [
        make_evaluation(tmp_path / f"{seed}", {"eval/fd_small": 3.0}, seed, nfe=nfe)
        for seed, nfe in enumerate((380, 398))
    ]
    (row,) = rows_of_evaluations(jobs)
    assert (row.described["seeds"], row.mean("NFE")) == ("2", 389)


@pytest.mark.parametrize("far", [1.5, 1.8])
def test_bold_is_what_differs_by_more_than_twice_the_error(far: float) -> None:
    values = [1.0, 2.0, 3.0]
    near = Row({"run": "a"}, {"fd_small train": values})
    other = Row({"run": "b"}, {"fd_small train": [value + far for value in values]})
    # Student's t of two means is their difference by its standard error
    t = scipy.stats.ttest_ind(other.values["fd_small train"], values).statistic
    assert (clearly_least([near, other], "fd_small train") == [near]) is bool(t > 2)
    assert clearly_least([near, other], "precision_small") == [], "more is better"


@pytest.mark.parametrize("far", [float("inf"), float("nan")])
def test_a_setting_that_diverged_has_no_error_of_its_mean(far: float, tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"{seed}", far, seed)
    runs = read_runs([str(tmp_path)])
    (row,) = report_runs(runs, tmp_path)
    assert str(row.mean("fd_small train")) == str(far)
    assert row.error("fd_small train") is None


def test_a_run_is_not_named_through_its_sweep_again(sweep: Path) -> None:
    with pytest.raises(UserError, match="names a run twice"):
        read_runs([str(sweep), str(next(sweep.glob("9_*")))])
