"""docs/equations.md speaks of tests that there are, and leaves no equation out."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "equations.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 20
    for file, name in sorted(named):
        found = re.search(rf"^ *def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)
        assert found, f"{file}::{name}"


def test_every_equation_and_both_algorithms_have_a_row_with_a_test() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| 2.")]
    mapped = {key.strip() for row in rows if ".py::" in row[4] for key in row[1].split(",")}
    assert {f"2.{i}" for i in range(1, 24)} <= mapped
    assert {"algorithm 1 (table 2.1)", "algorithm 2 (table 2.2)"} <= mapped
