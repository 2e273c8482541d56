// What was swept against an objective: parallel coordinates, a heat map of two keys, rank correlation.

import { chartOf, faint, plain } from "page/chart.js";
import { choice, figure, fill, h, short } from "page/dom.js";
import { bestOf, condition, conditionWords, facets, isNumber, mean } from "page/runs.js";
import * as state from "page/state.js";

export function sweep(body, panel, view) {
  const own = (name) => `${panel.id}.${name}`;
  const { content } = view;
  const metrics = [...new Set(view.series([panel.objective]).map((series) => series.metric))];
  const metric = metrics[0];
  const measured = view.runs.map((run) => run.series.findLast((series) => series.metric === metric)).filter(Boolean);
  const scored = measured.map((series) => ({ run: series.run, series, value: bestOf(series)?.value })).filter(({ value }) => isNumber(value));
  const data = facets(scored, ({ series }) => condition(series)).sort((a, b) => b.length - a.length);
  const among = data.find(([{ series }]) => condition(series) === state.get(own("data"))) ?? data[0] ?? [];
  const given = panel.keys.length ? panel.keys : [...content.asked, ...content.spec.spread_over.filter((key) => differs(content, among, key))];
  const keys = given.filter((key) => differs(content, among, key)).slice(0, 10);
  const rows = among.map(({ run, value }) => [run, ...keys.map((key) => content.value(run, key) ?? null), value]);
  const csv = () => [["directory", ...keys, metric ?? panel.objective], ...rows.map(([run, ...cells]) => [run.directory, ...cells])];
  if (among.length < 2 || !keys.length) {
    fill(body, h("p", { class: "quiet" }, `Two runs that have ${panel.objective} and differ in a key that was typed are the least that can be compared here.`));
    return { rows: csv, charts: [] };
  }
  const better = content.moreIsBetter(metric) ? "more" : "less";
  const [one, other] = [0, 1].map((i) => (keys.includes(state.get(own(`key${i}`))) ? state.get(own(`key${i}`)) : keys[Math.min(i, keys.length - 1)]));
  const parallel = chartOf(`${panel.id} coordinates`, 380);
  parallel.draw(...coordinates(view, keys, metric, among), `${metric} of ${among.length} runs against ${keys.join(", ")}`);
  const heat = chartOf(`${panel.id} map`, 360);
  heat.draw(...heatMap(content, one, other, metric, among), `${metric} by ${one} and ${other}`);
  const ranks = keys.map((key) => ({ key, ...association(among.map(({ run }) => content.value(run, key)), among.map(({ value }) => value)) }));
  const bars = chartOf(`${panel.id} ranks`, 120 + 34 * ranks.length);
  bars.draw(...rankBars(ranks, content.moreIsBetter(metric) ? 1 : -1), `rank correlation with ${metric}`);
  fill(
    body,
    h("div", { class: "controls" },
      data.length > 1 ? choice("data", data.map(([{ series }]) => [condition(series), conditionWords(series)]), condition(among[0].series), (value) => state.set({ [own("data")]: value })) : null,
      choice("heat map of", keys.map((key) => [key, key]), one, (value) => state.set({ [own("key0")]: value })),
      choice("and", keys.map((key) => [key, key]), other, (value) => state.set({ [own("key1")]: value }))),
    figure(`best ${metric}`, `${better} is better · ${conditionWords(among[0].series)} · a line is a run, in the colour of its value`, parallel),
    h("div", { class: "charts" },
      figure(`best ${metric}`, "mean of the runs of a cell", heat),
      figure("rank correlation", `with ${metric}: ρ (Spearman) of numbers and of two values; η of the ranks for more values without order`, bars)));
  return { rows: csv, charts: [parallel, heat, bars] };
}

const differs = (content, among, key) => new Set(among.map(({ run }) => content.value(run, key))).size > 1;

