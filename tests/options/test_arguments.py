"""A config names classes of one's own: their arguments are checked, their packages recorded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Unpack

import pytest

import betasigma
from betasigma.build import make
from betasigma.errors import UserError
from betasigma.options import plugins
from betasigma.options.base import REGISTRY, parse_component
from betasigma.options.edits import InpaintingOptions
from betasigma.options.evaluation import MetricOptions
from betasigma.options.plugins import check_arguments, versions
from betasigma.runs.record import format_settings
from betasigma.samplers import DDIM, Sampler
from betasigma.samplers.sampler import GridArguments


class Mine(Sampler):
    def __init__(self, strength: float = 1.0, **options: Unpack[GridArguments]) -> None:
        super().__init__(**options)
        self.strength = strength


STEP = "    def step(self, model, x, t, s, rng):\n        return x\n"


class Anything:
    def __init__(self, strength: float = 1.0, **options: Any) -> None:
        self.options = options


def test_what_options_unpack_is_known_by_name_and_type() -> None:
    check_arguments(Mine, {"strength": 2.0, "grid": "karras", "rho": 5.0}, "sampler")
    unknown = r"^sampler\.rhos=5 is unknown: Mine takes strength, .*did you mean sampler\.rho\?"
    with pytest.raises(UserError, match=unknown):
        check_arguments(Mine, {"rhos": 5}, "sampler")
    with pytest.raises(UserError, match=r"^sampler\.grid=kerras must be 'levels'"):
        check_arguments(Mine, {"grid": "kerras"}, "sampler")


def test_options_without_a_type_may_be_anything() -> None:
    check_arguments(Anything, {"rhos": 5}, "sampler")
    with pytest.raises(UserError, match=r"^sampler\.strength=big must be a valid number"):
        check_arguments(Anything, {"strength": "big"}, "sampler")


HANDING_ON = """
from betasigma.samplers import DDIM

class Own(DDIM):
    def __init__(self, strength=1.0, **options):
        super().__init__(**options)

class Wrong(DDIM):
    def __init__(self, strength=1.0):
        super().__init__(strength=strength)
"""


def test_what_options_without_a_type_hand_on_in_vain_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python's TypeError named a class of ours, and not the key."""
    (tmp_path / "handing.py").write_text(HANDING_ON, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", {"handing": None})
    node = {"_target_": "handing.Own", "steps": 5}
    assert make(node, "sampler").steps == 5
    unknown = r"^sampler\.setps=5 is unknown: no class takes it that handing\.Own hands it to$"
    with pytest.raises(UserError, match=unknown):
        make({**node, "setps": 5}, "sampler")
    with pytest.raises(TypeError, match="unexpected keyword argument 'strength'"):
        make({"_target_": "handing.Wrong", "strength": 2}, "sampler")  # a bug of its own


def test_packages_of_metrics_and_features_that_are_named_by_a_string_are_recorded() -> None:
    evaluation = {
        "metrics": ["fd", "onelab.Sliced", {"_target_": "twolab.Peaks"}],
        "extractor": "threelab.features.Clip",
    }
    assert versions({"evaluation": evaluation}).keys() == {"onelab", "twolab", "threelab"}
    assert versions({"evaluation": {"metrics": ["fd"], "extractor": "auto"}}) == {}


def test_what_a_class_without_an_options_model_says_of_itself_is_checked_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps cannot be repeated: no configuration file says so, and no options model."""
    body = "from betasigma.samplers import Sampler\nclass Walk(Sampler):\n    repeatable = False\n"
    body += STEP
    (tmp_path / "walklab.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.allow(["walklab"])
    sampler = parse_component("sampler", {"_target_": "walklab.Walk"})
    with pytest.raises(UserError, match=r"^edit\.repeats=2 does not go with sampler=Walk"):
        InpaintingOptions.check(repeats=2).check_sampler(sampler)


def test_a_class_and_its_options_model_say_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks ask the model, and the run the class: ``repeatable``, which only the class has."""
    (tmp_path / "striding").mkdir()
    (tmp_path / "striding" / "__init__.py").write_text(
        "from betasigma.samplers import Sampler\n"
        f"class Stride(Sampler):\n    repeatable = False\n{STEP}"
        f"class Told(Sampler):\n    repeatable = False\n{STEP}"
    )
    (tmp_path / "striding" / "options.py").write_text(
        "from betasigma.options import SamplerOptions\n"
        "class StrideOptions(SamplerOptions):\n    targets = ('striding.Stride',)\n"
        "class ToldOptions(SamplerOptions):\n    targets = ('striding.Told',)\n"
        "    repeatable = False\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.allow(["striding"])
    plugins.check_traits(parse_component("sampler", {"_target_": "striding.Told"}))
    sentence = (
        r"^sampler\._target_=striding\.Stride has repeatable=False, and its options model "
        r"StrideOptions has repeatable=True: state it in the model, and in the class write "
        r"repeatable = StrideOptions\.repeatable$"
    )
    with pytest.raises(UserError, match=sentence):
        plugins.check_traits(parse_component("sampler", {"_target_": "striding.Stride"}))


def test_a_whole_number_is_recorded_alike_however_it_is_typed() -> None:
    """In tables each spelling had a row."""
    node = {"_target_": "betasigma.samplers.DDIM", "rho": 7, "steps": 50}
    made = [make({**node, "eta": eta}, "sampler") for eta in (1, 1.0)]
    assert {format_settings(sampler.settings) for sampler in made} == {
        "steps=50 grid=levels rho=7.0 start=prior clip=true ratio_max=null dtype=float32 eta=1.0"
    }


class Inner(DDIM):
    """Keeps an object of its own, which is no option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._inner = DDIM()


def test_options_are_recorded_as_they_are_typed_and_nothing_else() -> None:
    assert format_settings(Inner(steps=[2, 3]).settings).split(" ") == [
        *("steps=[2,3]", "grid=levels", "rho=7.0", "start=prior", "clip=true"),
        *("ratio_max=null", "dtype=float32", "eta=0.0"),
    ]


OF_RUNS = ("figure", "lr_schedule", "model")
"""Groups whose classes are given what a run has, and are not for a notebook."""

OURS = [
    target
    for group, known in REGISTRY.items()
    for target in known
    if target.startswith("betasigma.") and group not in OF_RUNS
]
assert set(MetricOptions.targets) <= {*OURS}


@pytest.mark.parametrize("target", OURS)
def test_a_notebook_is_told_what_a_class_takes(target: str) -> None:
    """A raw TypeError named one word."""
    module, _, name = target.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    needed = {"dim": 2} if name == "energy_mlp" else {}
    with pytest.raises(UserError, match=r"^\w+\.nonsense=3 is unknown: \w+ takes \w+"):
        made(nonsense=3, **needed)


def test_a_notebook_is_told_the_nearest_word() -> None:
    sentence = (
        r"^network\.channel=3 is unknown: UNet takes in_channels, image_size, .*"
        r"\(did you mean network\.channels\?\)$"
    )
    with pytest.raises(UserError, match=sentence):
        betasigma.UNet(1, 8, channel=3)
    for made in (betasigma.Denoiser, betasigma.Guided, betasigma.Evaluator):
        with pytest.raises(UserError, match=rf"^\w+\.foo=3 is unknown: {made.__name__} takes \w+"):
            made(foo=3)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^sampler\.rhos=5 is unknown: Mine takes strength, "):
        Mine(rhos=5)  # type: ignore[call-arg]
