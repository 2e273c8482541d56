"""Checkpoints: whole or not at all, plain, and refused where they are not what they say."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from betasigma.errors import UserError
from betasigma.runs.checkpoint import HEADER, read, save
from betasigma.runs.header import FORMAT, RECORD, checkpoint_path, read_header

HEAD = {
    "format": FORMAT,
    "version": "0.1.0",
    "step": 7,
    "seed": 3,
    "value_range": [-1.0, 1.0],
    "config": {"name": "über"},
}


def contents(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"average.w": torch.full((1000,), value)}, HEADER: HEAD}


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    save(contents(), tmp_path / "deep" / "last.ckpt")
    found = read(tmp_path / "deep" / "last.ckpt")
    assert torch.equal(found["state_dict"]["average.w"], torch.ones(1000))
    assert found[HEADER] == HEAD
    assert read_header(tmp_path / "deep" / "last.ckpt") == HEAD
    assert torch.load(tmp_path / "deep" / "last.ckpt", weights_only=True)[HEADER] == HEAD


def test_a_write_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    save(contents(1.0), path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("betasigma.runs.checkpoint.append_header", full)
    with pytest.raises(OSError, match="No space left"):
        save(contents(2.0), path)
    assert torch.equal(read(path)["state_dict"]["average.w"], torch.ones(1000))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(contents(), path)
    with pytest.raises(UserError, match="more than plain tensors and containers"):
        save({**contents(), "callbacks": {"mine": Path("x")}}, path)
    assert read(path)[HEADER] == HEAD


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "not a checkpoint, or is damaged"),
        (0.1, "damaged"),
        (0.5, "damaged"),
        (0.99, "damaged"),
    ],
)
def test_cut_short(tmp_path: Path, share: float, said: str) -> None:
    path = tmp_path / "last.ckpt"
    save(contents(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=rf"resume=\S+last\.ckpt is {said}"):
        read_header(path, "resume")


def test_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(contents(), path)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        read(path)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """17 MB of blanks in 17 kB of archive, and a record that is as large as it says."""
    blanks = b" " * (17 * 2**20)
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        path = tmp_path / f"{compression}.ckpt"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(f"bomb/{RECORD}", blanks + json.dumps(HEAD).encode())
        with pytest.raises(UserError, match="is not a checkpoint of betasigma"):
            read_header(path)


def test_checksums_are_checked_once_for_each_state_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    original = zipfile.ZipFile.testzip
    monkeypatch.setattr(
        zipfile.ZipFile, "testzip", lambda self: (checked.append(self), original(self))[1]
    )
    path = tmp_path / "last.ckpt"
    save(contents(), path)
    first = read_header(path)
    first["config"]["name"] = "another"  # whoever has a header may change it
    assert read(path)[HEADER] == read_header(path, "resume") == HEAD
    assert len(checked) == 1
    save({**contents(), HEADER: {**HEAD, "step": 8}}, path)
    assert read_header(path)["step"] == 8
    assert len(checked) == 2


def test_a_newer_format(tmp_path: Path) -> None:
    save({**contents(), HEADER: {**HEAD, "format": FORMAT + 1}}, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match=f"format {FORMAT + 1}.*reads formats up to {FORMAT}"):
        read_header(tmp_path / "new.ckpt")


def test_which_file_a_path_means(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(contents(), run / "checkpoints" / "last.ckpt")
    save(contents(), run / "checkpoints" / "best.ckpt")
    assert checkpoint_path(run) == run / "checkpoints" / "last.ckpt"
    best = run / "checkpoints" / "best.ckpt"
    assert checkpoint_path(best) == best
    with pytest.raises(UserError, match=r"resume=\S+ has no checkpoints/last\.ckpt"):
        checkpoint_path(tmp_path, "resume")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint_path(tmp_path / "nothing")
