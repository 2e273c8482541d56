"""The page in a real browser: each panel has its data, and what is chosen changes what it should.

One Chromium and one page serve all tests of this file; each begins with nothing chosen.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made import EXTRACTOR, grow, level_of, make_run, write_status
from scipy.stats import spearmanr

from betasigma.options.dashboards import DashboardOptions, SamplesOptions
from betasigma.plot_style import FAMILIES as FAMILY_COLOURS
from betasigma.report.page import HOST, Pages, make_server, render, state_of_files
from betasigma.report.page_data import page_data
from betasigma.report.page_pictures import Album
from betasigma.report.rows import rows_of_settings
from betasigma.report.scan import find_recorded
from betasigma.runs.record import Record

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: .[dev]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="needs a browser: apt-get install chromium chromium-driver",
    ),
]

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=alert(1)>"
FAMILIES, SEEDS, RATES = ("ddpm", "ncsn"), (1, 2), (0.001, 0.01)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight runs of a sweep, one on other data that failed, and one that is still growing."""
    top = tmp_path_factory.mktemp("page") / "outputs"
    number = 0
    for family in FAMILIES:
        for seed in SEEDS:
            for lr in RATES:
                run = make_run(top / "sweep" / str(number), family, seed, lr, evaluated=[10, 20])
                write_status(run, "finished", job=number)
                number += 1
    shutil.rmtree(top / "sweep" / "0")
    make_run(top / "sweep" / "0", "ddpm", 1, 0.001, evaluated=[10, 20], tags=[HOSTILE])
    write_status(top / "sweep" / "0", "finished", job=0)
    best = top / "best" / ".hydra"
    best.mkdir(parents=True)
    of = {"run": str(top / "sweep" / "1" / "checkpoints" / "best.ckpt")}
    (best / "config.yaml").write_text(yaml.safe_dump(of))
    write_status(best.parent, "finished")
    told = {"n": 100, "nfe": 10, "sampler": "ddim", "seed": 1, "extractor": EXTRACTOR}
    measured = {f"eval/fd_{EXTRACTOR}": 1.0}
    told |= {"n_reference": 1437, "split": "train", "settings": "steps=10 eta=0.0"}
    Record.of(best.parent).append(30, measured, told)
    failed = make_run(top / "mnist", "ncsn", 12345, 0.01, data="mnist", n=50, status="failed")
    (failed / "error.txt").write_text(f"Traceback\nRuntimeError: {HOSTILE}\n")
    write_status(failed, "failed", job=None, error=f"RuntimeError: {HOSTILE}")
    make_run(top / "growing", "ddpm", 3, 0.01, steps=[10, 20])
    write_status(top / "growing", "running")
    return top


def describe(outputs: Path, **panels: dict[str, Any]) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "conf/dashboard/default.yaml").read_text(encoding="utf-8"))
    for name, changed in panels.items():
        content["panels"][name] |= changed
    runs = find_recorded([outputs])
    images = torch.arange(20 * 64, dtype=torch.uint8).reshape(20, 1, 8, 8)
    album = Album(len(runs), SamplesOptions(), lambda run: images)
    return page_data(runs, DashboardOptions.parse(content), album, {"seed": 0, "batch_size": 128})


