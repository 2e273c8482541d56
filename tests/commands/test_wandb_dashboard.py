"""The dashboard of conf/dashboard on Weights & Biases, panel by panel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from loopback import serving

from betasigma.options.training import (
    AT_LOG_SNR,
    SPEED,
    TRAIN_ERROR,
    TRAIN_OBJECTIVE,
    VALIDATION_ERROR,
)
from betasigma.runs.files import write_json, write_text
from betasigma.runs.record import Record

FAMILY = "model.value.family"
"""What W&B calls the key by which runs are grouped."""

ASKED = ("to=wandb", "runs=outputs", "project=betasigma")


@pytest.fixture
def runs(here: Path) -> list[str]:
    """Ids of three runs, of which two differ in the seed."""
    for number, (family, seed) in enumerate([("ddpm", 1), ("ddpm", 2), ("ncsn", 1)]):
        run = Path(f"outputs/{family}{seed}")
        (run / "samples").mkdir(parents=True)
        config = {
            "name": family,
            "seed": seed,
            "steps": 4,
            "batch_size": 16,
            "model": {"family": family},
            "data": {"name": "digits"},
            "optimizer": {"lr": 0.1 * (number + 1)},
        }
        write_text(run / "config.yaml", json.dumps(config))
        write_json(run / "status.json", {"status": "finished"})
        write_text(run / "wandb_id.txt", f"id{number}\n")
        record = Record.of(run)
        for step in (2, 4):
            curves = {TRAIN_ERROR: 0.5, TRAIN_OBJECTIVE: 1.0, VALIDATION_ERROR: 0.4, SPEED: 9.0}
            parts = {f"val{AT_LOG_SNR}{at:+d}": 0.3 for at in (-1, 0)}
            record.append(step, {**curves, **parts})
        bits = "val/bits_per_dim/discrete_bound"
        least = {"val/fid": 3.0, "eval/fid": 4.0, f"{bits}/total": 1.0}
        record.append(4, least, {"best": "min"})
        most = {"eval/recall_inception": 0.1, "eval/precision_inception": 0.2, "eval/fd_mine": 9.0}
        record.append(4, most, {"best": "max"})
        record.append(4, {"val/fid_floor": 2.0, f"{bits}/prior": 1.0})
    return ["id0", "id1", "id2"]


def described() -> dict[str, Any]:
    (path,) = Path.cwd().glob("outputs/*_dashboard_*/wandb_dashboard.json")
    return json.loads(path.read_text())


def sections(workspace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels of a workspace by section: each kind of W&B's with its settings."""
    return {
        section["name"]: [{"is": p["viewType"], **p.get("config", {})} for p in section["panels"]]
        for section in workspace["section"]["panelBankConfig"]["sections"]
        if section["panels"]
    }


