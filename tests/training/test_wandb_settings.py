"""Where a run appears on Weights & Biases: the config, then its variables, then the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from betasigma.options.base import dump
from betasigma.options.loggers import WandbOptions
from betasigma.training.account import LONGEST_TAG, wandb_mode, wandb_place
from betasigma.training.tracking import WandbRun, close_loggers, make_loggers

VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "lab",
    "WANDB_RUN_GROUP": "ablation",
    "WANDB_NAME": "third try",
    "WANDB_TAGS": "paper, long,",
}
RUN: dict[str, Any] = {"name": "ddpm_digits", "tags": ["mine", "paper"]}


def settings(**chosen: Any) -> dict[str, Any]:
    return dump(WandbOptions.parse(chosen))


def test_the_run_itself_says_where_it_appears() -> None:
    place = wandb_place(settings(), RUN, Path("outputs/a"))
    assert place == {
        "project": "betasigma",
        "entity": None,
        "group": "ddpm_digits",
        "name": "a",
        "tags": ["mine", "paper"],
    }


def test_its_variables_are_honoured_and_what_is_typed_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    place = wandb_place(settings(), RUN, Path("outputs/a"))
    assert place == {
        "project": "theirs",
        "entity": "lab",
        "group": "ablation",
        "name": "third try",
        "tags": ["mine", "paper", "long"],
    }
    typed = settings(project="ours", group="g", name="n", entity="e")
    place = wandb_place(typed, RUN, Path("outputs/a"))
    assert [place[key] for key in ("project", "group", "name", "entity")] == ["ours", "g", "n", "e"]


def test_the_jobs_of_a_sweep_have_its_id_in_group_and_tags() -> None:
    place = wandb_place(settings(), {**RUN, "sweep": "s" * 80}, Path("outputs/s/lr=1"))
    assert place["group"] == "s" * 80
    assert place["name"] == "lr=1"
    assert place["tags"] == ["mine", "paper", "s" * LONGEST_TAG]


def test_a_mode_that_is_typed_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_DISABLED", "false")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"


def made(tmp_path: Path, **chosen: Any) -> list[Any]:
    config = {
        **RUN,
        "batch_size": 16,
        "hardware": {"accelerator": "cpu"},
        "training": {"wait_for_space": 0},
    }
    return make_loggers(settings(**chosen), {}, tmp_path, config)


def test_disabled_is_metrics_csv_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert len(made(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "console", "stats"),
    [({}, False, False), ({"system": True, "console": True}, True, True)],
)
def test_the_machine_s_load_and_the_console_are_knobs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: dict[str, Any],
    console: bool,
    stats: bool,
) -> None:
    """On a CPU both are off; and a mode that is typed wins over a variable that disables it all."""
    monkeypatch.setenv("WANDB_DISABLED", "true")
    loggers = made(tmp_path, mode="offline", **chosen)
    logger = loggers[-1]
    assert isinstance(logger, WandbRun)
    assert (logger.experiment.settings.console != "off") == console
    assert logger.experiment.settings.x_disable_stats != stats
    logger.define_best({"val/fid": "min", "val/recall_inception": "max"})
    logger.log_metrics({"val/fid": 3.0, "val/recall_inception": 0.5}, 10)
    close_loggers(loggers)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
