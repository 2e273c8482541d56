"""``--help`` shows what each key means, its default and what it accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launching import launch

SHOWN = {
    "steps: 2000": r"optimizer steps \(integer ≥ 0\)",
    "  channels: 24": r"width at full resolution \(integer ≥ 4, ≤ 65536, a multiple of 2\)",
    "  times: levels": r"which noise levels training draws \(levels \| continuous \| log_normal\)",
    "  clip: 1.0": r"largest norm of the gradient; null: no clipping \(number > 0 \| null\)",
    "  multipliers: [1, 2]": r"width at each resolution.* \(\[integer ≥ 1, ≤ 256, …\]\)",
    "  project: null": r"where runs appear; null: WANDB_PROJECT, else betasigma \(text \| null\)",
    "  lr: 0.002": r"learning rate, after the warm-up \(number > 0\)",
}


@pytest.mark.parametrize("key", SHOWN)
def test_a_key_has_its_meaning(help_of_train: str, key: str) -> None:
    assert re.search(rf"^{re.escape(key)} +# {SHOWN[key]}$", help_of_train, re.MULTILINE)


def test_no_key_of_a_component_is_without_meaning(help_of_train: str) -> None:
    config = help_of_train.partition("== Config ==")[2].partition("Any key above")[0]
    silent = [line for line in config.splitlines() if line.strip() and "# " not in line]
    silent = [line.strip() for line in silent if "_target_" not in line]
    # nodes of components, and a cluster that is not there
    assert [line for line in silent if not re.fullmatch(r"\w+:|name: none", line)] == []


@pytest.fixture(scope="module")
def help_of_train(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("help"))
        outcome = launch("train", "--help")
    assert outcome.status == 0, outcome.err
    return outcome.out


@pytest.mark.parametrize("app", ["sample", "edit", "evaluate", "compare"])
def test_every_command_says_what_its_keys_mean(here: Path, app: str) -> None:
    outcome = launch(app, "--help")
    assert outcome.status == 0, outcome.err
    assert re.search(r"^runs?: .* # .*\(", outcome.out, re.MULTILINE)
    commands = outcome.out.partition("Any key above")[2]
    assert re.search(rf"\b{app}(\.py)? runs?=", commands)
    assert "train" not in commands
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "cluster=slurm",
            r"  dry_run: false +# print what .* \(true \| false\)",
        ),
        ("callbacks=early_stopping", r"    patience: 5 +# \(integer\)"),
        ("+logger@loggers.csv=csv", r"    name: csv +# folder in the run directory \(text\)"),
    ],
)
def test_nodes_that_the_default_config_lacks_have_meanings(
    here: Path, word: str, line: str
) -> None:
    outcome = launch("train", word, "--help")
    assert outcome.status == 0, outcome.err
    assert re.search(rf"^{line}$", outcome.out, re.MULTILINE)


def test_a_class_without_options_shows_what_its_type_hints_say(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "helplab").mkdir()
    (here / "helplab" / "__init__.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, in_channels: int, width: int = 8):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(str(here))
    words = ("plugins=[helplab]", "network._target_=helplab.Net", "+network.width=16", "--help")
    outcome = launch("train", *words)
    assert outcome.status == 0, outcome.err
    assert re.search(r"^  width: 16 +# \(integer\)$", outcome.out, re.MULTILINE)
