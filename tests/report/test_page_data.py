"""What a page about runs is made of, and that nothing of a run becomes markup or a script."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made import EXTRACTOR, level_of, make_run, write_status

from betasigma.errors import UserError
from betasigma.options.dashboards import DashboardOptions, SamplesOptions
from betasigma.pictures import grid, save
from betasigma.report import page_data as page_data_module
from betasigma.report.page import in_script, render, to_json
from betasigma.report.page_data import _fitting, _thinned, page_data
from betasigma.report.page_pictures import Album
from betasigma.report.scan import check_filters, find_recorded, passes, shown
from betasigma.report.series import read_series
from betasigma.runs.record import Record
from betasigma.runs.status import ActivityLog
from betasigma.runs.sweep_record import RecordedJob, SweepRecord, write_sweep

ROOT = Path(__file__).parents[2]


def described(*paths: Path, load: Any = lambda run: None, **changed: Any) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "conf/dashboard/default.yaml").read_text(encoding="utf-8"))
    dashboard = DashboardOptions.parse({**content, **changed})
    runs = find_recorded(paths)
    return page_data(runs, dashboard, Album(len(runs), SamplesOptions(), load), {"seed": 0})


def values(data: dict[str, Any], run: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    place = data["metrics"].index(metric)
    own = [series for series in run["series"] if series["metric"] == place]
    return [{**run["places"][series["at"]], **series} for series in own]


def test_a_page_has_the_values_of_the_metrics_that_its_panels_name(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "ddpm", 1, 0.01, evaluated=[10, 20])
    make_run(tmp_path / "b", "ncsn", 1, 0.01)
    data = described(tmp_path)
    first = data["runs"][0]
    (error,) = values(data, first, "val/denoising_error")
    level = level_of("ddpm", 0.01, 1)
    assert error["steps"] == (10, 20, 30)
    assert error["values"] == [pytest.approx(level / step, rel=1e-4) for step in (10, 20, 30)]
    distances = values(data, first, f"eval/fd_{EXTRACTOR}")
    assert [data["contexts"][one["context"]]["nfe"] for one in distances] == ["10", "20"]
    assert values(data, first, f"eval/fd_{EXTRACTOR}_floor")[0]["values"] == [2.5, 2.5]
    assert first["config"]["model.family"] == "ddpm"
    assert data["shared"]["optimizer.lr"] == 0.01
    known = {"val/denoising_error": "min", f"eval/fd_{EXTRACTOR}": "min"}
    assert known.items() <= data["best"].items()
    assert data["best"][f"eval/precision_{EXTRACTOR}"] == "max"
    assert f"eval/fd_{EXTRACTOR}_floor" not in data["best"]
    only = described(tmp_path, panels={"a": {"kind": "curves", "metrics": ["train/objective"]}})
    assert set(only["metrics"]) == {"train/objective", "train/images_per_second"}


def test_filters_choose_runs_by_their_config(tmp_path: Path) -> None:
    make_run(tmp_path / "a", data="mnist")
    make_run(tmp_path / "b", data="digits")
    names = [run["id"] for run in described(tmp_path, filters={"data.name": ["mni*"]})["runs"]]
    assert names == ["a"]
    (run,) = find_recorded([tmp_path / "b"])
    assert passes(run, {"optimizer.lr": 0.001, "seed": [3, 0]})
    assert not passes(run, {"optimizer.lr": 0.002})
    check_filters([run], {"data.name": "digits"})
    with pytest.raises(
        UserError, match=r"no run has data\.name=mn; they have data\.name of digits"
    ):
        check_filters([run], {"data.name": "mn"})


def test_data_of_one_name_and_other_images_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path / name, pictures=False)
        shape = {"name": "digits", "shape": [1, 8, 8], "train": {"order": name}, "test": {}}
        (run / "data.json").write_text(json.dumps(shape))
    first, second = (run["data"] for run in described(tmp_path)["runs"])
    assert first["label"] == second["label"] == "digits 1×8×8"
    assert first["id"] != second["id"]


def test_curves_of_the_same_steps_are_thinned_alike_and_keep_their_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their lengths, so that seeds have a mean; the best value is that of all."""
    runs = {"long": 1000, "short": 620}
    for name, count in runs.items():
        record = Record.of(make_run(tmp_path / name, steps=[], pictures=False))
        for place in range(count):
            error = 0.01 if place == 311 else 1 + place
            record.append(50 * (place + 1), {"val/denoising_error": error, "train/objective": 1.0})
    monkeypatch.setattr(page_data_module, "POINTS", 160)
    data = described(tmp_path)
    kept = {}
    for run in data["runs"]:
        (error,), (objective,) = (
            values(data, run, metric) for metric in ("val/denoising_error", "train/objective")
        )
        assert error["at"] == objective["at"]
        assert len(error["steps"]) <= 40
        assert error["steps"][-1] == 50 * runs[run["id"]]
        assert (error["of"], error["best"]) == (runs[run["id"]], [0.01, 50 * 312])
        kept[run["id"]] = error["steps"]
    assert len(kept["long"]) > 20
    last = kept["short"][-1]
    assert {step for step in kept["long"] if step < last} <= set(kept["short"])