/** Places of values on an axis from 0 to 1, on a logarithmic one where numbers span a decade. */
function scale(values) {
  if (!values.every(isNumber)) {
    const names = [...new Set(values.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const at = (value) => (names.length > 1 ? names.indexOf(String(value)) / (names.length - 1) : 0.5);
    return { at, ticks: names.map((name) => [at(name), name]) };
  }
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const log = low > 0 && high / low >= 10;
  const at = (value) => (high === low ? 0.5 : log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const known = [...new Set(values)].sort((a, b) => a - b);
  const shown = known.length <= 6 ? known : [low, high];
  return { at, ticks: shown.map((value) => [at(value), short(value)]) };
}

function coordinates(view, keys, metric, among) {
  const { content } = view;
  const columns = [...keys.map((key) => among.map(({ run }) => content.value(run, key) ?? "–")), among.map(({ value }) => value)];
  const scales = columns.map(scale);
  const x = columns.map((_, i) => i);
  const order = among.map((_, i) => i).sort((a, b) => among[b].value - among[a].value);
  const sign = content.moreIsBetter(metric) ? 1 : -1;
  const goal = scales.at(-1);
  const traces = order.map((i) => {
    const good = sign > 0 ? goal.at(among[i].value) : 1 - goal.at(among[i].value);
    const words = keys.map((key, j) => `${key} = ${columns[j][i]}`);
    const colour = cividis(view.theme === "dark" ? 0.35 + 0.65 * good : good); // whose dark end is not seen there
    return {
      x, y: scales.map((one, j) => one.at(columns[j][i])), mode: "lines+markers", showlegend: false,
      line: { color: colour, width: 1.5 + 1.5 * good }, marker: { size: 5, color: colour },
      hovertemplate: `${plain(view.groupOf.get(among[i].run).name)}<br>${words.map(plain).join("<br>")}<br>${plain(metric)}: ${short(among[i].value)}<extra></extra>`,
    };
  });
  const names = [...keys, metric];
  return [traces, {
    xaxis: { tickvals: x, ticktext: names.map(inLines), autotickangles: [0, 90], range: [-0.2, names.length - 0.6], showgrid: false, zeroline: false },
    yaxis: { visible: false, range: [-0.06, 1.06] },
    shapes: x.map((place) => ({ type: "line", x0: place, x1: place, y0: 0, y1: 1, line: { color: "#888888", width: 1 } })),
    annotations: scales.flatMap((one, i) => one.ticks.map(([y, text]) => ({ x: i, y, text: plain(String(text)), xanchor: "left", xshift: 6, showarrow: false, font: { size: 11 }, bgcolor: view.theme === "dark" ? "rgba(23,24,26,0.75)" : "rgba(255,255,255,0.75)" }))),
  }];
}

/** A name in lines of some fourteen letters, for the axes of a phone. */
function inLines(name) {
  const add = (lines, part) => ((lines.at(-1) + part).length > 14 ? [...lines, part] : [...lines.slice(0, -1), lines.at(-1) + part]);
  return name.split(/(?<=[._/])/).reduce(add, [""]).filter(Boolean).map(plain).join("<br>");
}

/** A colour of the map Cividis (Nuñez et al. 2018), dark to light. */
function cividis(share) {
  const stops = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
  const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const [one, other] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  const part = (stop, i) => parseInt(stop.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mixed = [0, 1, 2].map((i) => Math.round(part(one, i) + (at % 1) * (part(other, i) - part(one, i))));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function heatMap(content, one, other, metric, among) {
  const values = (key) => [...new Set(among.map(({ run }) => content.value(run, key) ?? "–"))].sort((a, b) => (isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b))));
  const [xs, ys] = [values(one), values(other)];
  const cell = (x, y) => {
    const found = among.filter(({ run }) => (content.value(run, one) ?? "–") === x && (content.value(run, other) ?? "–") === y).map(({ value }) => value);
    return found.length ? { mean: mean(found), count: found.length } : null;
  };
  const table = ys.map((y) => xs.map((x) => cell(x, y)));
  return [[{
    type: "heatmap", x: xs.map((x) => plain(short(x))), y: ys.map((y) => plain(short(y))), z: table.map((row) => row.map((found) => found?.mean ?? null)),
    colorscale: "Cividis", reversescale: !content.moreIsBetter(metric), colorbar: { thickness: 12 },
    text: table.map((row) => row.map((found) => (found ? `${short(found.mean)}${found.count > 1 ? ` (${found.count})` : ""}` : ""))), texttemplate: "%{text}",
    hovertemplate: `${plain(one)} %{x}, ${plain(other)} %{y}: %{z:.4~g}<extra></extra>`,
  }], { xaxis: { title: { text: plain(one) }, type: "category" }, yaxis: { title: { text: plain(other) }, type: "category" } }];
}

/** Ranks, ties sharing their mean. */
function ranksOf(values) {
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
  const found = new Array(values.length);
  for (let i = 0; i < order.length; ) {
    let j = i;
    while (j + 1 < order.length && values[order[j + 1]] === values[order[i]]) j += 1;
    for (let k = i; k <= j; k += 1) found[order[k]] = (i + j) / 2 + 1;
    i = j + 1;
  }
  return found;
}

/** Spearman's ρ of a key that has an order, else η: the root of the share of the ranks' variance between its values. */
function association(values, objective) {
  const different = [...new Set(values.map((value) => (value === undefined ? "–" : value)))];
  const ranks = ranksOf(objective);
  const middle = mean(ranks);
  const total = ranks.reduce((sum, rank) => sum + (rank - middle) ** 2, 0);
  if (different.every(isNumber) || different.length === 2) {
    const order = different.every(isNumber) ? values : values.map((value) => [...different].sort().indexOf(value === undefined ? "–" : value));
    const own = ranksOf(order);
    const ownMiddle = mean(own);
    const spread = own.reduce((sum, rank) => sum + (rank - ownMiddle) ** 2, 0);
    const product = own.reduce((sum, rank, i) => sum + (rank - ownMiddle) * (ranks[i] - middle), 0);
    const high = different.every(isNumber) ? null : [...different].sort()[1];
    return { kind: "ρ", value: spread * total > 0 ? product / Math.sqrt(spread * total) : 0, high };
  }
  const between = different.reduce((sum, one) => {
    const own = ranks.filter((_, i) => (values[i] ?? "–") === one);
    return sum + own.length * (mean(own) - middle) ** 2;
  }, 0);
  return { kind: "η", value: total > 0 ? Math.sqrt(between / total) : 0, high: null };
}

function rankBars(ranks, sign) {
  const sorted = [...ranks].sort((a, b) => Math.abs(a.value) - Math.abs(b.value));
  const colour = ({ kind, value }) => (kind === "η" ? "#888888" : sign * value > 0 ? "#0072B2" : "#D55E00");
  return [[{
    type: "bar", orientation: "h", x: sorted.map(({ value }) => value), y: sorted.map(({ key, high }) => plain(high === null ? key : `${key} (${high})`)),
    marker: { color: sorted.map((one) => faint(colour(one), 0.8)) }, text: sorted.map(({ kind, value }) => `${kind} = ${value.toFixed(2)}`), textposition: sorted.map(({ value }) => (value ? "auto" : "outside")),
    hovertemplate: "%{y}: %{text}<extra></extra>", showlegend: false,
  }], { xaxis: { range: [-1.05, 1.05], title: { text: "blue: a greater value goes with a better one" } }, yaxis: { type: "category" } }];
}
