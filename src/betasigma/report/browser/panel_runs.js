// The run table: how each run stands, in what it differs, and what it has achieved.

import { breakable, counted, duration, fill, h, short, spread, tick } from "page/dom.js";
import { bestOf, floorOf, isNumber, lastBySeed, lastOf, mean, overSeeds } from "page/runs.js";
import * as state from "page/state.js";

const MOST_KEYS = 6;

export function runs(body, panel, view) {
  const columns = columnsOf(panel, view);
  const rows = view.groups.map((group) => ({ group, cells: columns.map((column) => column.cell(group)) }));
  sort(rows, columns);
  const chosen = new Set(state.list("runs"));
  const all = state.get("keys") === "all";
  fill(
    body,
    h("div", { class: "controls" },
      tick("all keys that differ", all, (on) => state.set({ keys: on ? "all" : "" })),
      h("button", { type: "button", disabled: !chosen.size, onclick: () => state.setList("runs", []) }, "choose none"),
      h("span", { class: "quiet", role: "status" }, told(view, chosen))),
    h("div", { class: "scroll" },
      h("table", { class: "runs" },
        h("thead", {}, h("tr", {}, h("th", {}), columns.map(header))),
        h("tbody", {}, rows.map((row) => line(row, columns, chosen))))));
  return { rows: () => table(rows, columns), charts: [] };
}

function told(view, chosen) {
  const total = view.content.runs.length;
  const shown = (view.runs.length === total ? "" : `${view.runs.length} of `) + counted(total, "run");
  const spread = view.groups.some((group) => seedsOf(group) > 1) ? " · ± one standard deviation over seeds" : "";
  return (chosen.size ? `${shown}, ${chosen.size} chosen` : `${shown}; choose some to see only these below`) + spread;
}

function header(column) {
  const by = state.get("sort", "");
  const [name, down] = [by.replace(/^-/, ""), by.startsWith("-")];
  const sorted = name === column.name;
  const next = sorted && !down ? `-${column.name}` : column.name;
  return h("th", { scope: "col", title: column.about, "aria-sort": sorted ? (down ? "descending" : "ascending") : "none" },
    h("button", { type: "button", class: "plain", "aria-label": column.name, onclick: () => state.set({ sort: next }) },
      breakable(column.name), sorted ? (down ? " ▾" : " ▴") : ""));
}

function line({ group, cells }, columns, chosen) {
  const ids = group.runs.map((run) => run.id);
  const on = ids.every((id) => chosen.has(id));
  const choose = (value) => {
    const next = new Set(state.list("runs"));
    for (const id of ids) value ? next.add(id) : next.delete(id);
    state.setList("runs", [...next]);
  };
  const box = h("input", { type: "checkbox", checked: on, "aria-label": `choose ${group.name}`, onchange: (event) => choose(event.target.checked) });
  return h("tr", {
    class: on ? "chosen" : "",
    tabindex: "0",
    "data-run": ids[0],
    onkeydown: (event) => {
      if (event.target !== event.currentTarget) return;
      if (event.key === " " || event.key === "x") choose(!on);
      else if (event.key === "Enter") open(ids[0]);
      else return;
      event.preventDefault();
    },
  },
  h("td", {}, box),
  cells.map((cell, i) => h("td", { class: columns[i].number ? "number" : "" }, columns[i].show ? columns[i].show(cell, group) : text(cell), partly(cell, group))));
}

/** Of how many runs of a group a cell is, where some have no value. */
function partly(cell, { runs: { length } }) {
  return cell?.count < length ? h("small", { class: "quiet" }, ` ${cell.count} of ${length} runs`) : null;
}

function open(id) {
  state.set({ run: id });
  const panel = document.querySelector("[data-kind=run]");
  panel?.scrollIntoView();
  panel?.querySelector("h2").focus({ preventScroll: true });
}

const text = (cell) => (cell === null || cell === undefined ? "" : typeof cell === "object" ? spread(cell.mean, cell.std) : short(cell));

