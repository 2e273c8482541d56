"""Quality against network evaluations: distances of evaluations, by sampler and NFE."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from betasigma.options.drawing import DrawingOptions
from betasigma.pictures import save_figure
from betasigma.plot_style import (
    BAND,
    GREY,
    PANEL,
    family_colours,
    legend_below,
    panels,
    plain_log_axis,
    sampler_style,
)
from betasigma.report.measurements import DISTANCE, Settings, settings_in, told_apart
from betasigma.report.plots import with_seeds
from betasigma.report.rows import family_of, settings_of, standard_error
from betasigma.report.runs import Run, evaluated_run
from betasigma.runs.header import other_than_last, run_of

BUDGET = ("steps", "steps_each")
"""Settings of a sampler that say how many evaluations it makes: they move along a line."""


class DistanceTerms(NamedTuple):
    """What distances have in common that may stand on one axis."""

    metric: str
    n: str
    n_reference: str

    @property
    def title(self) -> str:
        """The metric, and how many images it compares with where not with all."""
        return f"{self.metric}, {self.n_reference} references" if self.n_reference else self.metric


class Sampled(NamedTuple):
    """One line: a model and a sampler."""

    model: str
    family: str
    sampler: str
    settings: Settings


class Quality(NamedTuple):
    """Distances on common terms.

    Attributes:
        lines: by model and sampler, values by NFE, one a seed.
        floor: what real images score.
    """

    lines: dict[Sampled, dict[int, list[float]]]
    floor: list[float]


def quality_of_runs(runs: Sequence[Run]) -> dict[DistanceTerms, Quality]:
    """What evaluations have left in the records of the runs that they are of. A seed that was run
    twice is one draw: of its runs the last counts.
    """
    return _gathered(
        [
            (one.label, one.family, f"{one.label} {run.config.get('seed')}", list(run.measured))
            for one in settings_of(runs)
            for run in one.runs
        ]
    )


def quality_of_jobs(jobs: Sequence[Run]) -> dict[DistanceTerms, Quality]:
    """What the jobs of a sweep of evaluations have measured."""
    runs = {str(job.config.get("run")): evaluated_run(job) for job in jobs}
    known = [run for run in runs.values() if run.config]
    labels = {id(run): setting.label for setting in settings_of(known) for run in setting.runs}
    found = []
    for job in jobs:
        path = str(job.config.get("run"))
        run = runs[path]
        checkpoint = other_than_last(path)
        label = " ".join(filter(None, [labels.get(id(run), run.label), checkpoint]))
        model = f"{run_of(path)} {checkpoint}"
        found.append((label, family_of(run.config), model, list(job.measured)))
    return _gathered(found)


def _gathered(
    found: Sequence[tuple[str, str, str, Sequence[Mapping[str, str]]]],
) -> dict[DistanceTerms, Quality]:
    """Distances by their terms, of name and family of a model, which of its draws, and rows of its
    record; what was measured twice with one seed counts once.
    """
    values: dict[DistanceTerms, dict[Sampled, dict[int, dict[tuple[str, str], float]]]] = {}
    floors: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for label, family, run, rows in found:
        for row in rows:
            before, _, name = row["metric"].partition("/")
            distance = DISTANCE.fullmatch(name)
            if before != "eval" or distance is None:
                continue
            metric, against = distance.groups()
            if against == "floor":
                floors.setdefault((metric, row["n"]), {})[run, row["seed"]] = float(row["value"])
            elif against is None and row["nfe"] and row["sampler"]:
                terms = DistanceTerms(metric, row["n"], row["n_reference"])
                own = settings_in(row) | {"guidance": row["guidance"]}
                kept = frozenset((k, v) for k, v in own.items() if k not in BUDGET)
                line = Sampled(label, family, row["sampler"], kept)
                by_nfe = values.setdefault(terms, {}).setdefault(line, {})
                by_nfe.setdefault(int(row["nfe"]), {})[run, row["seed"]] = float(row["value"])
    return {
        terms: Quality(
            {
                line: {nfe: list(seeds.values()) for nfe, seeds in sorted(by_nfe.items())}
                for line, by_nfe in lines.items()
            },
            list(floors.get((terms.metric, terms.n), {}).values()),
        )
        for terms, lines in values.items()
    }


def draw_quality(
    found: Mapping[DistanceTerms, Quality], path: Path, look: DrawingOptions | None = None
) -> Path | None:
    """Draw distance against NFE, a panel for each of the terms; what is best at each budget of
    evaluations lies on a broad line of its family.

    Returns:
        The picture's path; ``None`` where there are no distances.
    """
    if not found:
        return None
    legend = 0.18 * max(len(quality.lines) for quality in found.values())
    with panels(len(found), (PANEL[0] * 1.2, PANEL[1] + legend)) as (figure, axes):
        for panel, (terms, quality) in zip(axes, found.items(), strict=True):
            lines = quality.lines
            models = list(dict.fromkeys((line.model, line.family) for line in lines))
            colours = dict(zip(models, family_colours([f for _, f in models]), strict=True))
            for line, name in zip(lines, _names(list(lines)), strict=True):
                colour = colours[line.model, line.family]
                by_nfe = lines[line]
                means = [statistics.mean(values) for values in by_nfe.values()]
                errors = [standard_error(values) or 0.0 for values in by_nfe.values()]
                panel.errorbar(
                    list(by_nfe),
                    means,
                    errors if any(errors) else None,
                    color=colour,
                    label=with_seeds(name, max(map(len, by_nfe.values()))),
                    **sampler_style(line.sampler),
                )
            for model, colour in colours.items():
                own = [lines[line] for line in lines if (line.model, line.family) == model]
                if len(own) > 1 or len(own[0]) > 1:
                    panel.step(*_frontier(own), where="post", color=colour, lw=5, alpha=BAND)
            if quality.floor:
                low, high = min(quality.floor), max(quality.floor)
                panel.axhspan(low, high, color=GREY, alpha=BAND)
                middle = statistics.mean(quality.floor)
                panel.axhline(middle, color=GREY, lw=1, label="real test images (floor)")
            panel.set(xscale="log", yscale="log", xlabel="network evaluations per sample (NFE)")
            panel.set_ylabel(f"distance to training images, n={terms.n}")
            panel.set_title(terms.title)
            for axis in (panel.xaxis, panel.yaxis):
                plain_log_axis(axis)
        legend_below(figure, axes)
        return save_figure(figure, path, look or DrawingOptions())


def _frontier(lines: Sequence[Mapping[int, Sequence[float]]]) -> tuple[list[int], list[float]]:
    """The least mean distance within each budget of evaluations."""
    points = sorted((nfe, statistics.mean(v)) for by_nfe in lines for nfe, v in by_nfe.items())
    budgets, least = [points[0][0]], [points[0][1]]
    for nfe, value in points[1:]:
        if value < least[-1] or nfe == points[-1][0]:
            budgets.append(nfe)
            least.append(min(value, least[-1]))
    return budgets, least


def _names(lines: Sequence[Sampled]) -> list[str]:
    """What lines are called: model, sampler, and its settings in which they differ."""
    samplers = told_apart([(line.sampler, line.settings) for line in lines])
    several = len({line.model for line in lines}) > 1
    return [
        f"{line.model}, {sampler}" if several else sampler
        for line, sampler in zip(lines, samplers, strict=True)
    ]
