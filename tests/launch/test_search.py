"""Sweepers that search, launchers of several jobs at once, and what Weights & Biases types."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, TINY, launch, typed
from omegaconf import OmegaConf

from betasigma.launch.sweeps import Sweep, left_behind
from betasigma.options.training import VALIDATION_ERROR
from betasigma.runs.header import read_header
from betasigma.runs.record import Record
from betasigma.training.tracking import OBJECTIVE

SEARCH = ("-m", *TINY, "search=optuna_lr", "hydra.sweeper.n_trials=2")


def jobs(here: Path) -> dict[str, Path]:
    """Directories of the jobs of the one sweep, by name."""
    return {path.parent.name: path.parent for path in here.glob("outputs/*_sweep_*/*/status.json")}


def test_optuna_is_given_the_objective_of_every_trial(here: Path) -> None:
    pytest.importorskip("optuna")
    outcome = launch("train", *SEARCH, "steps=2", "objective_metric=val/objective")
    assert outcome.status == 0, outcome.err
    assert "a search; the first will train" in outcome.out
    (results,) = here.glob("outputs/*/optimization_results.yaml")
    found: Any = OmegaConf.load(results)
    assert set(found.best_params) == {"optimizer.lr", "ema.decay"}
    assert f"the best of the search: {results.relative_to(here)}" in outcome.err
    runs = jobs(here)
    assert len(runs) == 2
    for name, run in runs.items():
        assert re.fullmatch(r"lr=[\d.e-]+,ema\.decay=0\.9+,job=[01]", name)
        config: Any = OmegaConf.load(run / "config.yaml")
        assert 1e-5 <= config.optimizer.lr <= 1e-2
    losses = [Record(run / "metrics.csv").curve("val/objective")[1][-1] for run in runs.values()]
    assert found.best_value == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_from_its_storage(here: Path) -> None:
    optuna = pytest.importorskip("optuna")
    if version("sqlalchemy").startswith("2"):
        pytest.skip("Optuna below 3 keeps nothing with SQLAlchemy 2, which [search] excludes")
    for seed in range(2):
        outcome = launch(
            "train",
            *(*SEARCH, "steps=2", "hydra.sweeper.storage=sqlite:///search.db"),
            *(f"hydra.sweeper.sampler.seed={seed}", f"hydra.sweep.dir=start{seed}"),
        )
        assert outcome.status == 0, outcome.err
    (study,) = optuna.get_all_study_summaries("sqlite:///search.db")
    trials = optuna.load_study(study.study_name, "sqlite:///search.db").trials
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 4
    found: Any = OmegaConf.load(here / "start1" / "optimization_results.yaml")
    assert found.best_value == min(trial.value for trial in trials)


def test_a_search_that_is_stopped_is_not_said_to_go_on_like_a_list_of_jobs(here: Path) -> None:
    told = left_behind(Sweep(here, [], [], "train"))
    assert "to go on: the same command, where the sweeper has kept its trials" in told
    jobs = [["seed=1"]]
    assert " -m resume=" in left_behind(Sweep(here, jobs, ["seed=1"], "train"))


def test_the_extra_of_searches_excludes_what_optuna_fails_with() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "sqlalchemy<2" in extras["optional-dependencies"]["search"]


@pytest.mark.slow
def test_a_trial_whose_error_no_longer_falls_ends_early(here: Path) -> None:
    """Over learning rate, schedule and network; by values on the way, of which none counts as a
    fall here.
    """
    pytest.importorskip("optuna")
    words = [word for word in TINY if not word.startswith(("network.channels", "steps"))]
    outcome = launch(
        "train",
        *("-m", *words, "search=optuna", "hydra.sweeper.n_trials=2", "steps=9"),
        *("network.channels=choice(8,16)", "training.validate_every=1"),
        *("callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1e9"),
    )
    assert outcome.status == 0, outcome.err
    (results,) = here.glob("outputs/*/optimization_results.yaml")
    found: Any = OmegaConf.load(results)
    assert set(found.best_params) == {"optimizer.lr", "schedule", "network.channels"}
    errors = []
    for run in jobs(here).values():
        assert read_header(run / "checkpoints" / "last.ckpt")["step"] == 2
        errors.append(Record(run / "metrics.csv").curve("val/denoising_error")[1][-1])
    assert found.best_value == pytest.approx(min(errors), rel=1e-6)


@pytest.mark.slow
def test_a_trial_without_the_objective_says_what_it_has(here: Path) -> None:
    pytest.importorskip("optuna")
    outcome = launch(
        "train", *SEARCH, "steps=1", "objective_metric=val/denoising_error/log_snr_+99"
    )
    assert outcome.status == 1
    assert "2 of 2 jobs failed" in outcome.err
    for run in jobs(here).values():
        status = json.loads((run / "status.json").read_text())
        assert status["error"].startswith(
            "UserError: objective_metric=val/denoising_error/log_snr_+99 was not measured in this "
            "run; did you mean val/denoising_error/log_snr_"
        )


def test_a_value_that_only_the_sweeper_knows_is_refused_in_its_job(here: Path) -> None:
    """The ends of the interval are possible, what lies between them is not."""
    pytest.importorskip("optuna")
    own = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.max_failure_rate=1")
    batch = (
        "training.accumulate=16",
        "batch_size=int(interval(16,64))",
        "hydra.sweeper.sampler.seed=1",
    )
    tiny = [word for word in TINY if not word.startswith("batch_size")]
    outcome = launch("train", "-m", *tiny, *own, *batch)
    assert outcome.status == 1
    ((name, run),) = jobs(here).items()
    size = re.match(r"batch_size=(\d+)", name)
    assert size
    assert int(size[1]) % 16
    error = json.loads((run / "status.json").read_text())["error"]
    assert error.startswith(f"UserError: batch_size={size[1]} cannot be divided")
    assert error in outcome.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hydra/sweeper=optuna", "optimizer.lr=interval(-1,1)"], r"optimizer\.lr=-1\.0 must be"),
        (
            ["hydra/sweeper=optuna", "model=choice(ddpm,ncsm)"],
            r"model=ncsm is unknown; did you mean",
        ),
        (
            ["hydra/sweeper=optuna", "batch_size=interval(1,9)"],
            r"batch_size=1\.0 must be a valid int",
        ),
        (["search=optuna_lr", "+hydra.sweeper.params.steps='choice(1,0)'"], "steps=0 must be"),
    ],
)
def test_what_a_search_cannot_try_is_refused_before_it_starts(
    here: Path, words: list[str], sentence: str
) -> None:
    pytest.importorskip("optuna")
    outcome = launch("train", "-m", *words)
    assert outcome.status == 1
    assert re.match(f"error: {sentence}", outcome.err)
    assert outcome.err.count("\n") == 1
    assert not (here / "outputs").exists()


@pytest.mark.slow
def test_jobs_of_joblib_s_processes_have_their_names(here: Path) -> None:
    pytest.importorskip("joblib")
    own = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", "steps=1")
    done = typed(*TINY, *own, "-m", cwd=here)
    assert done.status == 0, done.err
    assert sorted(jobs(here)) == ["seed=1", "seed=2"]
    numbers = [json.loads((run / "status.json").read_text())["job"] for run in jobs(here).values()]
    assert sorted(numbers) == [0, 1]


@pytest.mark.slow
def test_every_file_of_a_glob_is_a_job(here: Path) -> None:
    """Also where names are numbers, as those of a study's points are."""
    conf = here / "mine"
    (conf / "network").mkdir(parents=True)
    for name in ("1", "2", "old"):
        text = "defaults: [unet, _self_]\nchannels: 8\nblocks: 1\nmultipliers: [1]\nattention: []\n"
        (conf / "network" / f"{name}.yaml").write_text(text)
    own = [word for word in TINY if not word.startswith("network.")]
    words = (
        "network=glob(*,exclude=[old,u*,mlp*,ddpm*,ncsn*,refine*])",
        "steps=1",
        "--config-dir",
        str(conf),
        "-m",
    )
    outcome = launch("train", *own, *words)
    assert outcome.status == 0, outcome.err
    assert sorted(jobs(here)) == ["network=1", "network=2"]


