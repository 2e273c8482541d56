// What samples are worth: distance against network evaluations, precision against recall, bits per dimension.

import { chartOf, faint, plain } from "page/chart.js";
import { figure, fill, h, short, spread, tick } from "page/dom.js";
import { nothing } from "page/panel_curves.js";
import {
  DASHES, conditionWords, condition, facets, floorOf, isNumber, lastBySeed, mean, overSeeds, samplerName, tellSamplersApart,
} from "page/runs.js";
import * as state from "page/state.js";

/** Metrics of samples against NFE, a line for each group and sampler, one chart for each condition. */
export function quality(body, panel, view) {
  const log = state.get(`${panel.id}.log`, "1") === "1";
  const found = newest(view.series(panel.metrics, (series) => series.context.nfe !== undefined && !series.metric.endsWith("_floor")));
  tellSamplersApart(found);
  const samplers = [...new Set(found.map(samplerName))].sort();
  const pieces = facets(found, sampledAlike).map((members) => qualityChart(panel, view, members, samplers, log));
  fill(
    body,
    h("div", { class: "controls" }, tick("log", log, (on) => state.set({ [`${panel.id}.log`]: on ? "" : "0" }))),
    pieces.length ? h("div", { class: "charts" }, pieces.map((piece) => piece.card)) : nothing(panel));
  return {
    rows: () => [["metric", "data", "n", "compared with", "extractor", "run", "directory", "step", "checkpoint", "sampler", "settings", "NFE", "seed", "value", "std", "floor", "n of the floor"], ...pieces.flatMap((piece) => piece.rows)],
    charts: pieces.map((piece) => piece.chart),
  };
}

/** Of what a run has measured over its training, what belongs to its last step; of its other checkpoints, to theirs. */
function newest(found) {
  const key = (series) => JSON.stringify([series.run.id, series.context.checkpoint]);
  const last = new Map();
  for (const series of found) last.set(key(series), Math.max(last.get(key(series)) ?? 0, series.steps.at(-1)));
  return found.filter((series) => series.steps.at(-1) === last.get(key(series)));
}

