"""metrics.csv: what is written is read back, whatever happened in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from betasigma.runs.record import COLUMNS, Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "metrics.csv")


def test_values_and_what_they_were_measured_with(record: Record) -> None:
    record.append(10, {"train/objective": 0.5, "train/learning_rate": 1e-3})
    record.append(20, {"train/objective": 0.25})
    context = {"n": 50, "nfe": 1000, "sampler": "ddim", "seed": 0, "split": None}
    record.append(20, {"val/fid": 3.17}, context)
    assert record.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert record.curve("train/objective") == ([10, 20], [0.5, 0.25])
    row = record.rows()[-1]
    assert (row["n"], row["nfe"], row["sampler"], row["seed"]) == ("50", "1000", "ddim", "0")
    assert row["split"] == row["extractor"] == ""


def test_a_file_of_before_a_column_is_read_and_continued(record: Record) -> None:
    earlier = "step,time,metric,value,n,nfe,sampler,seed,split,extractor"
    record.path.write_text(f"{earlier}\n5,1.5,val/fid,3.17,50,10,ddim,0,train,inception\n")
    assert record.rows()[0]["settings"] == record.rows()[0]["guidance"] == ""
    record.append(10, {"val/fid": 3.0}, {"n": 50, "guidance": 2.0, "settings": "eta=1"})
    assert record.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    first, second = record.rows()
    assert (first["value"], first["extractor"], first["guidance"]) == ("3.17", "inception", "")
    assert (second["n"], second["guidance"], second["settings"]) == ("50", "2.0", "eta=1")


def test_a_file_with_former_names_is_read_and_continued(record: Record) -> None:
    record.path.write_text(
        ",".join(COLUMNS)
        + "".join(
            f"\n5,1.5,{metric},0.5{',' * (len(COLUMNS) - 4)}"
            for metric in ("train/loss", "train/loss_by_noise/01", "val/loss", "val/lossy")
        )
        + "\n"
    )
    for name in ("train/loss", "train/objective"):
        assert record.curve(name) == ([5], [0.5])
    record.append(10, {"train/objective": 0.25})
    record.truncate(10)
    metrics = {row["metric"] for row in record.rows()}
    assert record.curve("train/objective") == ([5, 10], [0.5, 0.25])
    assert metrics == {"train/objective", "train/loss_by_noise/01", "val/objective", "val/lossy"}
    assert "/loss," not in record.path.read_text()


def test_what_is_not_a_number_is_kept_as_such(record: Record) -> None:
    record.append(1, {"train/objective": float("nan"), "val/objective": float("inf")})
    assert [row["value"] for row in record.rows()] == ["nan", "inf"]


def test_without_a_file_there_are_no_rows(record: Record) -> None:
    assert record.rows() == []
    record.truncate(5)
    assert not record.path.exists()


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_that_was_cut_off_is_not_read(record: Record, cut: int) -> None:
    record.append(1, {"train/objective": 0.5})
    record.append(2, {"train/objective": 0.25}, {"sampler": "ddim", "extractor": "identity"})
    record.path.write_bytes(record.path.read_bytes()[:-cut])
    steps, values = record.curve("train/objective")
    assert steps[0] == 1
    assert all(value in (0.5, 0.25) for value in values)
    record.truncate(1)
    record.append(2, {"train/objective": 0.125})
    assert record.curve("train/objective") == ([1, 2], [0.5, 0.125])


def test_truncating_forgets_what_came_later(record: Record) -> None:
    for step in (5, 10, 15):
        record.append(step, {"a": step, "b": -step})
    record.truncate(10)
    assert record.curve("a") == ([5, 10], [5.0, 10.0])
    assert record.curve("b") == ([5, 10], [-5.0, -10.0])
