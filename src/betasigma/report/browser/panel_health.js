// Where the time went, and what went wrong: failures, stalls, values that are not finite, jobs that are missing.

import { chartOf, plain } from "page/chart.js";
import { counted, figure, fill, h } from "page/dom.js";
import { lastOf } from "page/runs.js";
import * as state from "page/state.js";

const COLOURS = { training: "#0072B2", validation: "#009E73", sampling: "#CC79A7", evaluation: "#E69F00", likelihood: "#8A4F9E", saving: "#56B4E9", "the rest": "#999999" };
const MOST = 40;

export function health(body, panel, view) {
  const runs = view.runs;
  const kinds = Object.keys(COLOURS).filter((kind) => runs.some((run) => run.spent[kind] > 0));
  const shown = [...runs].sort((a, b) => total(b) - total(a)).slice(0, MOST);
  const chart = chartOf(panel.id, 110 + 26 * shown.length);
  const place = shown.map((_, i) => i); // two runs may have one name
  chart.draw(
    kinds.map((kind) => ({
      type: "bar", orientation: "h", name: kind, y: place, x: shown.map((run) => (run.spent[kind] ?? 0) / 60), marker: { color: COLOURS[kind] },
      customdata: shown.map((run) => Math.round((100 * (run.spent[kind] ?? 0)) / Math.max(1e-9, total(run)))), hovertemplate: `%{y}<br>${kind}: %{x:.3~g} min, %{customdata} %<extra></extra>`,
    })),
    { barmode: "stack", xaxis: { title: { text: "minutes" } }, yaxis: { tickvals: place, ticktext: shown.map((run) => plain(shortened(view.nameOf(run)))), autorange: "reversed" }, showlegend: true },
    `where the time of ${counted(shown.length, "run")} went`);
  const troubles = troublesOf(view);
  fill(
    body,
    troubles.length
      ? h("div", { class: "scroll" }, h("table", {},
        h("thead", {}, h("tr", {}, ["run", "trouble", "what is known"].map((word) => h("th", { scope: "col" }, word)))),
        h("tbody", {}, troubles.map(({ run, where, kind, words }) => h("tr", { class: "trouble" },
          h("td", {}, run ? h("button", { type: "button", class: "plain link", onclick: () => state.set({ run: run.id }) }, where) : where),
          h("td", {}, kind), h("td", {}, words))))))
      : !runs.length ? h("p", { class: "quiet" }, "No run is shown.")
      : h("p", { class: "fine" }, "No run has failed, stalled or left the finite numbers, and no job is missing."),
    figure("where the time went", `the rest: start, and what was not told apart${runs.length > MOST ? ` · the ${MOST} longest of ${runs.length} runs` : ""}`, chart));
  return {
    rows: () => [["run", "directory", "status", ...kinds.map((kind) => `${kind} s`), "trouble"],
      ...runs.map((run) => [view.nameOf(run), run.directory, run.status, ...kinds.map((kind) => run.spent[kind] ?? 0), troubles.filter((one) => one.run === run).map((one) => `${one.kind}: ${one.words}`).join("; ")]),
      ...troubles.filter((one) => !one.run).map((one) => [one.where, "", "", ...kinds.map(() => ""), `${one.kind}: ${one.words}`])],
    charts: [chart],
  };
}

const total = (run) => Object.values(run.spent).reduce((a, b) => a + b, 0);
const shortened = (text) => (text.length > 40 ? `…${text.slice(-38)}` : text);

function troublesOf(view) {
  const found = [];
  for (const run of view.runs) {
    const add = (kind, words) => found.push({ run, where: view.nameOf(run), kind, words });
    if (run.stalled) add("stalled", run.stalled);
    else if (["failed", "interrupted"].includes(run.status)) add(run.status, run.error ?? "");
    if (run.not_finite) add("not finite", run.not_finite);
    const skipped = run.series.find((series) => series.metric === view.content.skipped);
    if (skipped) add("skipped steps", `${lastOf(skipped)?.value ?? "?"} by step ${skipped.steps.at(-1)}`);
    for (const series of run.series.filter((one) => one.bad)) add("not finite", `${counted(series.bad, "value")} of ${series.metric}`);
  }
  for (const sweep of view.content.missing) {
    if (sweep.missing.length) found.push({ where: sweep.id, kind: "missing jobs", words: `${sweep.missing.length} of ${counted(sweep.jobs, "job")} without a run directory: ${sweep.missing.slice(0, MOST).join("; ")}${sweep.missing.length > MOST ? "; …" : ""}` });
  }
  return found;
}
