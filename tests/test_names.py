"""One name, one thing: no two files of the package and no two classes share a name, examples
included.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
EXAMPLES = SOURCE.parent / "examples"
PATHS = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]


def shared(named: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Names that are met in more than one place, and the places."""
    places = defaultdict(set)
    for name, place in named:
        places[name].add(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def classes(path: Path) -> Iterator[tuple[str, str]]:
    """Name and place of each class of a file, those inside functions and classes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name, f"{path}:{node.lineno}"


def test_no_two_files_share_a_name() -> None:
    assert shared((path.name, str(path)) for path in PATHS) == {}


def test_no_two_classes_share_a_name() -> None:
    paths = [*SOURCE.rglob("*.py"), *EXAMPLES.rglob("*.py")]
    assert shared(found for path in paths for found in classes(path)) == {}


def test_a_shared_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class Bound:\n    class Part: ...\n")
    (tmp_path / "b.py").write_text("def f():\n    class Bound: ...\n")
    both = shared(found for path in tmp_path.glob("*.py") for found in classes(path))
    assert both == {"Bound": {f"{tmp_path / 'a.py'}:1", f"{tmp_path / 'b.py'}:2"}}


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports test files by their names and would refuse the second."""
    tests = Path(__file__).parent.rglob("test_*.py")
    assert shared((path.name, str(path)) for path in tests) == {}
