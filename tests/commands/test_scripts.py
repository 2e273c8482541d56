"""What can be done with a run afterwards: sample, evaluate, compare, load."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from launching import TINY, Outcome, launch
from PIL import Image

import betasigma
from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError
from betasigma.evaluation.likelihood import LikelihoodMeter
from betasigma.report.quality import quality_of_jobs
from betasigma.report.runs import COMPOSED, read_run
from betasigma.runs.checkpoint import save
from betasigma.runs.record import Record
from betasigma.runs.status import job_number
from betasigma.samplers import DDIM


def done(app: str, *words: str) -> Outcome:
    outcome = launch(app, *words)
    assert outcome.status == 0, outcome.err
    return outcome


def newest(pattern: str) -> Path:
    return max(Path.cwd().glob(f"outputs/{pattern}"), key=lambda path: path.stat().st_mtime_ns)


def drawn(run: Path, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers and description of the samples that ``sample.py`` drew."""
    done("sample", f"run={run}", "n=5", *words)
    out = newest("*_sample_*")
    with np.load(out / "samples.npz") as arrays:
        return dict(arrays), json.loads((out / "samples.json").read_text())


# ---------------------------------------------------------------- load


def test_load_gives_the_averaged_weights_and_the_run_s_sampler(ddpm_run: Path) -> None:
    path = ddpm_run / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    for place in (ddpm_run, str(ddpm_run), path):
        denoiser, sampler = betasigma.load(place)
        found = denoiser.state_dict()
        assert len(found) > 10
        for name, weight in found.items():
            assert torch.equal(weight, saved[f"average.{name}"])
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert isinstance(sampler, DDIM)
    assert sampler.steps == 2


def test_load_gives_each_family_its_schedule_and_range(ddpm_run: Path, ncsn_run: Path) -> None:
    ddpm, ncsn = (betasigma.load(run)[0] for run in (ddpm_run, ncsn_run))
    assert (ddpm.schedule.levels, ddpm.value_range) == (1000, (-1.0, 1.0))
    assert (ncsn.schedule.levels, ncsn.value_range) == (10, (0.0, 1.0))


def test_a_checkpoint_knows_the_moments_of_its_data(here: Path, ddpm_run: Path) -> None:
    moments = betasigma.load(ddpm_run)[0].moments
    pixels = ImageDataModule("digits").tensor("train").double().numpy() / 127.5 - 1
    assert moments is not None
    assert np.allclose(moments.mean.numpy(), pixels.mean(0), atol=1e-6)
    assert np.allclose(moments.variance.numpy(), pixels.var(0), atol=1e-6)
    plain, _ = drawn(ddpm_run)
    matched, _ = drawn(ddpm_run, "sampler=ddim", "sampler.steps=2", "sampler.start=moments")
    assert not np.array_equal(plain["arr_0"], matched["arr_0"])

    contents = torch.load(ddpm_run / "checkpoints" / "last.ckpt", weights_only=True)
    contents["moments"] = {"mean": torch.zeros(3), "variance": torch.ones(3)}
    save(contents, here / "odd.ckpt")
    with pytest.raises(UserError, match="moments of the data that do not fit"):
        betasigma.load(here / "odd.ckpt")


# ---------------------------------------------------------------- sample.py


