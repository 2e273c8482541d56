// Denoising error by log-SNR: curves at a step of training, a heat map of a run, the difference to another.

import { band, chartOf, plain } from "page/chart.js";
import { choice, figure, fill, h, slider, tick } from "page/dom.js";
import { nothing, thinned } from "page/panel_curves.js";
import { facets, isNumber, overSeeds } from "page/runs.js";
import * as state from "page/state.js";

const LEVEL = /^(.*)log_snr_([+-]?\d+(?:\.\d+)?)$/;

export function noise(body, panel, view) {
  const own = (name) => `${panel.id}.${name}`;
  const tables = tablesOf(view.series(panel.metrics, (series) => LEVEL.test(series.metric)));
  const kinds = [...new Set(tables.map((one) => one.kind))];
  if (!kinds.length) {
    fill(body, nothing(panel));
    return { rows: () => [["metric", "run", "step", "log-SNR", "value"]], charts: [] };
  }
  const kind = kinds.includes(state.get(own("of"))) ? state.get(own("of")) : kinds[0];
  const shown = tables.filter((one) => one.kind === kind);
  const steps = [...new Set(shown.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const asked = Number(state.get(own("step"), steps.at(-1)));
  const place = Math.max(0, steps.findLastIndex((step) => step <= asked));
  const log = state.get(own("log"), panel.log ? "1" : "0") === "1";
  const names = shown.map((one) => [one.run.id, view.nameOf(one.run)]);
  const mapped = shown.find((one) => one.run.id === state.get(own("map"))) ?? shown[0];
  const reference = shown.find((one) => one.run.id === state.get(own("ref")));
  const drawings = facets(shown, (one) => one.run.data.id).map((members) => {
    const chart = chartOf(`${panel.id} ${members[0].run.data.id}`);
    const words = `${kind} by log-SNR at step ${steps[place]}`;
    chart.draw(curvesAt(view, members, steps[place], reference), axes(log, reference), words);
    const relative = reference ? ` · divided by that of ${view.nameOf(reference.run)}` : "";
    const told = `${kind} · ${members[0].run.data.label}${relative}${thinned(members.flatMap((one) => one.series))}`;
    return { chart, card: figure(`step ${steps[place]}`, told, chart) };
  });
  const heat = chartOf(`${panel.id} map`);
  heat.draw(heatMap(mapped, reference, log), {
    xaxis: { title: { text: "optimizer step" }, type: "category" }, yaxis: { title: { text: "log-SNR (data in [−1, 1])" } },
  }, `${kind} of ${view.nameOf(mapped.run)} by step and log-SNR`);
  const of = reference && reference !== mapped
    ? `log₁₀ of its error over that of ${view.nameOf(reference.run)}: below 0 it is better`
    : log ? "log₁₀ of its error" : "its error";
  fill(
    body,
    h("div", { class: "controls" },
      kinds.length > 1 ? choice("of", kinds.map((one) => [one, one]), kind, (value) => state.set({ [own("of")]: value })) : null,
      slider("training step", { min: 0, max: steps.length - 1, step: 1, value: place }, (i) => String(steps[i]), (i) => {
        state.set({ [own("step")]: i === steps.length - 1 ? "" : steps[i] });
      }),
      choice("heat map of", names, mapped.run.id, (value) => state.set({ [own("map")]: value })),
      choice("relative to", [["", "nothing"], ...names], reference?.run.id ?? "", (value) => state.set({ [own("ref")]: value })),
      tick("log", log, (on) => state.set({ [own("log")]: on === panel.log ? "" : on ? "1" : "0" }))),
    h("div", { class: "charts" }, drawings.map(({ card }) => card), figure(view.nameOf(mapped.run), of, heat)));
  return {
    rows: () => [["metric", "data", "run", "directory", "step", "log-SNR", "value"], ...shown.flatMap((one) => rowsOf(view, one))],
    charts: [...drawings.map(({ chart }) => chart), heat],
  };
}

function rowsOf(view, one) {
  return one.steps.flatMap((step) =>
    one.levels.map((level) => [one.kind, one.run.data.label, view.groupOf.get(one.run).name, one.run.directory, step, level, one.at(step, level)]));
}

/** One table of errors by step and level for each run and kind of measurement. */
function tablesOf(found) {
  return facets(found, (series) => JSON.stringify([series.run.id, LEVEL.exec(series.metric)[1], series.context.n, series.context.checkpoint])).map((members) => {
    const { run, context } = members[0];
    const measured = LEVEL.exec(members[0].metric)[1].replace(/\/$/, "");
    const prefix = [measured, ...(context.checkpoint ? [context.checkpoint] : [])].join(" of ");
    const values = new Map(members.map((series) => [Number(LEVEL.exec(series.metric)[2]), new Map(series.steps.map((step, i) => [step, series.values[i]]))]));
    const steps = [...new Set(members.flatMap((series) => series.steps))].sort((a, b) => a - b);
    return {
      run, series: members, kind: context.n ? `${prefix} (n = ${context.n})` : prefix, steps,
      levels: [...values.keys()].sort((a, b) => a - b),
      at: (step, level) => values.get(level)?.get(step) ?? null,
      upTo: (step) => steps.findLast((own) => own <= step),
    };
  });
}

function axes(log, reference) {
  return {
    xaxis: { title: { text: "log-SNR (data in [−1, 1])" } },
    yaxis: { title: { text: reference ? "error / error of the reference" : "error ‖ε − ε̂‖²/d" }, type: log ? "log" : "linear" },
    showlegend: true,
  };
}

/** Lines of the groups at the last step of each run that is not after `step`. */
function curvesAt(view, tables, step, reference) {
  const groups = facets(tables, (one) => view.groupOf.get(one.run).id);
  return groups.flatMap((members) => {
    const group = view.groupOf.get(members[0].run);
    const levels = [...new Set(members.flatMap((one) => one.levels))].sort((a, b) => a - b);
    const points = levels.map((level) => {
      const values = members
        .map((one) => {
          const own = one.at(one.upTo(step), level);
          const other = reference ? reference.at(reference.upTo(step), level) : 1;
          return [one.run.seed, isNumber(own) && isNumber(other) ? own / other : null];
        })
        .filter(([, value]) => isNumber(value));
      return values.length ? { level, ...overSeeds(values) } : null;
    }).filter(Boolean);
    if (!points.length) return [];
    const name = plain(group.name);
    const x = points.map((point) => point.level);
    const line = {
      x, y: points.map((point) => point.mean), name, legendgroup: name, mode: "lines+markers",
      line: { color: group.colour, dash: group.dash }, marker: { symbol: group.mark, size: 6 },
      hovertemplate: `${name}<br>log-SNR %{x}: %{y:.4~g}<extra></extra>`,
    };
    const several = points.some((point) => point.std !== null)
      ? band(x, points.map(({ mean: m, std }) => Math.max(m - (std ?? 0), m / 1e3)), points.map(({ mean: m, std }) => m + (std ?? 0)), group.colour, name)
      : [];
    return [...several, line];
  });
}

function heatMap(one, reference, log) {
  const ratio = reference && reference !== one;
  const z = one.levels.map((level) => one.steps.map((step) => {
    const own = one.at(step, level);
    const other = ratio ? reference.at(reference.upTo(step), level) : 1;
    if (!isNumber(own) || !isNumber(other)) return null;
    return ratio || log ? Math.log10(own / other) : own;
  }));
  const most = Math.max(1e-9, ...z.flat().filter(isNumber).map(Math.abs));
  return [{
    type: "heatmap", x: one.steps.map(String), y: one.levels, z,
    ...(ratio ? { colorscale: "RdBu", reversescale: false, zmin: -most, zmax: most } : { colorscale: "Cividis" }),
    colorbar: { thickness: 12, title: { text: ratio || log ? "log₁₀" : "" } },
    hovertemplate: "step %{x}, log-SNR %{y}: %{z:.4~g}<extra></extra>",
  }];
}
