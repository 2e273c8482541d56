"""What the benchmarks' figures rest on: turns, ratios, exponents, counted operations, the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import pytest
import torch
from torch.nn import functional as F

import gpu
from betasigma.errors import UserError
from harness.ours import flops_of
from harness.report import Report, load, markdown, replace_section
from harness.timing import Apart, Timings, fitted_exponent, interleaved
from time_to_quality import Outcome, outcomes_of


def test_candidates_take_turns_and_the_warm_up_does_not_count():
    order: list[str] = []
    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=2
    )
    assert order == ["a", "b"] * 5
    assert {name: len(s) for name, s in timings.seconds.items()} == {"a": 3, "b": 3}


def in_another_process():
    names = iter(["first", "second"])

    def step():
        sys.stdout.write(next(names))  # StopIteration at the third call
        os.environ["BETASIGMA_APART"] = "1"
        time.sleep(0.05)

    return step


@pytest.mark.slow
def test_a_candidate_apart_times_itself_and_touches_nothing_here():
    with Apart(in_another_process) as apart:
        timings = interleaved({"apart": apart}, rounds=1, warmup=1)
        assert 0.05 <= timings.seconds["apart"][0] < 1
        assert "BETASIGMA_APART" not in os.environ
        with pytest.raises(RuntimeError, match="StopIteration"):
            apart()


def test_a_ratio_is_of_medians_and_its_spread_of_the_rounds():
    timings = Timings({"slow": [2.0, 4.0, 100.0], "fast": [1.0, 2.0, 10.0]})
    assert timings.ratio("slow", "fast") == 2
    assert timings.spread("slow", "fast") == (2, 6)


@pytest.mark.parametrize("exponent", [0.5, 1, 2])
def test_the_exponent_of_a_power_law_is_found(exponent):
    sizes = [4, 8, 16, 40]
    assert fitted_exponent(sizes, [3 * s**exponent for s in sizes]) == pytest.approx(exponent)


def test_operations_of_a_convolution_and_its_backward_pass():
    x, w = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * 2 * 8 * 8 * 5 * 3 * 9
    assert flops_of(lambda: F.conv2d(x, w, padding=1)) == forward
    # only the weight's gradient is asked for
    assert flops_of(lambda: F.conv2d(x, w, padding=1).sum().backward()) == 2 * forward


def test_operations_of_fused_attention_and_its_backward_pass():
    q, k, v = torch.randn(3, 2, 4, 16, 8, requires_grad=True).unbind()
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert flops_of(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    # the backward pass forms the scores again, and four more products
    both = flops_of(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert both == (2 + 5) * product


def test_results_come_back_as_a_page_that_says_what_was_missed(tmp_path):
    report = Report("demo", argparse.Namespace(size="small", out=str(tmp_path), data_root="x"))
    report.table("Speeds", ["", "images/s"], [["ours", 1234.5]])
    report.target("fast enough", 1.5, at_least=2)
    report.target("small enough", 0.9, at_most=1)
    report.save()
    page = markdown(load(tmp_path))
    assert "| demo | fast enough | ≥ 2 | 1.5 | **no** |" in page
    assert "| demo | small enough | ≤ 1 | 0.9 | yes |" in page
    assert "| ours | 1,234 |" in page
    assert f"## demo\n\n{report.content['started'][:10]}, small size, 0 s, load" in page
    saved = json.loads((tmp_path / "demo.json").read_text())
    assert "data_root" not in saved["options"]
    assert saved["machine"]["versions"]["torch"]


def test_a_section_of_a_page_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n")
    replace_section(page, "x", "new")
    assert page.read_text() == "a\n<!-- begin: x -->\nnew\n<!-- end: x -->\nb\n"
    with pytest.raises(ValueError, match="no section"):
        replace_section(page, "y", "new")


def test_a_competitor_runs_again_beside_what_the_others_left(tmp_path):
    words = {"size": "small", "out": str(tmp_path), "minutes": 2.0, "n": None, "seeds": [0]}
    report = Report("time_to_quality", argparse.Namespace(**words))
    found = {20: {"train": 1.5, "test": 2.5}}
    left = {"ours, DDPM": Outcome(7, 5, 4, 120.0, {"ddim": found})}
    again = argparse.Namespace(**words, again=["diffusers"])
    with pytest.raises(UserError, match="needs an earlier run"):
        outcomes_of(report, again)
    report.raw(
        "outcomes", {name: left["ours, DDPM"]._asdict() for name in ("ours, DDPM", "diffusers")}
    )
    report.save()
    assert outcomes_of(report, again) == left
    with pytest.raises(UserError, match="same size, minutes, n, seeds"):
        outcomes_of(report, argparse.Namespace(**{**vars(again), "minutes": 3.0}))
    with pytest.raises(UserError, match="--again=me is unknown; choose from ours, DDPM"):
        outcomes_of(report, argparse.Namespace(**{**vars(again), "again": ["me"]}))


def test_a_report_keeps_what_it_does_not_measure_again(tmp_path):
    chosen = argparse.Namespace(size="small", out=str(tmp_path))
    for values in ({"training": 1, "start": 2}, {"start": 3, "larger": 4}):
        report = Report("gpu_card", chosen, keeps=True)
        for title, value in values.items():
            report.table(title, ["seconds"], [[value]])
            report.target(title, value, at_most=3)
            report.note(f"of {title}")
            report.raw(title, value)
        report.save()
        report.save()  # a report is saved after each section
    (found,) = load(tmp_path)
    assert [(t["title"], t["rows"]) for t in found["tables"]] == [
        *(("training", [[1]]), ("start", [[3]]), ("larger", [[4]]))
    ]
    assert [t["met"] for t in found["targets"]] == [True, True, False]
    assert found["notes"] == ["of training", "of start", "of larger"]
    assert found["raw"] == {"training": 1, "start": 3, "larger": 4}
    page, installed = markdown([found]), found["machine"]["versions"]["torch"]
    assert f"**training** ({found['started'][:10]}, torch {installed})" in page
    assert "**larger**\n" in page


@pytest.mark.slow
def test_what_a_gpu_is_measured_by_runs(tmp_path):
    """Small, on this machine's CPU."""
    gpu.main([*("--device", "cpu", "--rounds", "1"), "--only", "pipeline", "--out", str(tmp_path)])
    (found,) = load(tmp_path)
    titles = [table["title"].partition(":")[0] for table in found["tables"]]
    assert titles == ["Limits of this device (TFLOP/s)", "FID pipeline"]
    assert all(seconds[0] > 0 for seconds in found["raw"]["pipeline"].values())