def assert_what_the_yaml_says(panels: dict[str, list[dict[str, Any]]]) -> None:
    titles = ["Runs", "Denoising error", "Distance over training", "Objective", "Speed"]
    titles += ["Error by noise level", "Quality against network evaluations"]
    titles += ["Precision against recall", "Bits per dimension", "Samples", "Sweep", "One run"]
    assert list(panels) == [*titles, "Health"]
    lines = [(p["metrics"], p["xAxis"], p["yLogScale"]) for p in panels["Denoising error"]]
    axes = ["trainer/global_step", "trainer/seconds", "trainer/images_seen"]
    assert lines == [([m], x, True) for m in (VALIDATION_ERROR, TRAIN_ERROR) for x in axes]
    for panel in panels["Denoising error"]:
        assert (panel["groupBy"], panel["groupAgg"], panel["groupArea"]) == (
            FAMILY,
            "mean",
            "stddev",
        )
    distance = [(p["metrics"], p["xAxis"]) for p in panels["Distance over training"]]
    assert distance == [(["val/fid", "val/fid_floor"], x) for x in axes]
    assert [p["metrics"] for p in panels["Objective"]] == [[TRAIN_OBJECTIVE]]
    assert [p["metrics"] for p in panels["Runs"]] == [
        [f"{VALIDATION_ERROR}.last"],
        ["val/fid.last"],
        ["val/bits_per_dim/discrete_bound/total.last"],
    ]
    chart, parts = panels["Error by noise level"]
    assert "val/denoising_error_by_log_snr_table" in json.dumps(chart)
    assert parts["metrics"] == [f"val{AT_LOG_SNR}{at:+d}" for at in (0, -1)]
    points = [(p["xAxis"], p["yAxis"]) for p in panels["Quality against network evaluations"][:-1]]
    measured = ("eval/fid", "eval/fd_mine", "val/fid")
    assert points == [("summary:sample/nfe", f"summary:{m}.last") for m in measured]
    table = json.dumps(panels["Quality against network evaluations"][-1])
    assert '"evaluations"' in table
    (shares,) = panels["Precision against recall"]
    assert shares["xAxis"] == "summary:eval/recall_inception.last"
    assert shares["yAxis"] == "summary:eval/precision_inception.last"
    (bits,) = panels["Bits per dimension"]
    bound = "val/bits_per_dim/discrete_bound"
    assert bits["metrics"] == [f"{bound}/prior", f"{bound}/total.last"]
    (samples,) = panels["Samples"]
    assert (samples["is"], samples["mediaKeys"]) == ("Media Browser", ["samples"])
    coordinates, importance = panels["Sweep"]
    swept = [column["accessor"] for column in coordinates["columns"]]
    assert swept == [
        *("config:seed.value", f"config:{FAMILY}", "config:optimizer.value.lr"),
        f"summary:{VALIDATION_ERROR}.last",
    ]
    assert importance["targetKey"] == f"{VALIDATION_ERROR}.last"
    assert [p["is"] for p in panels["One run"]] == ["Run Comparer"]
    assert [p["metrics"] for p in panels["Health"]] == [[SPEED]]


def test_without_an_account_it_is_described(runs: list[str]) -> None:
    outcome = launch("dashboard", *ASKED)
    assert outcome.status == 0, outcome.err
    assert "no account at Weights & Biases" in outcome.out
    assert "are not on Weights & Biases" not in outcome.out
    written = described()
    assert_what_the_yaml_says(sections(written["workspace"]["spec"]))
    report = written["report"]["spec"]
    report = json.loads(report) if isinstance(report, str) else report
    grids = [block for block in report["blocks"] if block["type"] == "panel-grid"]
    headings = [b["children"][0]["text"] for b in report["blocks"] if b["type"] == "heading"]
    drawn = {
        title: [
            {"is": p["viewType"], **p.get("config", {})}
            for p in grid["metadata"]["panelBankSectionConfig"]["panels"]
        ]
        for title, grid in zip(headings, grids, strict=True)
    }
    assert_what_the_yaml_says(drawn)
    for shown in (
        grids[0]["metadata"]["runSets"][0],
        written["workspace"]["spec"]["section"]["runSets"][0],
    ):
        (filtered,) = shown["filters"]["filters"]
        assert (filtered["key"]["name"], filtered["value"]) == ("name", runs)
        assert [key["name"] for key in shown["grouping"]] == [FAMILY]


def test_with_an_account_it_is_saved(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as server:
        outcome = launch("dashboard", *ASKED)
        assert outcome.status == 0, outcome.err
        workspace, report = server.views
        assert f"workspace {server.address}/me/betasigma?nw=" in outcome.out
        assert f"report    {server.address}/me/betasigma/reports/betasigma--" in outcome.out
    assert workspace["entityName"] == report["entityName"] == "me"
    assert (workspace["type"], report["type"]) == ("project-view", "runs")
    assert_what_the_yaml_says(sections(workspace["spec"]))
    (first, *_) = (block for block in report["spec"]["blocks"] if block["type"] == "panel-grid")
    assert first["metadata"]["runSets"][0]["project"]["name"] == "betasigma"


def test_what_it_cannot_do_is_said(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: str) -> str:
        outcome = launch("dashboard", *words)
        assert outcome.status == 1
        return outcome.err

    assert "project=a has no effect without to=wandb" in refused("project=a", "runs=outputs")
    assert "serve=8000 has no effect with to=wandb" in refused(*ASKED, "serve=8000")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE=offline switches it off" in refused(*ASKED)
    monkeypatch.delenv("WANDB_MODE")
    with serving(monkeypatch) as server:
        server.temper = lambda request: 401
        assert "Weights & Biases cannot be reached" in refused(*ASKED)
