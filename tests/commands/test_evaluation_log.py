"""Evaluations on Weights & Biases: what arrives at a server on this machine."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import TINY, launch
from loopback import serving

from betasigma.commands.evaluate import show_table
from betasigma.evaluation.evaluator import Measurement
from betasigma.runs.record import Record
from betasigma.samplers import DDIM
from betasigma.training.tracking import WandbRun


class KeptTable(WandbRun):
    """Keeps what it is to show."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def log_evaluations(self, columns: Sequence[str], rows: list[list[Any]], step: int) -> None:
        self.found += [dict(zip(columns, row, strict=True)) for row in rows]


def test_rows_of_two_checkpoints_are_told_apart() -> None:
    distance = Measurement(
        name="fd_some",
        value=3.0,
        n=10,
        nfe=5,
        sampler="ddim",
        seed=0,
        split="train",
        extractor="some",
    )
    table = KeptTable()
    for checkpoint in ("", "best.ckpt"):
        show_table([table], [distance], DDIM(), "ddpm", 30, checkpoint)
    assert [(row["series"], row["checkpoint"]) for row in table.found] == [
        ("fd_some, ddpm, ddim", "last.ckpt"),
        ("fd_some, ddpm, ddim, best.ckpt", "best.ckpt"),
    ]


def test_loggers_beside_the_one_of_an_evaluation(copy_of_ddpm_run: Path) -> None:
    words = ["n=8", "evaluation.metrics=[fd]", "evaluation.extractor=identity", "error_curve=0"]
    more = ["evaluation.n_reference=50", "+logger@loggers.mine=csv", "sampler=ddim"]
    done = launch("evaluate", f"run={copy_of_ddpm_run}", *words, *more, "sampler.steps=2")
    assert done.status == 0, done.err
    (file,) = copy_of_ddpm_run.parent.rglob("csv/version_0/metrics.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    (found,) = filter(None, (row["eval/fd_identity"] for row in rows))
    *_, recorded = Record.of(copy_of_ddpm_run).curve("eval/fd_identity")[1]
    assert float(found) == pytest.approx(recorded, rel=1e-5)


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as server:
        outcome = launch("train", *TINY, "logger=wandb", "logger.artifacts=best")
        assert outcome.status == 0, outcome.err
        (trained,) = server.runs
        words = ["n=8", "evaluation.n_reference=50", "error_curve=0", "sampler=ddim"]
        done = launch("evaluate", f"run={outcome.run}", *words, "sampler.steps=3")
        assert done.status == 0, done.err
        (other,) = set(server.runs) - {trained}
        run = server.runs[other]
    assert (run.fields["jobType"], server.runs[trained].fields["jobType"]) == ("evaluate", "train")
    assert run.fields["groupName"] == server.runs[trained].fields["groupName"]
    assert run.config["trained_run"]["id"] == trained
    rows = [row for row in Record.of(outcome.run).rows() if row["metric"].startswith("eval/")]
    for row in rows:
        last = run.summary[row["metric"]]  # beside the best, where one is better
        last = last["last"] if isinstance(last, dict) else last
        assert last == pytest.approx(float(row["value"]))
    assert run.summary["sample/nfe"] == 3
    name = next(name for name in run.files if "evaluations_" in name and name.endswith(".json"))
    table = json.loads(run.files[name])
    values = {row[1]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    for row in rows:
        found = values[row["metric"].removeprefix("eval/")]
        assert found["value"] == pytest.approx(float(row["value"]))
        assert (found["NFE"], str(found["n"])) == (3, row["n"])
        assert found["extractor"] == row["extractor"]
        assert found["checkpoint"] == "last.ckpt"
    distance = next(name for name in values if name.startswith("fd_") and "_" not in name[-5:])
    assert values[distance]["sampler"] == "ddim"
    assert any(name.startswith("evaluations_by_nfe") for name in run.summary)
