"""One command trains either family and leaves a complete record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import ROOT, TINY, Finished, Launch, Outcome, launch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import betasigma
from betasigma.commands.assemble import make_denoiser
from betasigma.commands.train import _say_what_is_sampled
from betasigma.display import Display
from betasigma.evaluation.choice import INCEPTION_FILES, checkpoint_dir
from betasigma.modules import DDPM, NCSN
from betasigma.modules.averaging import ramped_decay
from betasigma.options.training import TRAIN_ERROR
from betasigma.runs.directory import new_directory
from betasigma.runs.record import Record
from betasigma.training.trainer import Affordable


def metrics(run: Path) -> set[str]:
    return {row["metric"] for row in Record(run / "metrics.csv").rows()}


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def raw_and_average(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    weights = checkpoint(run)["state_dict"]
    return tuple(  # type: ignore[return-value]
        {name.removeprefix(part): w for name, w in weights.items() if name.startswith(part)}
        for part in ("denoiser.", "average.")
    )


def test_gradients_are_kept_within_a_step_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None takes up memory during the first forward pass of a step, where memory peaks."""
    original, seen = DDPM.training_step, []

    def training_step(self: DDPM, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        seen.append(any(p.grad is not None for p in self.parameters()))
        return original(self, batch, batch_idx)

    norms: list[float] = []

    def on_before_optimizer_step(self: DDPM, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.cat(gradients)).item())

    monkeypatch.setattr(DDPM, "training_step", training_step)
    monkeypatch.setattr(DDPM, "on_before_optimizer_step", on_before_optimizer_step)
    outcome = launch("train", *TINY, "training.accumulate=2", "steps=3", "training.clip=1e-3")
    assert outcome.status == 0
    assert seen == 3 * [False, True]
    # two steps to a value, and the last one
    steps, logged = Record.of(outcome.run).curve("train/gradient_norm")
    assert steps == [2, 3]
    assert logged == pytest.approx([sum(norms[:2]) / 2, norms[2]], rel=1e-4)


# ---------------------------------------------------------------- the run directory


