"""What cannot work is refused: one sentence, status 1, nothing heavy imported, nothing left behind.

All commands of this file run one after the other in one process of their own (launching.py), whose
modules are looked at when all are done; a few are then typed for real.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import launching
import pytest
import torch
from launching import ROOT, Outcome, launch

import betasigma
from betasigma.errors import UserError
from betasigma.launch import cli
from betasigma.runs.checkpoint import HEADER, save
from betasigma.runs.header import FORMAT, RECORD, append_header, check_plain

BAD = {
    # keys and choices that there are not
    "train mdoel=ncsn": r"mdoel=ncsn is unknown.*did you mean model",
    "train stepps=5": r"stepps=5 is unknown.*did you mean steps",
    "train +new=1": r"new=1 is unknown",
    "train +model.new=1": r"model\.new=1 is unknown",
    "train model=ncsm": r"model=ncsm is unknown; did you mean model=ncsn\? choose from ddpm, ncsn",
    "train sampler=dim": r"sampler=dim is unknown; did you mean sampler=ddim",
    "train model=": r"model= is unknown; choose from ddpm, ncsn",
    "train data=1": r"data=1 is unknown; choose from array, celeba",
    "sample run={run} labels=3": r"labels=3 must be a valid list .*: write labels=\[3\]$",
    "train steps": r"steps is not an override; write key=value",
    "train tags=[a": r"cannot be read",
    "train ~steps": r"steps has no value",
    "train --help model=ncsx": r"model=ncsx is unknown",
    # knobs of another schedule or sampler
    "train model=ddpm sigma.levels=10": r"=10 .*geometric or geometric_auto \(model=ncsn\)",
    "train model=ddpm +sigma.levels=10": r"sigma\.levels=10 .*schedule=linear.*model=ncsn",
    "train model=ddpm +sigma=5": r"sigma=5 .*schedule=linear.*model=ncsn",
    "train model=ncsn beta.end=0.1": r"beta\.end=0\.1 .*schedule=linear .* \(model=ddpm\)",
    "train beta.start=20 beta.end=1 schedule=vp_sde": r"beta\.end=1 must be at least .*start=20",
    "train model=ncsn network=refinenet": (
        r"conditioning=log_sigma does not fit .*: give preconditioning\.conditioning=level_number"
    ),
    "train network=refinenet network.num_classes=10": r"network\.num_classes=10 must be 0",
    "train network=ncsnpp": r"network\.attention=\[16\] asks for resolution 16, which never occurs",
    "train sampler.eta=0.5": r"sampler\.eta=0\.5 .*sampler=ddim",
    "train sampler=heun sampler.corrector_steps=1": r"=1 .*belongs to sampler=predictor_corrector",
    "train sampler=predictor_corrector sampler.snr=0": r"sampler\.snr=0 must be above 0",
    # points of the bridge
    "train bridge=7": r"bridge=7 is unknown; choose from 0, 1, 2, 3, 4, 5, 6",
    "train bridge=2 model=ddpm": r"bridge=2 and model=ddpm both choose the model; leave one out",
    "train -m bridge=0,6 experiment=mnist_ddpm": r"bridge=0 and experiment=mnist_ddpm both choose",
    "train bridge=6 sigma.levels=5": r"sigma\.levels=5 does not fit the schedule",
    # values out of range
    "train model=ncsn sigma.levels=0": r"sigma\.levels=0 must be at least 1",
    "train model=ncsn sigma.min=1 sigma.max=0.5": r"sigma\.min=1 must be below sigma\.max=0\.5",
    "train model=ncsn schedule=geometric_auto sigma.overlap=1": r"=1 must be below 0\.9",
    "train model=ncsn schedule=geometric_auto sigma.overlap=0": r"overlap=0 must be above 0",
    "train model=ncsn schedule=geometric_auto sigma.max=0.001": r"sigma\.min=0\.01 must be below",
    "train model=ncsn schedule=geometric_auto sigma.examples=1": r"examples=1 must be at least 2",
    "train model=ncsn sigma.levels=auto": r"sigma\.levels=auto is found by schedule=geometric_auto",
    "train model=ncsn sigma.overlap=0.5": r"=0\.5 .*belongs to schedule=geometric_auto",
    "train sampler=annealed_langevin sampler.step=auto": r"ratio of a geometric ladder.*linear has",
    "train model=ncsn schedule=geometric_auto data=mixture network=mlp": r"at least 5 dimensions",
    "sample run={run} sampler=annealed_langevin sampler.step=auto": r"linear has none",
    "train beta.end=2": r"beta\.end=2 must be below 1",
    "train beta.end=1e-5": r"beta\.end=1e-05 must be at least beta\.start",
    "train batch_size=0": r"batch_size=0 must be",
    "train batch_size=1.5": r"batch_size=1\.5 must be a valid integer",
    "train seed=-1": r"seed=-1 must be",
    "train seed=99999999999999999999": r"seed=9+ must be below",
    "train optimizer.lr=nan": r"optimizer\.lr=nan must be",
    "train optimizer.betas=[0.9,2]": r"optimizer\.betas\[1\]=2 must be below 1",
    "train optimizer=sgd optimizer.momentum=1": r"optimizer\.momentum=1 must be below 1",
    "train optimizer=sgd optimizer.momentum=0 optimizer.nesterov=true": r"nesterov=true needs",
    "train optimizer=sgd optimizer.betas=[0.9,0.9]": r"optimizer\.betas",
    "train model=oracle optimizer=sgd": r"optimizer=sgd does not fit model=oracle",
    "train +optimizer.momentum=0.9": r"optimizer\.momentum=0\.9 is unknown: Adam takes lr, betas",
    "train optimizer._target_=torch.optim.RAdam optimizer.bets=3": (
        r"optimizer\.bets=3 is unknown: RAdam takes lr, betas, .*did you mean optimizer\.betas\?"
    ),
    "train bridge=6 network.chanels=8": r"network\.chanels=8 is unknown: UNet takes num_classes",
    "train +schedule.levls=3": r"schedule\.levls=3 is unknown: linear takes start",
    "train ema.decay=1": r"ema\.decay=1 must be below 1",
    "train name=a/b": r"name=a/b must be of letters, digits, and _ \. \+ -$",
    "train data=celeba data.crop=8": r"crop=8 must be center_<side>, as in center_140 or null$",
    "train logger._target_=a.B": r"unknown: .*; logger=csv has the place .*logger\._target_=a\.B$",
    "train training.accumulate=3": r"batch_size=\d+ cannot be divided.*accumulate=3",
    # what does not fit together
    "train network.attention=[5]": r"network\.attention=\[5\].*never occurs.*8, 4",
    "train data.image_size=9": r"1 time, but .* at most 1 level \(9\): give at most 1 multiplier ",
    "train network=mlp": r"network=.*MLP does not fit data=digits",
    "train network.num_classes=3": r"num_classes=3 does not fit data=digits, which has 10 classes",
    "train training.guidance=2": r"training\.guidance=2 needs .*num_classes",
    "train objective.label_dropout=0.1": r"label_dropout=0\.1 needs labels",
    "train evaluation.n=1": r"evaluation\.n=1 is too few",
    "train evaluation.n=3": r"n=3 is too few samples for precision",
    "train evaluation.extractor=inception": r"inception finds no weights.*download=true",
    "train objective=slice": r"objective=slice is unknown; did you mean objective=sliced",
    "train objective.projections=2": r"objective\.projections=2 .*objective=sliced$",
    "train objective=explicit": r"objective=explicit needs the true score.*data=mixture",
    "train objective=implicit data.image_size=32": r"1024 dimensions.*objective=sliced_vr",
    "train objective.weighting=vlb objective.times=continuous": r"weighting=vlb .*must be levels",
    "train objective.sigma_power=99": r"objective\.sigma_power=99 .*8",
    "train objective.weighting=min_snr objective.sigma_power=0": r"sigma_power=0 .*leave it at 2",
    "train sampler.variance=learned": r"variance=learned needs a model .*objective=hybrid",
    "train objective=hybrid objective.times=continuous": r"times=continuous must be levels",
    "train objective=hybrid objective.weighting=vlb": r"weighting=vlb does not fit",
    "train model=ncsn objective.weighting=likelihood sigma.levels=1": (
        r"is the slope of log-SNR, and with sigma\.levels=1 there is none"
    ),
    "train objective=hybrid schedule=cosine beta.steps=1": r"beta\.steps=1 leaves objective=hybrid",
    "train beta.steps=10": r"beta\.steps=10 is too few .*take more than 20 steps.*schedule=cosine",
    "train sampler.steps=[5,2000]": r"sampler\.steps=\[5, 2000\] takes 2000 levels of a section",
    "train sampler=ddim50 sampler.steps=300": r"sampler\.steps=300 .* are 250 and 334",
    "train objective=hybrid network=mlp_energy data=mixture": r"energy_mlp has no .*network=mlp",
    "sample run={run} sampler=ancestral sampler.variance=learned": r"objective=hybrid",
    "train objective.gamma=0": r"objective\.gamma=0 must be above 0",
    "train objective=sliced hardware.compile=true": r"compile=true cannot differentiate twice",
    "train hardware.compile=cuda_graphs training.accumulate=2": r"accumulate=2 does not go with",
    "train objective=sliced hardware.compile=cuda_graphs": r"compile=cuda_graphs cannot diff",
    "train hardware.devices=two": r"hardware\.devices=two must be a valid integer or",
    "train hardware.nodes=two": r"hardware\.nodes=two must be a valid integer",
    "train -m hardware.devices=two,1": r"hardware\.devices=two must be a valid integer or",
    "train hardware.compile=maybe": r"hardware\.compile=maybe .*cuda_graphs",
    "train network=mlp_energy": r"network=.*energy_mlp does not fit data=digits",
    "train model=ncsn sigma.levels=1 sigma.max=0": r"sigma\.max=0 must be above 0",
    # ground truth has nothing to train
    "train model=oracle steps=5": r"steps=5 does not fit model=oracle, which trains nothing",
    "train model=oracle network.channels=8": r"network\.channels=8 does not fit model=oracle",
    "train model=oracle resume=auto": r"resume continues training, and model=oracle trains nothing",
    "train steps=0": r"steps=0 must be .* 1; only model=oracle trains nothing",
    # likelihoods that there are not
    "train likelihood=flows": r"likelihood=flows is unknown; did you mean likelihood=flow",
    "train likelihood=flow schedule=cosine beta.steps=1": r"needs at least 2 noise levels",
    "train data=mixture likelihood=continuous_bound": r"of bytes.*use likelihood=flow",
    "train data.image_size=32 likelihood=flow likelihood.trace=exact": r"1024 backward passes",
    "train likelihood=flow likelihood.n=1": r"likelihood\.n=1 must be",
    "evaluate run={run} n=9 likelihood=flow likelihood.trace=excat": r"likelihood\.trace=excat",
    "evaluate run={run} n=9 likelihood=discrete_bound likelihood.variance=learned": r"need a model",
    # data that are not there
    "train data=mnist data.root=/nowhere": r"data\.root=/nowhere has no MNIST/raw.*download=true",
    "train data=celeba data.root={here}": r"data\.root=\S+ has no celeba/img_align_celeba",
    "train data=image_folder": r"data\.root is not set.*data\.root=/path/to/images",
    "train data=image_folder data.root={here}/empty": r"data\.root=\S+ has no images",
    # runs and checkpoints that cannot be continued or used
    "train resume=nothing": r"resume=nothing does not exist",
    "train resume={here}/empty": r"resume=\S+ has no checkpoints/last\.ckpt",
    "train resume={here}/cut.ckpt": r"resume=\S+cut\.ckpt is damaged or cut short",
    "train resume={here}/newer.ckpt": rf"format {FORMAT + 1}, written by betasigma 9\.9.*upgrade",
    "train resume={here}/torch.ckpt": r"resume=\S+torch\.ckpt is not a checkpoint of betasigma",
    "train resume={here}/foreign.ckpt steps=9": r"model\._target_=os\.system is not a class that",
    "train resume=3": r"resume=3 must be auto, a run directory or a checkpoint",
    "train -m resume=nothing seed=1,2": r"resume=nothing is no sweep, .* and no run, which has",
    "sample n=4": r"run has no value; give run=",
    "sample run=nothing": r"run=nothing does not exist",
    "sample run={here}/cut.ckpt": r"run=\S+cut\.ckpt is damaged or cut short",
    "sample run={here}/words.txt": r"run=\S+words\.txt is not a checkpoint, or is damaged at",
    "sample run={here}/foreign.ckpt": r"foreign\.ckpt has a config .*model\._target_=os\.system",
    "sample run={here}/headless.ckpt": r"header that is not a betasigma checkpoint's",
    "sample run={run} n=0": r"n=0 must be",
    "sample run={run} seed=null": r"^error: seed=null must be a valid integer",
    "sample run={run} sampler=ddim sampler.steps=0": r"sampler\.steps=0 must be",
    "sample run={run} labels=[3]": r"labels=\[3\] needs a model trained with class labels",
    "sample run={run} labels=all": r"labels=all needs a model trained with class labels",
    "sample run={run} guidance=2": r"guidance=2 needs a model trained with network\.num_classes",
    "evaluate run={run} n=1": r"n=1 must be at least 2",
    "evaluate run={run} ~network": r"~network has no effect: nothing is trained here",
    "evaluate run={run} n=2": r"n=2 is too few samples for precision",
    "compare runs=[nothing]": r"runs=\[nothing\] does not exist: give a run directory",
    "compare runs=nothing": r"runs=\[nothing\] does not exist: give a run directory",
    "compare runs=[{run},{run}]": r"names a run twice",
    "compare runs=[{run}] metrics=[val/objektive]": (
        r"val/objektive.* is in no run; did you mean val/objective"
    ),
    "dashboard runs=nothing": r"runs=\[nothing\] is not a directory",
    "dashboard runs={here}/empty": r"runs=\[\S+empty\] is no run directory and has none in it",
    "dashboard runs={run} dashboard.panels.error.kind=curve": r"kind=curve is .* mean curves\?",
    "dashboard runs={run} dashboard.panels.error.metrics=val/objective": (
        r"must be a valid list: write dashboard\.panels\.error\.metrics=\[val/objective\]$"
    ),
    "train evaluation.metrics=fd": r"must be a valid list: write evaluation\.metrics=\[fd\]$",
    "dashboard runs={run} dashboard.panels.error.metrics=[val/objektive]": (
        r"no run has a metric val/objektive; did you mean val/objective"
    ),
    "dashboard runs={run} dashboard.panels.error.smoothing=2": r"smoothing=2 must be below 1",
    "dashboard runs={run} dashboard.filters.data.name=mnist": (
        r"dashboard\.filters: no run has data\.name=mnist; they have data\.name of digits"
    ),
    "dashboard runs={run} serve=0": r"serve=0 must be",
    # code from elsewhere
    "train model._target_=os.system": r"model\._target_=os\.system is not a class that",
    "train sampler._target_=subprocess.run": r"sampler\._target_=subprocess\.run is not a class",
    # sweeps, of which no job starts when one cannot
    "train -m model=ddpm,ncsn sigma.levels=5": r"^error: sigma\.levels=5 does not fit",
    "train -m seed=1,-2": r"seed=-2 must be",
    "train -m data=digits,mixture": r"different evaluations.*two sweeps",
}
"""Commands, and what they must say."""


SHOWN = {
    "train --help": ["sampler: "],
    "sample --help": ["sampler: "],
    "train model=ncsn --help sigma.levels=7": [
        "levels: 7",
        "schedule: cosine, geometric",
        "train.py -m model=ddpm,ncsn",
    ],
    # help comes before whatever else is asked for
    "train -m --help model=ncsn": ["betasigma:", "levels: 10"],
    "train --cfg hydra --help model=ncsn": ["betasigma:", "levels: 10"],
    "train --info --help model=ncsn": ["betasigma:", "levels: 10"],
    "train -c job -m --help model=ncsn": ["betasigma:", "levels: 10"],
    "train --cfg job model=ncsn sigma.levels=7": ["levels: 7"],
}
"""Commands that only show something, and what they show."""


class Strangers(NamedTuple):
    """Files from elsewhere."""

    folder: Path
    run: Path


def with_header(path: Path, header: Any) -> None:
    """Something that is a checkpoint as far as its header goes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("theirs/data.pkl", b"")
        archive.writestr(f"theirs/{RECORD}", json.dumps(header))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory, ddpm_run: Path) -> Strangers:
    folder = tmp_path_factory.mktemp("strangers")
    (folder / "empty").mkdir()
    last = ddpm_run / "checkpoints" / "last.ckpt"
    (folder / "cut.ckpt").write_bytes(last.read_bytes()[:-2000])
    (folder / "words.txt").write_text("no checkpoint")
    (folder / "text.ckpt").write_text("no archive")
    torch.save({"state_dict": {}}, folder / "torch.ckpt")
    header = torch.load(last, weights_only=True)[HEADER]
    newer = {"format": FORMAT + 1, "version": "9.9", "layout": "unknown here"}
    with_header(folder / "newer.ckpt", newer)
    with_header(folder / "headless.ckpt", {"format": FORMAT})
    model = {**header["config"]["model"], "_target_": "os.system"}
    foreign = {**header, "config": {**header["config"], "model": model}}
    with_header(folder / "foreign.ckpt", foreign)
    return Strangers(folder, ddpm_run)


