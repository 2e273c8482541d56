"""Files are whole, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from betasigma.errors import UserError
from betasigma.runs.files import (
    LARGEST_YAML,
    allow_waiting,
    read_yaml,
    replace_file,
    write_json,
    write_patiently,
)

SRC = Path(__file__).resolve().parents[2] / "src"


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "notes.json"
    write_json(path, {"α": 1})

    def fail_halfway() -> None:
        with replace_file(path) as partial:
            partial.write_text("half of it")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        fail_halfway()
    assert json.loads(path.read_text(encoding="utf-8")) == {"α": 1}
    assert [p.name for p in path.parent.iterdir()] == ["notes.json"]


def test_a_full_disk_is_said_with_the_file_whatever_a_library_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(error: Exception) -> None:
        with replace_file(tmp_path / "notes.txt"):
            raise error

    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    for error in (RuntimeError("unexpected pos 64 vs 0"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(OSError, match=r"notes\.txt") as full:
            write(error)
        assert full.value.errno == errno.ENOSPC
    with pytest.raises(UserError, match="of the user"):
        write(UserError("of the user"))


def test_nobody_waits_for_space_who_is_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("betasigma.runs.files.LOOK_AGAIN", 0.01)

    def write() -> None:
        tries.append(1)
        allow_waiting(len(tries) < 3)  # as a signal does, some time
        raise OSError(errno.ENOSPC, "full")

    tries: list[int] = []
    try:
        with pytest.raises(UserError, match="notes cannot be written: full"):
            write_patiently(write, Path("notes"), 60)
    finally:
        allow_waiting(True)
    assert len(tries) == 3


def test_writers_of_the_same_file_do_not_share_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    with replace_file(path) as outer:
        outer.write_text("outer")
        with replace_file(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "notes.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    script = (
        "import os, signal, sys\n"
        "from betasigma.runs.files import replace_file\n"
        "with replace_file(sys.argv[1]) as partial:\n"
        "    partial.write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_text() == "old"


def test_nothing_else_renames_a_file_into_place() -> None:
    pattern = re.compile(r"os\.(replace|rename)\(|NamedTemporaryFile|mkstemp")
    found = {
        str(path.relative_to(SRC / "betasigma"))
        for path in SRC.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    # a downloaded data set is moved file by file: it is whole before
    assert found == {"runs/files.py", "data/sources.py"}


def test_nothing_writes_a_file_under_its_final_name() -> None:
    pattern = re.compile(r"OmegaConf\.save\(|(?<!partial)\.write_(text|bytes)\(")
    found = {
        str(path.relative_to(SRC))
        for path in SRC.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    # an export is a folder that gets its name when it is whole
    assert found == {"betasigma/exports/graphs.py", "betasigma/runs/portable.py"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [1, 2]\nb: [*a, *a]\n", "has aliases"),
        ("a: " + "x" * LARGEST_YAML, "is larger than"),
        ("[" * 100_000, "depth|recursion"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: [", "did not find expected"),
    ],
    ids=["aliases", "large", "deep", "code", "cut"],
)
def test_a_strangers_yaml_is_plain_and_small(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        read_yaml(path)
    path.write_text("a: {b: [1, 2.5, null, '& and *']}  # *\n")
    assert read_yaml(path) == {"a": {"b": [1, 2.5, None, "& and *"]}}
