"""A sweep of evaluations in one table: model × sampler × NFE, a row a job.

Read from the jobs' directories alone, so it serves a sweep wherever it ran.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from betasigma.report.summary import BITS, DISTANCE, LAST, abbreviated, is_term, results
from betasigma.runs.directory import job_number
from betasigma.runs.record import Record

TOLD = ("run", "n", "sampler")
"""Keys of the command line that columns of their own tell of."""


@dataclass(frozen=True)
class EvaluationRow:
    """What one job has measured.

    Attributes:
        run: the run or checkpoint, as it was given.
        swept: what this job was asked that not all were, by key of the command line.
        sampler: its name; empty where no samples were drawn.
        settings: of the sampler.
        n, nfe: of the samples, or of the likelihood where there are none; empty where neither is.
        results: distances and likelihoods (:func:`betasigma.report.summary.results`).
        others: other metrics by name.
    """

    run: str
    swept: dict[str, str]
    sampler: str
    settings: dict[str, str]
    n: str
    nfe: str
    results: dict[str, float]
    others: dict[str, float]


def read_evaluations(sweep: Path) -> list[EvaluationRow]:
    """The evaluations in a sweep's directory, by job number."""
    jobs = sorted((path.parents[1] for path in sweep.glob("*/.hydra/config.yaml")), key=job_number)
    asked = [_overrides(job) for job in jobs]
    swept = [key for key in _differing(asked) if key.partition(".")[0] not in TOLD]
    return [
        _read(job, {key: words.get(key, "") for key in swept})
        for job, words in zip(jobs, asked, strict=True)
    ]


def table_of_evaluations(rows: Sequence[EvaluationRow]) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and cells to print: who was measured, what was found, at which n.

    A likelihood is told by its total.
    """
    columns = [c for c in _union([row.results for row in rows]) if not is_term(c)]
    others = _union([row.others for row in rows])
    title, header = abbreviated("evaluations", columns)
    first, described = _described(rows)
    cells = []
    for row, start in zip(rows, described, strict=True):
        values = {**row.results, **row.others}
        found = [f"{values[c]:.4g}" if c in values else "" for c in (*columns, *others)]
        cells.append([*start, *found, row.n])
    return title, [*first, *header, *others, "n"], cells


def write_evaluations(rows: Sequence[EvaluationRow], path: Path) -> None:
    """Write the table as CSV, in full precision and with the terms of bounds."""
    columns = _union([{**row.results, **row.others} for row in rows])
    first, described = _described(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*first, *columns, "n"])
        for row, start in zip(rows, described, strict=True):
            values = {**row.results, **row.others}
            writer.writerow([*start, *(values.get(c, "") for c in columns), row.n])


def _described(rows: Sequence[EvaluationRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of what was measured: the run, the sampler with those of its settings that
    differ between rows, what else was swept, NFE.
    """
    settings: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        settings.setdefault(row.sampler, []).append(row.settings)
    differing = {sampler: _differing(found) for sampler, found in settings.items()}
    runs = _without_common_parent([row.run for row in rows])
    cells = []
    for row, run in zip(rows, runs, strict=True):
        own = [f"{k}={row.settings[k]}" for k in differing[row.sampler] if k in row.settings]
        cells.append([run, " ".join([row.sampler, *own]), *row.swept.values(), row.nfe])
    return ["run", "sampler", *(rows[0].swept if rows else ()), "NFE"], cells


def _read(job: Path, swept: dict[str, str]) -> EvaluationRow:
    config: Any = OmegaConf.load(job / ".hydra" / "config.yaml")
    rows = Record(job / "metrics.csv").rows()
    bits = [row for row in rows if BITS.fullmatch(_name(row))]
    drawn = [row for row in rows if row["nfe"] and row["sampler"] and row not in bits]
    sampler = drawn[0] if drawn else {"sampler": "", "settings": ""}
    sizes = (drawn or bits or [{"n": "", "nfe": ""}])[0]
    return EvaluationRow(
        run=str(config.run),
        swept=swept,
        sampler=sampler["sampler"],
        settings=dict(word.split("=", 1) for word in sampler["settings"].split()),
        n=sizes["n"],
        nfe=sizes["nfe"],
        results={k: v for k, v in results(rows, "eval").items() if k not in LAST},
        others={
            _name(row): float(row["value"]) for row in drawn if not DISTANCE.fullmatch(_name(row))
        },
    )


def _name(row: Mapping[str, str]) -> str:
    return row["metric"].removeprefix("eval/")


def _overrides(job: Path) -> dict[str, str]:
    words: Any = OmegaConf.load(job / ".hydra" / "overrides.yaml")
    return {key: value for key, _, value in (str(word).partition("=") for word in words)}


def _differing(described: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values are not the same in all."""
    keys = dict.fromkeys(key for one in described for key in one)
    return [key for key in keys if len({one.get(key) for one in described}) > 1]


def _union(described: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for one in described for key in one))


def _without_common_parent(runs: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them are in."""
    places = [os.path.abspath(run) for run in runs]
    common = os.path.commonpath([os.path.dirname(place) for place in places]) if places else ""
    return [os.path.relpath(place, common) for place in places]
