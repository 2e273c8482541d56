"""A finished run gives its sweeper a number, or says why it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from betasigma.commands.finished import FinishedRun
from betasigma.errors import UserError
from betasigma.runs.record import Record


def test_the_last_value_of_a_metric_that_is_finite(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.csv")
    record.append(1, {"val/objective": 3.0, "val/fd_identity": float("nan")})
    record.append(2, {"val/objective": 2.0})
    run = FinishedRun(tmp_path)
    assert run.value("val/objective") == 2
    with pytest.raises(UserError, match="objective_metric=val/fd_identity is nan at the end"):
        run.value("val/fd_identity")
    with pytest.raises(
        UserError, match=r"objective_metric=val/objectve was not .* you mean val/obj"
    ):
        run.value("val/objectve")
