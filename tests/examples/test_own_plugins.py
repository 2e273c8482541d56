"""examples/plugins: one plugin of each kind keeps its contract and works in a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch

import betasigma
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.exports.graphs import write_program
from betasigma.options import plugins
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.runs.header import read_header
from betasigma.runs.record import Record
from betasigma.samplers import Heun
from betasigma.schedules import linear
from betasigma.testing import (
    check_dataset,
    check_likelihood,
    check_metric,
    check_network,
    check_sampler,
)
from mylab.data import Discs, archive, stripes
from mylab.likelihoods import AveragedFlow
from mylab.metrics import SlicedWasserstein
from mylab.nets import DiT
from mylab.optim import Lion, inverse_sqrt
from mylab.samplers import Restart

FOLDER = ROOT / "examples" / "plugins"
SMALL = (
    *("plugins=[mylab]", "steps=4", "batch_size=16", "hardware.precision=32", "data.val_size=20"),
    *("training.log_every=2", "training.warmup=0", "training.num_samples=4", "sampler.steps=4"),
    *("network.width=16", "network.depth=1"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of them at once, made where the package lies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_allowed", {})
        patch.chdir(FOLDER)
        where = tmp_path_factory.mktemp("mylab") / "run"
        measured = ("evaluation.n=16", "likelihood.n=4", "likelihood.probes=1")
        words = (*SMALL, "experiment=everything", *measured, f"hydra.run.dir={where}")
        outcome = launch("train", *words)
        assert outcome.status == 0, outcome.err
    return where


@pytest.fixture
def lab(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the package in it, where the user stands."""
    shutil.copytree(FOLDER / "mylab", here / "mylab")
    return here


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_transformer_is_a_network(num_classes: int) -> None:
    shape = dict(in_channels=3, image_size=8, num_classes=num_classes)
    check_network(lambda: DiT(**shape, width=16, depth=2), (3, 8, 8), num_classes=num_classes)


@pytest.mark.slow
def test_the_transformer_with_labels_is_exported(tmp_path: Path) -> None:
    """Of any batch size: what counts examples by ``len`` is traced with a constant."""
    network = DiT(1, 8, num_classes=3, width=16, depth=1)
    denoiser = Denoiser(network, linear(), Preconditioning(), (1, 8, 8), num_classes=3)
    assert write_program(denoiser.eval(), tmp_path / "model.pt2") < 1e-5


@pytest.mark.slow
def test_restart_is_a_sampler() -> None:
    check_sampler(Restart(steps=8, inner=3), fine={"steps": 60, "inner": 20})


def test_restart_counts_what_it_does() -> None:
    truth = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], linear())
    plain = Heun(steps=8).sample(truth, 2, seed=1)
    restarted = Restart(restarts=3, inner=2, steps=8, grid="karras").sample(truth, 2, seed=1)
    assert restarted.nfe == plain.nfe + 3 * 2 * 2
    assert not torch.equal(plain.x, restarted.x)


def test_data_of_every_form(tmp_path: Path) -> None:
    images, labels = stripes()
    check_dataset(stripes, num_classes=2)
    check_dataset(Discs, value_range=(0.0, 1.0))
    np.savez(tmp_path / "faces.npz", images=images, labels=labels)
    assert archive(str(tmp_path / "faces.npz")).endswith("faces.npz")


def test_the_metric_is_a_metric() -> None:
    check_metric(SlicedWasserstein(64), (1, 8, 8), best=0.0)


def test_a_shift_moves_the_sliced_distance_by_its_projections() -> None:
    """Moving every image by a vector v moves the sorted projections by ⟨v, direction⟩."""
    metric = SlicedWasserstein(500)
    x = torch.randint(0, 100, (200, 1, 8, 8), dtype=torch.uint8)
    metric.update(x, real=True)
    metric.update(x + 51)
    # E ⟨v, u⟩² over unit vectors u in 64 dimensions is ‖v‖²/64, and v is 0.2 in each
    assert float(metric.compute()) == pytest.approx(0.2, rel=0.15)


@pytest.mark.slow
def test_the_likelihood_is_one() -> None:
    check_likelihood(AveragedFlow(probes=2, tolerance=1e-4))


def test_lion_and_its_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    schedule = inverse_sqrt(optimizer, timescale=3)
    rate = 0.1 * (1 + 1 / 3) ** -0.5
    for gradient, wanted in (
        ([3.0, -1.0], [0.95 - 0.1, -1.9 + 0.1]),  # w·(1 − lr·decay) − lr·sign g
        # 0.9·0.03 − 0.1·0.1 > 0: the average outvotes the gradient
        ([-0.1, -1.0], [0.85 * (1 - rate / 2) - rate, -1.8 * (1 - rate / 2) + rate]),
    ):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(weight.detach(), torch.tensor(wanted), atol=1e-4, rtol=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + 2 / 3) ** -0.5)


def test_all_at_once(run: Path) -> None:
    header = read_header(run / "checkpoints" / "last.ckpt")
    assert header["plugins"] == {"mylab": "0.1"}
    table = {row[0]: row[1] for row in json.loads((run / "summary.json").read_text())["table"]}
    measured = {"fd_random_filters", "sliced_wasserstein", "bits_per_dim/averaged_flow/total_test"}
    assert measured <= table.keys()
    record = Record(run / "metrics.csv")
    steps, norms = record.curve("train/weight_norm")
    assert list(steps) == [2, 4]
    assert all(norm > 0 for norm in norms)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/objective", "train/weight_norm"} <= set().union(*lines)
    rates = record.curve("train/learning_rate")[1]
    assert rates[-1] < rates[0] <= 1e-4


