"""Runs that were logged offline, sent by W&B's own client to a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import TINY, Outcome, launch
from loopback import Received, Server, serving
from PIL import Image

from betasigma.commands.sync import Recipient, lacking, send
from betasigma.errors import UserError
from betasigma.options.apps import Sync
from betasigma.options.training import TRAIN_OBJECTIVE
from betasigma.runs.files import write_json, write_text
from betasigma.runs.record import Record
from betasigma.training.tracking import SECONDS, STEP


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as made:
        yield made


OFFLINE = (*TINY, "logger=wandb", "logger.mode=offline", "hydra.run.dir=outputs/runs/one")


def sent(*words: str) -> Outcome:
    outcome = launch("sync", "outputs/runs", *words)
    assert outcome.status == 0, outcome.err
    return outcome


def train(*words: str) -> Path:
    outcome = launch("train", *OFFLINE, *words)
    assert outcome.status == 0, outcome.err
    return outcome.run


def assert_the_same(received: Received, run: Path) -> None:
    """The server has every value of metrics.csv once, in its order, with its time."""
    rows = Record.of(run).rows()
    for metric in {row["metric"] for row in rows}:
        steps, values = Record.of(run).curve(metric)
        curve = received.curve(metric)
        assert [step for step, _ in curve] == steps, metric
        assert [value for _, value in curve] == pytest.approx(values, rel=1e-9), metric
        last = received.summary[metric]  # beside the best, where one is better
        last = last["last"] if isinstance(last, dict) else last
        assert last == pytest.approx(values[-1], rel=1e-9)


@pytest.mark.slow
def test_a_run_of_several_starts_is_one_history(here: Path, server: Server) -> None:
    """Whole, it is sent as it is; continued, as one file; again, without anything twice."""
    run = train()
    assert "its file" in sent().out
    (identity,) = server.runs
    received = server.runs[identity]
    assert identity == (run / "wandb_id.txt").read_text().strip()
    assert (received.fields["displayName"], received.fields["groupName"]) == ("one", "ddpm_digits")
    assert received.exit_code == 0
    assert_the_same(received, run)
    streams = received.streams
    assert "nothing new" in sent().out
    assert received.streams == streams

    launch("train", f"resume={run}", "steps=8")
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert "3 rows of metrics.csv and of pictures, which the server lacked" in sent().out
    assert set(server.runs) == {identity}
    assert_the_same(received, run)
    assert [row["_step"] for row in received.history] == list(range(len(received.history)))
    times = [row["_timestamp"] for row in received.history if TRAIN_OBJECTIVE in row]
    rows = [row for row in Record.of(run).rows() if row["metric"] == TRAIN_OBJECTIVE]
    assert times == pytest.approx([float(row["time"]) for row in rows], abs=0.1)
    pictures = [row for row in received.history if "samples" in row]
    assert [row[STEP] for row in pictures] == [6, 8]
    how = "ddim, NFE 2, seed 0"
    assert [row["samples"]["captions"] for row in pictures] == [
        [f"step {n}: {how}"] for n in (6, 8)
    ]
    seconds = [row[SECONDS] for row in received.history]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < 600, "the time between the starts is left out, and nothing else"
    facts = received.config["run"]
    assert facts["parameters"] < facts["forward_flop_per_image"]
    assert facts["directory"] == str(run.absolute())
    assert sum(name.startswith("media/images/samples") for name in received.files) >= 2
    assert received.config["model"]["family"] == "ddpm"

    streams = received.streams
    (run / "wandb" / "sent.json").unlink()  # as of a machine that does not know of it
    assert "nothing: the server has all of it" in sent().out
    assert received.streams == streams


@pytest.mark.slow
def test_what_a_killed_run_had_not_written_is_in_metrics_csv(here: Path, server: Server) -> None:
    """Its file of Weights & Biases is cut off. The rows are sent, and it is no success."""
    code = """