/** Name of a metric, whoever has measured it: training at its end, or an evaluation. */
const bare = (metric) => metric.replace(/^(val|eval)\//, "");

/** What samples must share to be on one axis. */
function sampledAlike(series) {
  return condition({ metric: bare(series.metric), run: series.run, context: series.context });
}

function qualityChart(panel, view, members, samplers, log) {
  const [first] = members;
  const floor = floorOf(first, view.runs.flatMap((run) => run.series));
  const lines = facets(members, (series) => JSON.stringify([view.groupOf.get(series.run).id, samplerName(series)]));
  const traces = lines.map((line) => qualityLine(view, line, samplers));
  const places = traces.flatMap((trace) => trace.x);
  const ends = [Math.min(...places), Math.max(...places)];
  const chart = chartOf(`${panel.id} ${sampledAlike(first)}`, 380);
  const better = { max: "more is better", min: "less is better" }[view.content.best[first.metric]] ?? "";
  chart.draw([...(floor ? floorBand(floor, ends) : []), ...traces], {
    xaxis: { title: { text: "network evaluations of each sample (NFE)" }, ...(ends[0] < ends[1] ? { type: "log" } : { type: "linear", tickvals: ends.slice(1) }) },
    yaxis: { title: { text: plain(bare(first.metric)) }, type: log ? "log" : "linear" },
    showlegend: true,
  }, `${bare(first.metric)} against NFE\n${conditionWords(first)}`);
  const card = figure(bare(first.metric), [better, conditionWords(first)].filter(Boolean).join(" · "), chart);
  return { chart, card, rows: members.flatMap((series) => qualityRows(view, series, floor)) };
}

/** Seed of a run and of what was drawn from it. */
const seedsOf = (series, { seed }) => `${series.run.seed} ${seed}`;

const valuesBySeed = (series) => lastBySeed(series).map((one) => [seedsOf(series, one), one.value]);

function qualityLine(view, line, samplers) {
  const group = view.groupOf.get(line[0].run);
  const sampler = samplerName(line[0]);
  const points = facets(line, (series) => series.context.nfe).map((same) => {
    const bySeed = same.flatMap((series) => lastBySeed(series).map((one) => [`${series.run.id} ${one.seed}`, [seedsOf(series, one), one]]));
    const each = [...new Map(bySeed).values()]; // what was measured twice with one seed counts once
    const found = overSeeds(each.map(([seeds, { value }]) => [seeds, value]));
    const own = each.map(([, { std }]) => std).filter(isNumber);
    return { x: Number(same[0].context.nfe), ...found, std: found.std ?? (own.length ? mean(own) : null) };
  }).sort((a, b) => a.x - b.x);
  const name = plain(`${group.name} ${sampler}`);
  const place = samplers.indexOf(sampler);
  return {
    x: points.map((point) => point.x), y: points.map((point) => point.mean), name, mode: "lines+markers",
    line: { color: group.colour, dash: DASHES[place % DASHES.length] },
    marker: { symbol: group.mark, size: 8 },
    error_y: { type: "data", array: points.map((point) => point.std ?? 0), visible: points.some((point) => point.std), thickness: 1.2, width: 4 },
    customdata: points.map((point) => (point.std ? ` ± ${short(point.std)}` : "") + (point.count > 1 ? ` (${point.count} values)` : "")),
    hovertemplate: `${name}<br>NFE %{x}: %{y:.4~g}%{customdata}<extra></extra>`,
  };
}

function floorBand(floor, ends) {
  const margin = 1.15;
  const x = [ends[0] / margin, ends[1] * margin];
  const name = `real test images score ${short(floor.mean)} (n = ${floor.n})`;
  const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  return [
    { ...edge, y: [floor.low * 0.97, floor.low * 0.97] },
    { ...edge, y: [floor.high * 1.03, floor.high * 1.03], fill: "tonexty", fillcolor: faint("#888888", 0.3) },
    { x, y: [floor.mean, floor.mean], name, mode: "lines", line: { color: "#888888", dash: "dot" }, hovertemplate: `${name}<extra></extra>` },
  ];
}

function qualityRows(view, series, floor) {
  const { n, n_reference, split, extractor, sampler, settings, nfe, checkpoint } = series.context;
  return series.values.map((value, i) => [
    series.metric, series.run.data.label, n, `${n_reference ?? ""} ${split ?? ""}`.trim(), extractor, view.groupOf.get(series.run).name, series.run.directory,
    series.steps[i], checkpoint ?? "last.ckpt", sampler, settings, nfe, series.seeds?.[i] ?? "", value, series.stds?.[i] ?? "", floor?.mean ?? "", floor?.n ?? "",
  ]);
}

/** One metric of samples against another, a point for each group, sampler and NFE. */
export function precision_recall(body, panel, view) {
  const [across, up] = [panel.x, panel.y].map((pattern) => newest(view.series([pattern], (series) => series.context.nfe !== undefined)));
  tellSamplersApart([...across, ...up]);
  const samplers = [...new Set([...across, ...up].map(samplerName))].sort();
  const key = (series) => JSON.stringify([series.run.id, series.metric.split("/")[0], series.context]);
  const partner = new Map(across.map((series) => [key(series), series]));
  const pairs = up.filter((series) => partner.has(key(series))).map((series) => ({ x: partner.get(key(series)), y: series, run: series.run }));
  const charts = [];
  const rows = [];
  const cards = facets(pairs, (pair) => sampledAlike(pair.y)).map((members) => {
    const [{ x, y }] = members;
    const chart = chartOf(`${panel.id} ${sampledAlike(y)}`, 360);
    charts.push(chart);
    const traces = facets(members, (pair) => JSON.stringify([view.groupOf.get(pair.run).id, samplerName(pair.y)])).map((line) => {
      const group = view.groupOf.get(line[0].run);
      const sampler = samplerName(line[0].y);
      const points = facets(line, (pair) => pair.y.context.nfe).map((same) => {
        const [xs, ys] = ["x", "y"].map((side) => overSeeds(same.flatMap((pair) => valuesBySeed(pair[side]))));
        return { nfe: Number(same[0].y.context.nfe), x: xs.mean, y: ys.mean, dx: xs.std, dy: ys.std };
      }).sort((a, b) => a.nfe - b.nfe);
      for (const point of points) rows.push([y.metric, y.run.data.label, y.context.n, group.name, sampler, point.nfe, point.x, point.y]);
      const name = plain(`${group.name} ${sampler}`);
      return {
        x: points.map((point) => point.x), y: points.map((point) => point.y), name, mode: "lines+markers+text",
        text: points.map((point) => String(point.nfe)), textposition: "top center", textfont: { size: 10 },
        line: { color: faint(group.colour, 0.5), width: 1, dash: DASHES[samplers.indexOf(sampler) % DASHES.length] }, marker: { color: group.colour, size: 9, symbol: group.mark },
        error_x: { type: "data", array: points.map((point) => point.dx ?? 0), visible: points.some((point) => point.dx), color: faint(group.colour, 0.45), thickness: 1, width: 3 },
        error_y: { type: "data", array: points.map((point) => point.dy ?? 0), visible: points.some((point) => point.dy), color: faint(group.colour, 0.45), thickness: 1, width: 3 },
        hovertemplate: `${name}, NFE %{text}<br>recall %{x:.3~g}, precision %{y:.3~g}<extra></extra>`,
      };
    });
    chart.draw(traces, { xaxis: { title: { text: plain(bare(x.metric)) } }, yaxis: { title: { text: plain(bare(y.metric)) } }, showlegend: true }, `${bare(y.metric)} against ${bare(x.metric)}`);
    return figure(`${bare(y.metric)} against ${bare(x.metric)}`, `${conditionWords(y)} · numbers are NFE`, chart);
  });
  fill(body, cards.length ? h("div", { class: "charts" }, cards) : nothing({ metrics: [panel.y, panel.x] }));
  return { rows: () => [["metric", "data", "n", "run", "sampler", "NFE", "recall", "precision"], ...rows], charts };
}

const TERM = /^(\w+)\/((?:density_)?bits_per_dim\/\w+)\/([a-z]+?)(_test)?$/;

/** A likelihood and its terms: a stacked bar for each group, one chart for each way of measuring. */
export function bits(body, panel, view) {
  const found = view.series(panel.metrics, (series) => TERM.test(series.metric)).map((series) => {
    const [, prefix, estimator, term, test] = TERM.exec(series.metric);
    return { series, run: series.run, prefix, estimator, term, split: test ? "test" : "train" };
  });
  const alike = (one) => JSON.stringify([one.prefix, one.estimator, one.split, one.run.data.id, one.series.context.n, one.series.context.settings, one.series.context.checkpoint]);
  const charts = [];
  const rows = [];
  const cards = facets(found, alike).map((members) => {
    const [{ series, estimator, split, prefix }] = members;
    const groups = facets(members, (one) => view.groupOf.get(one.run).id);
    const terms = [...new Set(members.map((one) => one.term))].filter((term) => term !== "total" || members.every((one) => one.term === "total"));
    const table = groups.map((own) => ({
      group: view.groupOf.get(own[0].run),
      of: (term) => {
        const values = own.filter((one) => one.term === term).flatMap((one) => valuesBySeed(one.series));
        return values.length ? overSeeds(values) : null;
      },
    }));
    for (const { group, of } of table) {
      for (const term of [...terms, "total"]) rows.push([estimator, prefix, split, series.run.data.label, series.context.n, series.context.settings, group.name, term, of(term)?.mean, of(term)?.std]);
    }
    const traces = terms.map((term, i) => ({
      type: "bar", name: term, x: table.map(({ group }) => plain(group.name)), y: table.map(({ of }) => of(term)?.mean ?? null),
      marker: { color: table.map(({ group }) => faint(group.colour, [0.95, 0.6, 0.3, 0.15][i % 4])), line: { color: table.map(({ group }) => group.colour), width: 1 } },
      hovertemplate: `%{x}<br>${term}: %{y:.4~g}<extra></extra>`,
    }));
    const totals = {
      x: table.map(({ group }) => plain(group.name)), y: table.map(({ of }) => of("total")?.mean ?? null), mode: "text+markers", name: "total",
      text: table.map(({ of }) => (of("total") ? spread(of("total").mean, of("total").std).replace(" ± ", "<br>± ") : "")),
      textposition: "top center", marker: { symbol: "line-ew-open", size: 24, color: "#888888" },
      error_y: { type: "data", array: table.map(({ of }) => of("total")?.std ?? 0), color: "#888888" }, hovertemplate: "%{x}<br>total: %{y:.4~g}<extra></extra>",
    };
    const chart = chartOf(`${panel.id} ${alike(members[0])}`, 380);
    charts.push(chart);
    const ends = table.flatMap(({ of }) => [...terms, "total"].map((term) => of(term)?.mean ?? 0));
    const range = Math.min(...ends) < 0 ? {} : { range: [0, 1.3 * Math.max(...ends)] }; // with room for the numbers
    chart.draw([...traces, totals], { barmode: "relative", yaxis: { title: { text: "bits/dim (less is better)" }, ...range }, xaxis: { type: "category" }, legend: { orientation: "h", y: 1, yanchor: "bottom", traceorder: "normal" }, showlegend: true }, `${estimator} of ${split} examples`);
    const told = [series.context.settings, series.context.checkpoint].filter(Boolean).join(" · ");
    return figure(estimator.replace(/^.*\//, ""), `${series.run.data.label} · ${split} examples, n = ${series.context.n} · ${told}`, chart);
  });
  fill(body, cards.length ? h("div", { class: "charts" }, cards) : nothing(panel));
  return { rows: () => [["estimator", "prefix", "split", "data", "n", "settings", "run", "term", "bits/dim", "std"], ...rows], charts };
}
