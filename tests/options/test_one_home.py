"""Each option is stated once: constructors and config files agree with its options model."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import betasigma
import betasigma.options.apps  # registers every group
from betasigma.options.base import REGISTRY, ComponentOptions, accepted_values
from betasigma.options.plugins import locate

ROOT = Path(__file__).parents[2]
SOURCE = Path(betasigma.__file__).parent
COMPONENTS = [
    (group, target, options)
    for group, known in REGISTRY.items()
    for target, options in known.items()
    if target.startswith("betasigma.")
]
every_component = pytest.mark.parametrize(
    ("group", "target", "options"), COMPONENTS, ids=[target for _, target, _ in COMPONENTS]
)


@every_component
def test_a_constructor_has_the_defaults_of_its_options(
    group: str, target: str, options: type[ComponentOptions]
) -> None:
    parameters = inspect.signature(locate(target, group)).parameters
    for name, field in options.model_fields.items():
        if name not in parameters or parameters[name].default is inspect.Parameter.empty:
            continue
        default = parameters[name].default
        found = list(default) if isinstance(default, tuple) else default
        assert found == field.default, f"{target}({name}={found}), {options.__name__} has another"


@every_component
def test_every_option_has_a_meaning_and_accepted_values(
    group: str, target: str, options: type[ComponentOptions]
) -> None:
    for name, field in options.model_fields.items():
        if name != "target":
            assert field.description, f"{options.__name__}.{name}"
            assert accepted_values(field), f"{options.__name__}.{name}"


def test_no_config_file_repeats_what_a_key_accepts() -> None:
    """A list of values in a comment would be a second home: ``levels | continuous``."""
    again = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "conf").rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r":.*#.*\w+ \| \w+", line)
    ]
    assert again == []


def test_no_module_above_states_ranges_or_names_targets() -> None:
    """Comparisons with a ``_target_``, and lists of values, belong to options."""
    suspects = [r'== "betasigma\.', r"_target_\"\] [!=]="]
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if path.parent.name not in ("options", "data", "launch")
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(re.search(suspect, line) for suspect in suspects)
    ]
    assert found == []


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*/*.yaml")), ids=lambda p: str(p))
def test_a_config_file_names_no_key_that_its_options_lack(path: Path) -> None:
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "_target_" not in content:
        pytest.skip("its keys are checked with the file that it is made from")
    known = REGISTRY[path.parent.name][content["_target_"]]
    names = {field.alias or name for name, field in known.model_fields.items()}
    assert content.keys() - names - {"defaults"} == set()


def test_options_import_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, betasigma.options.apps, betasigma.options.plugins;"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