@pytest.fixture(scope="module")
def page(outputs: Path) -> Path:
    path = outputs.parent / "page.html"
    path.write_text(render(describe(outputs)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(outputs: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,900"):
        options.add_argument(word)
    folder = outputs.parent / "downloads"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(30)
    where = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    yield driver
    driver.quit()


class Page:
    """The page as it stands in the browser."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, chosen: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}{chosen}")
        self.until(lambda: self.run("return document.documentElement.dataset.ready") == "yes")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, holds: Callable[[], object], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"did not come to hold: {self.errors()}"
            time.sleep(0.05)

    def errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if is_error(line)]

    def texts(self, selector: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )

    def rows(self) -> list[list[str]]:
        return self.run(
            "return [...document.querySelectorAll('table.runs tbody tr')]"
            ".map((row) => [...row.cells].slice(1).map((cell) => cell.textContent))"
        )

    def charts(self, panel: str) -> list[list[dict[str, Any]]]:
        """Traces of the charts of a panel, which is brought into sight to be drawn."""
        selector = f"[data-panel={panel}]"
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})", selector
        )
        self.until(
            lambda: self.run(
                "return [...document.querySelectorAll(arguments[0] + ' .chart')]"
                ".every((chart) => chart.data || chart.getBoundingClientRect().top > 1100)",
                selector,
            )
        )
        return self.run(
            "return [...document.querySelectorAll(arguments[0] + ' .chart')]"
            ".filter((chart) => chart.data).map((chart) => chart.data.map((trace) => ({"
            "name: trace.name, type: trace.type, x: [...(trace.x ?? [])], y: [...(trace.y ?? [])],"
            "z: trace.z, colour: trace.line?.color, dash: trace.line?.dash, fill: trace.fill,"
            "errors: trace.error_y?.array, legend: trace.showlegend})))",
            selector,
        )

    def range(self, panel: str) -> list[float]:
        """Of the x axis of a panel's first chart."""
        return self.run(
            "return document.querySelector(arguments[0]).layout.xaxis.range",
            f"[data-panel={panel}] .chart",
        )

    def zoom(self, panel: str) -> list[float]:
        """Draw a small box in the middle of a panel's first chart, and return its new range."""
        before = self.range(panel)
        plane = self.driver.find_element(
            "css selector", f"[data-panel={panel}] .chart .nsewdrag.drag"
        )
        drawn = webdriver.ActionChains(self.driver).move_to_element_with_offset(plane, -50, -30)
        drawn.click_and_hold().move_by_offset(100, 60).release().perform()
        self.until(lambda: self.range(panel) != before)
        return self.range(panel)

    def choose(self, label: str, value: str) -> None:
        self.run(
            "const select = [...document.querySelectorAll('select')]"
            ".find((one) => one.getAttribute('aria-label') === arguments[0]);"
            "select.value = arguments[1]; select.dispatchEvent(new Event('change'))",
            *(label, value),
        )
        self.settle()

    def press(self, key: str) -> None:
        self.driver.switch_to.active_element.send_keys(key)
        self.settle()

    def settle(self) -> None:
        """Wait until what was chosen is drawn."""
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    def hash(self) -> str:
        return self.run("return decodeURIComponent(location.hash)")


def is_error(line: dict[str, Any]) -> bool:
    return line["level"] in ("SEVERE", "WARNING") and "favicon" not in line["message"]


@pytest.fixture
def shown(chromium: Any, page: Path) -> Iterator[Page]:
    found = Page(chromium, page.as_uri())
    found.errors()
    found.open()
    yield found
    assert not (problems := found.errors()), problems


@contextmanager
def a_phone(driver: Any, width: int = 390) -> Iterator[None]:
    size = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def lines(chart: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Traces with names, without the edges of bands."""
    return {trace["name"]: trace for trace in chart if trace["name"]}


# ---------------------------------------------------------------- each panel has its data


def test_the_table_has_runs_in_groups_of_seeds(shown: Page) -> None:
    rows = shown.rows()
    assert len(rows) == 2 * 2 + 2 - 1  # the growing run is a third seed of its setting
    by_name = {row[0]: row for row in rows}
    row = by_name["ddpm lr=0.001 on digits"]
    assert row[1:3] == ["2", "finished"]
    best = [level_of("ddpm", 0.001, seed) / 30 for seed in SEEDS]
    mean, std = sum(best) / 2, abs(best[1] - best[0]) / 2**0.5
    header = shown.texts("table.runs thead th")[1:]
    cell = row[header.index("best denoising_error")]
    assert [float(number) for number in cell.split(" ± ")] == pytest.approx([mean, std], rel=0.02)
    assert by_name["ddpm lr=0.01 on digits"][1:3] == ["3", "2 finished, 1 running"]
    assert sum("failed" in row[2] for row in rows) == 1


def test_curves_are_means_over_seeds_with_bands(shown: Page) -> None:
    chart, other = shown.charts("error")
    line = lines(chart)["ncsn lr=0.001 on digits"]
    levels = [level_of("ncsn", 0.001, seed) for seed in SEEDS]
    assert line["x"] == [10, 20, 30]
    assert line["y"] == pytest.approx([sum(levels) / 2 / step for step in line["x"]], rel=1e-3)
    bands = [trace for trace in chart if trace["fill"] == "tonexty"]
    assert len(bands) == 4
    assert list(lines(other)) == ["ncsn lr=0.01 on mnist"]  # other data have another axis


def test_a_seed_that_was_run_twice_counts_once_as_in_tables(chromium: Any, tmp_path: Path) -> None:
    for number, seed in enumerate((1, 2, 2)):
        make_run(tmp_path / "outputs" / str(number), "ddpm", seed, evaluated=[10])
    page = tmp_path / "page.html"
    page.write_text(render(describe(tmp_path / "outputs")), encoding="utf-8")
    (in_tables,) = rows_of_settings(find_recorded([tmp_path / "outputs"]))
    errors = in_tables.values["denoising_error"]
    mean, std = statistics.mean(errors), statistics.stdev(errors)
    shown = Page(chromium, page.as_uri())
    shown.open()
    (row,) = shown.rows()
    assert row[1] == in_tables.described["seeds"] == "2 (3 runs)"
    cell = row[shown.texts("table.runs thead th")[1:].index("best denoising_error")]
    assert [float(number) for number in cell.split(" ± ")] == pytest.approx([mean, std], rel=0.02)
    (curve,) = lines(shown.charts("error")[0]).values()
    assert curve["y"][-1] == pytest.approx(mean, rel=1e-4)
    (levels,) = lines(shown.charts("noise")[0]).values()
    assert levels["y"] == pytest.approx([mean / 2, mean * 8], rel=1e-4)
    distance = lines(shown.charts("quality")[0])["made ddim"]
    assert distance["y"] == pytest.approx([10 + 1.5])
    assert distance["errors"] == pytest.approx([0.5**0.5])


def test_a_mean_over_seeds_is_not_called_by_one_of_them(chromium: Any, tmp_path: Path) -> None:
    """Where more keys differ than a name holds, here five."""
    place = tmp_path / "outputs" / "a_sweep_with_a_name_that_is_longer_than_the_screen_of_a_phone"
    for width in (1, 2):
        for seed in SEEDS:
            asked = {"network": dict.fromkeys("abcde", width)}
            make_run(place / f"width={width},seed={seed}", "ddpm", seed, **asked)
    page = tmp_path / "page.html"
    page.write_text(render(describe(tmp_path / "outputs")), encoding="utf-8")
    shown = Page(chromium, page.as_uri())
    shown.open()
    assert [row[0] for row in shown.rows()] == ["width=1", "width=2"]
    assert "step" in shown.texts("table.runs thead th")  # steps is a key
    with a_phone(chromium):
        shown.open()
        shown.charts("bits")
        assert shown.run("return document.documentElement.scrollWidth") <= 390
    assert shown.errors() == []


def test_a_run_that_went_off_leaves_ticks_that_can_be_read(chromium: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs" / "run", status="failed")
    Record.of(run).append(40, {"val/denoising_error": 3e18}, {"n": 360, "split": "test"})
    write_status(run, "failed", not_finite={"since_step": 2, "examples": [], "log_snr": [0.5]})
    page = tmp_path / "page.html"
    page.write_text(render(describe(tmp_path / "outputs")), encoding="utf-8")
    shown = Page(chromium, page.as_uri())
    shown.open()
    shown.charts("error")
    ticks = shown.texts("[data-panel=error] .chart .ytick")
    assert 4 <= len(ticks) <= 10, ticks
    assert "1e+15" in ticks
    known = shown.texts("[data-panel=health] tr.trouble td:last-child")
    assert "since step 2; log snr 0.5" in known


def test_objectives_of_two_families_are_on_two_axes(shown: Page) -> None:
    charts = shown.charts("objective")
    families = [{name.split()[0] for name in lines(chart)} for chart in charts]
    assert all(len(family) == 1 for family in families)
    assert len(charts) == 3


def test_errors_by_noise_level_follow_the_slider(shown: Page) -> None:
    (curves, other, heat) = shown.charts("noise")
    line = lines(curves)["ddpm lr=0.001 on digits"]
    mean = sum(level_of("ddpm", 0.001, seed) for seed in SEEDS) / 2
    assert line["x"] == [-1, 3]
    assert line["y"] == pytest.approx([mean / 30 / 2, mean / 30 * 8], rel=1e-3)
    assert heat[0]["type"] == "heatmap"
    assert len(heat[0]["z"]) == 2
    slider = "[data-panel=noise] input[type=range]"
    shown.run(
        "const slider = document.querySelector(arguments[0]); slider.value = 0;"
        "slider.dispatchEvent(new Event('input'))",
        slider,
    )
    shown.settle()
    assert "noise.step=10" in shown.hash()
    moved = lines(shown.charts("noise")[0])["ddpm lr=0.001 on digits"]
    assert moved["y"] == pytest.approx([mean / 10 / 2, mean / 10 * 8], rel=1e-3)
    shown.choose("relative to", "sweep/0")
    ratios = lines(shown.charts("noise")[0])["ddpm lr=0.001 on digits"]["y"]
    assert ratios == pytest.approx([mean / level_of("ddpm", 0.001, 1)] * 2, rel=1e-3)
    assert len(other) > 0


def test_quality_has_error_bars_and_the_floor_at_its_n(shown: Page) -> None:
    (chart,) = shown.charts("quality")
    line = lines(chart)["ddpm lr=0.001 on digits ddim"]
    assert line["x"] == [10, 20]
    assert line["y"] == pytest.approx([10 + 1.5, 5 + 1.5])
    assert line["errors"] == pytest.approx([0.5**0.5] * 2)
    other = lines(chart)["ddpm lr=0.01 on digits ddim best.ckpt"]
    assert (other["x"], other["y"]) == ([10], [1.0])
    assert lines(chart)["ddpm lr=0.01 on digits ddim"]["y"] == pytest.approx([10 + 1.5, 5 + 1.5])
    floor = lines(chart)["real test images score 2.5 (n = 100)"]
    assert floor["y"] == [2.5, 2.5]
    assert (
        "n = 100 · against 1,437 train images" in shown.texts("[data-panel=quality] figcaption")[0]
    )
    (points,) = shown.charts("precision_recall")
    assert lines(points)["ncsn lr=0.01 on digits ddim"]["y"] == pytest.approx([0.8, 0.8])


def test_bits_are_stacked_by_their_terms(shown: Page) -> None:
    charts = shown.charts("bits")
    bars = {trace["name"]: trace["y"] for trace in charts[0] if trace["type"] == "bar"}
    assert {name: values[0] for name, values in bars.items()} == {
        "prior": 0.5,
        "diffusion": 2.0,
        "decoder": 1.0,
    }


def test_a_sample_is_followed_through_runs_and_steps(shown: Page) -> None:
    tiles = "[data-panel=samples] button.tile"
    assert len(shown.texts(tiles)) == 6 * (9 * 3 + 2)
    shown.run("document.querySelectorAll(arguments[0])[4].click()", tiles)
    shown.settle()
    assert "sample=4" in shown.hash()
    single = shown.run(
        "return [...document.querySelectorAll('[data-panel=samples] .tile')]"
        ".map((tile) => tile.getAttribute('aria-label'))"
    )
    assert single.count("sample 4 at step 30") == 9
    assert single.count("nearest training image of sample 4") == 10
    assert "sample 3 at step 30" not in single


def test_a_sweep_has_coordinates_a_map_and_ranks(shown: Page) -> None:
    coordinates, heat, ranks = shown.charts("sweep")
    assert len(coordinates) == 9
    assert {value for row in heat[0]["z"] for value in row} - {None}
    bars = dict(zip(ranks[0]["y"], ranks[0]["x"], strict=True))
    known = [(f, s, lr) for f in FAMILIES for s in SEEDS for lr in RATES]
    errors = [level_of(f, lr, s) / 30 for f, s, lr in known] + [level_of("ddpm", 0.01, 3) / 20]
    rates = [lr for _, _, lr in known] + [0.01]
    ncsn = [family == "ncsn" for family, _, _ in known] + [False]
    assert bars["optimizer.lr"] == pytest.approx(spearmanr(rates, errors).statistic, abs=1e-6)
    assert bars["model.name (ncsn)"] == pytest.approx(spearmanr(ncsn, errors).statistic, abs=1e-6)


def test_no_correlation_is_said_too(chromium: Any, tmp_path: Path) -> None:
    measured = [(1, 0.001, 0.1), (2, 0.001, 0.2), (2, 0.01, 0.3), (1, 0.01, 0.4)]
    for number, (seed, lr, error) in enumerate(measured):
        run = make_run(tmp_path / "outputs" / str(number), "ddpm", seed, lr, steps=[])
        told = {"n": 360, "split": "test"}
        Record.of(run).append(10, {"val/denoising_error": error}, told)
    page = tmp_path / "page.html"
    page.write_text(render(describe(tmp_path / "outputs")), encoding="utf-8")
    shown = Page(chromium, page.as_uri())
    shown.open()
    shown.charts("sweep")
    assert set(shown.texts("[data-panel=sweep] .bartext")) == {"ρ = 0.89", "ρ = 0.00"}


def test_a_runs_page_says_how_it_was_made(shown: Page) -> None:
    shown.choose("run", "sweep/3")
    facts = shown.texts("[data-panel=run] .command code")[0]
    assert facts == "python train.py model=ddpm seed=2 optimizer.lr=0.01"
    table = shown.texts("[data-panel=run] details tbody tr")
    assert "batch_size12816" in table
    shown.choose("compared with", "sweep/0")
    assert "optimizer.lr0.0010.01" in shown.texts("[data-panel=run] details tbody tr")
    assert "first line\nlast line" in shown.texts("[data-panel=run] pre")


def test_health_names_what_went_wrong(shown: Page) -> None:
    (trouble,) = shown.texts("[data-panel=health] tr.trouble")
    assert trouble.endswith(f"failedRuntimeError: {HOSTILE}")
    (bars,) = shown.charts("health")
    assert {trace["name"] for trace in bars} <= {"training", "validation", "evaluation", "the rest"}


# ---------------------------------------------------------------- choosing


def test_a_filter_leaves_what_fits_and_stands_in_the_address(shown: Page) -> None:
    box = shown.driver.find_element("id", "filter")
    box.send_keys("lr=0.001 family=ncsn")
    shown.until(lambda: len(shown.rows()) == 1)
    assert shown.rows()[0][0].startswith("ncsn") or shown.rows()[0][1] == "2"
    assert len(lines(shown.charts("error")[0])) == 1
    address = shown.run("return location.href")
    shown.open("#" + address.partition("#")[2])
    assert len(shown.rows()) == 1
    assert (
        shown.driver.find_element("id", "filter").get_attribute("value") == "lr=0.001 family=ncsn"
    )


def test_a_filter_that_leaves_none_calls_none_healthy(shown: Page) -> None:
    shown.open("#filter=nowhere")
    assert shown.texts("[data-panel=health] .body > p") == ["No run is shown."]


def test_what_is_chosen_is_what_the_panels_show(shown: Page) -> None:
    place = next(i for i, row in enumerate(shown.rows()) if row[0] == "ncsn lr=0.001 on digits")
    boxes = shown.driver.find_elements("css selector", "table.runs tbody input")
    shown.run("arguments[0].click()", boxes[place])
    shown.settle()
    assert len(shown.rows()) == 5
    chosen = json.loads(re.search(r"runs=(\[.*?\])", shown.hash()).group(1))  # type: ignore[union-attr]
    assert len(chosen) == 2
    assert len(lines(shown.charts("error")[0])) == 1


def test_sorting_puts_the_least_first_and_then_last(shown: Page) -> None:
    def click() -> list[float]:
        shown.run(
            "[...document.querySelectorAll('table.runs thead button')]"
            ".find((one) => one.textContent.startsWith('best denoising')).click()"
        )
        shown.settle()
        place = next(
            i
            for i, t in enumerate(shown.texts("table.runs thead th")[1:])
            if t.startswith("best d")
        )
        return [float(row[place].split(" ")[0]) for row in shown.rows()]

    rising = click()
    assert rising == sorted(rising)
    falling = click()
    assert falling == sorted(falling, reverse=True)
    assert "sort=-best denoising_error" in shown.hash().replace("+", " ")


def test_axes_smoothing_colours_and_groups_change_the_curves(shown: Page) -> None:
    shown.choose("along", "images")
    assert lines(shown.charts("error")[0])["ncsn lr=0.001 on digits"]["x"] == [160, 320, 480]
    shown.choose("along", "time")
    assert max(lines(shown.charts("error")[0])["ncsn lr=0.001 on digits"]["x"]) > 0
    shown.choose("along", "step")
    before = lines(shown.charts("error")[0])["ncsn lr=0.001 on digits"]
    shown.run(
        "const slider = document.querySelector('[data-panel=error] input[type=range]');"
        "slider.value = 0.9; slider.dispatchEvent(new Event('input'))"
    )
    shown.settle()
    after = lines(shown.charts("error")[0])["ncsn lr=0.001 on digits"]
    assert after["y"][0] == pytest.approx(before["y"][0])
    assert after["y"][-1] > before["y"][-1]
    shown.choose("colour", "optimizer.lr")
    colours = {name: one["colour"] for name, one in lines(shown.charts("error")[0]).items()}
    assert (
        colours["ncsn lr=0.001 on digits"]
        == colours["ddpm lr=0.001 on digits"]
        != colours["ddpm lr=0.01 on digits"]
    )
    shown.press("g")
    assert len(shown.rows()) == 10
    assert "ncsn lr=0.01 seed=12345" in [row[0] for row in shown.rows()]
    assert len(lines(shown.charts("error")[0])) == 9


def test_one_run_is_counted_as_one(chromium: Any, outputs: Path) -> None:
    path = outputs.parent / "one.html"
    path.write_text(render(describe(outputs / "growing")), encoding="utf-8")
    shown = Page(chromium, path.as_uri())
    shown.open()
    told = shown.texts("[role=status]")
    assert [text[:6] for text in told] == ["1 run,", "1 run;"]
    assert not (problems := shown.errors()), problems


def test_the_mean_of_equal_values_is_that_value(shown: Page) -> None:
    """Times of seeds differ in no digit, else an axis is too short for a tick."""
    script = "import('page/runs.js').then((runs) => arguments[0](runs.mean([0.1, 0.1, 0.1])))"
    assert shown.driver.execute_async_script(script) == 0.1


def test_keys_reach_everything(shown: Page) -> None:
    shown.press("j")
    first = shown.run("return document.activeElement.dataset.run")
    shown.press("x")
    assert first in shown.hash()
    assert shown.run("return document.activeElement.dataset.run") == first
    shown.press("j")
    second = shown.run("return document.activeElement.dataset.run")
    assert second != first
    shown.press("\ue007")  # Enter
    assert f"run={second}" in shown.hash()
    shown.press("t")
    assert shown.run("return document.documentElement.dataset.theme") == "dark"
    shown.press("\ue00c")  # Escape
    assert "runs=" not in shown.hash()
    shown.press("/")
    assert shown.run("return document.activeElement.id") == "filter"
    shown.press("\ue00c")
    shown.press("2")
    assert shown.run("return document.activeElement.textContent") == "Denoising error"
    shown.press("?")
    assert shown.run("return document.querySelector('dialog').open")


def test_keys_stay_where_they_were_used(shown: Page) -> None:
    def focused() -> str:
        return shown.run(
            "const { activeElement: now } = document;"
            "return now.getAttribute('aria-label') ?? now.textContent"
        )

    shown.run("document.querySelectorAll('table.runs th button')[1].focus()")
    for direction in ("ascending", "descending"):
        shown.press("\ue00d")  # space
        assert shown.run("return document.activeElement.closest('th').ariaSort") == direction
    shown.press("j")
    shown.press("x")
    shown.run("document.querySelector('[data-panel=runs] .controls button').focus()")
    shown.press("\ue00d")
    assert focused() == "Runs"  # "choose none", which had it, has nothing more to do
    shown.press("j")
    shown.press("\ue007")  # Enter
    assert focused() == "One run"


# ---------------------------------------------------------------- files


def test_each_panel_gives_csv_and_svg(shown: Page, outputs: Path) -> None:
    folder = outputs.parent / "downloads"
    panels = shown.run(
        "return [...document.querySelectorAll('section')].map((s) => s.dataset.panel)"
    )
    assert len(panels) == 13
    for number, name in enumerate(panels):
        if number % 4 == 0:
            shown.open()  # a browser that nobody looks at saves at most ten files of a page
        for button in shown.driver.find_elements(
            "css selector", f"[data-panel={name}] .files button"
        ):
            button.send_keys("\ue007")
        table, picture = folder / f"{name}.csv", folder / f"{name}.svg"
        shown.until(lambda: table.is_file() and picture.is_file(), 30)  # noqa: B023
        with table.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file))
        assert rows or name == "distance", name  # training has measured none here
        assert all(len(row) == len(head) for row in rows), name
        text = picture.read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "<text" in text, name
    drawn = [(folder / f"{name}.svg").read_text(encoding="utf-8") for name in ("error", "samples")]
    assert "digits 1×8×8 · n = 360" in drawn[0]
    assert re.findall(r">(ddpm lr=0.001 on digits seed=1|step 10)<", drawn[1])[:2] == [
        "ddpm lr=0.001 on digits seed=1",
        "step 10",
    ]
    with (folder / "error.csv").open(newline="", encoding="utf-8") as file:
        values = [row for row in csv.DictReader(file) if row["directory"].endswith("sweep/0")]
    assert [float(row["value"]) for row in values] == [
        pytest.approx(level_of("ddpm", 0.001, 1) / step, rel=1e-4) for step in (10, 20, 30)
    ]
    with (folder / "quality.csv").open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert (first["n"], first["extractor"], first["floor"]) == ("100", EXTRACTOR, "2.5")


# ---------------------------------------------------------------- readers and strangers


def test_nothing_of_a_run_becomes_markup(shown: Page) -> None:
    for name in ("runs", "run", "health"):
        shown.run("document.querySelector(`[data-panel=${arguments[0]}]`).scrollIntoView()", name)
    shown.choose("run", "mnist")
    assert HOSTILE in "".join(shown.texts("[data-panel=run] dd"))
    assert shown.run("return document.querySelectorAll('img[onerror]').length") == 0


def test_a_phone_shows_it_without_scrolling_sideways(shown: Page) -> None:
    with a_phone(shown.driver):
        shown.open()
        shown.charts("error")
        assert shown.run("return document.documentElement.scrollWidth") <= 390
        widths = shown.run(
            "return [...document.querySelectorAll('.chart')].map((c) => c.clientWidth)"
        )
        assert all(0 < width <= 390 for width in widths)


@pytest.mark.parametrize("count", [2, 6])
def test_the_axes_of_a_sweep_have_their_names_on_a_small_phone(
    chromium: Any, tmp_path: Path, count: int
) -> None:
    known = ("channels", "dropout", "scale_shift", "fourier_scale", "frequency_shift", "heads")
    for number in (1, 2):
        asked = {"network": dict.fromkeys(known, number)}
        make_run(tmp_path / "outputs" / str(number), "ddpm", **asked)
    keys = [f"network.{key}" for key in known[:count]]
    page = tmp_path / "page.html"
    described = describe(tmp_path / "outputs", sweep={"keys": keys})
    page.write_text(render(described), encoding="utf-8")
    shown = Page(chromium, page.as_uri())
    with a_phone(chromium, 360):
        shown.open()
        shown.charts("sweep")
        names = shown.run(
            "const chart = document.querySelector('[data-panel=sweep] .chart');"
            "const { left, right } = chart.getBoundingClientRect();"
            "return [...chart.querySelectorAll('.xtick text')].filter((text) => {"
            "const box = text.getBoundingClientRect();"
            "return box.width && box.left >= left && box.right <= right;"
            "}).map((text) => text.textContent)"
        )
    assert names == [*keys, "val/denoising_error"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_curves_stand_out_from_the_ground(shown: Page, theme: str) -> None:
    shown.open(f"#theme={theme}")
    words = shown.run(
        "const style = (e) => getComputedStyle(e);"
        "return [style(document.body).backgroundColor, style(document.body).color,"
        "style(document.querySelector('.about')).color, style(document.querySelector('a')).color]"
    )
    ground, *inks = [luminance([int(n) for n in re.findall(r"\d+", word)]) for word in words]
    named = lines(shown.charts("error")[0])
    if theme == "light":  # as in every plot
        families = {name.split()[0]: trace["colour"] for name, trace in named.items()}
        assert families == {family: FAMILY_COLOURS[family] for family in FAMILIES}
    curves = [trace["colour"] for trace in named.values()]
    drawn = [luminance([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in curves]
    assert all(contrast(ink, ground) >= 4.5 for ink in inks)
    assert all(contrast(ink, ground) >= 3 for ink in drawn)


def luminance(colour: list[int]) -> float:
    """Relative luminance of sRGB (WCAG 2.1)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


# ---------------------------------------------------------------- growing runs


def test_a_growing_run_is_followed(chromium: Any, outputs: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("betasigma.report.page.REFRESH", 0.3)
    pages = Pages(lambda: describe(outputs), lambda: state_of_files([str(outputs)]))
    with make_server(pages, free_port()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown = Page(chromium, f"http://{HOST}:{server.server_address[1]}/")
        shown.errors()
        shown.open("#filter=seed%3D3")
        assert lines(shown.charts("error")[0])["made"]["x"] == [10, 20]
        whole = shown.range("error")
        zoomed = shown.zoom("error")
        assert zoomed[1] - zoomed[0] < (whole[1] - whole[0]) / 2
        grow(outputs / "growing", "ddpm", 0.01, [25], 3)
        shown.until(lambda: lines(shown.charts("error")[0])["made"]["x"] == [10, 20, 25])
        assert shown.range("error") == zoomed
        assert "filter=seed=3" in shown.hash()
        server.shutdown()
    shown.until(lambda: "does not answer" in shown.texts(".stamp")[0])


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
    return port