import os
from betasigma.launch.scripts import train
from betasigma.training.progress import Metrics
on_step = Metrics.on_step
Metrics.on_step = lambda *a: os.kill(os.getpid(), 9) if a[3] == 5 else on_step(*a)
train()
"""
    done = subprocess.run([sys.executable, "-c", code, *OFFLINE], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    run = Path("outputs/runs/one")
    assert Record.of(run).curve(TRAIN_OBJECTIVE)[0] == [2, 4]
    assert "2 rows of metrics.csv and of pictures" in sent().out
    (received,) = server.runs.values()
    assert_the_same(received, run)
    assert received.exit_code == 1


def written(name: str, **logger: Any) -> Path:
    """A run directory that no client of Weights & Biases has seen."""
    run = Path("outputs/runs") / name
    (run / "samples").mkdir(parents=True)
    content = {"name": name, "tags": ["of a test"], "model": {"family": "ncsn"}, "logger": logger}
    write_text(run / "config.yaml", json.dumps(content))
    write_json(run / "status.json", {"status": "finished"})
    record = Record.of(run)
    record.append_together(2, [({"val/a": 0.5}, {}), ({"val/b": 2.0, "val/c": 3.0}, {"n": 20})])
    record.append(4, {"val/a": 0.25, "val/b": 1.5})
    record.append(4, {"val/b": 1.0}, {"sampler": "another"})
    for step in (2, 4):
        Image.new("L", (8, 8), step).save(run / f"samples/step_{step:07d}.png")
    return run


def test_a_history_lacks_what_the_server_has_not(here: Path) -> None:
    run = written("one")
    rows = [sorted(row.keys() - {"_timestamp", STEP}) for row in lacking(run, Counter())]
    values = [key for row in rows for key in row]
    assert values == ["val/a", "val/b", "val/c", "samples", "val/a", "val/b", "val/b", "samples"]
    there = Counter({("val/a", 2): 1, ("samples", 2): 1, ("val/b", 4): 1})
    left = [(key, row[STEP], value) for row in lacking(run, there) for key, value in row.items()]
    left = [one for one in left if one[0] not in ("_timestamp", STEP, "samples")]
    assert left == [("val/b", 2, 2.0), ("val/c", 2, 3.0), ("val/a", 4, 0.25), ("val/b", 4, 1.0)]
    full = Counter((key, row[STEP]) for row in lacking(run, Counter()) for key in row)
    assert list(lacking(run, full)) == []


def test_a_run_that_cannot_note_what_was_sent_is_not_sent(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, access = written("one"), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run and access(path, mode))
    with pytest.raises(UserError, match="its directory cannot be written"):
        send(run, Recipient(None, Sync(runs=[str(run)])))


@pytest.mark.slow
def test_runs_that_were_not_logged_are_sent_too(here: Path, server: Server) -> None:
    runs = {name: written(name) for name in ("one", "two")}
    assert sent("project=other", "entity=us").out.count("rows of metrics.csv and of pictures") == 2
    assert {run.fields["displayName"] for run in server.runs.values()} == set(runs)
    for received in server.runs.values():
        assert (received.fields["project"], received.fields["entity"]) == ("other", "us")
        assert received.exit_code == 0
        assert received.curve("val/b") == [(2, 2.0), (4, 1.5), (4, 1.0)]
        assert [row[STEP] for row in received.history if "samples" in row] == [2, 4]
    Record.of(runs["one"]).append(6, {"val/a": 0.125})
    assert "1 row of metrics.csv" in sent("project=other", "entity=us").out
    received = server.runs[(runs["one"] / "wandb_id.txt").read_text().strip()]
    assert received.curve("val/a") == [(2, 0.5), (4, 0.25), (6, 0.125)]
    assert len(server.runs) == 2
    sent("project=other", "entity=us", "again=true")
    assert len(server.runs) == 4  # a history there cannot be taken back


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, None], ids=["refuses", "hangs"])
def test_a_server_that_does_not_take_it(here: Path, server: Server, status: int | None) -> None:
    run = written("one", kind="wandb", timeout=2)
    (run / "wandb_id.txt").write_text("abcdef12")
    server.temper = lambda request: 200 if not server.runs else status
    outcome = launch("sync", "outputs/runs", "patience=3", "timeout=3")
    assert outcome.status == 1
    assert "1 of 1 run could not be sent; the command can be repeated" in outcome.err
    server.temper = lambda request: 200
    assert "rows of metrics.csv" in sent().out
    assert server.runs["abcdef12"].curve("val/a") == [(2, 0.5), (4, 0.25)]


def test_what_cannot_be_sent_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("one")
    outcome = launch("sync", "outputs/runs")
    assert outcome.status == 1
    assert "sync sends runs to Weights & Biases, and needs an account there" in outcome.err
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    outcome = launch("sync", "outputs/runs", "timeout=1")
    assert outcome.status == 1
    assert "error: Weights & Biases cannot be reached: " in outcome.err
    outcome = launch("sync", "outputs/nowhere")
    assert outcome.status == 1
    assert "runs=[outputs/nowhere] is no run directory and has none in it" in outcome.err