def test_what_was_measured_with_several_seeds_stays_whole(tmp_path: Path) -> None:
    record = Record.of(tmp_path)
    for seed in range(30):
        record.append(5, {"eval/fid": seed}, {"n": 50, "nfe": 10, "seed": seed})
    (series,) = read_series(Record.of(tmp_path))
    assert list(_thinned(series, 4)) == list(range(30))


def test_as_many_points_stay_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_data_module, "POINTS", 100)
    assert _fitting([10, 20, 5]) == 100
    assert _fitting([10, 1000, 1000]) == 45
    assert sum(min(length, _fitting([10, 1000, 1000])) for length in (10, 1000, 1000)) == 100


def test_hours_leave_out_the_time_between_two_starts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=[])
    begun = 1_800_000_000
    starts = [{"started": "2027-01-15T08:00:00+0000"}, {"started": "2027-01-15T10:00:00+0000"}]
    known = {**starts[1], "resumed_after": [starts[0]]}
    (run / "environment.json").write_text(json.dumps(known))
    lines = (run / "metrics.csv").read_text().splitlines()
    rows = [f"{step},{begun + at},val/denoising_error,1.0" + "," * 11 for step, at in MOMENTS]
    (run / "metrics.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    data = described(run)
    assert values(data, data["runs"][0], "val/denoising_error")[0]["seconds"] == [60, 600, 605, 900]
    assert data["runs"][0]["starts"] == 2


MOMENTS = [(10, 60), (20, 600), (20, 7205), (30, 7500)]
"""Steps, and seconds after the first start; the second is two hours later."""


SPENT = {"training": 4.0, "validation": 4.0, "evaluation": 20.0, "the rest": 5.0}


def test_time_is_told_apart_by_what_it_ends_with(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=[])
    rows = [
        ("10", 5.0, "train/images_per_second", 80.0, ""),  # 10 steps of 16 take 2 s
        ("10", 9.0, "val/denoising_error", 1.0, ""),
        ("10", 29.0, "val/fd_x", 1.0, "x"),
        ("30", 33.0, "train/images_per_second", 160.0, ""),  # 20 steps of 16 take 2 s
    ]
    head = (run / "metrics.csv").read_text().splitlines()[0]
    start = 1_767_225_600  # 2026-01-01, when it was started
    lines = [f"{s},{start + t},{m},{v},,,,,,{e},,,,," for s, t, m, v, e in rows]
    (run / "metrics.csv").write_text("\n".join([head, *lines]) + "\n")
    assert described(run)["runs"][0]["spent"] == SPENT
    (run / "summary.json").write_text('{"seconds": {"training": NaN}}')
    assert described(run)["runs"][0]["spent"] == SPENT
    (run / "summary.json").write_text('{"seconds": {"training": 7.04, "sampling": 1}}')
    assert described(run)["runs"][0]["spent"] == {"training": 7.0, "sampling": 1}
    once = json.loads((run / "environment.json").read_text())
    again = {"started": "2026-01-01T00:01:00+0000", "resumed_after": [once]}
    (run / "environment.json").write_text(json.dumps(again))
    assert described(run)["runs"][0]["spent"] == SPENT, "the summary is of the last start alone"


def test_a_run_whose_process_is_gone_or_silent_is_stalled(tmp_path: Path) -> None:
    write_status(make_run(tmp_path / "a"), "running", process=2**22 + 1)
    write_status(make_run(tmp_path / "b"), "running", host="elsewhere")
    write_status(make_run(tmp_path / "c"), "finished", process=2**22 + 1)
    runs = described(tmp_path)["runs"]
    assert [run["stalled"] for run in runs] == ["its process has ended without a word", None, None]
    panels = {"health": {"kind": "health", "stalled": 1e-9}}
    runs = described(tmp_path, panels=panels)["runs"]
    assert runs[1]["stalled"] == "no sign of life for 0 minutes"


def test_a_run_that_says_what_it_does_is_not_stalled(tmp_path: Path) -> None:
    """An evaluation draws samples for longer than a run may be silent, and logs nothing."""
    run = make_run(tmp_path / "a")
    write_status(run, "running", host="elsewhere")
    for path in run.iterdir():
        os.utime(path, (1, 1))
    assert "no sign of life" in described(run)["runs"][0]["stalled"]
    ActivityLog(run).note("evaluation", 5, 10, 1.0)
    assert described(run)["runs"][0]["stalled"] is None


def test_jobs_without_a_directory_are_missing(tmp_path: Path) -> None:
    for job, status in ((0, "finished"), (3, "failed")):
        run = make_run(tmp_path / "sweep" / str(job), seed=job)
        write_status(run, status, job=job)
    write_status(make_run(tmp_path / "other"), "finished", job=10**12)  # no page makes so many
    (sweep,) = described(tmp_path)["sweeps"]
    assert sweep == {"id": "sweep", "jobs": 4, "missing": ["number 1", "number 2"], "failed": [3]}
    jobs = [RecordedJob(f"seed={number}", []) for number in range(6)]
    write_sweep(tmp_path / "sweep", SweepRecord("train", jobs, []))
    assert described(tmp_path)["sweeps"][0]["missing"] == [f"seed={n}" for n in (1, 2, 4, 5)]
    shutil.rmtree(tmp_path / "other")
    assert described(tmp_path)["sweeps"][0]["id"] == "sweep"


def test_an_evaluation_of_a_checkpoint_belongs_to_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    job = tmp_path / "evaluate" / ".hydra"
    job.mkdir(parents=True)
    (job / "config.yaml").write_text(yaml.safe_dump({"run": f"{run}/checkpoints/best.ckpt"}))
    write_status(job.parent, "finished")
    Record.of(job.parent).append(30, {"eval/fd_x": 3.0}, {"n": 10, "nfe": 5, "sampler": "heun"})
    data = described(tmp_path)
    assert [one["id"] for one in data["runs"]] == ["run"]
    assert values(data, data["runs"][0], "eval/fd_x")[0]["values"] == [3.0]


def test_an_evaluation_of_the_best_checkpoint_stands_for_none_of_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    told = {"n": 10, "nfe": 5, "sampler": "heun", "seed": 0}
    Record.of(run).append(30, {"eval/fd_x": 3.0}, told)
    for number, name in enumerate(["best.ckpt", "last.ckpt"]):
        job = tmp_path / name / ".hydra"
        job.mkdir(parents=True)
        (job / "config.yaml").write_text(yaml.safe_dump({"run": f"{run}/checkpoints/{name}"}))
        write_status(job.parent, "finished")
        Record.of(job.parent).append(30, {"eval/fd_x": float(number)}, told)
    data = described(tmp_path)
    found = [
        (data["contexts"][series["context"]].get("checkpoint"), series["values"])
        for series in values(data, data["runs"][0], "eval/fd_x")
    ]
    assert sorted(found, key=str) == [("best.ckpt", [0.0]), (None, [1.0]), (None, [3.0])]


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Record.of(run).append(40, {"train/objective": math.nan})
    data = described(run)
    (series,) = values(data, data["runs"][0], "train/objective")
    assert series["values"][-1] is None
    assert series["bad"] == 1


# ---------------------------------------------------------------- pictures


def test_pictures_have_the_pixels_that_training_drew_and_their_neighbours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    generator = torch.Generator().manual_seed(30)
    drawn = torch.randint(256, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    others = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    near = (drawn[[4, 1]] // 2 * 2).clamp(1)  # near two of the samples
    data = described(run, load=lambda found: torch.cat([others, near]))
    (one,) = data["runs"]
    assert [(sheet["step"], sheet["count"]) for sheet in one["grids"]] == [
        (10, 6),
        (20, 6),
        (30, 6),
    ]
    sheet = pixels(one["grids"][-1]["picture"])
    assert sheet.shape == (16, 24)
    assert torch.equal(sheet[8:, 8:16], drawn[4, 0])
    nearest = pixels(one["nearest"]["picture"])
    assert torch.equal(nearest[8:, 8:16], near[0, 0])
    assert data["real"][one["real"]]["count"] == 12


def test_a_grid_of_fewer_samples_shows_the_first_of_the_others(tmp_path: Path) -> None:
    """As training draws them before its last step."""
    run = make_run(tmp_path / "run")
    many = torch.randint(255, (9, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    for step, count in ((20, 5), (30, 9)):
        picture = grid(many[:count].to(torch.uint8))
        picture.save(run / "samples" / f"step_00000{step}.png")
    _, few, last = described(run)["runs"][0]["grids"]
    assert (few["count"], few["columns"], last["count"]) == (5, 3, 9)
    assert torch.equal(pixels(few["picture"])[8:, :16], pixels(last["picture"])[8:16, :16])


def test_a_white_sample_is_no_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "samples" / "step_0000030.png"
    save(grid(torch.full((8, 1, 8, 8), 255, dtype=torch.uint8)), path, count=8)
    assert described(run)["runs"][0]["grids"][-1]["count"] == 8


def test_pictures_leave_room_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("betasigma.report.page_pictures.BYTES", 1500)
    grids = described(run)["runs"][0]["grids"]
    assert 0 < sum(len(sheet["picture"]) for sheet in grids) <= 1500
    monkeypatch.setattr("betasigma.report.page_pictures.BYTES", 10)
    assert described(run)["runs"][0]["grids"] == []


def test_a_picture_that_is_damaged_or_no_grid_is_no_obstacle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "samples" / "step_0000010.png").write_bytes(b"no picture")
    grid(torch.zeros(1, 3, 50, 70, dtype=torch.uint8)).save(run / "samples" / "step_0000030.png")
    grids = described(run)["runs"][0]["grids"]
    assert [(sheet["step"], sheet["count"]) for sheet in grids] == [(20, 6), (30, 0)]


def pixels(uri: str) -> torch.Tensor:
    import base64
    from io import BytesIO

    import numpy as np
    from PIL import Image

    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return torch.from_numpy(np.asarray(image).copy())


# ---------------------------------------------------------------- the file


def test_nothing_of_a_run_is_markup_or_a_script(tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    run = make_run(tmp_path / "run", tags=[name], note=name)
    (run / "log.txt").write_text(f"{name}\n<!--<script>\n")
    data = described(run, title=name)
    page = render(data)
    assert name not in page
    assert page.count("</script>") == 4 + page.count('"</script>"')
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    again = json.loads(found[1])
    assert again["title"] == name
    assert again["runs"][0]["log"][0] == name
    assert again["shared"]["note"] == name


def test_a_page_asks_no_network(tmp_path: Path) -> None:
    page = render(described(make_run(tmp_path / "run")))
    assert not re.search(
        r"<(?:script|img|iframe)[^>]*\ssrc=|<link[^>]*href=", page.partition("<body")[0]
    )
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';")
    modules = re.search(r'<script type="importmap">(.*?)</script>', page)
    assert modules is not None
    addresses = json.loads(modules[1])["imports"].values()
    assert all(address.startswith("data:text/javascript;base64,") for address in addresses)


def test_the_version_of_data_is_of_what_it_shows(tmp_path: Path) -> None:
    data = described(make_run(tmp_path / "run"))
    text, version = to_json(data)
    assert json.loads(text)["version"] == version
    assert to_json({**data, "built": 1}).version == version
    assert to_json({**data, "title": "other"}).version != version
    assert in_script('"<"') == '"\\u003c"'


def test_values_of_configs_are_numbers_or_text() -> None:
    known = [None, True, 1, 0.5, math.inf, [1, 2], {}, "x" * 400]
    assert [shown(value) for value in known[:-1]] == ["null", "true", 1, 0.5, "inf", "[1, 2]", "{}"]
    assert len(shown(known[-1])) == 301
    assert shown(10**400) == str(10**400)
