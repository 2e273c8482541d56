"""Names of a sweep's jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from betasigma.launch.job_names import LONGEST, job_name, repeats, short_keys
from betasigma.runs.status import job_number

KNOWN = ("steps", "sampler.steps", "optimizer.lr", "ema.decay", "data.root", "optimizer.betas")
GROUPS = ("model", "optimizer", "sampler", "data")


def test_a_group_s_key_is_short_where_no_other_key_ends_like_it() -> None:
    swept = ["optimizer.lr", "ema.decay", "sampler.steps", "model", "+optimizer.betas"]
    assert short_keys(swept, KNOWN, GROUPS) == {
        "optimizer.lr": "lr",
        "ema.decay": "ema.decay",
        "sampler.steps": "sampler.steps",
        "model": "model",
        "+optimizer.betas": "betas",
    }


def test_a_job_is_named_by_what_is_swept() -> None:
    written = short_keys(["optimizer.lr", "ema.decay"], KNOWN, GROUPS)
    job = ["optimizer.lr=0.001", "steps=3", "ema.decay=0.9"]
    assert job_name(written, job) == "lr=0.001,ema.decay=0.9"
    assert job_name(written, job, number=4) == "lr=0.001,ema.decay=0.9,job=4"


def test_names_are_safe_short_and_unique() -> None:
    written = {"network.multipliers": "multipliers", "run": "run"}
    job = ["network.multipliers=[1, 2]", "run='outputs/a b/c'"]
    assert job_name(written, job) == "multipliers=1-2,run=c"
    assert job_name(written, ["run='outputs/a,b=1/'"]) == "run=a-b=1"
    tags = [[f"tags=[{'word,' * 40}{end}]"] for end in "ab"]
    names = [job_name({"tags": "tags"}, job) for job in tags]
    assert len(set(names)) == 2
    assert all(len(name) == LONGEST and re.fullmatch(r"[\w=,.-]+", name) for name in names)
    assert repeats([["run=a/x"], ["run=b/x"]], {"run": "run"})


def test_jobs_are_sorted_by_their_number_wherever_it_stands(tmp_path: Path) -> None:
    for name, number in (("seed=10", 0), ("seed=9", 1), ("seed=8", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps({"job": number}))
    (tmp_path / "2_ddpm").mkdir()  # of an earlier version
    names = [path.name for path in sorted(tmp_path.iterdir(), key=job_number)]
    assert names == ["seed=10", "seed=9", "2_ddpm", "seed=8"]
