"""Every shipped file of the groups that reach Lightning is run once, and callbacks, loggers and
schedules of outside packages beside them.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from launching import ROOT, TINY, Launch, Outcome, launch, quick
from wandb.proto import wandb_internal_pb2

from betasigma.runs.record import Record

CHOICES = {
    group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    for group in ("lr_schedule", "callbacks", "logger", "debug")
}
SMALL = tuple(word for word in TINY if word.startswith(("network.", "hardware.", "logger")))
NEEDS = {"mlflow": "mlflow", "comet": "comet-ml"}
"""Packages that are not among our requirements."""
CSV = "pytorch_lightning.loggers.CSVLogger"


def rates(run: Path) -> list[float]:
    return Record(run / "metrics.csv").curve("train/learning_rate")[1]


def config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize("name", quick(CHOICES["lr_schedule"], "cosine", "step"))
def test_a_schedule_of_the_learning_rate(train: Launch, name: str) -> None:
    words = [f"lr_schedule={name}", "training.warmup=2", "training.log_every=1", "steps=6"]
    if name == "step":
        words.append("lr_schedule.step_size=2")
    # logged after each step: the rate of the next one
    found = [rate / 2e-3 for rate in rates(train(*words).run)]
    after = {
        "constant": [1, 1, 1, 1, 1],
        "cosine": [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)],
        "linear": [1 - k / 4 for k in range(5)],
        "step": [1, 1, 0.1, 0.1, 0.01],
        "exponential": [0.999**k for k in range(5)],
    }[name]
    assert found == pytest.approx([1, *after], abs=1e-9)


def test_a_schedule_of_pytorchs_by_its_name(train: Launch) -> None:
    run = train(
        "lr_schedule._target_=torch.optim.lr_scheduler.PolynomialLR",
        *("+lr_schedule.total_iters=4", "+lr_schedule.power=2", "training.warmup=0"),
        *("training.log_every=1", "steps=4"),
    ).run
    assert rates(run) == pytest.approx([2e-3 * (1 - k / 4) ** 2 for k in range(1, 5)])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lr_schedule=cosine", "lr_schedule.T_max=2"], "lr_schedule.T_max=2 ends before the run"),
        (["lr_schedule=linear", "training.warmup=6"], "training.warmup=6 is not below steps=6"),
        (
            ["lr_schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"],
            "a function of the step alone",
        ),
        (
            ["lr_schedule._target_=torch.optim.lr_scheduler.OneCycleLR", "+lr_schedule.max_lr=0.1"],
            "training.warmup=2 does not fit lr_schedule._target_=torch.optim.lr_scheduler.OneCycle",
        ),
        (
            ["lr_schedule._target_=torch.optim.lr_scheduler.PolynomialLR", "+lr_schedule.powr=2"],
            "did you mean lr_schedule.power?",
        ),
        (["+trainer.max_steps=4"], "trainer.max_steps=4 cannot be passed on: it is set by steps"),
        (["trainer.max_time=x"], "trainer.max_time=x must be DD:HH:MM:SS, as in"),
        (["trainer.max_steps=4"], "trainer.max_steps=4 cannot be passed on: it is set by steps"),
        (["logger=comet", "+logger.api_key=secret"], "logger.api_key=secret is unknown"),
        (["logger.kind=mlflow"], "logger.kind=mlflow is unknown; choose from wandb"),
        (
            ["loggers=csv"],
            "loggers=csv must be a name with a _target_: write +loggers",
        ),
        ([f"loggers.mine._target_={CSV}"], f"+loggers.mine._target_={CSV} adds it"),
        ([f"+logger.mine._target_={CSV}"], f"second logger: write +loggers.mine._target_={CSV}"),
        (
            ["+logger@loggers.mine=csv", "+loggers.mine.verzion=2"],
            "loggers.mine.verzion=2 is unknown: CSVLogger takes name, version,",
        ),
        (["+loggers.mine._target_=spy.Lines"], "loggers.mine._target_=spy.Lines is code of the"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_directory(
    here: Path, words: list[str], sentence: str
) -> None:
    outcome = launch("train", *TINY, "training.warmup=2", *words)
    assert outcome.status == 1
    assert sentence in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (here / "outputs").exists()


@pytest.mark.slow
def test_pytorchs_profiler_writes_its_report(train: Launch) -> None:
    outcome = train("trainer.profiler=pytorch", "steps=4")
    assert "aten::" in (outcome.run / "fit-profile.txt").read_text()


def test_a_run_that_max_time_ends_says_so(train: Launch) -> None:
    outcome = train("trainer.max_time=00:00:00:00", "steps=4")
    assert "trainer.max_time has ended training at step 0" in outcome.out
    clock = "++callbacks.clock._target_=pytorch_lightning.callbacks.Timer"  # which ends nothing
    outcome = train(
        *("callbacks=early_stopping", "callbacks.early_stopping.patience=1", clock, "steps=4"),
        *("+callbacks.early_stopping.min_delta=9", "training.validate_every=1"),
    )
    assert json.loads((outcome.run / "summary.json").read_text())["step"] < 4
    assert "max_time" not in outcome.out


def test_more_steps_would_be_another_decay(train: Launch) -> None:
    finished = train("lr_schedule=cosine", "training.warmup=2")
    assert "resume=" not in finished.out
    outcome = launch("train", f"resume={finished.run}", "steps=12")
    assert outcome.status == 1
    assert "steps=12 would change the learning rate" in outcome.err


@pytest.mark.parametrize("name", CHOICES["callbacks"])
def test_a_callback_of_lightnings(train: Launch, name: str) -> None:
    outcome = train(f"callbacks={name}", "training.validate_every=3")
    checkpoint = torch.load(outcome.run / "checkpoints" / "last.ckpt", weights_only=True)
    found = {
        "early_stopping": any("EarlyStopping" in key for key in checkpoint["callbacks"]),
        "model_summary": "Total params" in outcome.out,
    }
    assert found[name]


def test_several_callbacks_with_values_of_their_own(train: Launch) -> None:
    run = train(
        "callbacks=[early_stopping,model_summary]",
        "callbacks.early_stopping.patience=1",
        "+callbacks.early_stopping.stopping_threshold=1000",  # met at the first validation
        *("training.validate_every=2", "steps=8"),
    ).run
    assert Record(run / "metrics.csv").curve("train/objective")[0] == [2]


def test_early_stopping_watches_what_the_run_measures(train: Launch) -> None:
    """A schedule that covers a part of the grid has another name for its mean."""
    outcome = train("callbacks=early_stopping", "model=ncsn", "sigma.max=0.3", "steps=2")
    names = {row["metric"] for row in Record.of(outcome.run).rows()}
    assert any(name.startswith("val/denoising_error/mean_log_snr_") for name in names)
    assert "val/denoising_error" not in names
    monitor = "callbacks.early_stopping.monitor=val/loss"
    wrong = launch("train", *TINY, "callbacks=early_stopping", monitor)
    assert wrong.status == 1
    assert re.fullmatch(
        r"error: monitor=val/loss .* not measured .*val/denoising_error\n", wrong.err
    )


@pytest.mark.parametrize("name", quick(CHOICES["logger"], *(set(CHOICES["logger"]) - {"wandb"})))
def test_a_logger(here: Path, name: str) -> None:
    words = [word for word in TINY if not word.startswith("logger=")]
    outcome = launch("train", *words, f"logger={name}")
    if name in NEEDS:
        assert outcome.status == 1
        assert f"needs the {NEEDS[name]} package: pip install {NEEDS[name]}" in outcome.err
        assert not (here / "outputs").exists()
        return
    assert outcome.status == 0, outcome.err
    assert len(rates(outcome.run)) == 3


def test_csv_has_the_config_and_every_value(train: Launch) -> None:
    run = train("logger=csv", "evaluation=default", "evaluation.extractor=identity", *MEASURED).run
    folder = run / "csv" / "version_0"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_step = {row["step"]: row["train/objective"] for row in rows if row["train/objective"]}
    assert list(by_step) == ["2", "4", "6"]
    assert any(row["val/fd_identity"] for row in rows)  # measured after training
    logged = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert logged["steps"] == 6


@pytest.mark.slow
def test_loggers_beside_weights_and_biases(train: Launch) -> None:
    """By its class and by the file of the group; a run that goes on has them too."""
    two = (f"+loggers.mine._target_={CSV}", "+loggers.mine.name=mine", "+logger@loggers.csv=csv")
    run = train("logger=wandb", "logger.mode=offline", *two).run
    outcome = launch("train", f"resume={run}", "steps=8")
    assert outcome.status == 0, outcome.err
    curve = Record.of(run).curve("train/objective")
    assert curve[0] == [2, 4, 6, 8]
    for name in ("mine", "csv"):
        files = [run / name / f"version_{number}" / "metrics.csv" for number in (0, 1)]
        rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
        found = [(int(r["step"]), r["train/objective"]) for r in rows if r["train/objective"]]
        assert [step for step, _ in found] == curve[0]
        assert [float(value) for _, value in found] == pytest.approx(curve[1], rel=1e-5)
    sent = dict(pair for file in run.glob("wandb/*/*.wandb") for pair in in_wandb(file))
    assert [sent[step] for step in curve[0]] == pytest.approx(curve[1], rel=1e-5)


def in_wandb(file: Path) -> Iterator[tuple[int, float]]:
    """Step and value of ``train/objective`` in a file of Weights & Biases: after 7 bytes, blocks of
    32 KiB with pieces of records, each after its checksum, length and kind.
    """
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 < len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if (1 << 15) - at % (1 << 15) < 7:  # no piece begins at the end of a block
            at += (1 << 15) - at % (1 << 15)
        if kind in (1, 4):  # whole, or its last piece
            row = wandb_internal_pb2.Record.FromString(record).history.item
            values = {item.nested_key[0] if item.nested_key else item.key: item for item in row}
            if "train/objective" in values:
                step, value = (values[k] for k in ("trainer/global_step", "train/objective"))
                yield json.loads(step.value_json), json.loads(value.value_json)
            record = b""


MEASURED = ("evaluation.metrics=[fd]", "evaluation.n=8", "evaluation.n_reference=32")


QUICK = ("evaluation=none", "sampler=ddim", "sampler.steps=2", "batch_size=16", "data.val_size=32")


def debug(here: Path, name: str, *words: str) -> Outcome:
    outcome = launch("train", *SMALL, f"debug={name}", *words)
    assert outcome.status == 0, outcome.err
    return outcome


@pytest.mark.parametrize("name", CHOICES["debug"])
def test_a_debug_run(here: Path, name: str) -> None:
    measured = ("evaluation.extractor=identity",)
    quick = measured if name == "ten_steps" else ("steps=6", *QUICK)
    run = debug(here, name, *quick).run
    record = Record(run / "metrics.csv")
    if name == "ten_steps":
        assert record.curve("train/objective")[0] == list(range(1, 11))
        assert record.curve("val/denoising_error")[0] == [5, 10]
        assert record.curve("val/fd_identity")[0] == [5, 10]
        assert len(list((run / "samples").iterdir())) == 2
    elif name == "profiler":
        assert "run_training_batch" in (run / "fit-profile.txt").read_text()
    elif name == "overfit_one_batch":
        assert config(run)["data"]["one_batch"] is True
    else:
        assert config(run)["trainer"]["detect_anomaly"] is True


def test_a_debug_run_is_not_a_continuation(ddpm_run: Path, here: Path) -> None:
    outcome = launch("train", f"resume={ddpm_run}", "debug=profiler", "steps=8")
    assert outcome.status == 1
    assert "debug=profiler would make another run" in outcome.err


@pytest.fixture
def probe(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own in the working directory."""
    (here / "lightning_probe").mkdir()
    (here / "lightning_probe" / "__init__.py").write_text(
        """
import json
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers.logger import Logger
from torch.optim.lr_scheduler import LambdaLR


class Seen(Callback):
    def __init__(self, name: str = "seen") -> None:
        self.name, self.seen = name, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen = {
            "anomaly": torch.is_anomaly_enabled(),
            "clip": trainer.gradient_clip_algorithm,
            "every": trainer.log_every_n_steps,
        }
        module.log("mine", 7.0)

    def on_train_end(self, trainer, module):
        with open(self.name, "w") as file:
            json.dump(self.seen, file)


class Lines(Logger):
    name, version = "lines", 0

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")

    def log_hyperparams(self, params):
        pass


def halves(optimizer, warmup):
    return LambdaLR(optimizer, lambda step: 0.5**step + warmup)
"""
    )
    monkeypatch.syspath_prepend(str(here))
    return "plugins=[lightning_probe]"


def test_outside_callbacks_loggers_and_schedules(probe: str, here: Path) -> None:
    run = launch(
        *("train", *SMALL, *QUICK, probe, "steps=4", "training.log_every=2"),
        "+callbacks.mine={_target_:lightning_probe.Seen,name:seen.json}",
        *("~logger.kind", "+logger._target_=lightning_probe.Lines", "+logger.path=lines.txt"),
        "lr_schedule._target_=lightning_probe.halves",
        *("training.warmup=3", "trainer.detect_anomaly=true"),
        "trainer.gradient_clip_algorithm=value",
    )
    assert run.status == 0, run.err
    assert yaml.safe_load((here / "seen.json").read_text()) == {
        "anomaly": True,
        "clip": "value",
        "every": 2,
    }
    lines = (here / "lines.txt").read_text()
    assert "train/objective" in lines
    assert "mine" in lines
    assert Record(run.run / "metrics.csv").curve("mine")[1] == [7.0, 7.0]
    assert rates(run.run) == pytest.approx([2e-3 * (0.25 + 3), 2e-3 * (0.0625 + 3)])
