"""A config names classes of one's own: their arguments are checked, their packages recorded."""

from __future__ import annotations

from typing import Any, Unpack

import pytest

from betasigma.errors import UserError
from betasigma.options.plugins import check_arguments, versions
from betasigma.samplers import Sampler
from betasigma.samplers.sampler import GridArguments


class Mine(Sampler):
    def __init__(self, strength: float = 1.0, **options: Unpack[GridArguments]) -> None:
        super().__init__(**options)
        self.strength = strength


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


def test_packages_of_metrics_and_features_that_are_named_by_a_string_are_recorded() -> None:
    evaluation = {
        "metrics": ["fd", "onelab.Sliced", {"_target_": "twolab.Peaks"}],
        "extractor": "threelab.features.Clip",
    }
    assert versions({"evaluation": evaluation}).keys() == {"onelab", "twolab", "threelab"}
    assert versions({"evaluation": {"metrics": ["fd"], "extractor": "auto"}}) == {}
