"""The commands of docs/reproduce.md are made of keys and groups that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch
from pipelines import save_pipeline

from betasigma.data import catalog, sources
from betasigma.evaluation.choice import checkpoint_dir
from betasigma.runs.record import Record

PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (?:scripts/)?(\w+)\.py (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("app", "typed"), COMMANDS)
def test_a_command_is_composed(here, app: str, typed: str) -> None:
    words = [word for word in shlex.split(typed) if word != "-m"]
    words = [word.partition(",")[0] if word.startswith("sampler=") else word for word in words]
    outcome = launch(app, *words, "--cfg", "job")
    assert outcome.status == 0, outcome.err
    if app == "train":
        assert "_target_: betasigma.networks" in outcome.out


class FewPictures:
    """CIFAR-10 as torchvision has it, of 6 images a split."""

    def __init__(self, root: Path, train: bool = True) -> None:
        draws = np.random.default_rng(int(train))
        self.data = draws.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        self.targets = [number % 10 for number in range(6)]


@pytest.fixture
def published(here: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands of the page name, small: the folder of a pipeline of 100 levels with
    random weights, the data, and random weights of Inception where a download would put them.
    """
    torch.manual_seed(0)
    folder = here / "ddpm-ema-cifar10-32"
    save_pipeline(folder, image_size=32, levels=100)
    for file in catalog.describe("cifar10").files:
        (here / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (here / "data" / file).write_bytes(b"")
    monkeypatch.setattr(sources, "_torchvision_class", lambda name: FewPictures)
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    weights = checkpoint_dir()
    weights.mkdir(parents=True)
    (weights / inception_file.name).symlink_to(inception_file)
    return folder


@pytest.mark.slow
def test_the_evaluations_measure_what_they_say(published: Path) -> None:
    """As they stand on the page, of 10 samples (4 without the Inception score) for 50,000, and 2
    images for 10,000.
    """
    evaluations = [typed for app, typed in COMMANDS if app == "evaluate"]
    assert len(evaluations) == 3
    for typed in evaluations:
        few = "n=10" if "[fd,is]" in typed else "n=4"
        small = typed.replace("n=50000", few).replace("n=10000", "n=2")
        outcome = launch("evaluate", *shlex.split(small), "error_curve=0")
        assert outcome.status == 0, outcome.err
    (run,) = Path("outputs/imported").iterdir()
    rows = [(row["metric"], row["sampler"]) for row in Record.of(run).rows()]
    measured = {metric.removeprefix("eval/") for metric, _ in rows}
    assert {"fid", "is_inception", "bits_per_dim/discrete_bound/total_test"} <= measured
    assert {how.partition(" ")[0] for metric, how in rows if metric == "eval/fid"} == {
        *("ancestral", "ddim", "dpm_solver")
    }


KEYS = re.findall(r"`((?:sampler|likelihood|objective|evaluation)\.\w+)", PAGE)


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_a_key_is_there(here, key: str) -> None:
    group = key.partition(".")[0]
    chosen = {"sampler": ["sampler=dpm_solver"], "likelihood": ["likelihood=ddpm_bound"]}
    outcome = launch("train", *chosen.get(group, []), "--cfg", "job")
    assert re.search(rf"^  {key.rpartition('.')[2]}:", outcome.out, re.MULTILINE), key


def test_every_shipped_experiment_is_on_the_page() -> None:
    known = {path.stem for path in (ROOT / "conf/experiment").glob("*_*.yaml")}
    papers = {name for name in known if not name.startswith(("mnist", "ddpm_celeba"))}
    assert papers == set(re.findall(r"experiment=(\w+)", PAGE))
