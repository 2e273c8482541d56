"""A dashboard on Weights & Biases: a workspace, where runs are chosen, and a report, which stands.

Both are drawn from the same description as the page of ``to=html``, panel by panel. A panel names
metrics by patterns; Weights & Biases gets the names of those that the runs have. Runs are grouped,
so that a chart shows a mean and its spread.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from betasigma.commands.sync import connect
from betasigma.display import Display
from betasigma.errors import UserError, counted, first_line
from betasigma.options.apps import Dashboard
from betasigma.options.dashboards import DashboardOptions
from betasigma.options.training import AT_LOG_SNR, DENOISING_ERROR, NFE, SKIPPED, SPEED
from betasigma.report.runs import Run
from betasigma.report.scan import find_recorded, passes
from betasigma.runs.directory import wandb_id
from betasigma.runs.files import write_json
from betasigma.runs.start import Start, program
from betasigma.training.account import logged_in
from betasigma.training.tracking import EVALUATIONS, IMAGES, SECONDS, STEP

AXES = {"step": STEP, "time": SECONDS, "images": IMAGES}
"""Names on Weights & Biases of the axes that a panel may ask for."""

FLOOR = "_floor"
"""Ending of a metric's name that says what real images score."""

SPECIFICATION = "wandb_dashboard.json"

SECONDS_TO_WAIT = 12.0
"""For the server at the start."""

HEALTH = (SKIPPED, "val/not_finite_samples", SPEED)
LIKE_A_RUN = {"x": "NFE", "y": "value", "stroke": "series"}
"""Columns of that table which its chart shows."""


class Drawn(NamedTuple):
    """A panel of the dashboard as charts of Weights & Biases."""

    title: str
    about: str
    charts: list[Any]


