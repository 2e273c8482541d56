"""Run directories of any state are found and read; what cannot be is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import make_run, write_status

from betasigma.errors import UserError
from betasigma.report.runs import leaves, read_config
from betasigma.report.scan import check_common, find_recorded
from betasigma.report.series import read_series
from betasigma.runs.record import COLUMNS, Record


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "sweep" / "0", seed=1)
    make_run(tmp_path / "b", seed=2)
    (tmp_path / "b" / "checkpoints").mkdir()
    (tmp_path / "c").mkdir()
    found = find_recorded([tmp_path, tmp_path / "b"])
    assert sorted(run.directory.name for run in found) == ["0", "b"]
    assert all(run.is_training for run in found)


def test_a_run_that_failed_before_its_config_was_written_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "0")
    composed = tmp_path / "1" / ".hydra" / "config.yaml"
    composed.parent.mkdir(parents=True)
    composed.write_text((tmp_path / "0" / "config.yaml").read_text())
    write_status(tmp_path / "1", "failed", job=1)
    found = find_recorded([tmp_path])
    assert [(run.directory.name, run.is_training) for run in found] == [("0", True), ("1", True)]
    assert found[1].series == []


def test_which_value_is_the_best_is_what_the_metric_said(tmp_path: Path) -> None:
    record = Record.of(tmp_path)
    record.append(5, {"eval/mine": 1.0}, {"n": 50, "best": "max"})
    record.append(5, {"eval/other": 1.0, "val/denoising_error": 1.0}, {"n": 50})
    found = {series.metric: series.best for series in read_series(Record.of(tmp_path))}
    assert found == {"eval/mine": "max", "eval/other": None, "val/denoising_error": "min"}


DAMAGED = {
    "half a row": "7,1.5,val/a",
    "rows run together": "7,1.5,val/a,1.08,1.5,val/a,2.0,,,,,,,,,,,",
    "no number": "7,1.5,val/a,one,,,,,,,,,,,",
    "a step of 65 bits": "18446744073709551616,1.5,val/a,1.0,,,,,,,,,,,",
    "no number of examples": "7,1.5,val/a,1.0,many,,,,,,,,,,",
    "no time": "7,nan,val/a,1.0,,,,,,,,,,,",
    "a comma in a name": '7,1.5,"val/a, b",1.0,,,,,,,,,,,',
    "a comma in a setting": '7,1.5,val/a,1.0,5,,,,,,,,,"x=[1,2]",',
    "zeros": "\0\0\0",
    "an old name": "7,1.5,train/loss,1.0,,,,,,,,,,,",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:10], COLUMNS[1:]], ids=["", "old", "cut"])
def test_a_record_in_columns_is_that_by_lines(
    tmp_path: Path, line: str, columns: tuple[str, ...]
) -> None:
    rows = [f"{step},1.{step},val/a,0.{step}" + "," * (len(columns) - 4) for step in range(1, 6)]
    text = "\n".join([",".join(columns), *rows[:3], line, *rows[3:]])
    (tmp_path / "metrics.csv").write_text(f"{text}\n")
    wanted = sorted((row[2], int(row[0]), float(row[1]), float(row[3])) for row in lines(tmp_path))
    found = [
        (series.metric, *values)
        for series in read_series(Record.of(tmp_path))
        for values in zip(series.steps, series.times, series.values, strict=True)
    ]
    assert sorted(found) == wanted


def lines(run: Path) -> list[list[str]]:
    return list(Record.of(run).lines())


def test_what_was_measured_otherwise_is_another_series(tmp_path: Path) -> None:
    record = Record.of(tmp_path)
    for n, seed, value in ((50, 1, 9.0), (100, 1, 8.0), (100, 2, 7.0)):
        record.append(5, {"eval/fid": value}, {"n": n, "nfe": 10, "seed": seed, "std": 0.5})
    first, second = read_series(Record.of(tmp_path))
    assert (first.context, first.values.tolist()) == ({"n": "50", "nfe": "10"}, [9.0])
    assert (second.values.tolist(), second.seeds) == ([8.0, 7.0], ["1", "2"])
    assert second.stds.tolist() == [0.5, 0.5]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs=\[\S*nothing\] is not a directory"):
        find_recorded([tmp_path / "nothing"])
    with pytest.raises(UserError, match=r"is no run directory and has none in it"):
        find_recorded([tmp_path])
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    with (
        pytest.raises(UserError, match=r"run\] is half written: its config\.yaml cannot be read"),
        pytest.warns(UserWarning, match=r"config\.yaml cannot be read: the run is left out"),
    ):
        find_recorded([run])
    make_run(tmp_path / "other")
    with pytest.warns(UserWarning, match="left out"):
        assert [found.directory.name for found in find_recorded([tmp_path])] == ["other"]


def test_runs_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (make_run(tmp_path / name, pictures=False) / "metrics.csv").unlink()
        Record.of(tmp_path / name).append(1, {f"val/{name}": 1.0})
    with pytest.raises(UserError, match=r"runs: \S+a and \S+b have nothing in common"):
        check_common(find_recorded([tmp_path]))
    Record.of(tmp_path / "b").append(1, {"val/a": 1.0})
    check_common(find_recorded([tmp_path]))


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",  # a few lines of these stand for gigabytes
        "- 1\n",
        "a: [",
        "!!python/object/apply:os.system ['false']",
        "a: " + "x" * 2**20,
    ],
    ids=["alias", "list", "cut", "code", "large"],
)
def test_a_strangers_config_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml") is None


def test_a_config_has_no_more_keys_than_can_be_shown() -> None:
    deep = {f"k{i}": {"a": i, "b": [1, 2]} for i in range(4000)}
    assert len(leaves(deep)) == 5000
    assert leaves({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}
