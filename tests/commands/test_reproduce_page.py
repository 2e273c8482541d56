"""The commands of docs/reproduce.md are made of keys and groups that there are."""

from __future__ import annotations

import re
import shlex

import pytest
from launching import ROOT, launch

PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (?:scripts/)?(\w+)\.py (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("app", "typed"), COMMANDS)
def test_a_command_is_composed(here, app: str, typed: str) -> None:
    words = [word for word in shlex.split(typed) if word != "-m"]
    words = [word.partition(",")[0] if word.startswith("sampler=") else word for word in words]
    outcome = launch(app, *words, "--cfg", "job")
    assert outcome.status == 0, outcome.err
    if app == "train":
        assert "_target_: betasigma.networks" in outcome.out


KEYS = re.findall(r"`((?:sampler|likelihood|objective|evaluation)\.\w+)", PAGE)


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_a_key_is_there(here, key: str) -> None:
    group = key.partition(".")[0]
    chosen = {"sampler": ["sampler=dpm_solver"], "likelihood": ["likelihood=ddpm_bound"]}
    outcome = launch("train", *chosen.get(group, []), "--cfg", "job")
    assert re.search(rf"^  {key.rpartition('.')[2]}:", outcome.out, re.MULTILINE), key


def test_every_shipped_experiment_is_on_the_page() -> None:
    known = {path.stem for path in (ROOT / "conf/experiment").glob("*_*.yaml")}
    papers = {name for name in known if not name.startswith(("mnist", "ddpm_celeba"))}
    assert papers == set(re.findall(r"experiment=(\w+)", PAGE))