class Scene(NamedTuple):
    """What panels are drawn of."""

    dashboard: DashboardOptions
    runs: Sequence[Run]

    @property
    def together(self) -> dict[str, Any]:
        """How a chart shows runs of one group: their mean and its spread."""
        if not self.dashboard.group_by:
            return {}
        group = reports.Config(self.dashboard.group_by[0])
        return {"groupby": group, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """Metrics of the runs that fit the patterns, in their order."""
        known = sorted({metric for run in self.runs for metric in run.metrics})
        found = [name for pattern in patterns for name in known if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    def with_floor(self, patterns: Sequence[str]) -> list[list[str]]:
        """The same, each with its floor where it has one."""
        names = self.matching(patterns)
        known = set(self.matching([f"{name}{FLOOR}" for name in names]))
        return [
            [name, *[floor for floor in [f"{name}{FLOOR}"] if floor in known]]
            for name in names
            if not name.endswith(FLOOR)
        ]

    def final(self, metric: str) -> str:
        """Name in a run's summary of a metric's last value: where one value is the best, the
        summary has both.
        """
        found = (series for run in self.runs for series in run.series if series.metric == metric)
        return f"{metric}.last" if any(series.best is not None for series in found) else metric

    def differing(self) -> list[str]:
        """Keys of the config in which the training runs differ, those that were typed."""
        trained = [run.leaves for run in self.runs if run.is_training]
        keys = list(dict.fromkeys(key for leaves in trained for key in leaves))
        return [
            key
            for key in keys
            if not key.startswith(("logger", "cluster.", "hardware.", "name", "tags"))
            and len({json.dumps(leaves.get(key), sort_keys=True) for leaves in trained}) > 1
        ]


def _curves(panel: Any, scene: Scene) -> list[Any]:
    """A chart for each metric and axis; of metrics in units of their own, for one axis."""
    axes = [panel.x, *[axis for axis in AXES if axis != panel.x and panel.comparable]]
    return [
        reports.LinePlot(
            title=metrics[0],
            x=reports.Metric(AXES[axis]),
            y=[*metrics],
            title_x=axis,
            log_y=panel.log,
            smoothing_type="exponential" if panel.smoothing else None,
            smoothing_factor=panel.smoothing or None,
            **scene.together,
        )
        for metrics in scene.with_floor(panel.patterns)
        for axis in axes
    ]


def _noise(panel: Any, scene: Scene) -> list[Any]:
    """The error over log-SNR as it is at the end, and each of its parts over training."""
    parts = [name for name in scene.matching(panel.patterns) if AT_LOG_SNR in name]
    splits = dict.fromkeys(name.partition(AT_LOG_SNR)[0] for name in parts)
    axes = {"x": "log-SNR (data in [-1, 1])", "y": DENOISING_ERROR}
    charts: list[Any] = [
        reports.CustomChart(
            query={"summaryTable": {"tableKey": f"{split}/{DENOISING_ERROR}_by_log_snr_table"}},
            chart_name="wandb/line/v0",
            chart_fields=axes,
            chart_strings={"title": f"{DENOISING_ERROR} by log-SNR, {split}"},
        )
        for split in splits
    ]
    for split in splits:
        of_split = [name for name in parts if name.startswith(f"{split}/")]
        charts.append(
            reports.LinePlot(
                title=f"{split}: its parts over training",
                x=reports.Metric(STEP),
                y=[*of_split],
                log_y=panel.log,
                **scene.together,
            )
        )
    return charts


def _quality(panel: Any, scene: Scene) -> list[Any]:
    """Every measured value against its evaluations: a point a run, and evaluations as lines by
    sampler, with the floor.
    """
    names = [metrics[0] for metrics in scene.with_floor(panel.patterns)]
    points: list[Any] = [
        reports.ScatterPlot(
            title=name,
            x=reports.SummaryMetric(NFE),
            y=reports.SummaryMetric(scene.final(name)),
            log_x=True,
        )
        for name in names
    ]
    lines = reports.CustomChart(
        query={"summaryTable": {"tableKey": EVALUATIONS}},
        chart_name="wandb/line/v0",
        chart_fields=LIKE_A_RUN,
        chart_strings={"title": panel.title},
    )
    return [*points, lines]


def _precision_recall(panel: Any, scene: Scene) -> list[Any]:
    along, up = (scene.matching([pattern]) for pattern in (panel.x, panel.y))
    features = {name.rpartition("precision_")[2]: name for name in up}
    pairs = [(name, features.get(name.rpartition("recall_")[2])) for name in along]
    return [
        reports.ScatterPlot(
            title=f"{other} against {name}",
            x=reports.SummaryMetric(scene.final(name)),
            y=reports.SummaryMetric(scene.final(other)),
        )
        for name, other in pairs
        if other is not None and other.partition("/")[0] == name.partition("/")[0]
    ]


def _bars(panel: Any, scene: Scene) -> list[Any]:
    """A chart for each quantity whose terms the metrics are."""
    quantities: dict[str, list[str]] = {}
    for name in scene.matching(panel.patterns):
        quantities.setdefault(name.rpartition("/")[0], []).append(name)
    return [
        reports.BarPlot(
            title=quantity, metrics=[*map(scene.final, metrics)], orientation="v", **scene.together
        )
        for quantity, metrics in quantities.items()
    ]


def _table(panel: Any, scene: Scene) -> list[Any]:
    """The final figures: a bar for each group. The runs' table beside has them as columns."""
    return [
        reports.BarPlot(title=name, metrics=[scene.final(name)], orientation="v", **scene.together)
        for name in scene.matching(panel.patterns)
    ]


def _samples(panel: Any, scene: Scene) -> list[Any]:
    return [
        reports.MediaBrowser(
            title=panel.title,
            media_keys=["samples"],
            mode="grid",
            grid_x_axis="step",
            grid_y_axis="run",
            num_columns=panel.steps,
        )
    ]


def _sweep(panel: Any, scene: Scene) -> list[Any]:
    keys = panel.keys or scene.differing()
    columns = [
        *(reports.ParallelCoordinatesPlotColumn(reports.Config(key)) for key in keys),
        reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(scene.final(panel.objective))),
    ]
    return [
        reports.ParallelCoordinatesPlot(title=panel.title, columns=columns),
        reports.ParameterImportancePlot(with_respect_to=scene.final(panel.objective)),
    ]


def _run(panel: Any, scene: Scene) -> list[Any]:
    return [reports.RunComparer(diff_only="split")]


def _health(panel: Any, scene: Scene) -> list[Any]:
    return [
        reports.LinePlot(title=name, x=reports.Metric(STEP), y=[name])
        for name in scene.matching(HEALTH)
    ]


CHARTS: Mapping[str, Callable[[Any, Scene], list[Any]]] = {
    "runs": _table,
    "curves": _curves,
    "noise": _noise,
    "quality": _quality,
    "precision_recall": _precision_recall,
    "bits": _bars,
    "samples": _samples,
    "sweep": _sweep,
    "run": _run,
    "health": _health,
}


def drawn(scene: Scene) -> dict[str, Drawn]:
    """The panels of a dashboard by name; those of which the runs have nothing are empty."""
    return {
        name: Drawn(panel.title or name, panel.about, CHARTS[panel.kind](panel, scene))
        for name, panel in scene.dashboard.panels.items()
    }


def known_ids(runs: Sequence[Run]) -> list[str]:
    """Ids on Weights & Biases of the runs that have one."""
    return [identity for run in runs if (identity := wandb_id(run.directory))]


def _filters(scene: Scene) -> list[Any]:
    """The runs that are shown, and of them those whose config has what the dashboard asks."""
    found: list[Any] = [expr.Metric("ID").isin(known_ids(scene.runs))]
    for key, wanted in scene.dashboard.filters.items():
        known = [run for run in scene.runs if key in run.leaves and passes(run, {key: wanted})]
        values = {json.dumps(run.leaves[key]): run.leaves[key] for run in known}
        found.append(expr.Config(key).isin([*values.values()]))
    return found


def _columns(scene: Scene) -> list[str]:
    """Columns of the table of runs: what they are grouped by and the final figures."""
    dashboard = scene.dashboard
    tables = [panel for panel in dashboard.panels.values() if panel.kind == "runs"]
    keys = dict.fromkeys([*dashboard.group_by, *dashboard.spread_over])
    figures = [name for panel in tables for name in scene.matching(panel.patterns)]
    return [
        *(f"config:{key}" for key in keys),
        *(f"summary:{scene.final(name)}" for name in figures),
    ]


def make_workspace(scene: Scene, entity: str, project: str) -> Any:
    """The workspace: a section for each panel."""
    sections = [
        workspaces.Section(name=panel.title, panels=panel.charts, is_open=True)
        for panel in drawn(scene).values()
        if panel.charts
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=scene.dashboard.title,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=_filters(scene),
            groupby=[expr.Config(key) for key in scene.dashboard.group_by],
            pinned_columns=_columns(scene),
        ),
    )


