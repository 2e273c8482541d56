"""Each option is stated once: constructors and config files agree with its options model."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import betasigma
import betasigma.options.apps  # registers every group
from betasigma.data import catalog, toy
from betasigma.evaluation.features import EfficientNetLite0, Identity, InceptionV3
from betasigma.options.base import REGISTRY, ComponentOptions, accepted_values
from betasigma.options.data import MixtureName
from betasigma.options.evaluation import EXTRACTORS, METRICS
from betasigma.options.plugins import locate
from betasigma.runs.directory import PACKAGES

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


def test_no_list_of_values_is_written_twice() -> None:
    """``Literal["a", "b"]`` has a name in options, which constructors import."""
    places: dict[frozenset[str], list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"):
                continue
            strings = {n.value for n in ast.walk(node.slice) if isinstance(n, ast.Constant)}
            values = frozenset(value for value in strings if isinstance(value, str))
            if len(values) > 1:
                places.setdefault(values, []).append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert len(places) > 10
    assert [found for found in places.values() if len(found) > 1] == []


def test_what_is_named_twice_for_the_sake_of_imports_agrees() -> None:
    """``options`` and the catalog may import neither NumPy nor PyTorch."""
    assert toy.BY_NAME.keys() == catalog.MIXTURES.keys() == set(get_args(MixtureName))
    for name, count in catalog.MIXTURES.items():
        assert len(toy.mixture(name).weights) == count
    extractors = {cls.name: cls for cls in (Identity, InceptionV3, EfficientNetLite0)}
    assert extractors.keys() == EXTRACTORS.keys()
    for name, facts in EXTRACTORS.items():
        assert facts.logits == bool(extractors[name].classes)
    for name, metric in METRICS.items():
        made = locate(metric.target, "metric")
        assert (made.needs, made.least) == (metric.needs, metric.least), name


@pytest.mark.parametrize(
    "name", ["metrics.csv", "config.yaml", "summary.json", "last.ckpt", "status.json"]
)
def test_files_of_a_run_are_named_once(name: str) -> None:
    homes = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == name
    ]
    assert len(homes) == 1, homes


def test_packages_that_a_run_records_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", needed)[0] for needed in project["dependencies"]}  # type: ignore[index]
    assert set(PACKAGES) - declared == {"betasigma"}


def test_conf_has_a_file_for_each_data_set() -> None:
    assert {path.stem for path in (ROOT / "conf" / "data").glob("*.yaml")} >= set(catalog.NAMES)


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
