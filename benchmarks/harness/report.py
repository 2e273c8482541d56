"""What a benchmark leaves: one JSON file, and tables in Markdown made from such files."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from betasigma.runs.files import write_json
from harness.timing import CLOCKS, use_clock

ROOT = Path(__file__).resolve().parents[2]

Cell = str | int | float


class Report:
    """Tables, targets and raw numbers of one benchmark; printed as they come.

    Args:
        name: of the benchmark.
        options: what it was run with.
        keeps: whether what an earlier run has left, and this one does not measure, stays.
    """

    def __init__(self, name: str, options: argparse.Namespace, keeps: bool = False) -> None:
        self.name, self.size, self.out = name, options.size, Path(options.out)
        self._earlier = _read(self._path) if keeps and self._path.is_file() else {}
        self._start = time.time()
        shown = {k: v for k, v in vars(options).items() if k not in ("out", "data_root", "run")}
        self.content: dict[str, Any] = {
            "name": name,
            "options": shown,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "tables": [],
            "targets": [],
            "notes": [],
            "raw": {},
        }

    @property
    def full(self) -> bool:
        """Whether this is the full size."""
        return bool(self.size == "full")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
        """Add a table."""
        table = {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}
        self.content["tables"].append(table)
        print(f"\n{title}\n{as_table(table)}", flush=True)

    def target(
        self, what: str, value: float, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Compare a measured value with what was to be reached."""
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        wanted = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
        self.content["targets"].append({"what": what, "wanted": wanted, "value": value, "met": met})
        print(f"{'met ' if met else 'MISSED'} {what}: {value:.3g} (wanted {wanted})", flush=True)

    def note(self, text: str) -> None:
        """Say how something was measured, or what a number does not mean."""
        self.content["notes"].append(text)

    def raw(self, key: str, value: Any) -> None:
        """Keep numbers that no table shows."""
        self.content["raw"][key] = value

    def save(self) -> Path:
        """Write the JSON file, whole or not at all."""
        from harness.machine import describe

        self.content["seconds"] = round(time.time() - self._start, 1)
        self.content["machine"] = describe()
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**self.content, **self._with_earlier()})
        print(f"\nwrote {self._path} after {self.content['seconds']:.0f} s", flush=True)
        return self._path

    @property
    def _path(self) -> Path:
        return self.out / f"{self.name}.json"

    def _with_earlier(self) -> dict[str, Any]:
        """What an earlier run has left, before what this one has measured."""
        if not self._earlier:
            return {}
        day, torch = self._earlier["started"][:10], self._earlier["machine"]["versions"]["torch"]
        tables = [{"measured": f"{day}, torch {torch}", **t} for t in self._earlier["tables"]]
        kept = {"tables": tables} | {k: self._earlier[k] for k in ("targets", "notes")}
        joined: dict[str, Any] = {"raw": self._earlier["raw"] | self.content["raw"]}
        for key, name in (("tables", "title"), ("targets", "what"), ("notes", None)):
            own = [one[name] if name else one for one in self.content[key]]
            left = [one for one in kept[key] if (one[name] if name else one) not in own]
            joined[key] = left + self.content[key]
        return joined


def options(
    description: str | None, argv: Sequence[str] | None, *more: tuple[str, dict[str, Any]]
) -> argparse.Namespace:
    """Command line of a benchmark.

    Args:
        description: what it measures.
        argv: its words; ``None`` for the process's own.
        more: further options, as (name, arguments of ``add_argument``).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--data-root", help="folder that holds MNIST as torchvision keeps it")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    for name, arguments in more:
        parser.add_argument(name, **arguments)
    found = parser.parse_args(argv)
    use_clock(found.clock)
    found.out = found.out or str(default_out(found.size))
    return found


def default_out(size: str) -> Path:
    """Where results of a size go: those of full size are for the docs, others are not kept."""
    return ROOT / ("benchmarks/results" if size == "full" else "outputs/benchmarks")


def load(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, by name."""
    return [_read(file) for file in sorted(folder.glob("*.json"))]


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """One page of all results: targets first, then each benchmark's tables and notes."""
    lines = ["# Benchmarks", "", INTRODUCTION, ""]
    if results:
        lines += [_machine(results[0]["machine"]), ""]
    targets = [(r["name"], t) for r in results for t in r["targets"]]
    if targets:
        rows = [
            [name, t["what"], t["wanted"], _text(t["value"]), "yes" if t["met"] else "**no**"]
            for name, t in targets
        ]
        columns = ["benchmark", "what", "wanted", "measured", "met"]
        lines += ["## Targets", "", as_table({"columns": columns, "rows": rows}), ""]
    for result in results:
        size, load = _words(result["options"]), result["machine"]["load"][0]
        lines += [f"## {result['name']}", ""]
        if any(result["machine"][k] != results[0]["machine"][k] for k in ("gpus", "processor")):
            lines += [_machine(result["machine"]), ""]
        day = result["started"][:10]
        lines += [f"{day}, {size}, {result['seconds']:.0f} s, load {load} at its end.", ""]
        for table in result["tables"]:
            measured = f" ({table['measured']})" if "measured" in table else ""
            lines += [f"**{table['title']}**{measured}", "", as_table(table), ""]
        lines += [f"- {note}" for note in result["notes"]] + [""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _words(options: dict[str, Any]) -> str:
    """What a benchmark was run with, but for what it would have chosen itself."""
    default = ("size", "clock", "only", "cases")
    more = [f"{k}={v}" for k, v in options.items() if k not in default and v is not None]
    return ", ".join([f"{options['size']} size", *more])


INTRODUCTION = (
    "Written by `python benchmarks/run.py --size full`. A ratio is that of the medians of "
    "candidates which took turns (A B A B …) on one machine; in brackets the quartiles of the "
    "rounds' own ratios. Each section begins with the day it was measured on, with the code of "
    "that day; it says nothing of what was changed later."
)


def replace_section(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's markers ``<!-- begin: name -->`` and ``<!-- end: name -->``.

    Raises:
        ValueError: where the page has no such markers.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no section between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    bf16 = "with bf16 arithmetic" if machine["bf16"] else "without bf16 arithmetic"
    where = ", ".join(machine["gpus"]) or f"{machine['processor']} {bf16}"
    return (
        f"{where}; {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; Python {machine['python']}, {versions}."
    )


def as_table(table: dict[str, Any]) -> str:
    """A table with ``columns`` and ``rows``, in Markdown."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def with_spread(ratio: float, spread: tuple[float, float]) -> str:
    """A ratio and its quartiles, for a table."""
    return f"{ratio:.2f} ({spread[0]:.2f}–{spread[1]:.2f})"