def make_report(scene: Scene, entity: str, project: str) -> Any:
    """The report: a heading, what it shows and its charts for each panel. The first has the table
    of runs.
    """
    dashboard = scene.dashboard
    runset = partial(
        reports.Runset,
        entity=entity,
        project=project,
        name=dashboard.title,
        filters=_filters(scene),
        groupby=[f"config.{key}" for key in dashboard.group_by],
    )
    blocks: list[Any] = []
    for panel in drawn(scene).values():
        if not panel.charts:
            continue
        blocks.append(reports.H1(panel.title))
        if panel.about:
            blocks.append(reports.P(panel.about))
        first = not any(isinstance(block, reports.PanelGrid) for block in blocks)
        table: dict[str, Any] = {"pinned_columns": _columns(scene)} if first else {}
        blocks.append(reports.PanelGrid(runsets=[runset(**table)], panels=panel.charts))
    grouped = ", ".join(dashboard.group_by) or "nothing"
    about = f"{counted(len(scene.runs), 'run')}, grouped by {grouped}"
    return reports.Report(
        entity=entity,
        project=project,
        title=dashboard.title,
        description=about,
        blocks=blocks,
        width="fluid",
    )


def specification(workspace: Any, report: Any) -> dict[str, Any]:
    """Both as Weights & Biases keeps them, in plain containers."""
    return {
        name: json.loads(it._to_model().model_dump_json(by_alias=True, exclude_none=True))
        for name, it in (("workspace", workspace), ("report", report))
    }


MAKERS = (make_workspace, make_report)


def show_on_wandb(asked: Dashboard, start: Start) -> None:
    """Save a dashboard on Weights & Biases, and as JSON. Without an account only the latter."""
    display, runs = Display(), find_recorded(asked.runs)
    path = start.directory / SPECIFICATION
    scene = Scene(asked.dashboard, runs)
    # a set of runs of no place: naming one would look it up
    write_json(path, specification(*(make(scene, "", "") for make in MAKERS)))
    unsent = sum(run.is_training and not known_ids([run]) for run in runs)
    if unsent:
        command = shlex.join([*program("sync", start.here), *asked.runs])
        display.line(f"{counted(unsent, 'run')} not on Weights & Biases; to send them: {command}")
    if not logged_in():
        display.line(
            f"no account at Weights & Biases (wandb login makes one known): the dashboard is "
            f"described in {path}"
        )
        return
    os.environ.setdefault("WANDB_SILENT", "true")  # read at import
    entity, project = place_of(runs, asked.project, asked.entity)
    entity = entity or connect(SECONDS_TO_WAIT).default_entity
    for name, make in zip(("workspace", "report"), MAKERS, strict=True):
        try:
            address = make(scene, entity, project).save().url
        except Exception as error:  # of whatever kind
            raise UserError(
                f"Weights & Biases did not take the {name} ({first_line(error)}); it is described "
                f"in {path}"
            ) from None
        display.line(f"{name:<9} {address}")
    display.line(f"described in {path}")


def place_of(runs: Sequence[Run], project: str | None, entity: str | None) -> tuple[str, str]:
    """Entity and project of a dashboard, ``""`` for the account's own entity: what is given, else
    what the runs were logged for.

    Raises:
        UserError: where they were logged for several projects.
    """
    logged = [run.leaves for run in runs if run.leaves.get("logger.kind") == "wandb"]
    projects = {str(leaves.get("logger.project") or "betasigma") for leaves in logged}
    if project is None and len(projects) > 1:
        raise UserError(
            f"the runs were logged for {', '.join(sorted(projects))}: give project=… of one"
        )
    entities = {leaves.get("logger.entity") for leaves in logged} - {None}
    own = str(entities.pop()) if len(entities) == 1 else ""
    return entity or own, project or next(iter(projects), "betasigma")