class Report(NamedTuple):
    outcomes: dict[str, Outcome]
    heavy: list[str]
    left: list[Path]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, strangers: Strangers) -> Report:
    """What came of all commands, in one process."""
    cwd = tmp_path_factory.mktemp("cwd")
    names = {"here": strangers.folder, "run": strangers.run}
    lines = [*BAD, *SHOWN]
    words = [[word.format(**names) for word in line.split()] for line in lines]
    done = subprocess.run(
        [sys.executable, launching.__file__],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        cwd=cwd,
        check=True,
    )
    *outcomes, heavy = json.loads(done.stdout)
    named = {line: Outcome(*outcome) for line, outcome in zip(lines, outcomes, strict=True)}
    return Report(named, heavy, sorted(cwd.rglob("*")))


@pytest.mark.parametrize("line", BAD)
def test_one_sentence_and_status_one(report: Report, line: str) -> None:
    outcome = report.outcomes[line]
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert re.search(BAD[line], outcome.err)
    assert outcome.out == ""


@pytest.mark.parametrize("line", SHOWN)
def test_what_is_asked_for_is_shown(report: Report, line: str) -> None:
    outcome = report.outcomes[line]
    assert (outcome.status, outcome.err) == (0, "")
    for words in SHOWN[line]:
        assert words in outcome.out
    assert outcome.out.startswith("betasigma:") is ("--help" in line)