function columnsOf(panel, view) {
  const { content } = view;
  const every = state.get("keys") === "all" ? content.keys : content.asked.slice(0, MOST_KEYS);
  const told = (key) => content.spec.group_by.some((own) => own === key || view.runs.every((run) => content.value(run, own) === content.value(run, key)));
  const keys = (every.length ? every : content.keys.slice(0, MOST_KEYS)).filter((key) => !told(key));
  return [
    {
      name: "run", about: "its name: what tells it from the others",
      cell: (group) => group.name,
      show: (name, group) => h("span", {},
        h("span", { class: "swatch", style: { background: group.colour } }),
        h("button", { type: "button", class: "plain link", onclick: () => open(group.runs[0].id) }, name)),
    },
    view.grouped
      ? { name: "seeds", about: "of runs that differ in nothing else", number: true, cell: seedsOf, show: (seeds, { runs: { length } }) => (seeds < length ? `${seeds} (${length} runs)` : String(seeds)) }
      : { name: "seed", about: "of the run", number: true, cell: (group) => content.value(group.runs[0], "seed") },
    { name: "status", about: "how it ended, or stands", cell: (group) => standing(group), show: (cell, group) => badge(cell, group) },
    ...content.spec.group_by.map((key) => ({ name: key.split(".").at(-1), about: key, cell: (group) => content.value(group.runs[0], key) })),
    ...(new Set(view.runs.map((run) => run.data.id)).size > 1 ? [{ name: "data", about: "data set", cell: (group) => group.runs[0].data.label }] : []),
    ...keys.map((key) => ({ name: keyName(key, keys), about: key, cell: (group) => content.value(group.runs[0], key) ?? null })),
    { name: "step", about: "optimizer steps made", number: true, cell: (group) => over(group, (run) => run.steps) },
    ...figures(panel, view),
    { name: "images/s", about: "last speed of training", number: true, cell: (group) => over(group, (run) => last(run, content.speed)) },
    { name: "hours", about: "from the start to the last value, without pauses", number: true, cell: (group) => over(group, (run) => run.seconds / 3600), show: (cell) => cell && duration(cell.mean * 3600) },
    ...(view.runs.some((run) => run.slurm) ? [{ name: "SLURM job", about: "id of the job", cell: (group) => group.runs.map((run) => run.slurm).filter(Boolean).join(" ") }] : []),
  ];
}

function seedsOf(group) {
  return new Set(group.runs.map((run) => run.seed)).size;
}

function keyName(key, keys) {
  const own = key.split(".").at(-1);
  return keys.filter((other) => other.split(".").at(-1) === own).length > 1 || ["name", "_target_"].includes(own) ? key : own;
}

