"""Numbers that are not finite: counted, said, and nothing is built on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, launch

from betasigma.modules import DiffusionModule
from betasigma.modules.finite import FiniteSteps
from betasigma.objectives import Denoising, LossTerms
from betasigma.runs.checkpoint import read
from betasigma.runs.record import Record
from betasigma.samplers import Sampler

DIVERGING = ("steps=30", "training.checkpoint_every=1", "training.warmup=0", "optimizer.lr=1e6")


def weights(run: Path, name: str = "last") -> dict[str, Any]:
    return read(run / "checkpoints" / f"{name}.ckpt")


def test_a_run_that_diverges_stops_and_says_where(here: Path) -> None:
    """Its last checkpoint is that of before, its status says which examples at which noise."""
    outcome = launch("train", *TINY, *DIVERGING, "training.skip_limit=5")
    assert outcome.status == 1
    assert "steps in a row, from step 3 on, were skipped: the loss of 16 examples" in outcome.err
    assert "Traceback" not in outcome.err
    run = outcome.run
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed"
    found = status["not_finite"]
    assert found["since_step"] == 3
    assert 5 <= found["steps"] <= 10
    assert len(set(found["examples"])) == len(found["times"]) == len(found["log_snr"]) == 16
    assert all(0 < t <= 1 for t in found["times"])
    # a checkpoint of every step before the row began to be one; all of them finite
    kept = weights(run)
    assert kept["global_step"] == found["checkpoint_step"] == 3
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    overflowing = {"train/objective", "train/gradient_norm"}  # what was seen, not what was learnt
    rows = [row for row in Record.of(run).rows() if row["metric"] not in overflowing]
    assert [row["metric"] for row in rows if not math.isfinite(float(row["value"]))] == []


def test_a_run_that_diverges_just_before_its_end_is_not_finished(here: Path) -> None:
    outcome = launch("train", *TINY, *DIVERGING, "steps=6")
    assert outcome.status == 1
    assert "4 steps in a row, from step 3 on" in outcome.err


def test_one_step_is_no_row(here: Path) -> None:
    outcome = launch("train", *TINY, *DIVERGING, "training.skip_limit=1")
    assert outcome.status == 1
    assert "\nerror: step 3 was skipped: the loss of 16 examples was not finite" in outcome.err


def poison(patch: pytest.MonkeyPatch, step: int, what: Callable[[LossTerms], LossTerms]) -> None:
    """Change the loss of one step, from 1."""
    original = Denoising.loss

    def loss(self: Any, denoiser: Any, x0: Any, y: Any, rng: Any) -> LossTerms:
        terms: LossTerms = original(self, denoiser, x0, y, rng)
        here = denoiser.training and poison.now == step  # type: ignore[attr-defined]
        return what(terms) if here else terms

    training_step = DiffusionModule.training_step

    def marked(self: DiffusionModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        poison.now = batch["step"] + 1  # type: ignore[attr-defined]
        return training_step(self, batch, batch_idx)

    patch.setattr(Denoising, "loss", loss)
    patch.setattr(DiffusionModule, "training_step", marked)


def spoil_one(terms: LossTerms) -> LossTerms:
    per_sample = terms.per_sample.clone()
    per_sample[2] = math.nan
    return terms._replace(loss=terms.loss * math.nan, per_sample=per_sample)


def overflow(terms: LossTerms) -> LossTerms:
    """A gradient that overflows under a loss that does not."""
    return terms._replace(loss=terms.loss + (terms.loss - terms.loss.detach()) * 1e38 * 1e38)


@pytest.mark.parametrize(
    ("what", "optimizer"),
    [
        (spoil_one, "adam"),
        (overflow, "adam"),
        pytest.param(spoil_one, "nadam", marks=pytest.mark.slow),
    ],
)
def test_one_bad_step_is_skipped_counted_and_leaves_weights_and_optimizer(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[LossTerms], LossTerms],
    optimizer: str,
) -> None:
    words = (*TINY, "steps=4", "training.log_every=1", "training.checkpoint_every=1")
    if optimizer == "nadam":
        words = (*words, "optimizer._target_=torch.optim.NAdam")
    states: dict[int, dict[str, Any]] = {}
    original = DiffusionModule.optimizer_step

    def kept(self: DiffusionModule, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        own = self.trainer.optimizers[0].state_dict()["state"]
        states[self.trainer.global_step + 1] = {  # this step is not counted yet
            "weights": [p.detach().clone() for p in self.denoiser.parameters()],
            "moments": [s["exp_avg"].clone() for s in own.values()],
        }

    monkeypatch.setattr(DiffusionModule, "optimizer_step", kept)
    poison(monkeypatch, 3, what)
    outcome = launch("train", *words)
    assert outcome.status == 0, outcome.err
    assert "1 step was skipped in this run" in outcome.err
    for part in ("weights", "moments"):
        for before, after in zip(states[2][part], states[3][part], strict=True):
            assert torch.equal(before, after)
        assert not all(map(torch.equal, states[3][part], states[4][part]))
    record = Record.of(outcome.run)
    assert record.curve("train/skipped_steps") == ([3, 4], [1.0, 1.0])
    assert all(map(math.isfinite, record.curve("train/objective")[1]))


def test_skipping_is_decided_without_a_branch_and_remembers_the_first_of_a_row() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter], fused=True)
    steps = FiniteSteps()
    losses = {1: 1.0, 2: math.inf, 3: math.nan, 4: 1.0}
    for step, value in losses.items():
        per_sample = torch.tensor([1.0, value])
        steps.see(per_sample.mean(), per_sample, torch.tensor([0.25, 0.75]) / step, 0)
        steps.see(torch.tensor(1.0), torch.ones(2), torch.tensor([0.5, 0.5]), 2)
        parameter.grad = torch.ones(2)
        steps.decide(optimizer, torch.tensor(1.0), step, several=False)
        optimizer.step()
    found = steps.read()
    assert found[:4] == (2, 0, 2, 2)
    assert (found.positions, found.times) == ([1], [0.375])
    assert optimizer.state[parameter]["step"] == 2


def test_samples_that_are_not_finite_are_counted_and_not_measured(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Sampler.sample

    def sample(self: Sampler, *args: Any, **kwargs: Any) -> Any:
        drawn = original(self, *args, **kwargs)
        drawn.x[0] = math.nan
        return drawn

    monkeypatch.setattr(Sampler, "sample", sample)
    words = ("evaluation=default", "evaluation.n=70", "evaluation.extractor=identity")
    with pytest.warns(UserWarning, match="not finite: 1 of 70 samples by ddim; nothing is"):
        outcome = launch("train", *TINY, *words, "evaluation.metrics=[fd,neighbours]")
    assert outcome.status == 0, outcome.err
    assert "1 of 4 samples is not finite" in outcome.err
    measured = {row["metric"]: row for row in Record.of(outcome.run).rows() if row["extractor"]}
    assert measured.keys() == {"val/not_finite_samples", "val/fd_identity_floor"}
    assert measured["val/not_finite_samples"]["value"] == "1"
    drawn = launch("sample", f"run={outcome.run}", "n=4", "sampler=ddim", "sampler.steps=2")
    assert "1 of 4 samples is not finite" in drawn.err
    assert [json.loads(p.read_text())["not_finite"] for p in here.rglob("samples.json")] == [1]
