"""Each option is stated once: constructors and config files agree with its options model."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import betasigma
import betasigma.options.apps  # registers every group
from betasigma.data import catalog, toy
from betasigma.evaluation.features import DINOv2, EfficientNetLite0, Identity, InceptionV3
from betasigma.launch.help import with_meanings
from betasigma.options.base import REGISTRY, ComponentOptions, Options, accepted_values
from betasigma.options.data import DataOptions, MixtureName
from betasigma.options.evaluation import EXTRACTORS, METRICS, EvaluationOptions
from betasigma.options.hardware import HardwareOptions
from betasigma.options.likelihoods import LikelihoodOptions
from betasigma.options.plugins import locate
from betasigma.options.samplers import Predictor
from betasigma.options.training import (
    DENOISING_ERROR,
    AveragingOptions,
    BatchOptions,
    DenoiserOptions,
    GuidedOptions,
    TrainingOptions,
)
from betasigma.runs.directory import PACKAGES
from betasigma.samplers.predictor_corrector import PREDICTORS

ROOT = Path(__file__).parents[2]
SOURCE = Path(betasigma.__file__).parent
COMPONENTS = [
    (group, target, options)
    for group, known in REGISTRY.items()
    for target, options in known.items()
    if target.startswith("betasigma.")
]


@cache
def modules() -> dict[str, ast.Module]:
    """Syntax of every module, by its path."""
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every piece of the code, and where it is; the conformance kit has figures of its own."""
    for path, tree in modules().items():
        if not path.startswith("testing/"):
            for node in ast.walk(tree):
                yield f"{path}:{getattr(node, 'lineno', 1)}", node


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the code except its docstrings, and where it is."""
    for path, tree in modules().items():
        said = {
            id(line.value)
            for node in ast.walk(tree)
            if isinstance(body := getattr(node, "body", None), list)
            for line in body
            if isinstance(line, ast.Expr)
        }
        for node in ast.walk(tree):
            known = id(node) in said or not isinstance(node, ast.Constant)
            if not known and isinstance(node.value, str):
                yield f"{path}:{node.lineno}", node.value


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


def test_a_class_reads_its_traits_from_its_options() -> None:
    """``repeatable`` of a sampler, say: the checks ask the options, the code asks the class."""
    compared, stated = 0, []
    for group, target, options in COMPONENTS:
        made = locate(target, group)
        traits = traits_of(options) & set(dir(made)) if inspect.isclass(made) else set()
        for name in traits:
            compared += 1
            assert getattr(made, name) == getattr(options, name), f"{target}.{name}"
        for cls in made.__mro__ if traits else ():
            if cls.__module__.startswith("betasigma."):
                stated += [f"{cls.__name__}.{said}" for said in stated_in(cls) if said in traits]
    assert compared > 10
    assert stated == []


def traits_of(options: type[ComponentOptions]) -> set[str]:
    """Names of what a group's options say of a class, and a config cannot change."""
    return {
        name
        for model in options.__mro__
        if issubclass(model, ComponentOptions) and model is not ComponentOptions
        for name in vars(model).get("__class_vars__", ())
    } - set(ComponentOptions.__class_vars__)


def stated_in(cls: type) -> Iterator[str]:
    """Names that the body of a class gives a constant."""
    path = cls.__module__.removeprefix("betasigma.").replace(".", "/") + ".py"
    (body,) = [
        node.body
        for node in ast.walk(modules()[path])
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]
    for line in body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_no_config_file_repeats_what_a_key_accepts() -> None:
    """A list of values in a comment would be a second home: ``levels | continuous``."""
    again = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "conf").rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r":.*#.*\w+ \| \w+", line)
    ]
    assert again == []


