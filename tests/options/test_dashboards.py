"""The description of a dashboard: what is refused, and with which sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from betasigma.errors import UserError
from betasigma.options.base import dump
from betasigma.options.dashboards import DashboardOptions, PanelOptions

FILE = Path(__file__).parents[2] / "conf" / "dashboard" / "default.yaml"


def default() -> dict[str, Any]:
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_file_has_each_kind_of_panel_and_names_known_metrics() -> None:
    options = DashboardOptions.parse(default())
    assert {type(panel) for panel in options.panels.values()} == set(PanelOptions.__subclasses__())
    options.check_metrics([])
    assert DashboardOptions.parse(dump(options)) == options


@pytest.mark.parametrize(
    ("panel", "told"),
    [
        ({"kind": "curve"}, r"panels\.new\.kind=curve is unknown; did you mean curves\? kinds are"),
        ({"kind": "zz"}, r"panels\.new\.kind=zz is unknown; kinds are runs, curves"),
        ({"kind": "curves"}, r"panels\.new\.metrics has no value; give .*new\.metrics=…"),
        ({"kind": "curves", "metrics": []}, r"panels\.new\.metrics=\[\] "),
        ({"kind": "curves", "metrics": [" a"]}, r"= a must be the name of a metric"),
        ({"kind": "run", "lins": 1}, r"panels\.new\.lins=1 is unknown: there is no key dashboard"),
        ({"kind": "curves", "metrics": ["a"], "x": "steps"}, r"new\.x=steps must be 'step', 'im"),
        ("curves", r"panels\.new=curves must be a node with keys"),
    ],
)
def test_a_panel_that_cannot_be_is_refused(panel: Any, told: str) -> None:
    with pytest.raises(UserError) as refused:
        DashboardOptions.parse({"panels": {"new": panel}})
    assert re.search(told, str(refused.value)), refused.value


def test_a_panel_that_is_null_is_left_out() -> None:
    content = default()
    content["panels"]["samples"] = None
    assert "samples" not in DashboardOptions.parse(content).panels


def test_a_metric_that_no_run_has_is_refused_by_what_comes_near() -> None:
    options = DashboardOptions.parse({"panels": {"a": {"kind": "curves", "metrics": ["val/mine"]}}})
    options.check_metrics(["val/mine"])
    with pytest.raises(UserError, match=r"panels\.a: no run has .* val/mine; did you mean val/min"):
        options.check_metrics(["val/mines"])


def test_filters_have_dotted_keys_however_they_are_given() -> None:
    panels = {"a": {"kind": "run"}}
    nested = DashboardOptions.parse({"filters": {"data": {"name": ["a", "b"]}}, "panels": panels})
    dotted = DashboardOptions.parse({"filters": {"data.name": ["a", "b"]}, "panels": panels})
    assert nested.filters == dotted.filters == {"data.name": ["a", "b"]}
