"""Commands that a run prints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from betasigma.runs import start
from betasigma.runs.directory import describe_environment
from betasigma.runs.start import CLONE, Start, within


def test_a_command_is_the_clone_s_script_by_its_path_from_the_user(tmp_path: Path) -> None:
    run = Path("outputs/it's/lr=0.1,ema.decay=0.9")
    away = Start(run, here=tmp_path).command("train", f"resume={run}")
    assert shlex.split(away) == ["python", str(CLONE / "train.py"), f"resume={run}"]
    assert Start(run, here=CLONE).command("sample", "n=4") == "python scripts/sample.py n=4"


def test_a_command_is_the_program_where_that_was_typed_or_there_is_no_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with within("train"):
        assert Start(Path("run"), here=CLONE).command("sample", "n=4") == "betasigma sample n=4"
    monkeypatch.setattr(start, "CLONE", tmp_path)
    assert Start(Path("run")).command("train", "resume=run") == "betasigma train resume=run"


def test_python_m_betasigma_is_recorded_as_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["site-packages/betasigma/__main__.py", "seed=1"])
    with within("train"):
        assert describe_environment([])["command"][:2] == ["betasigma", "train"]
    monkeypatch.setattr(sys, "argv", ["clone/train.py", "seed=1"])
    assert describe_environment([])["command"][0] == "train.py"
