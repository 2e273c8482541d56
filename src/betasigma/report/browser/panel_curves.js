// Metrics over training: a line a run, or the mean over seeds with a band of one standard deviation.

import { band, chartOf, faint, plain } from "page/chart.js";
import { choice, figure, fill, h, short, slider, tick } from "page/dom.js";
import { condition, conditionWords, facets, floorOf, isNumber, overSeeds } from "page/runs.js";
import * as state from "page/state.js";

const AXES = { step: "optimizer step", images: "images seen", time: "hours" };

/** Where a value is on an axis. */
const position = {
  step: (series, i) => series.steps[i],
  images: (series, i) => series.steps[i] * (series.run.batch_size ?? NaN),
  time: (series, i) => series.seconds[i] / 3600,
};

export function curves(body, panel, view) {
  const own = (name) => `${panel.id}.${name}`;
  const x = view.x || panel.x;
  const log = state.get(own("log"), panel.log ? "1" : "0") === "1";
  const smoothing = Number(state.get(own("smooth"), panel.smoothing));
  const found = facets(view.series(panel.metrics, (series) => series.values.some(isNumber)), (series) =>
    panel.comparable ? condition(series) : JSON.stringify([condition(series), view.colourKey(series.run)]));
  const shown = found.filter(([first]) => !first.metric.endsWith("_floor"));
  const controls = h("div", { class: "controls" },
    choice("along", Object.entries(AXES), x, (value) => state.set({ x: value })),
    tick("log", log, (on) => state.set({ [own("log")]: on === panel.log ? "" : on ? "1" : "0" })),
    slider("smoothing", { min: 0, max: 0.98, step: 0.02, value: smoothing }, (value) => value.toFixed(2),
      (value) => state.set({ [own("smooth")]: value === panel.smoothing ? "" : value })));
  const pieces = shown.map((members) => one(panel, view, members, { x, log, smoothing }));
  fill(body, controls, pieces.length ? h("div", { class: "charts" }, pieces.map((piece) => piece.card)) : nothing(panel));
  return {
    rows: () => [["metric", "data", "n", "run", "directory", "seed", "step", "images", "hours", "value"], ...pieces.flatMap((piece) => piece.rows())],
    charts: pieces.map((piece) => piece.chart),
  };
}

export function nothing(panel) {
  return h("p", { class: "quiet" }, `None of the shown runs has ${panel.metrics.join(" or ")}.`);
}

function one(panel, view, members, { x, log, smoothing }) {
  const [first] = members;
  const chart = chartOf(`${panel.id} ${condition(first)} ${panel.comparable || view.colourKey(first.run)}`);
  const traces = members.length ? lines(view, members, x, smoothing) : [];
  const floor = floorOf(first, view.runs.flatMap((run) => run.series));
  const only = panel.comparable ? "" : ` · ${view.colourKey(first.run)} only`;
  const words = `${first.metric} against ${AXES[x]}\n${conditionWords(first)}${only}`;
  const places = new Set(traces.flatMap((trace) => trace.x));
  chart.draw([...traces, ...floorLine(floor, traces)], {
    xaxis: { title: { text: AXES[x] }, ...(places.size === 1 ? { tickvals: [...places] } : {}) },
    yaxis: { title: { text: plain(first.metric) }, type: log ? "log" : "linear" },
    showlegend: true,
  }, words);
  const card = figure(first.metric, `${conditionWords(first)}${only}${thinned(members)}`, chart);
  return { chart, card, rows: () => members.flatMap((series) => points(view, series)) };
}

/** How much of its longest curve a chart shows, where that is not all. */
export function thinned(members) {
  const most = Math.max(0, ...members.map((series) => series.of ?? 0));
  const shown = members.find((series) => series.of === most)?.values.length;
  return most ? ` · ${shown.toLocaleString("en")} of ${most.toLocaleString("en")} values, evenly` : "";
}