def test_a_run_directory_is_complete(ddpm_run: Path) -> None:
    config = OmegaConf.load(ddpm_run / "config.yaml")
    assert not OmegaConf.missing_keys(config)
    assert config == OmegaConf.create(checkpoint(ddpm_run)["betasigma"]["config"])

    environment = json.loads((ddpm_run / "environment.json").read_text())
    assert environment["overrides"] == list(TINY)
    assert environment["packages"]["torch"] == metadata.version("torch")
    if (ROOT / ".git").exists():
        assert set(environment["git"]) == {"commit", "branch", "changes"}

    assert {"train/objective", "train/learning_rate", "train/images_per_second"} <= metrics(
        ddpm_run
    )
    assert {"val/objective", "val/denoising_error"} <= metrics(ddpm_run)
    assert Record(ddpm_run / "metrics.csv").curve("train/objective")[0] == [2, 4, 6]

    (picture,) = (ddpm_run / "samples").iterdir()
    assert picture.name == "step_0000006.png"
    with Image.open(picture) as image:
        assert image.size == (2 * 34 + 2, 2 * 34 + 2)  # four digits, each pixel four times as wide
        assert len(image.getcolors()) > 1

    kept = sorted(path.name for path in (ddpm_run / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "last.ckpt"]
    summary = json.loads((ddpm_run / "summary.json").read_text())
    assert summary["step"] == 6
    table = {metric: numbers for metric, *numbers in summary["table"]}
    last = Record(ddpm_run / "metrics.csv").curve("val/denoising_error")[1][-1]
    assert table["val/denoising_error"] == [last, None, None]
    assert all(isinstance(value, float) for value, *_ in table.values())
    log = (ddpm_run / "log.txt").read_text()
    assert "training ddpm on digits" in log
    assert "training 6/6" in log


def test_a_checkpoint_says_what_it_is(ddpm_run: Path) -> None:
    header = checkpoint(ddpm_run)["betasigma"]
    assert (header["format"], header["step"], header["seed"]) == (1, 6, 0)
    assert header["version"] == betasigma.__version__
    assert header["config"]["sampler"]["steps"] == 2


def test_both_families_log_the_same_names(ddpm_run: Path, ncsn_run: Path) -> None:
    assert metrics(ddpm_run) == {m for m in metrics(ncsn_run) if not m.startswith(TRAIN_ERROR)}
    # of DDPM's 1000 levels so few examples have not seen every part that is reported
    reported = {m for m in metrics(ncsn_run) if m.startswith(TRAIN_ERROR)}
    assert reported == {m.replace("val", "train") for m in metrics(ncsn_run) if "val/den" in m}
    configs = [OmegaConf.load(run / "config.yaml") for run in (ddpm_run, ncsn_run)]
    assert [config.model.family for config in configs] == ["ddpm", "ncsn"]
    keys = [{k for k in config if k not in ("beta", "sigma")} for config in configs]
    assert keys[0] == keys[1]


def test_the_end_says_what_comes_next(ddpm: Finished) -> None:
    for word in ("samples ", "metrics ", "checkpoint ", "scripts/sample.py run=", "resume="):
        assert word in ddpm.out
    assert "ddpm_digits after 6 steps" in ddpm.out


def test_directories_of_runs_that_start_together_differ() -> None:
    assert len({new_directory("run") for _ in range(500)}) == 500


def test_a_failure_is_in_the_log_with_its_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_optimizers(self: DDPM) -> None:
        raise RuntimeError("no optimizer today")

    monkeypatch.setattr(DDPM, "configure_optimizers", configure_optimizers)
    outcome = launch("train", *TINY)
    assert outcome.status == 1
    assert "stopped before the first checkpoint" in outcome.out
    log = (outcome.run / "log.txt").read_text()
    assert "Traceback" in log
    assert "no optimizer today" in log


# ---------------------------------------------------------------- the weights


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_watching_does_not_disturb(train: Launch) -> None:
    """Sampling, validation, evaluation and logging draw from streams of their own."""
    dropout = ("network.dropout=0.2", "sampler=ancestral", "sampler.steps=2", "data.flip=true")
    watched = train(
        *dropout,
        "training.sample_every=1",
        "training.validate_every=1",
        "training.log_every=1",
        "training.checkpoint_every=1",
    ).run
    alone = train(*dropout, "training.sample_every=99", "training.validate_every=99").run
    assert len(list((watched / "samples").iterdir())) == 6
    assert len(list((alone / "samples").iterdir())) == 1
    for a, b in zip(raw_and_average(watched), raw_and_average(alone), strict=True):
        assert same(a, b)


def test_micro_batches_do_not_change_the_step(train: Launch) -> None:
    options = ("steps=3", "training.warmup=1", "network.num_classes=10", "data.dequantize=true")
    whole = raw_and_average(train(*options).run)
    parts = raw_and_average(train(*options, "training.accumulate=4").run)
    for a, b in zip(whole, parts, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    assert not same(*whole)


def test_without_averaging_the_average_is_the_model(train: Launch) -> None:
    raw, average = raw_and_average(train("ema.decay=0").run)
    assert same(raw, average)


def test_the_first_update_of_the_average(train: Launch) -> None:
    run = train("steps=1", "training.warmup=0", "optimizer.lr=0.1").run
    config = checkpoint(run)["betasigma"]["config"]
    start = make_denoiser(config, (1, 8, 8), (-1.0, 1.0)).state_dict()
    raw, average = raw_and_average(run)
    decay = ramped_decay(0.9999, 0)
    for name in raw:
        expected = torch.lerp(start[name], raw[name], 1 - decay)
        torch.testing.assert_close(average[name], expected)
    assert not same(raw, average)


def test_a_model_that_refuses_what_lies_between_its_levels_is_validated_too(
    train: Launch, recwarn: pytest.WarningsRecorder
) -> None:
    """The denoising error is measured at noise levels that both families share."""
    own = ("sampler=annealed_langevin", "sampler.inner_steps=1", "sampler.steps=10")
    run = train("model=ncsn", "denoiser.off_levels=refuse", *own).run
    assert {"val/denoising_error", "val/denoising_error/log_snr_+3"} <= metrics(run)
    assert not [warning for warning in recwarn if "between them" in str(warning.message)]


@pytest.mark.parametrize(
    ("schedule", "monitor"),
    [
        (["sigma.max=2", "sigma.min=.001"], "val/denoising_error"),
        # log 0.02^-2 - log 4 = 6.4 is the largest log-SNR of data in [-1, 1]
        (["sigma.min=.02"], "val/denoising_error/mean_log_snr_-1_to_+6"),
        (["sigma.max=.1", "sigma.levels=1", "sampler.steps=1"], "val/objective"),
    ],
)
def test_errors_have_one_name_only_where_they_are_means_over_one_range(
    train: Launch, schedule: list[str], monitor: str
) -> None:
    """The best checkpoint is of the least error, by whatever name it goes."""
    run = train("model=ncsn", *schedule, "training.validate_every=3").run
    means = {name for name in metrics(run) if "denoising_error/log_snr" not in name}
    means = {name for name in means if name.startswith("val/")} - {"val/objective"}
    assert means == {monitor} - {"val/objective"}
    errors = Record(run / "metrics.csv").curve(monitor)[1]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["callbacks"]["Checkpoints"]["best"] == min(errors)


# ---------------------------------------------------------------- loggers


def inspect(offline: Path) -> list[dict[str, Any]]:
    """Records of a Weights & Biases run, as its own reader sees them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_wandb_keeps_every_run_of_a_process(train: Launch, here: Path) -> None:
    """Its service lives on where the first run started it, and knows no other directory."""
    for name in ("first", "second"):
        (here / name).mkdir()
        os.chdir(here / name)
        run = train("logger=wandb").run
        assert len(list(run.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_wandb_offline_without_an_account(train: Launch) -> None:
    """Everything that a dashboard needs is there, and each value on three axes."""
    outcome = train("logger=wandb", "tags=[tried]")
    (offline,) = (outcome.run / "wandb").glob("offline-run-*")
    assert f"scripts/sync.py {outcome.run.relative_to(Path.cwd())}\n" in outcome.out
    assert outcome.err == ""
    records = inspect(offline)
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert run["project"] == "betasigma"
    assert (run["run_group"], run["job_type"]) == ("ddpm_digits", "train")
    assert run["tags"] == ["tried"]
    assert run["config"]["update"]["model"]["family"] == "ddpm"
    assert run["run_id"] == (outcome.run / "wandb_id.txt").read_text().strip()

    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    logged: dict[str, list[int]] = {}
    for row in rows:
        for name in row:
            logged.setdefault(name, []).append(row["trainer/global_step"])
    assert logged["train/objective"] == [2, 4, 6]
    assert logged["samples._type"] == [6]
    assert metrics(outcome.run) <= set(logged)
    assert logged["objective_metric"] == logged["val/denoising_error"] == [6]
    assert all(row["trainer/images_seen"] == 16 * row["trainer/global_step"] for row in rows)
    seconds = [row["trainer/seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0

    config = run["config"]["update"]
    facts, weights = config["run"], raw_and_average(outcome.run)[0]
    assert facts["directory"] == str(outcome.run)
    assert facts["parameters"] == sum(w.numel() for w in weights.values())
    assert 1 < facts["backward_flop_per_image"] / facts["forward_flop_per_image"] < 2
    environment = json.loads((outcome.run / "environment.json").read_text())
    assert facts["git_commit"] == (environment["git"] or {}).get("commit")
    assert (facts["gpu"], config["sweep"]) == (None, None)

    pictures = {key: [r for r in rows if f"{key}._type" in r] for key in ("samples", "real")}
    assert [r["samples.captions"] for r in pictures["samples"]] == [["step 6: ddim, NFE 2, seed 0"]]
    assert [r["trainer/global_step"] for r in pictures["real"]] == [0]
    for key in ("pixels/real", "pixels/samples"):
        (drawn,) = [row for row in rows if f"{key}.bins" in row]
        counts, edges = drawn[f"{key}.values"], drawn[f"{key}.bins"]
        assert sum(counts) == 4 * 64
        assert edges == list(range(257))
    (chart,) = offline.glob("files/media/table/val/denoising_error_by_log_snr*.json")
    points = json.loads(chart.read_text())["data"]
    assert [at for at, _ in points] == list(range(-1, 8))
    last = {row["metric"]: float(row["value"]) for row in Record.of(outcome.run).rows()}
    for at, error in points:
        assert error == pytest.approx(last[f"val/denoising_error/log_snr_{at:+.0f}"])

    known = [record["metric"] for record in records if record["type"] == "metric"]
    options = {m.get("name") or m["glob_name"]: m for m in known}
    assert options["*"]["step_metric"] == "trainer/global_step"
    for metric in ("train/denoising_error", "val/denoising_error", "val/objective"):
        assert options[metric]["summary"] == {"min": True, "last": True}
    assert options["val/denoising_error/log_snr_*"]["options"]["hidden"]
    assert list(offline.glob("files/media/images/samples*.png"))

    resumed = launch("train", f"resume={outcome.run}", "steps=8")
    assert resumed.status == 0, resumed.err
    _, again = sorted((outcome.run / "wandb").glob("offline-run-*"))
    assert again.name.endswith(run["run_id"])


def test_tensorboard(train: Launch) -> None:
    run = train("logger=tensorboard").run
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/objective")] == [2, 4, 6]
    assert [event.step for event in events.Images("samples")] == [6]
    assert metrics(run) <= set(events.Tags()["scalars"])


def test_a_tracker_that_dies_is_a_warning(train: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_metrics(*args: Any) -> None:
        raise ConnectionError("server gone")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log_metrics)
    outcome = train("logger=tensorboard")
    assert "warning: logging failed (ConnectionError: server gone)" in outcome.err
    assert {"train/objective", "val/objective"} <= metrics(outcome.run)


# ---------------------------------------------------------------- sweeps


def sweep(*overrides: str) -> tuple[Outcome, list[Path]]:
    """A sweep of tiny runs without a sampler of their choice, and its jobs' directories."""
    own = [word for word in TINY if not word.startswith("sampler")]
    outcome = launch("train", "-m", *own, "training.num_samples=1", *overrides)
    return outcome, sorted(path.parent for path in Path.cwd().glob("outputs/*/*/config.yaml"))


def test_a_job_of_a_sweep_records_the_command_as_it_was_typed(here: Path) -> None:
    _, (run,) = sweep("seed=1", "steps=1")
    environment = json.loads((run / "environment.json").read_text())
    assert "network.channels=8" in environment["command"]
    assert environment["command"][:2] == ["train.py", "-m"]


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_family_s_defaults(here: Path) -> None:
    outcome, runs = sweep("model=ddpm,ncsn", "seed=1,2", "steps=2", "sampler.steps=2")
    assert outcome.status == 0, outcome.err
    assert len(runs) == 4
    (sweep_directory,) = {run.parent for run in runs}
    named = {json.loads((run / "environment.json").read_text())["sweep"] for run in runs}
    assert named == {sweep_directory.name}
    found = []
    for run in runs:
        config = OmegaConf.load(run / "config.yaml")
        named = [config[group]._target_.rpartition(".")[2] for group in ("schedule", "sampler")]
        found.append([config.model.name, config.seed, *named, list(config.model.value_range)])
        assert config.sampler.steps == 2
        assert checkpoint(run)["global_step"] == 2
    ddpm, ncsn = ["linear", "Ancestral", [-1, 1]], ["geometric", "AnnealedLangevin", [0, 1]]
    assert found == [
        ["ddpm", 1, *ddpm],
        ["ddpm", 2, *ddpm],
        ["ncsn", 1, *ncsn],
        ["ncsn", 2, *ncsn],
    ]


def test_a_failing_job_leaves_the_others_running(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_optimizers(self: DDPM) -> None:
        raise RuntimeError("no optimizer today")

    monkeypatch.setattr(DDPM, "configure_optimizers", configure_optimizers)
    outcome, (first, second) = sweep("model=ddpm,ncsn", "sampler=ddim", "sampler.steps=2")
    assert outcome.status == 1
    assert "no optimizer today" in outcome.err
    assert str(first.relative_to(here)) in outcome.err
    assert not (first / "checkpoints" / "last.ckpt").exists()
    assert checkpoint(second)["global_step"] == 6
    assert (second / "summary.json").exists()


@pytest.mark.slow
def test_the_features_of_a_sweep_are_decided_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inception weights that appear while it runs change nothing."""
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    start = NCSN.on_train_start

    def on_train_start(self: NCSN) -> None:
        checkpoint_dir().mkdir(parents=True, exist_ok=True)
        (checkpoint_dir() / INCEPTION_FILES[0]).touch()
        start(self)

    monkeypatch.setattr(NCSN, "on_train_start", on_train_start)
    outcome, runs = sweep(
        "model=ncsn",
        "seed=1,2",
        "steps=2",
        "sampler=ddim",
        "sampler.steps=2",
        "evaluation=default",
        "evaluation.n=4",
        "evaluation.n_reference=4",
        "evaluation.metrics=[fd]",
    )
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("EfficientNet-Lite0") == 1
    for run in runs:
        (row,) = [
            row
            for row in Record(run / "metrics.csv").rows()
            if row["metric"] == "val/fd_efficientnet_lite0"
        ]
        assert (row["n"], row["nfe"], row["sampler"]) == ("4", "2", "ddim")
        assert (row["step"], row["split"], row["extractor"]) == ("2", "train", "efficientnet_lite0")


# ---------------------------------------------------------------- class labels


def test_labels_and_guidance_train_and_sample(labelled_run: Path) -> None:
    header = checkpoint(labelled_run)["betasigma"]["config"]
    assert header["network"]["num_classes"] == 10
    assert header["training"]["guidance"] == 2
    assert checkpoint(labelled_run)["global_step"] == 6
    assert (labelled_run / "samples" / "step_0000006.png").is_file()


@pytest.mark.parametrize(
    ("every", "said"),
    [
        (10, "4 of 64 samples in the grids before the last one, the fewest there can be, which "),
        (1000, "19 of 64 samples in the grids before the last one, which take about a tenth of"),
    ],
)
def test_samples_that_take_more_than_a_tenth_of_the_training_are_not_called_a_tenth(
    capsys: pytest.CaptureFixture[str], every: int, said: str
) -> None:
    content = {
        "batch_size": 64,
        "steps": 10_000,
        "training": {"num_samples": None, "sample_every": every},
        "evaluation": {"n": None, "metrics": []},
    }
    data: Any = None  # which is asked for nothing where nothing is measured
    _say_what_is_sampled(Affordable(content, 1000), data, Display())
    assert " ".join(capsys.readouterr().out.split()).startswith(said)