def remarks(text: str) -> Iterator[tuple[str, str]]:
    """The dotted keys of a config, and what is said behind each."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        if found := re.match(r"( *)([\w.]+):(?: .*?)??(?:  +# (.*))?$", line):
            indent, key, said = len(found[1]), found[2], found[3]
            parents = [known for known in parents if known[0] < indent]
            dotted = ".".join([*(name for _, name in parents), key])
            parents.append((indent, key))
            yield dotted, said or ""


def test_what_a_config_file_says_behind_a_key_is_what_its_option_says() -> None:
    """Its whole meaning or a part of it, word for word; what is of the file alone stands above."""
    compared, other = 0, []
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT / "conf")
        group = "" if name.parent == Path() or "@package _global_" in text else str(name.parent)
        app = {"edit": "edit", "figure": "plot", "dashboard": "dashboard"}.get(group, "train")
        app = path.stem if name.parent == Path() else app
        content = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k != "defaults"}
        whole = yaml.safe_dump({group: content} if group else content, allow_unicode=True)
        meanings = dict(remarks(with_meanings(whole, app)))
        for key, said in remarks(text):
            meaning = meanings.get(f"{group}.{key}" if group else key)
            if said and meaning:
                compared += 1
                other += [] if said in meaning else [f"{name}: {key}: {said}"]
    assert compared > 200
    assert other == []


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
    """Nor is a table of facts about the same names; one that leads to code is none."""
    places: dict[frozenset[str], list[str]] = {}
    for where, node in nodes():
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            members = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
        elif isinstance(node, ast.Dict):
            leads_to_code = not any(isinstance(value, ast.Constant) for value in node.values)
            small = leads_to_code or len(node.keys) < 3
            members = [] if small else [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 2:
            members = node.elts
        else:
            continue
        values = frozenset(
            n.value for n in members if isinstance(n, ast.Constant) and isinstance(n.value, str)
        )
        if len(values) == len(members) > 1:
            places.setdefault(values, []).append(where)
    # the elements of a Literal are a tuple of their own
    again = {known: sorted(set(found)) for known, found in places.items()}
    assert len(again) > 40
    assert [found for found in again.values() if len(found) > 1] == []


def test_names_in_options_are_those_of_the_code() -> None:
    """``options`` may import neither NumPy nor PyTorch, nor what is made of them."""
    assert toy.BY_NAME.keys() == set(get_args(MixtureName))
    assert PREDICTORS.keys() == set(get_args(Predictor))
    extractors = {cls.name: cls for cls in (Identity, InceptionV3, EfficientNetLite0, DINOv2)}
    assert {name: cls.classes for name, cls in extractors.items()} == {
        name: facts.classes for name, facts in EXTRACTORS.items()
    }
    for name, metric in METRICS.items():
        made = locate(metric.target, "metric")
        assert (made.needs, made.least) == (metric.needs, metric.least), name


def test_defaults_of_plain_nodes_stand_in_options_alone() -> None:
    """Components are compared with their options above; the others read ``DEFAULTS``."""
    keys = {key for model in PLAIN_NODES for key in model.model_fields} - NAMES_OF_OTHER_THINGS
    components = {target.rpartition(".")[2] for _, target, _ in COMPONENTS}
    found = []
    for where, node in nodes():
        if isinstance(node, ast.ClassDef) and node.name not in components:
            found += [
                f"{where} {node.name}({field.target.id}={ast.unparse(field.value)})"
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if field.target.id in keys and is_a_choice(field.value)
            ]
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            found += [f"{where} {node.name}.{said}" for f in methods for said in chosen(f, keys)]
        elif isinstance(node, ast.Module):
            functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            others = [f for f in functions if f.name not in components]
            found += [f"{where} {said}" for f in others for said in chosen(f, keys)]
    assert found == []


PLAIN_NODES: tuple[type[Options], ...] = (
    AveragingOptions,
    BatchOptions,
    DataOptions,
    DenoiserOptions,
    EvaluationOptions,
    GuidedOptions,
    HardwareOptions,
    LikelihoodOptions,
    TrainingOptions,
)
NAMES_OF_OTHER_THINGS = {"name", "n", "every", "in_memory"}
"""Keys whose names are common as names of arguments."""


def chosen(function: ast.FunctionDef, keys: set[str]) -> Iterator[str]:
    """Defaults that a function chooses for arguments with the names of these keys."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    given = function.args.defaults
    pairs = [
        *zip(arguments[len(arguments) - len(given) :], given, strict=True),
        *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if argument.arg in keys and is_a_choice(default):
            assert default is not None
            yield f"{function.name}({argument.arg}={ast.unparse(default)})"


def is_a_choice(default: ast.expr | None) -> bool:
    """Whether a default is a value of its own; ``None`` and ``False`` leave something out."""
    if isinstance(default, ast.Constant):
        return default.value is not None and default.value is not False
    return isinstance(default, ast.Tuple | ast.List | ast.UnaryOp)


def test_no_constructor_states_a_range() -> None:
    """An argument that is compared with a number, and refused, has a type in options."""
    found = []
    for where, node in nodes():
        if not isinstance(node, ast.FunctionDef) or where.startswith("options/"):
            continue
        arguments = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
        own = {"self"} if node.name in ("__init__", "__post_init__") else set()
        for inner in ast.walk(node):
            if isinstance(inner, ast.If) and any(
                isinstance(line, ast.Raise) and "UserError" in ast.unparse(line)
                for line in inner.body
            ):
                found += [
                    f"{where} {node.name}: {ast.unparse(comparison)}"
                    for comparison in ast.walk(inner.test)
                    if isinstance(comparison, ast.Compare)
                    and is_a_range(comparison, arguments, own)
                ]
    assert found == []


def is_a_range(comparison: ast.Compare, arguments: set[str], own: set[str]) -> bool:
    """Whether an argument, or an attribute of ``own``, is less or more than a number."""
    members = [comparison.left, *comparison.comparators]
    named = any(
        (isinstance(m, ast.Name) and m.id in arguments)
        or (isinstance(m, ast.Attribute) and isinstance(m.value, ast.Name) and m.value.id in own)
        for m in members
    )
    ordered = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in comparison.ops)
    return named and ordered and any(isinstance(m, ast.Constant) for m in members)


FILE = re.compile(r"[\w.-]+\.(png|json|csv|yaml|ckpt|pth|pt|txt|npz)")
METRIC = re.compile(r"(train|val|eval|sample)/\w+")


@pytest.mark.parametrize("kind", [FILE, METRIC], ids=["files", "metrics"])
def test_files_and_metrics_are_named_once(kind: re.Pattern[str]) -> None:
    places: dict[str, set[str]] = {}
    for where, text in texts():
        if kind.fullmatch(text):
            places.setdefault(text, set()).add(where)
    assert len(places) > 3
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_denoising_error_is_named_once() -> None:
    """Its name is part of names of metrics, of a picture and of columns."""
    named = [where for where, text in texts() if DENOISING_ERROR in re.split(r"\W", text)]
    assert [where.partition(":")[0] for where in named] == ["options/training.py"]


def test_what_packaging_and_configs_name_is_named_nowhere_else() -> None:
    """Packages of the extras for sweeps, and networks by the size of images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    search = project["optional-dependencies"]["search"]
    packages = {re.match(r"[\w-]+", p)[0] for p in search if p.startswith("hydra-")}  # type: ignore[index]
    networks = {path.stem for path in (ROOT / "conf" / "network").glob("unet_*.yaml")}
    assert len(packages) == 2
    assert len(networks) > 3
    assert [f"{where} {text}" for where, text in texts() if text in packages | networks] == []


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
