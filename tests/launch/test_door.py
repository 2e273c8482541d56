"""The door for outside code: nothing of a package is imported unless the user has let it in."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import TINY, Outcome, launch
from torch import nn

import betasigma
from betasigma.commands import config
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.options.base import dump, parse_component
from betasigma.runs.header import read_header

INIT = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
__version__ = "3.1"
"""
NETS = """
from functools import cache

from torch import nn


class Plain(nn.Module):
    def __init__(self, in_channels: int, width: int = 4, out_channels: int | None = None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, out_channels or in_channels, 3, padding=1),
        )

    def forward(self, x, c_noise, y=None):
        return self.layers(x)


class Broken(Plain):
    def forward(self, x, c_noise, y=None):
        raise ZeroDivisionError("a bug of the author's")


class Narrow(Plain):
    def forward(self, x, c_noise):
        return self.layers(x)


class Wide(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()

    def forward(self, x, c_noise, y=None):
        return x


class Fixed(nn.Module):
    def forward(self, x, c_noise, y=None):
        return x


@cache
def tensor():
    return 3


def flow(probes: int = 4):
    return probes
"""
HALVES = """
from betasigma.evaluation.features import FeatureExtractor
from betasigma.evaluation.metrics import SampleMetric
from betasigma.objectives import Objective
from betasigma.samplers import Sampler
from betasigma.schedules import NoiseSchedule


class Steps(Sampler):
    def steps(self, model, x, t, s, rng):
        return x


class Loss(Objective):
    def forward(self, denoiser, noised, rng):
        return noised.eps


class Noise(NoiseSchedule):
    prior_std = 1.0

    def __init__(self):
        super().__init__([1.0, 0.0])

    def _sigma(self, log_snr):
        return log_snr


class Score(SampleMetric):
    name, needs = "score", "images"


class Features(FeatureExtractor):
    name, dim, fingerprint = "features", 2, "0"
"""
FILES = {
    "__init__.py": INIT,
    "nets.py": NETS,
    "halves.py": HALVES,
    "late.py": "import no_such_module_at_all",
    "conf/network/plain.yaml": "# A plain network\n_target_: spy.nets.Plain\nwidth: 4\n",
}
RUN = (*TINY[4:], "network=plain")
MEASURED = ("evaluation.n=4", "evaluation.metrics=[fd]")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("spy", "evil")]:
        del sys.modules[name]


@pytest.fixture
def spy(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package in the user's folder; its file ``imported`` appears when it is imported."""
    monkeypatch.setattr(plugins, "_allowed", {})
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    write(here / "spy", FILES)
    monkeypatch.syspath_prepend(str(here))
    forget()
    yield here / "spy"
    forget()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network of that package."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_allowed", {})
        patch.chdir(folder)
        write(folder / "spy", FILES)
        patch.syspath_prepend(str(folder))
        forget()
        outcome = launch("train", "plugins=[spy]", *RUN, "hydra.run.dir=run")
        assert outcome.status == 0, outcome.err
    forget()
    return folder / "run"


@pytest.fixture
def run(kept: Path, spy: Path) -> Path:
    """The run where the user stands, whose package nobody has let in yet."""
    return Path(shutil.copytree(kept, "run"))


def is_imported(spy: Path) -> bool:
    return (spy / "imported").exists() or "spy" in sys.modules


def refused(outcome: Outcome) -> str:
    """The one sentence of a refusal."""
    assert outcome.status == 1, outcome.out
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    return outcome.err


# ------------------------------------------------------------------ without consent


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "run=run", "n=2"),
        ("sample", "run=run/checkpoints/last.ckpt", "n=2"),
        ("sample", "run=run", "sampler.steps=2"),  # which lacks a sampler too
        ("evaluate", "run=run"),
        ("train", "resume=run", "steps=8"),
    ],
)
def test_a_run_lets_nothing_in(run: Path, spy: Path, words: tuple[str, ...]) -> None:
    told = refused(launch(*words))
    assert "was trained with spy 3.1" in told
    assert "add plugins=[spy] (or set BETASIGMA_PLUGINS=spy) if you trust it" in told
    assert not is_imported(spy)


def test_loading_lets_nothing_in(run: Path, spy: Path) -> None:
    with pytest.raises(UserError, match=r'was trained with spy 3\.1: .* add plugins=\["spy"\]'):
        betasigma.load(run)
    with pytest.raises(UserError, match=r'^plugins=\["spi"\] cannot be imported: there is no'):
        betasigma.load(run, plugins="spi")
    assert not is_imported(spy)


