// Samples of runs over training, side by side: sample i of every run began from the same noise.

import { choice, fill, h, tilesSvg } from "page/dom.js";
import * as state from "page/state.js";

export function samples(body, panel, view) {
  const runs = view.groups.flatMap((group) => group.runs).filter((run) => run.grids.length);
  if (!runs.length) {
    fill(body, h("p", { class: "quiet" }, "None of the shown runs has drawn samples."));
    return { rows: () => [["run", "step", "samples"]], charts: [], svg: () => tilesSvg(panel.title, [], 96) };
  }
  const steps = [...new Set(runs.flatMap((run) => run.grids.map((grid) => grid.step)))].sort((a, b) => a - b);
  const most = Math.max(...runs.map((run) => run.grids.at(-1).count));
  const columns = Math.max(1, ...runs.flatMap((run) => run.grids.map((grid) => grid.columns)));
  const asked = state.get("sample");
  const one = asked !== "" && Number(asked) < most ? Number(asked) : null;
  const numbers = Array.from({ length: most }, (_, i) => [String(i), `sample ${i}`]);
  fill(
    body,
    h("div", { class: "controls" },
      choice("show", [["", "all samples"], ...numbers], one === null ? "" : String(one), (value) => state.set({ sample: value })),
      h("span", { class: "quiet" }, one === null ? "choose a sample to follow it through all runs and steps" : `sample ${one} of every run; each began from the same noise`)),
    h("div", { class: "scroll" },
      h("table", { class: "samples" },
        h("thead", {}, h("tr", {}, h("th", {}, "run"), steps.map((step) => h("th", { scope: "col" }, `step ${step}`)), realHeader(runs, one))),
        h("tbody", {}, runs.map((run) => h("tr", {}, h("th", { scope: "row" }, view.nameOf(run)), steps.map((step) => cell(run, step, one, columns)), realCells(view, run, one)))))));
  return {
    rows: () => [["run", "directory", "step", "samples"], ...runs.flatMap((run) => run.grids.map((grid) => [view.nameOf(run), run.directory, grid.step, grid.count]))],
    charts: [],
    svg: () => tilesSvg(panel.title, runs.flatMap((run, y) => run.grids.map((grid) => ({ ...whole(grid, one), row: view.nameOf(run), label: `step ${grid.step}`, x: steps.indexOf(grid.step), y }))), one === null ? 160 : 96),
  };
}

/** A tile of a grid, or all of it as if it were one tile. */
const whole = (grid, one) => (one === null || !grid.count ? { picture: grid.picture, columns: 1, rows: 1, tile: 0 } : { ...grid, tile: one });

function cell(run, step, one, columns) {
  const grid = run.grids.find((found) => found.step === step);
  if (!grid) return h("td", {});
  if (!grid.count) return h("td", {}, h("img", { class: "points", src: grid.picture, alt: `samples at step ${step}`, loading: "lazy" }));
  if (one !== null) return h("td", {}, one < grid.count ? tile(grid, one, 64, `sample ${one} at step ${step}`) : "");
  const size = Math.max(20, Math.floor(128 / columns)); // a sample has one place in all grids, also in those of fewer
  const tiles = Array.from({ length: grid.count }, (_, i) => tile(grid, i, size, `sample ${i} at step ${step}: follow it`, () => state.set({ sample: i })));
  return h("td", {}, h("div", { class: "grid", style: { gridTemplateColumns: `repeat(${columns}, ${size}px)` } }, tiles));
}

/** One sample of a sheet, as a button where it can be chosen. */
export function tile(grid, i, size, words, onclick) {
  const style = {
    width: `${size}px`, height: `${size}px`, backgroundImage: `url("${grid.picture}")`,
    backgroundSize: `${grid.columns * size}px ${grid.rows * size}px`,
    backgroundPosition: `-${(i % grid.columns) * size}px -${Math.floor(i / grid.columns) * size}px`,
  };
  return onclick
    ? h("button", { type: "button", class: "tile", style, "aria-label": words, title: words, onclick })
    : h("div", { class: "tile", style, role: "img", "aria-label": words });
}

function realHeader(runs, one) {
  const has = (name) => runs.some((run) => run[name]);
  return [
    has("nearest") ? h("th", { scope: "col", title: "in pixels, of the last samples" }, "nearest training images") : null,
    has("real") && one === null ? h("th", { scope: "col" }, "real images") : null,
  ];
}

function realCells(view, run, one) {
  const sheets = [["nearest", one], ...(one === null ? [["real", null]] : [])];
  return sheets.map(([name, only]) => {
    const sheet = name === "real" ? view.content.real[run.real] : run.nearest;
    if (!sheet) return null;
    const words = name === "real" ? "training image" : "nearest training image of sample";
    const shown = only === null ? Array.from({ length: sheet.count }, (_, i) => i) : only < sheet.count ? [only] : [];
    const size = only === null ? Math.max(20, Math.floor(128 / sheet.columns)) : 64;
    const tiles = shown.map((i) => tile(sheet, i, size, `${words} ${i}`));
    return h("td", {}, h("div", { class: "grid", style: { gridTemplateColumns: `repeat(${only === null ? sheet.columns : 1}, ${size}px)` } }, tiles));
  });
}
