"""What somebody types who plugs in a class for the first time, and what the answer says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launching import TINY, launch
from omegaconf import OmegaConf

from betasigma.launch.command_line import as_path

LAB = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels: int, width: int = 4):
        super().__init__()
        self.a = nn.Conv2d(in_channels, width, 3, padding=1)
        self.b = nn.Conv2d(width, in_channels, 3, padding=1)
    def forward(self, x, c_noise, y=None):
        return self.b(self.a(x).relu())

class Broadcast(Net):
    def forward(self, x, c_noise, y=None):
        return super().forward(x, c_noise).mean((1, 2, 3), keepdim=True)

class Pair(Net):
    def forward(self, x, c_noise, y=None):
        return super().forward(x, c_noise), 0

def ten():
    return np.arange(640, dtype=np.uint8).reshape(10, 8, 8)

def words():
    return ten(), np.array(list("ababababab"))
"""
SMALL = tuple(word for word in TINY if not word.startswith(("network.", "evaluation")))


@pytest.fixture(autouse=True)
def lab(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "firstlab").mkdir()
    (here / "firstlab" / "__init__.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(here))


def network(name: str) -> tuple[str, ...]:
    return (*SMALL, "plugins=[firstlab]", f"network._target_=firstlab.{name}", "evaluation=none")


@pytest.mark.parametrize(("name", "found"), [("Broadcast", r"\(16, 1, 1, 1\)"), ("Pair", "tuple")])
def test_a_network_that_returns_something_else(name: str, found: str) -> None:
    outcome = launch("train", *network(name))
    assert outcome.status == 1
    sentence = rf"error: network={name} returned {found} for an input of shape \(16, 1, 8, 8\)"
    assert re.search(sentence, outcome.err)
    assert "Traceback" not in outcome.err


SENTENCES = {
    "train plugins=[firstlab] network._target_=firstlab.Net network.width=4": (
        r"network\.width=4 is no key that network has yet: \+network\.width=4 adds it"
    ),
    "train network=tiny": r"network=tiny is unknown; .* of a package of your own needs plugins=",
    "train resume=somewhere data.source.size=4": r"data\.source\.size=4 .* continues a run",
    "train resume=somewhere network.width=4": r"network\.width=4 .* resume=… continues a run",
    "sample run=somewhere sampler.steps=4": r"sampler\.steps=4 needs a sampler beside it: give",
    "edit run=somewhere edit=vary sampler.steps=4": r"sampler\.steps=4 needs a sampler beside it",
    "plot figure=filmstrip runs=[a] sampler.steps=4": r"sampler\.steps=4 needs a sampler beside it",
    "train model=ncsn sigma.levels=1 sampler=ddim sampler.steps=5000": (
        r"sampler\.steps=5000 has no effect on a model of one noise level"
    ),
    "train denoiser.off_levels=refuse sampler=ddim sampler.steps=1200": (
        r"sampler\.grid=levels with sampler\.steps=1200 visits times between .* 1000 noise levels"
    ),
    "train denoiser.off_levels=refuse sampler=heun": (
        r"sampler\.grid=karras .*denoiser\.off_levels=refuse"
    ),
    "evaluate run=a data.source.size=9": r"data\.source\.size=9 is unknown: there is no key",
    "train network.chanels=4 sampler.stpes=4": r"network\.chanels=4 is unknown: UNet takes num_cl",
    "train model.family=ncsn": r"model\.family=ncsn is unknown: .* write model=ncsn",
    "evaluate run=somewhere evaluation.n=16": r"evaluation\.n=16 has no effect outside training: n",
    "evaluate images=a reference=b data.root=c": (
        r"data\.root=c has no effect: images=… and reference=… are compared as they are"
    ),
    "evaluate images=a reference=b data.image_size=16": (
        r"data\.image_size=16 has no effect: images=… and reference=… are compared as they are"
    ),
    "evaluate run=a images=b data.image_size=16": (
        r"data\.image_size=16 has no effect: the data of run=… are prepared as in training"
    ),
    "sample run=a data.image_size=16": (
        r"data\.image_size=16 has no effect: the data of run=… are prepared as in training"
    ),
    "evaluate images=a data.image_size=16": (
        r"data\.image_size=16 needs a data set to compare .* beside it: give data=image_folder, say"
    ),
    "train data=array data.root=.": r"data\.root=\. is a folder: data=image_folder reads",
    "evaluate -m resume=sweep": r"resume=sweep is of train alone; .* hydra\.sweep\.dir=sweep$",
    "sample run=a save=npz out=b": r"out=b belongs to save=folder; .* hydra\.run\.dir=… would name",
    "train data.mixture=two": r"data\.mixture=two does not apply to data=digits: remove it",
    "train plugins=[firstlab] data.name=ten +data.source._target_=firstlab.ten data.mixture=two": (
        r"data\.mixture=two does not apply to a data set of one's own"
    ),
    "train plugins=[firstlab] data.name=x +data.source._target_=firstlab.ten data.download=true": (
        r"data\.download=true does not apply to a data set of one's own"
    ),
    "train plugins=[firstlab] data.name=ten +data.source._target_=firstlab.words": (
        r"data\.source: words: labels of shape .* do not fit 10 examples; there must be an integer"
    ),
}


@pytest.mark.parametrize("words", SENTENCES)
def test_one_sentence(here: Path, words: str) -> None:
    outcome = launch(*words.split())
    assert outcome.status == 1
    assert re.match(f"error: .*{SENTENCES[words]}", outcome.err), outcome.err
    assert not (here / "outputs").exists()


def test_too_few_examples_are_told_before_training() -> None:
    source = ("data.name=ten", "+data.source._target_=firstlab.ten", "evaluation.n=16")
    outcome = launch("train", *SMALL, "plugins=[firstlab]", *source)
    assert outcome.status == 1
    assert "error: data=ten has 1 test example, and metrics compare with at least 2" in outcome.err
    assert "training 6/6" not in outcome.out


def test_paths_of_jobs_need_no_quotes(here: Path) -> None:
    for name in ("lr=0.1,decay=0.9", "lr=0.2"):
        (here / "outputs" / name).mkdir(parents=True)
    a, b = "outputs/lr=0.1,decay=0.9", "outputs/lr=0.2"
    assert as_path(f"runs=[{a},{b}]") == f"runs=['{a}','{b}']"
    assert as_path(f"run={a},{b}") == f"run='{a}','{b}'"
    assert as_path(f"run={b}") == f"run='{b}'"
    assert as_path("run=outputs/lr=0.3") == "run=outputs/lr=0.3"


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("name=Größe", "name='Größe'"),
        ("name=ä,ö", "name='ä','ö'"),
        ("tags=[ü, b]", "tags=['ü','b']"),
        ("tags=[a,b]", "tags=[a,b]"),
        ("name='ä','ö'", "name='ä','ö'"),
        ("x={a:ü}", "x={a:ü}"),
    ],
)
def test_values_with_letters_beyond_ascii_need_no_quotes(typed: str, taken: str) -> None:
    assert as_path(typed) == taken


@pytest.mark.slow
def test_a_sweep_over_names_with_letters_beyond_ascii(here: Path) -> None:
    outcome = launch("train", "-m", *SMALL, "name=ä,ö", "tags=[ü]", "hydra.sweep.dir=sweep")
    assert outcome.status == 0, outcome.err
    runs = [OmegaConf.load(path) for path in sorted(Path("sweep").glob("*/config.yaml"))]
    assert [(run.name, list(run.tags)) for run in runs] == [("ä", ["ü"]), ("ö", ["ü"])]
