"""A stranger's checkpoint: one sentence, nothing resolved, nothing shown that moves the cursor."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import HEADERS, STATES, WEIGHTS, Spoil, hostile
from launching import launch

ALL = {**HEADERS, **WEIGHTS, **STATES}


def refused(here: Path, *words: str, told: str) -> None:
    outcome = launch(*words)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert told in outcome.err
    said = outcome.out + outcome.err
    assert not any(ord(c) < 32 and c not in "\n\t" for c in said), repr(said)
    assert str(Path.home()) not in outcome.err.replace(str(here), "")


@pytest.mark.parametrize(("spoil", "told"), HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused_before_a_directory_exists(
    here: Path, ddpm_run: Path, spoil: Spoil, told: str
) -> None:
    path = hostile(ddpm_run / "checkpoints" / "last.ckpt", here / "theirs.ckpt", spoil)
    for words in (("train", f"resume={path}", "steps=8"), ("sample", f"run={path}", "n=2")):
        refused(here, *words, told=told)
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(("spoil", "told"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit_are_refused(
    here: Path, ddpm_run: Path, spoil: Spoil, told: str
) -> None:
    path = hostile(ddpm_run / "checkpoints" / "last.ckpt", here / "theirs.ckpt", spoil)
    for words in (("train", f"resume={path}", "steps=8"), ("sample", f"run={path}", "n=2")):
        refused(here, *words, told=told)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(*state, marks=[] if name.startswith("loops") else pytest.mark.slow, id=name)
        for name, state in STATES.items()
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_resume(
    here: Path, ddpm_run: Path, spoil: Spoil, told: str
) -> None:
    path = hostile(ddpm_run / "checkpoints" / "last.ckpt", here / "theirs.ckpt", spoil)
    refused(here, "train", f"resume={path}", "steps=8", told=told)