def test_what_wandb_agent_types_is_a_run(here: Path) -> None:
    """The words are made by wandb's own function from the sweep file that ships."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args  # imports its whole agent

    sweep: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "wandb_sweep.yaml"))
    chosen = {
        key: {"value": spec["values"][-1] if "values" in spec else spec["min"]}
        for key, spec in sweep["parameters"].items()
    }
    typed = create_sweep_command_args({"args": chosen})["args"]
    assert all(word.startswith("--") for word in typed)
    assert (ROOT / sweep["program"]).is_file()
    tiny = [word for word in TINY if not word.startswith("network.channels")]
    outcome = launch("train", *typed, *tiny, "steps=1")
    assert outcome.status == 0, outcome.err
    config: Any = OmegaConf.load(outcome.run / "config.yaml")
    for key, spec in chosen.items():
        if key == "schedule":
            assert config.schedule._target_ == f"betasigma.schedules.{spec['value']}"
        else:
            assert OmegaConf.select(config, key) == spec["value"]
    # a run logs the value of objective_metric=… as a plain number too, under this name
    assert sweep["metric"]["name"] == OBJECTIVE
    assert config.objective_metric == VALIDATION_ERROR


# ---------------------------------------------------------------- where the user stands


def printed_commands(out: str) -> list[str]:
    return [line.strip() for line in out.splitlines() if re.match(r" +(python|betasigma) ", line)]


def pasted(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A printed command in a shell, with this interpreter for ``python``."""
    line = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    return subprocess.run(
        line, shell=True, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("chdir", ["true", "false"])
def test_commands_that_are_printed_can_be_pasted(
    here: Path, monkeypatch: pytest.MonkeyPatch, chdir: str
) -> None:
    """From another directory than the clone, of a job whose name has commas."""
    folder = here / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    own = ("ema.decay=0.5,0.6", "seed=1,2", f"hydra.job.chdir={chdir}", "steps=1")
    done = launch("train", "-m", *TINY, *own)
    assert done.status == 0, done.err
    sample, *_, resume = printed_commands(done.out)[:3]
    continued = pasted(resume, folder)
    assert continued.returncode == 0, continued.stderr
    assert "continuing ddpm" in continued.stdout
    drawn = pasted(sample.replace("n=64", "n=2"), folder)
    assert drawn.returncode == 0, drawn.stderr
    assert len(list(folder.glob("outputs/*_sample_*/samples.png"))) == 1


def test_paths_mean_the_same_in_a_directory_of_the_run_s_own(here: Path) -> None:
    from PIL import Image

    images = here / "images"
    images.mkdir()
    for number in range(40):
        Image.new("L", (8, 8), 6 * number).save(images / f"{number}.png")
    own = ("data=image_folder", "data.root=images", "data.image_size=8", "data.channels=1")
    network = ("network=unet_8", "data.val_size=4", "evaluation.cache=cache", "steps=2")
    outcome = launch("train", *TINY, *own, *network, "hydra.job.chdir=true")
    assert outcome.status == 0, outcome.err
    (run,) = here.glob("outputs/*")
    assert outcome.run == run
    again = launch("train", f"resume={run.relative_to(here)}", "steps=3", "hydra.job.chdir=true")
    assert again.status == 0, again.err
    measured = launch(
        "evaluate",
        f"run={run.relative_to(here)}",
        "n=4",
        "evaluation.extractor=identity",
        "evaluation.metrics=[fd]",
        "evaluation.cache=cache",
        "hydra.job.chdir=true",
        "error_curve=0",
    )
    assert measured.status == 0, measured.err
    shutil.rmtree(run)
    assert {path.name for path in here.iterdir()} == {"images", "cache", "outputs"}
