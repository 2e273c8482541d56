"""The table of last values: one row only for what was measured alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from betasigma.report.measurements import error_curve, last_values
from betasigma.report.runs import Run
from betasigma.runs.record import Record


def context(**changed: Any) -> dict[str, Any]:
    plain = {"n": 50, "nfe": 10, "sampler": "ddim", "guidance": 1.0, "n_reference": 360}
    return {**plain, "settings": "clip=true eta=0.0", **changed}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "a").mkdir()
    return Run(tmp_path / "a", {}, "a")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"guidance": 2.0}, ["guidance=1", "guidance=2"]),
        ({"n_reference": 100}, ["n_reference=100", "n_reference=360"]),
        ({"settings": "clip=true eta=1.0"}, ["eta=0", "eta=1"]),
    ],
)
def test_what_was_measured_otherwise_is_another_row(
    run: Run, changed: dict[str, Any], told: list[str]
) -> None:
    Record.of(run.directory).append(1, {"eval/fid": 1.0}, context())
    Record.of(run.directory).append(1, {"eval/fid": 3.0}, context())
    Record.of(run.directory).append(1, {"eval/fid": 2.0}, context(**changed))
    table = last_values([run])
    assert [name for name, _ in table] == [f"eval/fid n=50 nfe=10 sampler=ddim {t}" for t in told]
    assert {value for _, value in table} == {"3", "2"}


def test_what_was_measured_alike_is_one_row(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path, {}, "b")
    for value, one in enumerate((run, other)):
        Record.of(one.directory).append(
            1, {"eval/fid": value, "train/objective": value}, context(seed=value)
        )
    assert last_values([run, other]) == [
        ["eval/fid n=50 nfe=10 sampler=ddim", "0", "1"],
        ["train/objective n=50 nfe=10 sampler=ddim", "0", "1"],
    ]


def test_a_number_that_an_earlier_version_wrote_as_it_was_typed_is_the_same(run: Run) -> None:
    record = Record.of(run.directory)
    for value, whole in enumerate(("1", "1.0", "1.05")):
        typed = context(guidance=whole, settings=f"eta={whole} churn=0.5", seed=value)
        record.append(1, {"eval/fid": float(value)}, typed)
    same, other = run.series
    assert (list(same.values), list(other.values)) == ([0.0, 1.0], [2.0])
    assert (same.context["guidance"], same.context["settings"]) == ("1", "eta=1 churn=0.5")


def test_a_list_is_one_setting(run: Run) -> None:
    """Records of earlier versions have its blanks."""
    for value, steps in enumerate(("[2, 3]", "[2, 4]")):
        told = {"n": 50, "settings": f"steps={steps} eta=0.0"}
        Record.of(run.directory).append(1, {"eval/fid": value}, told)
    assert last_values([run]) == [
        ["eval/fid n=50 steps=[2, 3]", "0"],
        ["eval/fid n=50 steps=[2, 4]", "1"],
    ]


def test_a_value_of_before_settings_were_kept_is_told_apart(run: Run) -> None:
    Record.of(run.directory).append(1, {"eval/fid": 1.0}, {"n": 50})
    Record.of(run.directory).append(1, {"eval/fid": 2.0}, {"n": 50, "settings": "eta=0.0"})
    assert last_values([run]) == [["eval/fid n=50", "1"], ["eval/fid n=50 eta=0", "2"]]


def test_the_error_by_noise_is_that_of_the_last_weights(run: Run) -> None:
    record, at = Record.of(run.directory), "denoising_error/log_snr_+3"
    assert error_curve(run) == ({}, "")
    record.append(10, {f"val/{at}": 0.5}, {"n": 20})
    record.append(10, {f"eval/{at}": 0.4}, {"n": 256})
    assert error_curve(run) == ({3.0: 0.4}, "256"), "of more examples"
    record.append(20, {f"val/{at}": 0.3}, {"n": 20})
    assert error_curve(run) == ({3.0: 0.3}, "20")