def test_samples_are_a_picture_and_numbers(here: Path, ddpm_run: Path) -> None:
    arrays, told = drawn(ddpm_run)
    assert arrays["arr_0"].shape == (5, 8, 8, 1)
    assert arrays["arr_0"].dtype == np.uint8
    assert (told["sampler"], told["nfe"], told["n"], told["seed"]) == ("ddim", 2, 5, 0)
    assert told["step"] == 6
    with Image.open(newest("*_sample_*") / "samples.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)


def test_samples_are_those_of_the_loaded_model(here: Path, ddpm_run: Path) -> None:
    arrays, _ = drawn(ddpm_run, "seed=3", "hardware.precision=32")
    denoiser, sampler = betasigma.load(ddpm_run)
    x = sampler.sample(denoiser, 5, seed=3).x
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert np.array_equal(arrays["arr_0"], expected.permute(0, 2, 3, 1).numpy())


def test_another_sampler_seed_and_batch_size(here: Path, ncsn_run: Path) -> None:
    options = ("sampler=ancestral", "sampler.steps=3", "hardware.precision=32")
    arrays, told = drawn(ncsn_run, *options)
    assert (told["sampler"], told["nfe"]) == ("ancestral", 3)
    divided, _ = drawn(ncsn_run, *options, "batch_size=2")
    difference = divided["arr_0"].astype(int) - arrays["arr_0"].astype(int)
    assert np.abs(difference).max() <= 1
    other, _ = drawn(ncsn_run, *options, "seed=1")
    assert not np.array_equal(other["arr_0"], arrays["arr_0"])


def test_labels_in_turn_and_guidance(here: Path, labelled_run: Path) -> None:
    options = ("hardware.precision=32",)
    arrays, told = drawn(labelled_run, *options, "labels=[3]", "guidance=2")
    assert arrays["arr_1"].tolist() == [3] * 5
    assert (told["nfe"], told["guidance"]) == (4, 2)
    assert drawn(labelled_run, "labels=[7,1]")[0]["arr_1"].tolist() == [7, 1, 7, 1, 7]
    assert drawn(labelled_run)[0]["arr_1"].tolist() == [0, 1, 2, 3, 4]
    outcome = launch("sample", f"run={labelled_run}", "labels=[10]")
    assert outcome.status == 1
    assert outcome.err == (
        "error: labels=10 is no class of the model, which has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
    )


# ---------------------------------------------------------------- evaluate.py


def rows_of(directory: Path) -> list[dict[str, str]]:
    """What an evaluation measured, without when."""
    rows = Record(directory / "metrics.csv").rows()
    return [row | {"time": ""} for row in rows if row["metric"].startswith("eval/")]


def test_an_evaluation_is_recorded_with_what_it_was_measured_with(
    here: Path, ddpm_run: Path
) -> None:
    run = here / "outputs" / "run"
    shutil.copytree(ddpm_run, run)
    before = len(rows_of(run))  # what other tests have measured
    done(
        "evaluate",
        "-m",
        "run=outputs/run",
        "sampler=ddim,ancestral",
        "sampler.steps=3",
        "n=6",
        "seed=4",
        "error_curve=0",
        "evaluation.extractor=identity",
        "evaluation.n_reference=50",
        "evaluation.metrics=[fd,kid]",
    )
    out = newest("*_evaluate_*")
    kept = rows_of(run)[before:]
    assert rows_of(out / "sampler=ddim") + rows_of(out / "sampler=ancestral") == kept
    of_fd = [row for row in kept if row["metric"] == "eval/fd_identity" and row["nfe"]]
    assert [row["sampler"] for row in of_fd] == ["ddim", "ancestral"]
    for row in of_fd:
        assert (row["step"], row["n"], row["nfe"], row["seed"]) == ("6", "6", "3", "4")
        assert (row["split"], row["extractor"]) == ("train", "identity")
        assert (row["guidance"], row["n_reference"]) == ("1.0", "50")
        own = {"ddim": "eta=0.0", "ancestral": "variance=beta"}[row["sampler"]]
        assert {"clip=true", "start=prior", own} <= set(row["settings"].split())
    assert all(float(row["std"]) > 0 for row in kept if row["metric"] == "eval/kid_identity")
    assert {"eval/kid_identity", "eval/fd_identity_test"} <= {row["metric"] for row in kept}


def test_an_evaluation_that_is_repeated_in_its_directory_replaces_its_values(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"run={ddpm_run}", "evaluation=none", "error_curve=0", "hydra.run.dir=measured")
    words = (*words, "likelihood=continuous_bound", "likelihood.n=4", "likelihood.draws=1")
    assert "replaced" not in done("evaluate", *words).out
    first = rows_of(here / "measured")
    assert "measured holds an evaluation: its values are replaced" in done("evaluate", *words).out
    assert rows_of(here / "measured") == first != []
    monkeypatch.setattr(LikelihoodMeter, "measure", Mock(side_effect=UserError("it is stopped")))
    assert launch("evaluate", *words).err == "error: it is stopped\n"
    assert rows_of(here / "measured") == first


def test_a_run_that_cannot_keep_what_is_measured_of_it_is_refused_at_once(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is read-only refuses root too, which no mode of a file does."""
    kept, access = ddpm_run / "metrics.csv", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != kept and access(path, mode))
    refused = launch("evaluate", f"run={ddpm_run}")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert f"error: {kept} cannot be written" in refused.err
    (named,) = re.findall(r"run=\S+\.ckpt", refused.err)
    assert not (here / "outputs").exists()
    done("evaluate", named, "evaluation=none", "error_curve=2")


@pytest.mark.parametrize("words", ["evaluate evaluation=none", "sample n=1", "compare runs={run}"])
def test_what_is_done_with_a_run_does_not_write_into_its_directory(
    here: Path, ddpm_run: Path, words: str
) -> None:
    status = (ddpm_run / "status.json").read_text()
    app, *more = words.replace("{run}", f"[{ddpm_run}]").split()
    more += [] if app == "compare" else [f"run={ddpm_run}"]
    refused = launch(app, *more, f"hydra.run.dir={ddpm_run}")
    assert refused.status == 1
    assert f"{ddpm_run} is the directory of a run: give another hydra.run.dir" in refused.err
    assert (ddpm_run / "status.json").read_text() == status


def test_a_sweep_of_evaluations_ends_with_one_table(
    here: Path, ddpm_run: Path, ncsn_run: Path
) -> None:
    outcome = done(
        "evaluate",
        "-m",
        f"run={ddpm_run},{ncsn_run}",
        "sampler=ddim",
        "sampler.steps=2,3",
        "n=6",
        "evaluation.extractor=identity",
        "evaluation.n_reference=50",
        "evaluation.metrics=[fd,kid]",
        "error_curve=0",
        "likelihood=continuous_bound",
        "likelihood.n=4",
        "likelihood.draws=2",
    )
    out = newest("*_evaluate_*")
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {
        "fd_identity train": "fd_identity",
        "fd_identity test": "fd_identity_test",
        "fd_identity floor": "fd_identity_floor",
        "kid_identity": "kid_identity",
        "continuous_bound total": "bits_per_dim/continuous_bound/total_test",
        "continuous_bound prior": "bits_per_dim/continuous_bound/prior_test",
    }
    asked = [(run, steps) for run in (ddpm_run, ncsn_run) for steps in (2, 3)]
    jobs = sorted((path.parent for path in out.glob("*/metrics.csv")), key=job_number)
    for job, (run, steps), row in zip(jobs, asked, rows, strict=True):
        own = {r["metric"]: float(r["value"]) for r in Record(job / "metrics.csv").rows()}
        assert {column: float(row[column]) for column in names} == {
            column: own[f"eval/{metric}"] for column, metric in names.items()
        }
        assert Path(row["run"]).parts[-1] == run.name
        assert (row["sampler"], row["NFE"], row["n"]) == (f"ddim steps={steps}", str(steps), "6")
    drawn = [out / f"sweep.{form}" for form in ("png", "pdf")]
    assert all(picture.stat().st_size > 5000 for picture in drawn), "distance against NFE"
    jobs_alike = quality_of_jobs([read_run(job, COMPOSED) for job in jobs])
    (quality,) = jobs_alike.values()
    assert {line.family: sorted(by_nfe) for line, by_nfe in quality.lines.items()} == {
        "ddpm": [2, 3],
        "ncsn": [2, 3],
    }
    table = outcome.out.partition("evaluations; FD: fd_identity; bits/dim: continuous_bound")[2]
    for row in rows:
        assert f"{float(row['fd_identity train']):.4g}" in table
        assert f"{float(row['continuous_bound total']):.4g}" in table


@pytest.mark.slow
def test_likelihoods_are_recorded_term_by_term(here: Path, ncsn_run: Path) -> None:
    run = here / "outputs" / "run"
    shutil.copytree(ncsn_run, run)
    kinds = "discrete_bound,continuous_bound,flow"
    own = ("evaluation=none", "likelihood.n=4", "error_curve=8")
    outcome = done("evaluate", "-m", "run=outputs/run", f"likelihood={kinds}", *own)
    rows = {row["metric"]: row for row in rows_of(run)}
    values = {metric: float(row["value"]) for metric, row in rows.items()}
    for kind, nfe in (("discrete_bound", 10), ("continuous_bound", 33)):
        start = f"eval/bits_per_dim/{kind}"
        terms = [values[f"{start}/{term}_test"] for term in ("prior", "diffusion", "decoder")]
        assert values[f"{start}/total_test"] == pytest.approx(sum(terms))
        row = rows[f"{start}/total_test"]
        assert (row["n"], row["nfe"], row["split"]) == ("4", str(nfe), "test")
    # a network that has learned nothing needs more than the 8 bits of a byte
    assert 8 < values["eval/bits_per_dim/flow/total_test"] < 40
    assert "likelihood of data with the smallest noise on them" in outcome.out
    out = newest("*_evaluate_*")
    (drawn,) = out.glob("*/bits_per_level.png")
    assert drawn.parent.name == "likelihood=discrete_bound"
    assert (out / "likelihood=flow" / "denoising_error.png").is_file()
    # log-SNR of data in [-1, 1]: sigma from 1 to 0.01 on [0, 1] is from 2 to 0.02 there
    curve = [m.rpartition("_")[2] for m in values if m.startswith("eval/denoising_error/")]
    assert curve == [f"{at:+d}" for at in range(-1, 8)]
    done("compare", f"runs=[outputs/run,{ncsn_run}]", "metrics=[val/objective]")
    with Image.open(newest("*_compare_*") / "denoising_error.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


# ---------------------------------------------------------------- compare.py


def test_compare_prints_a_table_and_draws_the_curves(
    here: Path, ddpm_run: Path, ncsn_run: Path
) -> None:
    asked = "metrics=[train/objective,val/denoising_error]"
    outcome = done("compare", f"runs=[{ddpm_run},{ncsn_run}]", asked)
    out = newest("*_compare_*")
    assert "val/denoising_error" in outcome.out
    with (out / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["metric", ddpm_run.name, ncsn_run.name]
    table = {row[0]: row[1:] for row in rows}
    rows_of_runs = [Record(run / "metrics.csv").rows() for run in (ddpm_run, ncsn_run)]
    last = [[row for row in rows if row["metric"] == "val/objective"][-1] for rows in rows_of_runs]
    (n,) = {row["n"] for row in last}
    assert table[f"val/objective n={n}"] == [f"{float(row['value']):.4g}" for row in last]
    with Image.open(out / "curves.png") as image:
        assert image.width > 2 * 500  # two metrics side by side
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_the_results_alone_go_into_a_pipe(here: Path, ddpm_run: Path, ncsn_run: Path) -> None:
    runs = f"runs=[{ddpm_run},{ncsn_run}]"
    table = list(csv.DictReader(io.StringIO(done("compare", runs, "--csv", "formats=[png]").out)))
    errors = [Record.of(run).curve("val/denoising_error")[1][-1] for run in (ddpm_run, ncsn_run)]
    assert [float(row["denoising_error"]) for row in table] == errors
    lines = done("compare", runs, "--latex", "formats=[png]").out.splitlines()
    assert lines[1].startswith(r"\begin{tabular}{lr")
    assert lines[3].startswith("run & seeds & error")
    assert lines[-1] == r"\end{tabular}"
    for line, error in zip(lines[5:7], errors, strict=True):
        assert f"& {error:.4g} " in line


def test_runs_that_do_not_compare_are_refused(here: Path, ddpm_run: Path) -> None:
    def refused(*names: str) -> str:
        outcome = launch("compare", f"runs=[{ddpm_run},{','.join(names)}]")
        assert outcome.status == 1
        assert not list(here.glob("outputs/*_compare_*"))
        return outcome.err

    for name in ("begun", "cut", "other"):
        (here / name).mkdir()
        (here / name / "config.yaml").write_text("name: {" if name == "cut" else "name: some")
    for name in ("cut", "other"):
        Record.of(here / name).append(1, {f"train/{name}": 1.0})
    assert "runs=[nowhere] does not exist" in refused("nowhere")
    checkpoint = f"{ddpm_run}/checkpoints/last.ckpt"
    assert f"runs=[{checkpoint}] is a file: give a run directory" in refused(checkpoint)
    assert "runs=[begun] is half written: it has no metrics.csv" in refused("begun")
    assert "runs=[cut] is half written: its config.yaml cannot be read" in refused("cut")
    assert "have nothing in common: no other run has measured what" in refused("other")


def test_runs_of_one_name_are_told_apart(here: Path, ddpm_run: Path) -> None:
    for sweep in ("a", "b"):
        shutil.copytree(ddpm_run, here / sweep / "0_ddpm")
    done("compare", "runs=[a/0_ddpm,b/0_ddpm]", "metrics=[train/objective]", "formats=[png]")
    with (newest("*_compare_*") / "table.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["metric", "a/0_ddpm", "b/0_ddpm"]


def test_points_in_the_plane_go_all_the_way(here: Path) -> None:
    own = [word for word in TINY if not word.startswith(("network", "evaluation"))]
    outcome = done(
        "train",
        *own,
        "data=mixture",
        "network.width=16",
        "network.depth=1",
        "evaluation.n=50",
        "evaluation.n_reference=50",
    )
    assert "fd_identity" in outcome.out
    arrays, _ = drawn(outcome.run)
    assert arrays["arr_0"].shape == (5, 2)
    assert np.issubdtype(arrays["arr_0"].dtype, np.floating)


# ---------------------------------------------------------------- dashboard.py


def test_the_page_of_two_families_has_their_values_and_real_images(
    ddpm_run: Path, ncsn_run: Path, here: Path
) -> None:
    outcome = launch("dashboard", f"runs=[{ddpm_run},{ncsn_run}]", "open=false")
    (path,) = here.glob("outputs/*_dashboard_*/dashboard.html")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"page of 2 runs {path.relative_to(here)} (")
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    families = {run["config"]["model.family"] for run in data["runs"]}
    assert families == {"ddpm", "ncsn"}
    assert "val/denoising_error" in data["metrics"]
    assert data["defaults"]["batch_size"] == 128
    for run in data["runs"]:
        assert run["grids"][-1]["count"] == run["nearest"]["count"] > 0
        assert data["real"][run["real"]]["count"] == 16


def test_a_port_that_is_taken_is_said(ddpm_run: Path, here: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = launch("dashboard", f"runs={ddpm_run}", f"serve={port}", "open=false")
    assert outcome.status == 1
    assert re.search(rf"error: serve={port} cannot be used: .*; give another port", outcome.err)


def test_an_evaluation_of_no_metric_prints_no_empty_table(ddpm_run: Path, here: Path) -> None:
    run = shutil.copytree(ddpm_run, here / "run")
    outcome = launch("evaluate", f"run={run}", "evaluation=none", "error_curve=8")
    assert outcome.status == 0, outcome.err
    assert "denoising error of 8 examples" in outcome.out
    assert "NFE" not in outcome.out
