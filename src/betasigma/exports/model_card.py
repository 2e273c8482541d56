"""README.md of an exported model: what it is, what it was trained on, what it was measured at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml


def model_card(
    name: str,
    facts: Mapping[str, str],
    figures: Sequence[Mapping[str, str]],
    use: str,
    tags: Sequence[str],
) -> str:
    """Markdown with the front matter that hubs read.

    Args:
        name: of the model.
        facts: rows of its table; ``licence`` and ``data`` are in the front matter too.
        figures: measured values: ``metric``, ``value``, ``n``, ``nfe``, ``sampler``.
        use: Python code that loads it.
        tags: for a hub.
    """
    front = {
        "license": facts["licence"].lower(),
        "library_name": tags[0],
        "tags": list(tags),
        "datasets": [facts["data"]],
    }
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        *_table([{"": key, " ": value} for key, value in facts.items()]),
        "",
        "## Figures",
        "",
        *(_table(figures) if figures else ["Nothing was measured of it."]),
        "",
        "## Use",
        "",
        "```python",
        use.strip(),
        "```",
        "",
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Markdown rows of one set of keys."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows)]
    shown = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in shown]