def test_a_typed_class_lets_nothing_in(spy: Path) -> None:
    told = refused(launch("train", *TINY[4:], "network._target_=spy.nets.Plain"))
    assert "network._target_=spy.nets.Plain is code of the package spy" in told
    assert not is_imported(spy)


@pytest.mark.parametrize("words", [(), ("-m", "seed=1,2"), ("--help",)])
def test_a_config_lets_nothing_in(spy: Path, words: tuple[str, ...]) -> None:
    text = "# @package _global_\nplugins: [spy]\nnetwork:\n  _target_: spy.nets.Plain\n"
    write(Path("got"), {"experiment/theirs.yaml": text})
    outcome = launch("train", "--config-dir", "got", "experiment=theirs", *words)
    if "--help" not in words:
        assert "stands in a config, and only the person who runs" in refused(outcome)
    assert not is_imported(spy)


def test_a_choice_of_a_sweep_lets_nothing_in(spy: Path) -> None:
    text = "# @package _global_\nplugins: [spy]\n"
    write(Path("got/experiment"), {"one.yaml": text, "two.yaml": "# @package _global_\n"})
    outcome = launch("train", "--config-dir", "got", "-m", "experiment=one,two", *TINY)
    assert "plugins=[spy] stands in a config" in refused(outcome)
    assert not is_imported(spy)


HOOK = "hydra:\n  callbacks:\n    theirs:\n      _target_: spy.nets.tensor\n"
HANDLER = "hydra:\n  hydra_logging:\n    handlers:\n      theirs:\n        class: spy.nets.Plain\n"
JOB = "hydra:\n  job_logging:\n    handlers:\n      theirs:\n        (): spy.nets.tensor\n"
VARIABLE = "hydra:\n  job:\n    env_set:\n      BETASIGMA_PLUGINS: spy\n"


@pytest.mark.parametrize("text", [HOOK, HANDLER, JOB, VARIABLE])
@pytest.mark.parametrize("words", [(), ("-m", "seed=1,2")])
def test_hydra_runs_nothing_that_a_config_names(
    spy: Path, text: str, words: tuple[str, ...]
) -> None:
    write(Path("got/experiment"), {"theirs.yaml": f"# @package _global_\n{text}"})
    outcome = launch("train", "--config-dir", "got", "experiment=theirs", *words, *TINY)
    assert "stands in a config" in refused(outcome)
    assert not is_imported(spy)


def test_a_choice_of_a_sweep_has_hydra_run_nothing(spy: Path) -> None:
    text = f"# @package _global_\n{JOB}"
    write(Path("got/experiment"), {"one.yaml": text, "two.yaml": "# @package _global_\n"})
    outcome = launch("train", "--config-dir", "got", "-m", "experiment=two,one", *TINY)
    assert "spy.nets.tensor stands in a config" in refused(outcome)
    assert not is_imported(spy)


def test_hydra_looks_for_configs_in_no_package_that_a_config_names(spy: Path) -> None:
    text = "defaults: [train, _self_]\nhydra:\n  searchpath: [pkg://spy.conf]\n"
    write(Path("got"), {"theirs.yaml": text})
    outcome = launch("train", "--config-dir", "got", "--config-name", "theirs", *TINY)
    assert "hydra.searchpath=[pkg://spy.conf] stands in a config" in refused(outcome)
    assert not is_imported(spy)


@pytest.mark.parametrize("name", ["os", "json", "torch", "numpy", "betasigma", "hydra"])
def test_what_belongs_to_python_and_the_libraries_is_no_plugin(here: Path, name: str) -> None:
    told = refused(launch("train", f"plugins=[{name}]"))
    assert f"plugins=[{name}] is no package of your own" in told


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "torch.load", "spy.nets.nn.Linear", "eval"]
)
def test_no_consent_reaches_beyond_the_package(spy: Path, target: str) -> None:
    words = ("plugins=[spy]", f"network._target_={target}")
    told = refused(launch("train", *words))
    assert f"network._target_={target} is not" in told


# ------------------------------------------------------------------ with consent


def test_the_command_line_lets_in(run: Path, spy: Path) -> None:
    assert read_header(run / "checkpoints" / "last.ckpt")["plugins"] == {"spy": "3.1"}
    outcome = launch("sample", "plugins=[spy]", "run=run", "n=2", "hydra.run.dir=drawn")
    assert outcome.status == 0, outcome.err
    assert is_imported(spy)


