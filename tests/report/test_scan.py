"""Run directories of any state are found and read; what cannot be is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import make_run, write_status

from betasigma.errors import UserError
from betasigma.report.scan import check_common, find_recorded, leaves, read_config, read_series
from betasigma.runs.record import Record


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


def test_what_was_measured_otherwise_is_another_series(tmp_path: Path) -> None:
    record = Record.of(tmp_path)
    for n, seed, value in ((50, 1, 9.0), (100, 1, 8.0), (100, 2, 7.0)):
        record.append(5, {"eval/fid": value}, {"n": n, "nfe": 10, "seed": seed, "std": 0.5})
    first, second = read_series(tmp_path)
    assert (first.context, first.values) == ({"n": "50", "nfe": "10"}, [9.0])
    assert (second.values, second.seeds, second.stds) == ([8.0, 7.0], ["1", "2"], [0.5, 0.5])


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
