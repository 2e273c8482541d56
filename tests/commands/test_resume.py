"""A run that was stopped, by whatever, and resumed is the run that was never stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, Launch, forked, launch, quick, status_of
from omegaconf import OmegaConf

from betasigma.commands import resume as resume_command
from betasigma.commands.config import saved_header
from betasigma.commands.measure import Meter
from betasigma.modules import DiffusionModule
from betasigma.runs.record import Record
from betasigma.runs.status import INTERRUPTED, read_status
from betasigma.training.checkpoints import Checkpoints
from betasigma.training.periodic import SampleGrids
from betasigma.training.progress import Metrics

STEPS = (
    "steps=10",
    "network.dropout=0.1",
    "training.checkpoint_every=6",
    "training.validate_every=3",
    "training.sample_every=4",
    "data.val_size=8",
)
ACCUMULATED = (*STEPS, "training.accumulate=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``whole(override, …)``: directory of the run that nothing happened to."""

    @cache
    def run(*overrides: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("whole"))
            outcome = launch("train", *TINY, *overrides)
            assert outcome.status == 0, outcome.err
            return outcome.run

    return run


def weights(path: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(path / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Nested containers of tensors, equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_training(a: Path, b: Path) -> None:
    """Raw and averaged weights, optimizer, learning rate and counters."""
    one, other = weights(a), weights(b)
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert_same(one[part], other[part], part)


def assert_same_run(a: Path, b: Path) -> None:
    """The same training, and a record of it without gaps and repetitions."""
    assert_same_training(a, b)
    for metric in ("train/objective", "val/denoising_error", "val/fd_identity"):
        assert steps_of(a, metric) == steps_of(b, metric)
    one, other = ([path.name for path in sorted((run / "samples").iterdir())] for run in (a, b))
    assert one == other


def steps_of(run: Path, metric: str) -> list[int]:
    return Record(run / "metrics.csv").curve(metric)[0]


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something at the end of an optimizer step, before it is logged or saved."""
    original = Metrics.on_step

    def on_step(self: Metrics, trainer: Any, module: Any, now: int) -> None:
        if now == step:
            act()
        original(self, trainer, module, now)

    patch.setattr(Metrics, "on_step", on_step)


def crash(*overrides: str, step: int = 8) -> Path:
    """Run directory of a run that died at this step."""

    def die() -> None:
        raise RuntimeError("the ceiling fell down")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, die)
        outcome = launch("train", *TINY, *STEPS, *overrides)
    assert outcome.status == 1
    assert "the ceiling fell down" in outcome.err
    return outcome.run


def resume(run: Path | str, *overrides: str) -> Path:
    """Directory of a run that was resumed."""
    outcome = launch("train", f"resume={run}", *overrides)
    assert outcome.status == 0, outcome.err
    return outcome.run


@pytest.mark.parametrize(
    "override", quick(["training.accumulate=1", "model=ncsn"], "training.accumulate=1")
)
def test_a_crashed_run_resumes_to_the_same_bits(
    here: Path, whole: Callable[..., Path], override: str
) -> None:
    crashed = crash(override)
    assert weights(crashed)["global_step"] == 6
    # both checkpoints of step 6 know of the validation that came between them
    assert steps_of(crashed, "val/denoising_error") == [3, 6]
    errors = Record(crashed / "metrics.csv").curve("val/denoising_error")[1]
    assert weights(crashed)["callbacks"]["Checkpoints"]["best"] == min(errors)
    assert resume(crashed) == crashed
    assert_same_run(whole(*STEPS, override), crashed)


def test_a_decaying_learning_rate_resumes_to_the_same_bits(
    here: Path, whole: Callable[..., Path]
) -> None:
    """Stopped after the warm-up, in the middle of the decay; with a callback that has a state."""
    words = ("lr_schedule=cosine", "training.warmup=3", "callbacks=early_stopping")
    crashed = crash(*words)
    assert resume(crashed, "trainer.detect_anomaly=true") == crashed
    assert_same_run(whole(*STEPS, *words), crashed)


def test_the_best_checkpoint_resumes_to_the_same_bits(
    here: Path, whole: Callable[..., Path]
) -> None:
    """It was written in the middle of a validation."""
    crashed = crash("training.accumulate=1")
    assert resume(crashed / "checkpoints" / "best.ckpt") == crashed
    assert_same_run(whole(*STEPS, "training.accumulate=1"), crashed)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(here: Path, whole: Callable[..., Path]) -> None:
    """SIGKILL in the middle of step 9, with the gradients of its first half accumulated."""
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: dict[str, Any], batch_idx: int) -> Any:
        if batch["step"] == 8 and batch["index"][0] > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    def killed() -> None:
        DiffusionModule.training_step = training_step  # type: ignore[method-assign]

    victim = forked("train", *TINY, *ACCUMULATED, "name=victim", before=killed)
    assert status_of(victim) == -signal.SIGKILL
    (run,) = here.glob("outputs/*_victim_*")
    assert weights(run)["global_step"] == 6
    resume(run)
    assert_same_run(whole(*ACCUMULATED), run)
    assert steps_of(run, "train/objective") == [2, 4, 6, 8, 10]


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "status", "last"),
    [
        (signal.SIGINT, 128 + signal.SIGINT, 8),
        (signal.SIGTERM, 128 + signal.SIGTERM, 9),
        (signal.SIGUSR1, 128 + signal.SIGUSR1, 7),
    ],
    ids=[
        "Ctrl-C at a step that is sampled",
        "SIGTERM at one that is validated",
        "USR1 at one in the middle of a window",
    ],
)
def test_a_signal_ends_the_step_saves_it_and_says_how_to_continue(
    here: Path,
    whole: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    last: int,
) -> None:
    """It comes in the middle of a step, between its two micro-batches."""
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch["step"] == last - 1 and batch["index"][0] > 0:
            signal.raise_signal(number)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "training_step", training_step)
        outcome = launch("train", *TINY, *ACCUMULATED)
    assert outcome.status == status
    assert read_status(outcome.run)["status"] == INTERRUPTED
    assert "Traceback" not in outcome.err
    assert weights(outcome.run)["global_step"] == last
    assert f"the last checkpoint is of step {last}" in outcome.out
    (told,) = re.findall(
        r"^to continue: python \S*train\.py resume=(\S+)$", outcome.out, re.MULTILINE
    )
    resume(told)
    assert_same_run(whole(*ACCUMULATED), outcome.run)


def test_sigterm_after_the_last_step_says_how_to_continue(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("betasigma.commands.train.finish", finish)
    outcome = launch("train", *TINY)
    assert outcome.status == 128 + signal.SIGTERM
    assert read_status(outcome.run)["status"] == INTERRUPTED
    assert "the last checkpoint is of step 6" in outcome.out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_twice_ends_at_once_with_the_checkpoint_there_was(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch["step"] == 7:
            press_ctrl_c()
            press_ctrl_c()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    outcome = launch("train", *TINY, *STEPS)
    assert outcome.status != 0
    assert weights(outcome.run)["global_step"] == 6
    assert "the last checkpoint is of step 6" in outcome.out


@pytest.mark.parametrize(
    "doing",
    ["validation_step", pytest.param("sampling", marks=pytest.mark.slow), "evaluation"],
)
def test_ctrl_c_between_steps_resumes_to_the_same_bits(
    here: Path, whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    owner, name = {
        "validation_step": (DiffusionModule, "validation_step"),
        "sampling": (SampleGrids, "show"),
        "evaluation": (Meter, "measure"),
    }[doing]
    measured = ("evaluation=default", "evaluation.every=5", "evaluation.metrics=[fd]")
    few = ("evaluation.extractor=identity", "evaluation.n=70", "evaluation.n_during=70")
    steps = (*STEPS, *measured, *few)
    original = getattr(owner, name)

    def interrupted(self: Any, *args: Any) -> Any:
        press_ctrl_c()
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        outcome = launch("train", *TINY, *steps, "training.checkpoint_every=100")
    stopped = {"validation_step": 3, "sampling": 4, "evaluation": 5}[doing]
    assert weights(outcome.run)["global_step"] == stopped
    resume(outcome.run, "training.checkpoint_every=6")
    assert_same_run(whole(*steps), outcome.run)


def test_more_steps_and_another_sampler(train: Launch, copy_of_ddpm_run: Path) -> None:
    long, short = train("steps=8").run, copy_of_ddpm_run
    changed = ("steps=8", "sampler=ancestral", "sampler.steps=3")
    assert resume(short.relative_to(Path.cwd()), *changed) == short
    assert_same_training(long, short)
    assert steps_of(short, "train/objective") == [2, 4, 6, 8]
    assert json.loads((short / "summary.json").read_text())["step"] == 8
    config = OmegaConf.load(short / "config.yaml")
    assert (config.steps, config.seed, config.resume) == (8, 0, None)
    assert config.sampler._target_ == "betasigma.samplers.Ancestral"
    environment = json.loads((short / "environment.json").read_text())
    assert "steps=8" in environment["overrides"]
    assert "steps=6" in environment["resumed_after"][0]["overrides"]


def test_a_likelihood_is_recorded_alike_after_a_resume(train: Launch) -> None:
    """Else its values would be two curves of a page."""
    run = train(
        "steps=1", "likelihood=continuous_bound", "likelihood.n=2", "likelihood.draws=1"
    ).run
    train(f"resume={run}", "steps=2")
    rows = [row for row in Record.of(run).rows() if "bits_per_dim" in row["metric"]]
    assert {row["step"] for row in rows} == {"1", "2"}
    assert len({row["settings"] for row in rows}) == 1


def test_a_run_that_ended_before_its_summary_gets_it(copy_of_ddpm_run: Path) -> None:
    (copy_of_ddpm_run / "summary.json").unlink()
    assert resume(copy_of_ddpm_run) == copy_of_ddpm_run
    assert json.loads((copy_of_ddpm_run / "summary.json").read_text())["step"] == 6
    assert steps_of(copy_of_ddpm_run, "train/objective") == [2, 4, 6]


def test_a_checkpoint_outside_a_run_continues_in_a_new_directory(
    ddpm_run: Path, here: Path
) -> None:
    shutil.copy(ddpm_run / "checkpoints" / "last.ckpt", here / "theirs.ckpt")
    run = resume("theirs.ckpt", "steps=8")
    assert run.parent == here / "outputs"
    assert weights(run)["global_step"] == 8
    assert steps_of(run, "train/objective") == [8]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("seed=1", "steps=8"), "seed=1 would make another run"),
        (("model=ncsn", "steps=8"), "model=ncsn would make another run"),
        (("batch_size=8", "steps=8"), "batch_size=8 would make another run"),
        (("sigma.levels=5", "steps=8"), "resume=… continues a run with its own: leave it out"),
        (("steps=4",), "already taken 6 of 4 steps"),
        (("steps=8", "overwrite=true"), "overwrite=true begins over, and resume="),
        ((), "already taken 6 of 6 steps"),
    ],
)
def test_what_resume_refuses(
    here: Path, ddpm_run: Path, overrides: tuple[str, ...], told: str
) -> None:
    before = sorted(path.name for path in ddpm_run.iterdir())
    outcome = launch("train", f"resume={ddpm_run}", *overrides)
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert told in outcome.err
    assert outcome.err.count("\n") == 1
    assert sorted(path.name for path in ddpm_run.iterdir()) == before
    assert not (here / "outputs").exists()


def test_resume_auto_continues_the_newest_run_with_this_config(
    train: Launch, copy_of_ddpm_run: Path
) -> None:
    other = train("resume=auto", "seed=7")  # there is none with this seed: it is a new one
    assert "resume=auto: no run with a checkpoint fits this command" in other.out
    assert weights(other.run)["betasigma"]["seed"] == 7

    named = train("resume=auto", "name=other", "steps=2")  # nor one of this name
    assert "resume=auto: no run with a checkpoint fits this command" in named.out
    shutil.rmtree(named.run)

    outputs = copy_of_ddpm_run.parent
    older, broken = (shutil.copytree(copy_of_ddpm_run, outputs / name) for name in ("a", "b"))
    os.utime(older / "checkpoints" / "last.ckpt", (0, 0))
    (broken / "config.yaml").write_text("] not yaml [")
    assert resume("auto", *TINY, "steps=8") == copy_of_ddpm_run
    assert weights(copy_of_ddpm_run)["global_step"] == 8
    assert weights(older)["global_step"] == weights(other.run)["global_step"] == 6


def test_resume_auto_continues_the_newest_run_that_has_not_ended(copy_of_ddpm_run: Path) -> None:
    newest = copy_of_ddpm_run
    older, oldest = (Path(shutil.copytree(newest, newest.parent / name)) for name in "ab")
    for age, run in enumerate((older, oldest), 1):
        os.utime(run / "checkpoints" / "last.ckpt", (-age, -age))
        (run / "summary.json").unlink()
    outcome = launch("train", *TINY, "resume=auto")
    assert outcome.status == 0, outcome.err
    named = [run.relative_to(Path.cwd()) for run in (newest, older)]
    said = (
        "the newest run that fits this command and that has not ended, as {} has, is {}, at step 6"
    )
    assert said.format(*named) in outcome.out
    assert outcome.run == older
    shutil.rmtree(oldest)
    refused = launch("train", *TINY, "resume=auto")  # both have ended
    assert "resume=auto: the runs that fit this command have ended, the newest is " in refused.out
    assert f"resume={named[0]}/checkpoints/last.ckpt has already taken 6 of 6" in refused.err


def test_resume_auto_reads_the_run_that_it_continues_once(
    copy_of_ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its header is warned of is said once."""
    read: list[Path] = []
    monkeypatch.setattr(
        resume_command,
        "saved_header",
        lambda path, key: (read.append(path), saved_header(path, key))[1],
    )
    assert resume("auto", *TINY, "steps=8") == copy_of_ddpm_run
    assert [path.name for path in read] == ["last.ckpt"]


def test_the_best_is_best_among_validations_of_as_many_images(
    here: Path, train: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few images may have the lesser error and say less: a longer run validates on more of them."""
    words = ("data.val_size=null", "training.validate_every=2")
    first = train(*words, "steps=2")
    assert "validating on 16 of 360" in first.out
    short = first.run
    original = Checkpoints.load_state_dict

    def with_a_lucky_one(self: Checkpoints, state_dict: dict[str, Any]) -> None:
        original(self, {**state_dict, "best": -1.0})

    monkeypatch.setattr(Checkpoints, "load_state_dict", with_a_lucky_one)
    assert "images" in weights(short)["callbacks"]["Checkpoints"]
    resume(short, "steps=4")
    assert weights(short, "best")["global_step"] == 2
    monkeypatch.setattr("betasigma.training.trainer.FEWEST", 24)
    resume(short, "steps=6")
    assert weights(short, "best")["global_step"] == 6
    assert weights(short)["callbacks"]["Checkpoints"]["images"] == 24