function standing(group) {
  const states = group.runs.map((run) => (run.stalled ? "stalled" : run.status ?? "unknown"));
  const counts = new Map();
  for (const one of states) counts.set(one, (counts.get(one) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => (counts.size > 1 ? `${count} ${name}` : name)).join(", ");
}

function badge(cell, group) {
  const reasons = group.runs.map((run) => run.stalled ?? run.error).filter(Boolean);
  const kind = ["failed", "stalled", "interrupted", "running", "finished"].find((name) => cell.includes(name)) ?? "unknown";
  return h("span", { class: `badge ${kind}`, title: reasons.join("\n") || null }, cell);
}

/** Mean and deviation over the seeds of a group of what its runs have, and how many have it. */
function over(group, of) {
  const found = group.runs.map((run) => [run.seed, of(run)]).filter(([, value]) => isNumber(value));
  return found.length ? { ...overSeeds(found), count: found.length } : null;
}

function last(run, metric) {
  const series = run.series.find((one) => one.metric === metric);
  return series ? lastOf(series)?.value : null;
}

/** Columns of the metrics that the panel names. What depends on n has a column for each n of a last value. */
function figures(panel, view) {
  const found = view.series(panel.metrics, (series) => !series.metric.endsWith("_floor"));
  const alike = (one, other) => one.metric === other.metric && one.context.checkpoint === other.context.checkpoint;
  const lastStep = (series) => Math.max(...series.run.series.filter((one) => alike(one, series)).map((one) => one.steps.at(-1)));
  const measured = (series) => series.context.extractor !== undefined;
  const shown = found.filter((series) => !measured(series) || series.steps.at(-1) === lastStep(series));
  const seen = new Map(shown.map((series) => [JSON.stringify([series.metric, series.context.n ?? "", series.context.checkpoint]), series]));
  const drawn = (series) => series.context.nfe !== undefined && !/bits_per_dim/.test(series.metric);
  const columns = [...seen.values()].flatMap((series) => {
    const { metric, context: { n, checkpoint } } = series;
    const of = (run) => shown.filter((one) => one.run === run && alike(one, series) && one.context.n === n).at(-1);
    const several = [...seen.values()].filter((one) => one.metric === metric).length > 1;
    const bare = [metric.replace(/^val\//, "").replaceAll("/", " "), ...(checkpoint ? [checkpoint] : [])].join(", ");
    const name = n !== undefined && (several || measured(series)) ? `${bare}, n = ${n}` : bare;
    if (!measured(series)) {
      const best = series.more ? "greatest" : "least";
      return [
        { name: `best ${name}`, about: `${metric}: its ${best} value`, number: true, cell: (group) => over(group, (run) => of(run) && bestOf(of(run))?.value) },
        { name: `last ${name}`, about: `${metric}: its last value`, number: true, cell: (group) => over(group, (run) => of(run) && lastOf(of(run))?.value) },
      ];
    }
    const floor = (run) => of(run) && floorOf(of(run), run.series);
    const newest = (run) => {
      const values = of(run) ? lastBySeed(of(run)).map(({ value }) => value) : [];
      return values.length ? mean(values) : null;
    };
    return [{
      name, about: `${metric} of ${n} samples or examples, and what real images score`, number: true,
      cell: (group) => over(group, newest),
      show: (cell, group) => (cell ? h("span", {}, text(cell), floorWords(group, floor)) : ""),
    }];
  });
  const nfe = (run) => shown.filter((series) => series.run === run && drawn(series)).map((series) => series.context.nfe);
  const evaluations = { name: "NFE", about: "network evaluations of each sample of the distances", number: true, cell: (group) => [...new Set(group.runs.flatMap(nfe))].join(", ") };
  return shown.some(drawn) ? [...columns, evaluations] : columns;
}

function floorWords(group, floor) {
  const found = group.runs.map(floor).find(Boolean);
  return found ? h("small", { class: "quiet" }, `floor ${short(found.mean)}, n = ${found.n}`) : null;
}

function sort(rows, columns) {
  const by = state.get("sort", "");
  const place = columns.findIndex((column) => column.name === by.replace(/^-/, ""));
  if (place < 0) return;
  const sign = by.startsWith("-") ? -1 : 1;
  const value = (row) => {
    const cell = row.cells[place];
    return cell !== null && typeof cell === "object" ? cell.mean : cell;
  };
  rows.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    const missing = [one, other].map((cell) => cell === null || cell === undefined || cell === "");
    if (missing[0] || missing[1]) return missing[0] - missing[1];
    return sign * (isNumber(one) && isNumber(other) ? one - other : String(one).localeCompare(String(other), "en", { numeric: true }));
  });
}

function table(rows, columns) {
  const wide = (column) => rows.some(({ cells }) => cells[columns.indexOf(column)]?.std != null);
  const header = columns.flatMap((column) => (wide(column) ? [column.name, `${column.name} std`] : [column.name]));
  const body = rows.map(({ cells }) =>
    columns.flatMap((column, i) => {
      const cell = cells[i];
      const value = cell !== null && typeof cell === "object" ? cell.mean : cell;
      return wide(column) ? [value, cell?.std ?? null] : [value];
    }));
  return [["directory", ...header], ...body.map((cells, i) => [rows[i].group.runs.map((run) => run.directory).join(" "), ...cells])];
}
