"""What a run's directory says of how it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from betasigma.runs.status import ACTIVITY, ActivityLog, read_activities, read_status, recorded


def test_a_run_says_that_it_runs_and_has_finished(tmp_path: Path) -> None:
    with recorded(tmp_path):
        assert read_status(tmp_path)["status"] == "running"
    status = read_status(tmp_path)
    assert status["status"] == "finished"
    assert status["ended"] >= status["started"]
    assert status["error"] is None


def test_a_failure_leaves_its_traceback_until_the_run_is_continued(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recorded(tmp_path):
        1 / 0  # noqa: B018
    assert read_status(tmp_path)["error"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in (tmp_path / "error.txt").read_text()
    with recorded(tmp_path):
        pass
    assert read_status(tmp_path)["status"] == "finished"
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_was_stopped_is_no_failure(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), recorded(tmp_path):
        raise stop
    assert read_status(tmp_path)["status"] == "interrupted"
    assert not (tmp_path / "error.txt").exists()


def test_the_failure_of_another_process_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_process() -> None:
        with recorded(tmp_path):
            raise ValueError("the cause")

    def first_process() -> None:
        with recorded(tmp_path):
            monkeypatch.setenv("SLURM_PROCID", "1")
            with pytest.raises(ValueError, match="cause"):
                other_process()
            monkeypatch.delenv("SLURM_PROCID")
            raise OSError("connection lost")

    with pytest.raises(OSError, match="connection"):
        first_process()
    assert read_status(tmp_path)["error"] == "ValueError: the cause"
    assert "the cause" in (tmp_path / "error_rank1.txt").read_text()
    assert "connection lost" in (tmp_path / "error.txt").read_text()


def test_a_disk_that_is_full_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="the error"), recorded(tmp_path):
        raise ValueError("the error")


def test_damaged_work_leaves_the_others(tmp_path: Path) -> None:
    log = ActivityLog(tmp_path)
    log.note("training", 3, 6, 1.5)
    log.note("sampling", 1, 2, 0.0)
    known = read_activities(tmp_path)
    assert [(name, work.done, work.total) for name, work in known.items()] == [
        ("training", 3, 6),
        ("sampling", 1, 2),
    ]
    path = tmp_path / ACTIVITY
    path.write_text(json.dumps({"validation": 3, **json.loads(path.read_text())}))
    assert read_activities(tmp_path) == known