def test_all_packages_that_a_run_needs_are_named_at_once(
    run: Path, spy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, key: str) -> dict[str, Any]:
        header = read_header(path, key)
        return {**header, "plugins": {**header["plugins"], "lab": "0.2"}}

    monkeypatch.setattr(config, "read_header", read)
    told = refused(launch("sample", "run=run", "n=2", "hydra.run.dir=drawn"))
    assert "was trained with spy 3.1 and lab 0.2: " in told
    assert "add plugins=[spy,lab] (or set BETASIGMA_PLUGINS=spy,lab) if you trust them" in told


def test_printed_commands_let_in_what_this_one_did(spy: Path) -> None:
    outcome = launch("train", "plugins=[spy]", *RUN)
    assert outcome.status == 0, outcome.err
    printed = [line for line in outcome.out.splitlines() if "python " in line]
    assert len(printed) == 3
    assert all("'plugins=[spy]'" in line for line in printed)


def test_a_notebook_lets_in(run: Path, spy: Path) -> None:
    denoiser, sampler = betasigma.load(run, plugins=["spy"])
    assert sampler.sample(denoiser, 2).x.shape == (2, 1, 8, 8)
    assert is_imported(spy)


def test_training_in_a_notebook_lets_in(spy: Path) -> None:
    finished = betasigma.train("plugins=[spy]", *RUN, "hydra.run.dir=mine")
    assert type(finished.denoiser.network).__name__ == "Plain"


def test_the_environment_lets_in(run: Path, spy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "spy")
    outcome = launch("sample", "run=run", "n=2", "hydra.run.dir=drawn")
    assert outcome.status == 0, outcome.err


def test_an_installed_package_lets_itself_in(
    run: Path, spy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        Path("spy-3.1.dist-info"),
        {
            "METADATA": "Metadata-Version: 2.1\nName: spy\nVersion: 3.1\n",
            "entry_points.txt": "[betasigma.plugins]\nspy = spy\n",
            "top_level.txt": "spy\n",
        },
    )
    anew = plugins._named_by_entry_points.__wrapped__
    monkeypatch.setattr(plugins, "_named_by_entry_points", anew)
    outcome = launch("sample", "run=run", "n=2", "hydra.run.dir=drawn")
    assert outcome.status == 0, outcome.err


def test_every_job_of_a_sweep_lets_in(spy: Path) -> None:
    outcome = launch("train", "plugins=[spy]", "-m", "network.width=2,3", *RUN)
    assert outcome.status == 0, outcome.err


def test_another_version_is_told(run: Path, spy: Path) -> None:
    write(spy, {"__init__.py": INIT.replace("3.1", "4.0")})
    with pytest.warns(UserWarning, match=r"was trained with spy 3\.1, now 4\.0"):
        betasigma.load(run, plugins=["spy"])


# ------------------------------------------------------------------ one sentence each


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("network.widht=5",), "network.widht=5 is unknown: Plain takes width (did you mean"),
        (("+network.widht=5",), "network.widht=5 is unknown: Plain takes width"),
        (("+network.in_channels=3",), "network.in_channels=3 cannot be chosen here: every network"),
        (("network._target_=spy.nets.tensor", "+network.x=1"), "x=1 is unknown: tensor takes"),
        (("network.width=wide",), "network.width=wide must be a valid integer"),
        (("network.width='8'",), "network.width=8 must be of type int"),
        (("network.width=true",), "network.width=true must be of type int"),
        (("network.width=8.0",), "network.width=8.0 must be of type int"),
        (("network._target_=spy.nets.Plane",), "did you mean spy.nets.Plain?"),
        (("network._target_=spy.nest.Plain",), "there is no module spy.nest"),
        (("schedule._target_=spy.nets.Plain",), "schedule takes a class of betasigma.schedules"),
        (("+callbacks.x._target_=os.system",), "choose a class of pytorch_lightning.callbacks, or"),
        (("+network.width=5",), "adds a key that is there already: write network.width=5"),
        (("data=mixture",), "data=mixture: it takes images, and these are points"),
        (("network._target_=spy.nets.Wide", "++network.width=4"), "it takes points, and these are"),
        (("network._target_=spy.nets.Wide", "data=mixture"), "needs one: give ++network.width=…"),
        (("network=plane",), "did you mean network=plain?"),
        (("plugins=[spi]",), "plugins=[spi] cannot be imported: there is no package spi"),
        (("plugins=[spy,'a b']",), "plugins=[a b] is not the name of a package"),
    ],
)
def test_one_sentence(spy: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(launch("train", "plugins=[spy]", *RUN, *words))
    assert not Path("outputs").exists()


def test_a_package_whose_configs_are_missing_says_so(spy: Path) -> None:
    """An installed one without its data files, or a module of the package in its place."""
    told = refused(launch("train", "plugins=[spy.nets]", *RUN))
    assert told.endswith("; there is no folder conf in spy.nets\n")


def test_what_is_measured_has_its_defaults_beside_a_class_of_ones_own(spy: Path) -> None:
    plugins.allow(["spy"])
    own = {"_target_": "spy.nets.flow", "probes": 2}
    expected = {"prior": "moments", "n": 64, "split": "test", "batch_size": 64}
    assert dump(parse_component("likelihood", own)) == {**own, **expected}


def test_a_package_whose_options_fail_is_not_let_in(spy: Path) -> None:
    """The error is the author's to see, every time."""
    write(spy, {"options.py": "raise ZeroDivisionError('in the options')"})
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="in the options"):
            plugins.allow(["spy"])
    assert plugins.allowed() == ()