def test_it_resumes(run: Path, lab: Path) -> None:
    shutil.copytree(run, "half")
    quiet = ("evaluation.n=0", "likelihood=none")
    outcome = launch("train", "plugins=[mylab]", "resume=half", "steps=6", *quiet)
    assert outcome.status == 0, outcome.err
    assert read_header(lab / "half" / "checkpoints" / "last.ckpt")["step"] == 6


def test_a_notebook_loads_it(run: Path, lab: Path) -> None:
    denoiser, sampler = betasigma.load(run, plugins=["mylab"])
    assert isinstance(denoiser.network, torch.nn.Module)
    assert type(denoiser.network).__name__ == "DiT"
    assert sampler.sample(denoiser, 2).x.shape == (2, 1, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("network=dit",),
        ("network._target_=mylab.nets.DiT",),
        ("data=discs", "network=dit"),
        ("data=digits", "network=dit", "network.num_classes=10", "objective.label_dropout=0.1"),
    ],
)
def test_one_at_a_time(lab: Path, words: tuple[str, ...]) -> None:
    add = "" if "network=dit" in words else "+"
    words = (*words, *SMALL[:-2], f"{add}network.width=16", f"{add}network.depth=1")
    outcome = launch("train", *words, "evaluation=none", "logger=none")
    assert outcome.status == 0, outcome.err


def test_an_archive_is_read(lab: Path) -> None:
    images, labels = stripes(n=200)
    np.savez("faces.npz", images=images, labels=labels)
    words = (*SMALL, "network=dit", "network.num_classes=2", "data=archive", "data.name=faces")
    more = ("data.source.path=faces.npz", "evaluation=none", "logger=none")
    outcome = launch("train", *words, *more)
    assert outcome.status == 0, outcome.err
    assert "on faces (1×8×8" in outcome.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["network=dit", "network.widht=64"], "network.widht=64 is unknown: DiT takes num_classes"),
        (
            ["network._target_=mylab.nets.DiT", "network.widht=64"],
            "network.widht=64 is unknown: DiT takes num_classes, patch, width, depth, heads (did",
        ),
        (["-m", "network=dit,mlp", "network.widht=6,7"], "network.widht=6 is unknown: DiT takes"),
        (["network=dit", "network.width=wide"], "network.width=wide must be a valid integer"),
        (["network=dit", "network.width=12"], "must be a multiple of 2*heads = 8"),
        (["network=dit", "network.patch=3"], "network.patch=3 does not divide images of 8x8"),
        (["network=dit", "data=mixture"], "network=mylab.nets.DiT does not fit data=mixture"),
        (["sampler=restart", "sampler.low=2"], "sampler.low=2 must be below sampler.high=1"),
        (["optimizer=lion", "optimizer.lr=-1"], "optimizer.lr=-1 must be above 0"),
        (["optimizer=lion", "+optimizer.beta=1"], "optimizer.beta=1 is unknown: Lion takes lr"),
        (
            ["callbacks=weight_norm", "callbacks.weight_norm.every=often"],
            "callbacks.weight_norm.every=often must be a valid integer",
        ),
        (["data=stripes", "+data.source.sizes=8"], "sizes=8 is unknown: stripes takes size, n"),
        (["data=stripes", "data.source._target_=mylab.data.archive"], "size=8 is unknown: archive"),
        (
            ["evaluation=own", "evaluation.metrics=[mylab.metrics.SlicedWassersten]"],
            "SlicedWasserstein?",
        ),
        (
            ["evaluation.metrics=[fd,{_target_:mylab.metrics.SlicedWasserstein,projection:3}]"],
            "evaluation.metrics[1].projection=3 is unknown: SlicedWasserstein takes projections",
        ),
        (["lr_schedule=inverse_sqrt", "lr_schedule.timescale=[1]"], "must be a valid integer"),
        (["logger=json_lines", "+logger.fil=x"], "logger.fil=x is unknown: JsonLines takes"),
    ],
)
def test_one_sentence_for_what_they_do_not_take(lab: Path, words: list[str], sentence: str) -> None:
    outcome = launch("train", "plugins=[mylab]", *words)
    assert outcome.status == 1, outcome.out
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("outputs").exists()


def test_a_constructor_gives_the_same_sentence() -> None:
    with pytest.raises(UserError, match=r"sampler\.low=2 must be below sampler\.high=1"):
        Restart(low=2.0)


OWN_DATA = "data.source._target_=mylab.data.stripes"
NAMED = r"data\.name=digits names a data set of betasigma, .* name of its own, data\.name=stripes"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([OWN_DATA], rf"add plugins=\[mylab\] .* trust it; and {NAMED}"),
        ([OWN_DATA, "plugins=[mylab]"], NAMED),
        ([OWN_DATA, "data.name=lines"], r"add plugins=\[mylab\] \(or set .*\) if you trust it"),
        (["data.source=mylab.data.stripes"], rf"must be a node: write {OWN_DATA}"),
        (["data.source.size=9"], r"must name a callable: write data\.source\._target_=.*"),
    ],
)
def test_a_data_set_on_the_command_line_is_told_all_that_it_lacks(
    lab: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    """One thing at a time took three tries; the command that works is in docs/extending.md."""
    monkeypatch.setattr(plugins, "_allowed", {})
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert re.match(rf"error: .*{sentence}\n$", outcome.err), outcome.err


def test_what_its_runs_need_is_fetched(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data are not among what prefetching would download by itself."""
    monkeypatch.setattr(plugins, "_allowed", {})
    words = ("plugins=[mylab]", "data=stripes", "evaluation=none", "hardware=cpu")
    fetched = launch("prefetch", *words)
    assert fetched.status == 0, fetched.err
    assert "data      stripes: " in fetched.out
