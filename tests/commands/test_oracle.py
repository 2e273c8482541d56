"""Ground truth as a run: nothing is trained, everything else is as with a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Outcome, launch
from PIL import Image

import betasigma
from betasigma.data import toy
from betasigma.runs.record import Record

QUICK = ("data.val_size=20", "training.num_samples=4", "evaluation=none", "logger=none")


def done(app: str, *words: str) -> Outcome:
    outcome = launch(app, *words)
    assert outcome.status == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oracle of the digits, with NCSN's ladder and range, not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("oracle"))
        own = ("schedule=geometric", "sampler=heun", "sampler.steps=6", "network.num_classes=10")
        return done(
            "train", "model=oracle", "model.value_range=[0,1]", "sigma.max=3", *own, *QUICK
        ).run


def test_a_complete_run_without_training(digits_run: Path) -> None:
    names = {str(path.relative_to(digits_run)) for path in digits_run.rglob("*")}
    assert {"config.yaml", "environment.json", "log.txt", "summary.json"} <= names
    assert {"checkpoints/last.ckpt", "samples/step_0000000.png"} <= names
    assert (
        torch.load(digits_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] == {}
    )
    assert json.loads((digits_run / "summary.json").read_text())["step"] == 0
    errors = Record(digits_run / "metrics.csv").curve("val/denoising_error")[1]
    assert len(errors) == 1
    with Image.open(digits_run / "samples" / "step_0000000.png") as image:
        assert image.size == (2 * 34 + 2, 2 * 34 + 2)


def test_its_samples_are_training_images(here: Path, digits_run: Path) -> None:
    done("sample", f"run={digits_run}", "n=6", "sampler.steps=20", "sampler=heun", "labels=[7,1]")
    (out,) = here.glob("outputs/*_sample_*")
    with np.load(out / "samples.npz") as arrays:
        samples, labels = arrays["arr_0"], arrays["arr_1"]
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).reshape(-1, 8, 8, 1)
    for sample, label in zip(samples, labels, strict=True):
        distance = np.abs(images - sample).max(axis=(1, 2, 3))
        assert distance.min() <= 1
        assert digits.target[distance.argmin()] == label


def test_load_reads_the_data_again(digits_run: Path) -> None:
    denoiser, sampler = betasigma.load(digits_run)
    assert (denoiser.schedule.levels, denoiser.value_range) == (10, (0.0, 1.0))
    assert sampler.name == "heun"
    far = denoiser(torch.zeros(1, 1, 8, 8), 1.0).x0
    assert far.shape == (1, 1, 8, 8)
    assert 0 < far.mean() < 1


def test_of_a_mixture_it_is_the_mixture(here: Path) -> None:
    own = ("data=mixture", "data.mixture=two", "evaluation.n=20", "evaluation.n_reference=50")
    quick = [word for word in QUICK if word != "evaluation=none"]
    run = done("train", "model=oracle", "sampler=dpm_solver", *own, *quick).run
    denoiser, _ = betasigma.load(run)
    truth = toy.two()
    t = torch.tensor(1.0)
    mean = denoiser(torch.zeros(1, 2), t).x0[0].double().numpy()
    alpha, sigma = denoiser.schedule.alpha(t).item(), denoiser.schedule.sigma(t).item()
    total = alpha**2 * 0.01 + sigma**2
    odds = np.log(truth.weights) - (alpha * truth.means) ** 2 @ np.ones(2) / (2 * total)
    share = np.exp(odds - odds.max()) / np.exp(odds - odds.max()).sum()
    each = truth.means * (1 - alpha**2 * 0.01 / total)
    assert np.allclose(mean, share @ each, atol=1e-6)

    done(
        "evaluate",
        "-m",
        f"run={run}",
        "sampler=ddim,heun",
        "sampler.steps=3",
        "n=10",
        "error_curve=0",
    )
    rows = [row for row in Record(run / "metrics.csv").rows() if row["metric"].startswith("eval/")]
    assert {row["sampler"] for row in rows} >= {"ddim", "heun"}
    done("compare", f"runs=[{run}]", "metrics=[val/denoising_error]", "formats=[png]")
    (table,) = here.glob("outputs/*_compare_*/table.csv")
    with table.open(newline="") as file:
        assert any(row[0] == "val/denoising_error n=20" for row in csv.reader(file))
