"""Imports point one way: nothing below knows of anything above it, or of a neighbour."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

ORDER = (
    {"errors", "version", "cpus"},
    {
        *("options", "runs", "config_tree", "display", "devices", "plot_style"),
        *("randomness", "gaussian", "derivatives"),
    },
    {"build", "pictures", "ladder", "schedules", "preconditioning", "networks", "published"},
    {"prior"},
    {"denoiser"},
    {"oracles"},
    {"objectives", "samplers", "likelihood", "exports"},
    {"data", "editing"},
    {"evaluation", "modules"},
    {"training", "report"},
    {"commands"},
    {"launch"},
    {"", "__main__", "cli", "testing"},  # what users import and start
)
"""Rooms from the ground up. A room may import the rows above it here and itself; ``""`` is
``betasigma/__init__.py``.
"""

FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "wandb"}
WITH_FRAMEWORKS = {
    *("data", "modules", "training", "commands", "launch"),
    *("", "__main__", "cli", "testing"),
}
"""Rooms that may import Lightning, Hydra or Weights & Biases; the others are plain PyTorch."""

TORCH_FREE = (
    "options",
    "errors",
    "cpus",
    "runs.files",
    "runs.directory",
    "runs.header",
    "runs.status",
)


def modules() -> dict[str, Path]:
    """Name of every module, without ``betasigma.``, and its file."""
    files = {}
    for path in (SRC / "betasigma").rglob("*.py"):
        parts = path.relative_to(SRC / "betasigma").with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = modules()
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}


def room(module: str) -> str:
    return module.partition(".")[0]


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_for_types(node) or (
            not inside_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            continue
        else:
            yield from statements(node, inside_functions)


@cache
def imports(module: str, inside_functions: bool = True) -> frozenset[str]:
    """Full names that a module imports; ``from a import b`` counts as ``a.b``."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in statements(tree, inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own(name: str) -> str | None:
    """The module of ours that an imported name is or is in, without ``betasigma.``."""
    package, _, rest = name.partition(".")
    if package != "betasigma":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest


@cache
def needs(module: str) -> frozenset[str]:
    """Other packages that importing a module imports, with those of the modules it imports."""
    seen, left, found = set(), [module], set()
    while left:
        now = left.pop()
        if now in seen:
            continue
        seen.add(now)
        for name in imports(now, inside_functions=False):
            ours = own(name)
            if ours is None:
                found.add(name.partition(".")[0])
            else:
                left += [".".join(ours.split(".")[:n]) for n in range(ours.count(".") + 2)]
    return frozenset(found)


def test_every_room_has_a_place() -> None:
    assert {room(module) for module in MODULES} <= set(HEIGHT)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    here = room(module)
    for name in imports(module):
        ours = own(name)
        if ours is None or room(ours) == here:
            continue
        assert HEIGHT[room(ours)] < HEIGHT[here], f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m) not in WITH_FRAMEWORKS))
def test_the_mathematics_is_plain_pytorch(module: str) -> None:
    found = {name.partition(".")[0] for name in imports(module)} & FRAMEWORKS
    assert not found, f"{module} imports {found}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith(TORCH_FREE)))
def test_what_the_command_line_reads_is_light(module: str) -> None:
    assert not needs(module) & {"torch", "numpy", "hydra", *FRAMEWORKS}


def test_the_jobs_of_a_sweep_are_shown_without_pytorch() -> None:
    drawing = {"torch", "torchvision", "numpy", "matplotlib", "PIL"}
    assert not needs("commands.show_jobs") & {*drawing, *FRAMEWORKS - {"hydra"}}


def test_the_diagram_shows_imports_that_there_are() -> None:
    page = (SRC.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    arrows = {
        (above, below)
        for line in re.findall(r"^ +([\w &]+ --> [\w &]+)$", page, re.MULTILINE)
        for above in line.partition(" --> ")[0].split(" & ")
        for below in line.partition(" --> ")[2].split(" & ")
    }
    found = {(room(m), room(ours)) for m in MODULES for n in imports(m) if (ours := own(n))}
    assert len(arrows) > 20
    assert arrows - found == set()


def test_pages_name_files_that_there_are() -> None:
    for name in ("architecture.md", "glossary.md"):
        page = (SRC.parent / "docs" / name).read_text(encoding="utf-8")
        named = set(re.findall(r"`([\w/]+\.(?:py|md))`|\]\((\w+\.md)\)", page))
        assert named
        for file, link in named:
            places = (SRC / "betasigma" / file, SRC.parent / file, SRC.parent / "docs" / link)
            assert any(place.is_file() for place in places), file or link


def test_the_check_sees_an_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    upward = tmp_path / "schedules.py"
    upward.write_text("def f():\n    from betasigma.commands.train import train\nimport torch\n")
    monkeypatch.setitem(MODULES, "x_upward", upward)
    assert imports("x_upward") == {"betasigma.commands.train.train", "torch"}
    assert imports("x_upward", inside_functions=False) == {"torch"}
    assert own("betasigma.commands.train.train") == "commands.train"
    assert "torch" in needs("x_upward")
