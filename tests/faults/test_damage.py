"""Damaged files: a run goes on from the last whole state, and says so."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import TINY, launch, quick

from betasigma.runs.checkpoint import HEADER, read, save
from betasigma.runs.header import FORMAT, LAST, PREVIOUS, RECORD, last_checkpoint, read_header
from betasigma.runs.record import Record

WORDS = (*TINY, "training.checkpoint_every=2")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint every two, not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("kept"))
        outcome = launch("train", *WORDS)
        assert outcome.status == 0, outcome.err
        return outcome.run


@pytest.fixture
def run(here: Path, kept: Path) -> Path:
    return Path(shutil.copytree(kept, here / "outputs" / kept.name))


def step(path: Path) -> int:
    return int(read_header(path)["step"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)


def all_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit of a weight."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello/data.pkl", b"not ours")


def future(path: Path) -> None:
    contents = read(path)
    save({**contents, HEADER: {**contents[HEADER], "format": FORMAT + 1}}, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = (cut, empty, zeros, all_zeros, flipped, foreign, future, gone)


def test_the_last_two_checkpoints_are_kept(kept: Path) -> None:
    folder = kept / "checkpoints"
    assert (step(folder / LAST), step(folder / PREVIOUS)) == (6, 4)
    assert {path.name for path in folder.iterdir()} == {LAST, PREVIOUS, "best.ckpt"}


@pytest.mark.parametrize("damage", quick(DAMAGES, cut, flipped), ids=lambda damage: damage.__name__)
def test_the_one_before_a_damaged_checkpoint_is_used_and_said(
    run: Path, kept: Path, damage: Callable[[Path], None]
) -> None:
    last = run / "checkpoints" / LAST
    damage(last)
    with (
        pytest.warns(UserWarning, match="the one before, of step 4, is taken")
        if (damage is not gone)
        else pytest.MonkeyPatch.context()
    ):
        outcome = launch("train", f"resume={run}")
    assert outcome.status == 0, outcome.err
    assert (step(last), step(run / "checkpoints" / PREVIOUS)) == (6, 4)
    weights, whole = read(last)["state_dict"], read(kept / "checkpoints" / LAST)["state_dict"]
    assert all(weights[name].equal(value) for name, value in whole.items())
    places = [(row["step"], row["metric"]) for row in Record.of(run).rows()]
    assert places == [(row["step"], row["metric"]) for row in Record.of(kept).rows()]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_damage_is_found(run: Path, damage: Callable[[Path], None]) -> None:
    last = run / "checkpoints" / LAST
    assert last_checkpoint(run) == last
    damage(last)
    assert last_checkpoint(run) == run / "checkpoints" / PREVIOUS


def test_a_damaged_checkpoint_s_model_is_sampled_from_the_one_before(run: Path) -> None:
    cut(run / "checkpoints" / LAST)
    with pytest.warns(UserWarning, match="is damaged or cut short.*the one before, of step 4"):
        outcome = launch("sample", f"run={run}", "n=4", "sampler=ddim", "sampler.steps=2")
    assert outcome.status == 0, outcome.err


def test_the_one_before_is_said_once_in_one_line(run: Path) -> None:
    last = run / "checkpoints" / LAST
    cut(last)
    with pytest.warns(UserWarning, match="the one before") as told:
        assert launch("train", f"resume={run}").status == 0
    # a place in the code says the same but once
    said = {(str(w.message), w.category, w.filename, w.lineno) for w in told}
    (one,) = [where for where in said if "the one before" in where[0]]
    assert warnings.formatwarning(*one) == (
        f"warning: resume={last} is damaged or cut short; the one before, of step 4, is taken\n"
    )


def test_the_warning_of_a_path_with_a_semicolon_is_whole(run: Path) -> None:
    run = run.rename(run.with_name("a;b"))
    cut(run / "checkpoints" / LAST)
    with pytest.warns(
        UserWarning, match=r"a;b/checkpoints/last\.ckpt is damaged or cut short; the"
    ):
        last_checkpoint(run)


def test_the_warning_of_a_newer_format_says_what_is_read(run: Path) -> None:
    last = run / "checkpoints" / LAST
    contents = read(last)
    save({**contents, HEADER: {**contents[HEADER], "format": FORMAT + 1}}, last)
    reads = f"reads formats up to {FORMAT}; the one before, of step 4, is taken"
    with pytest.warns(UserWarning, match=reads):
        last_checkpoint(run)


def test_where_both_are_damaged_nothing_is_begun_over(run: Path) -> None:
    for name in (LAST, PREVIOUS):
        cut(run / "checkpoints" / name)
    for words in (("train", f"resume={run}"), ("train", *WORDS, f"hydra.run.dir={run}")):
        outcome = launch(*words)
        assert outcome.status == 1
        assert "last.ckpt is damaged or cut short" in outcome.err
        assert outcome.err.count("\n") == 1


def test_resume_auto_goes_past_a_damaged_newest_run(run: Path) -> None:
    newer = shutil.copytree(run, run.with_name("newer"))
    for name in (LAST, PREVIOUS):
        cut(newer / "checkpoints" / name)
    outcome = launch("train", *WORDS, "resume=auto", "steps=8")
    assert outcome.status == 0, outcome.err
    assert "newer/checkpoints/last.ckpt is damaged" in outcome.out
    assert f"the newest run that fits this command is {run.relative_to(Path.cwd())}" in outcome.out
    assert step(run / "checkpoints" / LAST) == 8


@pytest.mark.parametrize(
    "damage", quick([cut, empty, all_zeros], cut), ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("name", ["environment.json", "metrics.csv", "config.yaml", "status.json"])
def test_other_damaged_files_do_not_stop_a_run(
    run: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(run / name)
    outcome = launch("train", f"resume={run}", "steps=8", "evaluation=none")
    assert outcome.status == 0, outcome.err
    assert Record.of(run).curve("train/objective")[0][-1] == 8
    assert json.loads((run / "environment.json").read_text())["overrides"]


def test_what_a_killed_process_has_half_written_is_removed(run: Path) -> None:
    left = [run / "checkpoints" / ".last.ckpt.01234567.partial", run / ".summary.json.ab.partial"]
    for path in left:
        path.write_bytes(b"half")
    assert launch("train", f"resume={run}", "steps=8").status == 0
    assert not any(path.exists() for path in left)


def test_the_record_of_a_header_is_what_damage_is_told_by(kept: Path) -> None:
    """Every byte is under a checksum: the flipped bit above was not found by luck."""
    with zipfile.ZipFile(kept / "checkpoints" / LAST) as archive:
        assert any(entry.filename.endswith(RECORD) for entry in archive.infolist())
        assert archive.testzip() is None