@pytest.mark.parametrize("second", [False, True])
def test_no_config_hides_another_of_the_same_name(spy: Path, second: bool) -> None:
    """Of two files of one name Hydra takes the first it finds, whichever was meant."""
    package, name = ("other", "plain") if second else ("spy", "unet_8")
    file = f"{package}/conf/network/{name}.yaml"
    write(spy.parent, {f"{package}/__init__.py": "", file: "_target_: spy.nets.Plain\n"})
    told = refused(launch("train", "plugins=[spy,other]" if second else "plugins=[spy]", *RUN))
    assert f"{file} has the name of " in told
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("network._target_=spy.nets.tensor",), "gives int, and network takes a torch Module"),
        (("network._target_=spy.nets.Narrow",), "has forward(x, c_noise), and a network is called"),
        (("network._target_=spy.nets.Fixed",), "spy.nets.Fixed has no parameters to train"),
        (("sampler._target_=spy.halves.Steps",), "Steps must define step or trajectory, which Sa"),
        (("objective._target_=spy.halves.Loss",), "Loss must define value or loss, which Objectiv"),
        (("schedule._target_=spy.halves.Noise",), "Noise must define _alpha, which NoiseSchedule"),
        ((*MEASURED, "evaluation.metrics=[spy.halves.Score]"), "must define compute, which Sample"),
        (
            (*MEASURED, "evaluation.extractor=spy.halves.Features"),
            "define features_and_logits, whi",
        ),
        (("optimizer._target_=torch.optim.Muon",), "Muon cannot be made: Muon only supports 2D"),
        (("+likelihood._target_=spy.nets.flow",), "gives int, which has no name and no settings"),
    ],
)
def test_what_is_made_is_of_its_kind(spy: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(launch("train", "plugins=[spy]", *TINY[4:], *words))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_network_that_torchscript_has_traced_is_not_asked_for_a_signature() -> None:
    traced = torch.jit.trace(nn.Identity(), torch.ones(1))
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(traced.forward)
    assert plugins.other_signature(traced.forward, "x", "c_noise", "y") == ""


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("spy.nets.Broken", "ZeroDivisionError: a bug of the author's"),
        ("spy.late.Net", "No module named 'no_such_module_at_all'"),
    ],
)
def test_an_exception_of_theirs_keeps_its_traceback(spy: Path, target: str, error: str) -> None:
    outcome = launch("train", "plugins=[spy]", *RUN, f"network._target_={target}")
    assert outcome.status == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert error in outcome.err
    assert str(spy) in outcome.err


def test_help_knows_what_a_package_adds(spy: Path) -> None:
    outcome = launch("train", "plugins=[spy]", "network=plain", "--help")
    assert outcome.status == 0, outcome.err
    assert "plain" in outcome.out
    assert "width: 4" in outcome.out
    outcome = launch("train", "plugins=[spy]", "-m", "network=glob(pl*)", *TINY[4:])
    assert outcome.status == 0, outcome.err


def test_a_package_that_lists_no_files_has_the_version_of_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "listless-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: listless\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text("[betasigma.plugins]\nlistless = listless\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = {"network": {"_target_": "listless.nets.Net"}}
    assert plugins.versions(content) == {"listless": "0.7"}