function points(view, series) {
  const { run } = series;
  const seed = view.content.value(run, "seed");
  return series.values.map((value, i) => [
    series.metric, run.data.label, series.context.n ?? "", view.groupOf.get(run).name, run.directory, seed,
    series.steps[i], position.images(series, i), position.time(series, i), value,
  ]);
}

/** Lines of the groups: the mean over runs at each step, and a band where there are several. */
function lines(view, members, x, smoothing) {
  const groups = facets(members, (series) => view.groupOf.get(series.run).id + JSON.stringify(series.context));
  const many = new Set(groups.map(([first]) => JSON.stringify(first.context))).size > 1;
  return groups.flatMap((found) => {
    const group = view.groupOf.get(found[0].run);
    const points = averaged(found, x);
    if (!points.length) return [];
    const name = plain(many ? `${group.name} ${found[0].context.sampler ?? ""} NFE ${found[0].context.nfe ?? ""}` : group.name);
    const at = points.map((point) => point.x);
    const smooth = smoothed(points.map((point) => point.mean), smoothing);
    const line = {
      x: at, y: smooth, name, legendgroup: name, mode: points.length < 25 ? "lines+markers" : "lines",
      line: { color: group.colour, dash: group.dash, width: 2 }, marker: { symbol: group.mark, size: 6 },
      hovertemplate: `${name}<br>%{x:.6~g}: %{y:.4~g}<extra></extra>`,
      ...(points.length === 1 && points[0].std ? { error_y: { type: "data", array: [points[0].std], thickness: 1.2, width: 4 } } : {}), // no band has room
    };
    const raw = smoothing > 0
      ? [{ x: at, y: points.map((point) => point.mean), mode: "lines", line: { color: faint(group.colour, 0.3), width: 1 }, hoverinfo: "skip", showlegend: false, legendgroup: name }]
      : [];
    const spreads = smoothed(points.map((point) => point.std ?? 0), smoothing);
    const several = points.some((point) => point.std !== null)
      ? band(at, smooth.map((value, i) => Math.max(value - spreads[i], value / 1e3)), smooth.map((value, i) => value + spreads[i]), group.colour, name)
      : [];
    return [...several, ...raw, line];
  });
}

/** Mean and deviation over seeds of several series at the steps that they have, and where these are on the axis. */
function averaged(found, x) {
  const at = new Map();
  for (const series of found) {
    const ownSteps = new Map(series.steps.map((step, i) => [step, i])); // seeds of one step: the last
    for (const [step, i] of ownSteps) {
      if (!isNumber(series.values[i]) || !isNumber(position[x](series, i))) continue;
      if (!at.has(step)) at.set(step, []);
      at.get(step).push({ seed: series.run.seed, place: position[x](series, i), value: series.values[i] });
    }
  }
  const most = Math.max(1, ...[...at.values()].map((values) => values.length));
  return [...at.entries()]
    .sort((a, b) => a[0] - b[0])
    .filter(([, values]) => values.length === most || most === 1 || values.length > 1)
    .map(([step, values]) => ({
      step, x: overSeeds(values.map(({ seed, place }) => [seed, place])).mean,
      ...overSeeds(values.map(({ seed, value }) => [seed, value])),
    }));
}

/** Exponential average that does not lag at its beginning. */
function smoothed(values, weight) {
  if (!weight) return values;
  let [sum, total] = [0, 0];
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** What real images score, over the width of a chart. */
function floorLine(floor, traces) {
  const places = traces.flatMap((trace) => trace.x);
  if (!floor || !places.length) return [];
  const name = `real test images (n = ${floor.n})`;
  const ends = [Math.min(...places), Math.max(...places)];
  return [{
    x: ends, y: [floor.mean, floor.mean], name, mode: ends[0] < ends[1] ? "lines" : "markers",
    marker: { symbol: "line-ew-open", size: 40, color: "#888888" },
    line: { color: "#888888", dash: "dot", width: 2 }, hovertemplate: `${name}: ${short(floor.mean)}<extra></extra>`,
  }];
}
