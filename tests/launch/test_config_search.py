"""What ``--config-dir``, ``hydra.searchpath`` and ``--config-name`` add is chosen, listed and
suggested like what ships.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import launch


@pytest.fixture
def mine(here: Path) -> Path:
    """A config tree of a user's own."""
    conf = here / "conf"
    (conf / "network").mkdir(parents=True)
    (conf / "network" / "slim.yaml").write_text("defaults: [unet, _self_]\nchannels: 8\n")
    (conf / "mine.yaml").write_text("defaults: [train, _self_]\nsteps: 7\n")
    return conf


@pytest.mark.parametrize("how", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_help_and_did_you_mean_list_what_is_added(mine: Path, how: str) -> None:
    word = how.format(mine)
    shown = launch("train", "network=slim", "--help", word)
    assert shown.status == 0, shown.err
    listed = next(line for line in shown.out.splitlines() if line.startswith("network: "))
    assert "slim" in listed
    assert "unet_8" in listed
    assert "channels: 8" in shown.out
    for more in ([], ["-m"]):
        refused = launch("train", word, "network=slin", *more)
        assert refused.err.startswith("error: network=slin is unknown; did you mean network=slim?")
        assert refused.err.count("\n") == 1


def test_a_primary_config_of_one_s_own(mine: Path) -> None:
    words = ("--config-dir", str(mine), "--config-name", "mine")
    shown = launch("train", "--cfg", "job", *words, "seed=3")
    assert shown.status == 0, shown.err
    assert "steps: 7" in shown.out
    helped = launch("train", "--help", *words)
    assert "sampler: " in helped.out, helped.err
    refused = launch("train", *words, "stepps=3")
    assert "did you mean steps" in refused.err


def test_a_schedule_of_the_learning_rate_is_a_group_of_its_own(mine: Path) -> None:
    (mine / "lr_schedule").mkdir()
    (mine / "lr_schedule" / "cosine.yaml").write_text("steps: 3\n")
    refused = launch("train", "optimizer.schedule=cosine", f"--config-dir={mine}")
    assert "write lr_schedule=cosine, of " in refused.err
    assert refused.err.count("\n") == 1
