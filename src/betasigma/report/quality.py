"""Quality against network evaluations: distances of evaluations, by sampler and NFE."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from betasigma.report.measurements import DISTANCE, EVALUATED, Settings, settings_in, told_apart
from betasigma.report.plots import with_seeds
from betasigma.report.rows import (
    family_of,
    means_by_seed,
    settings_of,
    standard_error,
    without_common_parent,
)
from betasigma.report.runs import Run, evaluated_run
from betasigma.report.series import RecordedRow
from betasigma.runs.header import other_than_last

BUDGET = ("steps", "steps_each")
"""Settings of a sampler that say how many evaluations it makes: they move along a line."""


class DistanceTerms(NamedTuple):
    """What distances have in common that may stand on one axis."""

    metric: str
    n: str
    n_reference: str
    classes: str
    """Of which all images are; ``""`` where they are of any."""

    @property
    def title(self) -> str:
        """The metric, its classes, and how many images it compares with where not with all."""
        of = f" of {self.classes}" if self.classes else ""
        return self.metric + of + (f", {self.n_reference} references" if self.n_reference else "")


class Sampled(NamedTuple):
    """One line: a model and a sampler."""

    model: str
    family: str
    sampler: str
    settings: Settings


_Key = tuple[DistanceTerms, Sampled | None, int, str]
"""What a distance is of: its terms, its line (``None`` for a floor), NFE and seed."""


class Quality(NamedTuple):
    """Distances on common terms.

    Attributes:
        lines: by model and sampler, values by NFE, one a seed.
        floor: what real images score.
    """

    lines: dict[Sampled, dict[int, list[float]]]
    floor: list[float]


def quality_of_runs(runs: Sequence[Run]) -> dict[DistanceTerms, Quality]:
    """What evaluations have added to the records of the runs they measured."""
    return _gathered(
        [
            (one.label, one.family, run, run.measured)
            for one in settings_of(runs)
            for run in one.runs
        ]
    )


def quality_of_jobs(jobs: Sequence[Run]) -> dict[DistanceTerms, Quality]:
    """What the jobs of a sweep of evaluations have measured."""
    runs = {str(job.config.get("run")): evaluated_run(job) for job in jobs}
    known = [run for run in runs.values() if run.config]
    names = without_common_parent([str(run.directory) for run in runs.values()])
    labels = {id(run): name for run, name in zip(runs.values(), names, strict=True)}
    labels |= {id(run): setting.label for setting in settings_of(known) for run in setting.runs}
    found = []
    for job in jobs:
        path = str(job.config.get("run"))
        run = runs[path]
        label = " ".join(filter(None, [labels[id(run)], other_than_last(path)]))
        found.append((label, family_of(run.config), run, job.measured))
    return _gathered(found)


def _gathered(
    found: Sequence[tuple[str, str, Run, Iterable[RecordedRow]]],
) -> dict[DistanceTerms, Quality]:
    """Distances by their terms, of name and family of a model, a run of it, and what an evaluation
    has recorded. A value is of one seed of the training and one of the samples.
    """
    models: dict[tuple[str, str], dict[Path, tuple[Run, dict[_Key, float]]]] = {}
    for label, family, run, rows in found:
        _, own = models.setdefault((label, family), {}).setdefault(run.directory, (run, {}))
        own.update(_distances(label, family, rows))  # what a run has measured last counts
    lines: dict[DistanceTerms, dict[Sampled, dict[int, list[float]]]] = {}
    floors: dict[DistanceTerms, list[float]] = {}
    for runs in models.values():
        for draw in means_by_seed(runs.values()):
            for (terms, line, nfe, _), value in draw.items():
                if line is None:
                    floors.setdefault(terms, []).append(value)
                else:
                    by_nfe = lines.setdefault(terms, {}).setdefault(line, {})
                    by_nfe.setdefault(nfe, []).append(value)
    return {
        terms: Quality(
            {line: dict(sorted(by_nfe.items())) for line, by_nfe in own.items()},
            floors.get(terms._replace(n_reference=""), []),
        )
        for terms, own in lines.items()
    }


def _distances(
    label: str, family: str, rows: Iterable[RecordedRow]
) -> Iterator[tuple[_Key, float]]:
    """Distances to training images, and floors."""
    for row in rows:
        evaluated = EVALUATED.match(row["metric"])
        distance = DISTANCE.fullmatch(EVALUATED.sub("", row["metric"]))
        if evaluated is None or distance is None:
            continue
        metric, against = distance.groups()
        of = (evaluated[1] or "").removeprefix("_of_")
        value = float(row["value"])
        if against == "floor":
            yield (DistanceTerms(metric, row["n"], "", of), None, 0, row["seed"]), value
        elif against is None and row["nfe"] and row["sampler"]:
            own = settings_in(row) | {"guidance": row["guidance"]}
            kept = frozenset((k, v) for k, v in own.items() if k not in BUDGET)
            terms = DistanceTerms(metric, row["n"], row["n_reference"], of)
            line = Sampled(label, family, row["sampler"], kept)
            yield (terms, line, int(row["nfe"]), row["seed"]), value


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
            shades = _shades(lines)
            known = list(dict.fromkeys(shades.values()))
            colours = dict(zip(known, family_colours([f for _, f, _ in known]), strict=True))
            for line, name in zip(lines, _names(list(lines)), strict=True):
                by_nfe = lines[line]
                means = [statistics.mean(values) for values in by_nfe.values()]
                errors = [standard_error(values) or 0.0 for values in by_nfe.values()]
                panel.errorbar(
                    list(by_nfe),
                    means,
                    errors if any(errors) else None,
                    color=colours[shades[line]],
                    label=with_seeds(name, max(map(len, by_nfe.values()))),
                    **sampler_style(line.sampler),
                )
            for model, family in dict.fromkeys((line.model, line.family) for line in lines):
                own = [
                    lines[line] for line in lines if (line.model, line.family) == (model, family)
                ]
                colour = colours[model, family, 0]
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


def _shades(lines: Iterable[Sampled]) -> dict[Sampled, tuple[str, str, int]]:
    """Model, family and number among the lines of its sampler, of each line: each has a colour."""
    seen = Counter[tuple[str, str, str]]()
    shades = {}
    for line in lines:
        alike = line.model, line.family, line.sampler
        shades[line] = (line.model, line.family, seen[alike])
        seen[alike] += 1
    return shades


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
