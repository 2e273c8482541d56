"""Checkpoints on Weights & Biases: kept there by a run, fetched wherever a run is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import TINY, launch
from loopback import Server, serving

import betasigma
from betasigma.errors import UserError


@pytest.fixture
def server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(monkeypatch) as made:
        yield made


def kept(server: Server) -> list[tuple[list[str], int]]:
    """Aliases and step of each artifact."""
    return [
        ([one["alias"] for one in known["aliases"]], json.loads(known["metadata"])["step"])
        for known in server.artifacts.values()
        if known["artifactTypeName"] == "model"
    ]


@pytest.mark.slow
def test_what_a_run_keeps_there_is_sampled_from(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    every = ["training.checkpoint_every=2", "training.validate_every=2", "logger.artifacts=all"]
    outcome = launch("train", *TINY, "logger=wandb", *every)
    assert outcome.status == 0, outcome.err
    (identity,) = server.runs
    steps = [(alias, step) for aliases, step in kept(server) for alias in aliases]
    assert {("last", 2), ("best", 2), ("last", 4), ("last", 6)} <= set(steps)
    sent = [one for one in steps if one[0] in ("last", "best")]
    assert len(set(sent)) == len(sent), "a checkpoint was sent twice"
    monkeypatch.setenv("BETASIGMA_CACHE", str(tmp_path / "cache"))
    named = f"run=wandb:me/betasigma/{identity}"
    for which, size in ((":step-4", 1), ("", 2), ("", 2)):
        outcome = launch("sample", f"{named}{which}", "n=2", "save=npz")
        assert outcome.status == 0, outcome.err
        assert len(list(tmp_path.glob("cache/wandb/*.ckpt"))) == size
    denoiser, _ = betasigma.load(named.removeprefix("run="))
    assert denoiser.sample_shape == (1, 8, 8)


@pytest.mark.slow
def test_a_run_that_was_offline_sends_its_best(server: Server) -> None:
    words = ["logger=wandb", "logger.mode=offline", "logger.artifacts=best"]
    outcome = launch("train", *TINY, *words, "hydra.run.dir=outputs/one")
    assert outcome.status == 0, outcome.err
    assert server.artifacts == {}
    outcome = launch("sync", "outputs/one")
    assert outcome.status == 0, outcome.err
    assert "its file, 1 checkpoint" in outcome.out
    assert [(set(aliases), step) for aliases, step in kept(server)] == [
        ({"latest", "best", "step-6"}, 6)
    ]


@pytest.fixture
def hostile(server: Server) -> Server:
    """Artifacts of somebody who means harm."""
    for number, (run, manifest) in enumerate(HOSTILE.items()):
        contents = {path: {"digest": "AAAA", "size": 10, **more} for path, more in manifest.items()}
        server.artifacts[f"h{number}"] = {
            "aliases": [{"alias": "best"}],
            "artifactCollectionName": f"model-{run}",
            "projectName": "p",
            "digest": f"d{number}",
            "metadata": "{}",
            "artifactTypeName": "model",
            "state": "COMMITTED",
        }
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {}}
        whole = {"version": 1, **policy, "contents": contents}
        server.stored[f"h{number}/manifest"] = json.dumps(whole).encode()
    return server


HOSTILE = {
    "refers": {"model.ckpt": {"ref": "file:///etc/hostname"}},
    "climbs": {"../model.ckpt": {}},
    "several": {"model.ckpt": {}, "setup.py": {}},
    "huge": {"model.ckpt": {"size": 2**60}},
    "missing": {"model.ckpt": {}},
}


@pytest.mark.parametrize("run", HOSTILE)
def test_of_a_stranger_s_artifact_nothing_is_taken(
    hostile: Server, run: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BETASIGMA_CACHE", str(tmp_path / "cache"))
    outcome = launch("sample", f"run=wandb:me/p/{run}")
    assert outcome.status == 1
    reason = {"huge": "has 1152921504606846976 bytes", "missing": "could not be fetched"}
    assert reason.get(run, "is something else than one model.ckpt") in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_not_there_is_said(server: Server) -> None:
    outcome = launch("sample", "run=wandb:me/p/abc")
    assert outcome.status == 1
    assert "wandb:me/p/abc has no checkpoint" in outcome.err
    assert "logger.artifacts=best keeps a run's there" in outcome.err
    outcome = launch("sample", "run=wandb:me/p")
    assert "run=wandb:me/p names no run: write run=wandb:ENTITY/PROJECT/RUN" in outcome.err
    with pytest.raises(UserError, match="wandb:me/p names no run: write wandb:ENTITY/PROJECT/RUN"):
        betasigma.load("wandb:me/p")