def test_that_imports_nothing_heavy_and_leaves_nothing_behind(report: Report) -> None:
    assert report.heavy == []
    assert report.left == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Adamm", r"is not a class or function of torch\.optim.*did you mean torch\.optim\.Adam"),
        ("LBFGS", r"take an optimizer whose step\(\) needs no closure"),
        ("SparseAdam", r"takes sparse gradients alone.*e\.g\. torch\.optim\.Adam"),
    ],
)
def test_optimizers_that_torch_lacks_or_that_need_more(
    here: Path, name: str, sentence: str
) -> None:
    """Only PyTorch knows its optimizers, so that it is asked."""
    outcome = launching.launch("train", f"optimizer._target_=torch.optim.{name}")
    assert outcome.status == 1
    assert re.search(rf"error: optimizer\._target_=torch\.optim\.{name} .*{sentence}", outcome.err)
    assert list(here.iterdir()) == []


def typed(*words: str, cwd: Path, **environment: str) -> Any:
    """A command as a user types it, with what it imported as ``modules``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    done.modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done


def test_as_typed(tmp_path: Path) -> None:
    done = typed("model=ncsn", "sigma.levels=0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: sigma.levels=0 must be at least 1 or be 'auto'"
    assert done.stdout == ""
    assert not done.modules & set(launching.HEAVY)
    assert list(tmp_path.iterdir()) == []


def sample(*_: object) -> None:
    print("drawn", flush=True)


@pytest.mark.parametrize(
    "words", ["train --help", "train -sc install=bash", "sample n=1", "compare", "-h"]
)
def test_a_command_whose_reader_has_gone_ends(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """As that of ``--help | head`` does; also one whose text has filled the pipe before."""
    app, *rest = words.split()
    runs = {"sample": [f"run={ddpm_run}"], "compare": [f"runs=[{ddpm_run}]"]}
    monkeypatch.setattr("betasigma.commands.sample.sample", sample)
    monkeypatch.setattr(sys, "argv", ["betasigma", app, *runs.get(app, ()), *rest])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 128 + signal.SIGPIPE
    if app == "sample":
        (status,) = here.glob("outputs/*/status.json")
        assert json.loads(status.read_text())["status"] == "interrupted"


def test_another_pipe_that_breaks_is_an_error(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("betasigma.commands.sample.sample", Mock(side_effect=BrokenPipeError))
    outcome = launch("sample", f"run={ddpm_run}")
    assert outcome.status == 1
    assert "BrokenPipeError" in outcome.err


def test_tracebacks_on_request(tmp_path: Path) -> None:
    done = typed("batch_size=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "batch_size=0 must be" in done.stderr


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_a_stranger_s_pickle_is_not_executed(here: Path, ddpm_run: Path) -> None:
    contents = torch.load(ddpm_run / "checkpoints" / "last.ckpt", weights_only=True)
    contents["state_dict"]["average.bomb"] = Bomb(here / "exploded")
    torch.save(contents, here / "bomb.ckpt")  # as a stranger does: save() would refuse it
    append_header(here / "bomb.ckpt", contents[HEADER])
    pickle.loads(pickle.dumps(Bomb(here / "armed")))
    assert (here / "armed").exists()

    with pytest.raises(UserError, match="nothing in it was executed"):
        betasigma.load(here / "bomb.ckpt")
    for app, key in (("sample", "run=bomb.ckpt"), ("train", "resume=bomb.ckpt")):
        outcome = launch(app, key, *(["steps=9"] if app == "train" else ["n=1"]))
        assert outcome.status == 1
        assert outcome.out == ""
        assert outcome.err.startswith(f"error: {key} holds something other than plain tensors")
        assert outcome.err.count("\n") == 1
    assert not (here / "exploded").exists()
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_seen_without_running_it(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "bomb.ckpt"
    for content, plain in ((Bomb(tmp_path / "exploded"), False), ({"step": 1}, True)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bomb/data.pkl", pickle.dumps(content, protocol))
        if plain:
            check_plain(path)
        else:
            with pytest.raises(UserError, match="nothing in it was executed"):
                check_plain(path)
    assert not (tmp_path / "exploded").exists()


def test_a_run_is_not_continued_from_weights_alone(here: Path, ddpm_run: Path) -> None:
    contents = torch.load(ddpm_run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = {name: contents[name] for name in ("state_dict", HEADER)}
    save(kept, here / "weights.ckpt")
    outcome = launch("train", "resume=weights.ckpt", "steps=9")
    assert outcome.status == 1
    assert re.match(r"error: resume=weights\.ckpt cannot be continued: it has no", outcome.err)
    assert outcome.err.count("\n") == 1


def test_what_is_built_is_what_the_checked_header_says(here: Path, ddpm_run: Path) -> None:
    """The pickled copy of the header is for others; nobody checked it."""
    contents = torch.load(ddpm_run / "checkpoints" / "last.ckpt", weights_only=True)
    save(contents, here / "two.ckpt")
    contents[HEADER] = {**contents[HEADER], "config": {"model": {"_target_": "os.system"}}}
    torch.save(contents, here / "inner.ckpt")
    with (
        zipfile.ZipFile(here / "two.ckpt") as one,
        zipfile.ZipFile(here / "inner.ckpt", "a") as other,
    ):
        record = next(name for name in one.namelist() if name.endswith(RECORD))
        other.writestr(f"inner/{RECORD}", one.read(record))
    denoiser, _ = betasigma.load(here / "inner.ckpt")
    assert denoiser.sample_shape == (1, 8, 8)


def test_weights_that_do_not_fit_their_config(here: Path, ddpm_run: Path) -> None:
    contents = torch.load(ddpm_run / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(name for name in contents["state_dict"] if name.startswith("average."))
    contents["state_dict"][name] = torch.zeros(1)
    save(contents, here / "odd.ckpt")
    with pytest.raises(UserError, match="weights that do not fit its config"):
        betasigma.load(here / "odd.ckpt")
