"""What a user may type by mistake, or on the wrong machine, is one sentence before a run exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from launching import Launch, launch
from omegaconf import OmegaConf
from PIL import Image

from betasigma.commands.checks import refuse_unlogged
from betasigma.config_tree import conf_directory
from betasigma.errors import UserError
from betasigma.launch.command_line import CommandLine
from betasigma.launch.configs import Configs
from betasigma.launch.overrides import as_name, unknown_choice
from betasigma.runs.record import Record


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("model=ddpm,ncsn", r"model=ddpm,ncsn names several values: add -m"),
        ("lr=1e-4", r"lr=1e-4 is unknown: there is no key lr; did you mean optimizer\.lr\?"),
        ("epochs=10", r"epochs=10 is unknown.*training counts optimizer steps: steps=10"),
        (
            "evaluation.metrics=[fid]",
            r"evaluation\.metrics holds fid, .*: write fd, and eval",
        ),
        ("sampler.steps=0", r"sampler\.steps=0 must be at least 1 or be a valid list or null$"),
        ("evaluation.every=0", r"evaluation\.every=0 must be at least 1 or null$"),
        ("batch_size=0", r"batch_size=0 must be at least 1$"),
        ("hydra/launcher=rq -m", r"hydra/launcher=rq is not installed: pip install hydra-rq-laun"),
        ("logger.mode=online", r"logger\.mode=online needs an account: type wandb login"),
        ("hydra/launcher=joblib", r"hydra/launcher=joblib has no .* run: add -m, or leave it out"),
        ("hydra/sweeper=optuna", r"hydra/sweeper=optuna has no .* run: add -m, or leave it out"),
        ("-m seed=range(0,0)", r"this sweep has no job: seed=range\(0,0\) names no value$"),
        ("-m seed=glob(*)", r"seed=glob\(\*\) names no values: glob is for groups, list those of"),
        ("-m sampler=glob()", r"glob\(\) cannot be read: missing a required argument: 'include'"),
        ("-m model=ddpm,glob(x*)", r"model=ddpm,glob\(x\*\) fits none of ddpm"),
        (
            "-m seed=1,2 hydra/launcher=joblib hardware=cpu hardware.devices=2",
            r"hardware\.devices=2 is 2 processes, which a job of hydra/launcher=joblib cannot",
        ),
        ("--multirun=true seed=1,2", r"--multirun=true has a value, and .* none: write --multirun"),
        (
            "--config-name=trian",
            r"--config-name=trian is unknown; did you mean --config-name=train\? choose from co",
        ),
        ("experiment=mine", r"experiment=mine is unknown; .*one of a package of your own needs"),
        ("search=optuna_lr", r"search=optuna_lr is a sweep of many runs: add -m"),
        ("+search=optuna_lr", r"\+search=optuna_lr adds a .*: write search=optuna_lr and add -m"),
        ("-m +network=mlp,unet_8", r"\+network=mlp,unet_8 adds .*: write network=mlp,unet_8"),
        ("-m optimizer.lr=interval(1,2)", r"optimizer\.lr=interval\(1,2\) is for a sweeper that"),
        ("-m network=glob(x*)", r"network=glob\(x\*\) fits none of .*mlp"),
        ("objective_metric=fid", r"objective_metric=fid must begin with train/ or val/"),
        (
            "search=optuna_lr -m objective_metric=val/denoising_eror",
            r"objective_metric=val/denoising_eror is not logged by this run: did you mean",
        ),
        (
            "search=optuna_lr -m evaluation=none objective_metric=val/fid",
            r"objective_metric=val/fid is not logged by this run: there are val/denoising_error, ",
        ),
        ("callbacks=[1,2]", r"callbacks=1 is unknown; .*choose from early_stopping"),
        ("network=[1,2]", r"network=1 is unknown; .*choose from ddpmpp"),
        ("network=[unet_8,mlp]", r"network=\[unet_8,mlp\] chooses 2, and network is one: write"),
        ("logger=[csv,tensorboard]", r".*-m logger=csv,tensorboard for a run of each"),
        ("data=[digits,mnist]", r"data=\[digits,mnist\] chooses 2, and data is one"),
        ("hardware=[gpu,ddp]", r"hardware=\[gpu,ddp\] chooses 2, and hardware is one"),
        ("evaluation=[default,none]", r"evaluation=\[default,none\] chooses 2"),
        ("model=[ddpm,ncsn]", r"model=\[ddpm,ncsn\] chooses 2, and model is one"),
        ("--steps 100", r"--steps 100 is two words: write --steps=100 or steps=100"),
        ("--config-name=nothing", r"--config-name=nothing is unknown; choose from compare, "),
        ("--config-dir=nothing", r"--config-dir=nothing does not exist; give a folder of configs"),
        ("--config-dir=nothing experiment=mine", r"--config-dir=nothing does not exist; give a"),
    ],
)
def test_one_sentence(here: Path, typed: str, sentence: str) -> None:
    outcome = launch("train", *typed.split())
    assert outcome.status == 1
    assert re.match(f"error: .*{sentence}", outcome.err), outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(here.iterdir())


def test_what_is_logged_may_not_be_known_before() -> None:
    known = {"objective_metric": "val/fd_mine", "evaluation": {"metrics": []}}
    with pytest.raises(UserError, match="objective_metric=val/fd_mine is not logged"):
        refuse_unlogged(known)
    refuse_unlogged({**known, "model": {"_target_": "mylab.models.Model"}})
    refuse_unlogged({**known, "evaluation": {"metrics": ["fd"], "n": None}})
    refuse_unlogged({**known, "likelihood": {"_target_": "betasigma.likelihood.Flow"}})


def test_whatever_a_run_logs_may_be_searched_by(ddpm_run: Path, ncsn_run: Path) -> None:
    for run in (ddpm_run, ncsn_run):
        rows = [row for row in Record.of(run).rows() if not row["extractor"]]
        logged = {row["metric"] for row in rows if row["metric"].startswith(("train/", "val/"))}
        assert {"train/learning_rate", "val/denoising_error/log_snr_+3"} <= logged
        for metric in logged:
            refuse_unlogged({"objective_metric": metric, "evaluation": {"metrics": []}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("words", [["hardware=gpu"], ["-m", "hardware=gpu", "seed=1,2"]])
def test_a_gpu_that_is_not_there(here: Path, words: list[str]) -> None:
    outcome = launch("train", *words)
    assert outcome.status == 1
    assert outcome.err.startswith("error: hardware.accelerator=gpu finds no GPU")
    assert outcome.err.count("\n") == 1
    assert not list(here.iterdir())


def test_a_name_may_be_a_number(train: Launch) -> None:
    run = train("name=2024", "steps=1").run
    assert re.search(r"_2024_\w+$", run.name)


@pytest.mark.parametrize(
    ("words", "network"),
    [
        (["data.image_size=32"], "[1, 2, 2]"),
        (["data.image_size=32", "network=unet_64", "data.image_size=32"], "[1, 2, 2, 2]"),
        (["data.image_size=64"], "[1, 2, 2, 2]"),
    ],
)
def test_the_network_follows_the_size_of_photographs(
    here: Path, words: list[str], network: str
) -> None:
    Image.new("RGB", (64, 64)).save(here / "image.png")
    shown = launch("train", "--cfg", "job", "data=image_folder", f"data.root={here}", *words)
    assert shown.status == 0, shown.err
    assert str(list(OmegaConf.create(shown.out).network.multipliers)) == network


def test_resume_auto_says_which_run_and_step(train: Launch) -> None:
    first = train("steps=2")
    again = train("resume=auto", "steps=3")
    told = rf"resume=auto: the newest run that fits this command is \S*{first.run.name}, at step 2"
    assert re.search(told, again.out)


def test_a_run_is_continued_where_it_is(train: Launch) -> None:
    run = train("steps=2").run
    before = (run / "metrics.csv").read_text()
    refused = launch("train", f"resume={run}", "steps=3", "hydra.run.dir=fork")
    assert refused.err.startswith("error: hydra.run.dir=fork has no effect: ")
    assert refused.err.count("\n") == 1
    assert (run / "metrics.csv").read_text() == before
    train(f"resume={run}", "steps=3", f"hydra.run.dir={run}/../{run.name}")


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=mine"],
        ["experiment=mine", "-m", "seed=1,2"],
        ["network.foo=3"],  # which is looked for in every file
    ],
)
def test_a_file_that_is_no_yaml(here: Path, words: list[str]) -> None:
    file = here / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nseed: 3\ntags: [a, b\nsteps: 4\n")
    outcome = launch("train", "--config-dir", "own", *words)
    assert outcome.status == 1
    assert outcome.err == (
        "error: own/experiment/mine.yaml, line 4, cannot be read as YAML: expected ',' or ']', but "
        "got ':' (while parsing a flow sequence)\n"
    )
    asked = launch("train", "--config-dir", "own", "--help")  # nothing of it is chosen
    assert asked.status == 0, asked.err
    assert re.search(r"^experiment: .*\bmine\b", asked.out, re.MULTILINE)


def test_globs_stand_beside_other_values() -> None:
    configs = Configs(conf_directory(), "train", CommandLine({"--multirun": None}, []))
    typed = "sampler=glob([dd*,eu*],exclude=ddim50),heun,glob(he*)"
    assert as_name(typed, configs) == "sampler='ddim','euler','heun'"


def test_help_shows_the_first_job_of_a_sweep(here: Path) -> None:
    outcome = launch("train", "-m", "--help", "model=ncsn,ddpm", "seed=range(3,9)")
    assert outcome.status == 0, outcome.err
    assert re.search(r"^sigma:", outcome.out, re.MULTILINE)  # of NCSN alone
    assert re.search(r"^seed: 3\b", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("words", [["experiment=mine"], ["experiment=mine", "-m"], ["--help"]])
def test_a_file_that_is_not_utf_8(here: Path, words: list[str]) -> None:
    file = here / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n# 第一次\nseed: 3\n", encoding="gbk")
    outcome = launch("train", "--config-dir", "own", *words)
    assert outcome.status == 1
    assert outcome.err == (
        "error: own/experiment/mine.yaml is not written in UTF-8, as configs are: save it in that "
        "encoding\n"
    )


def test_an_interpolation_that_is_not_closed(here: Path) -> None:
    (here / "experiment").mkdir()
    (here / "experiment" / "mine.yaml").write_text("# @package _global_\nname: ${seed\n")
    outcome = launch("train", "--config-dir", str(here), "experiment=mine")
    assert outcome.err == "error: an interpolation cannot be read at '${seed'; quote or close it\n"


@pytest.mark.parametrize(
    ("group", "name"), [("hydra/launcher", "joblib"), ("hydra/sweeper", "optuna")]
)
def test_what_a_search_needs_comes_with_its_extra(group: str, name: str) -> None:
    """Whose sweeper alone fails with the storage that pip would choose for it."""
    told = unknown_choice(group, name, Configs(conf_directory(), "train", CommandLine({}, [])))
    assert told.startswith(f'{group}={name} is not installed: pip install "betasigma[search]"; or ')
