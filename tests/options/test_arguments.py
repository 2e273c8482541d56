"""Arguments of a class of one's own are compared with its signature."""

from __future__ import annotations

from typing import Any, Unpack

import pytest

from betasigma.errors import UserError
from betasigma.options.plugins import check_arguments
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
