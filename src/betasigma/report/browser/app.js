// The page: its bar, its panels, the keyboard, and what has changed since.

import { choice, counted, csv, duration, h, save, stackedSvg, tableSvg, tick } from "page/dom.js";
import { bits, precision_recall, quality } from "page/panel_quality.js";
import { curves } from "page/panel_curves.js";
import { health } from "page/panel_health.js";
import { noise } from "page/panel_noise.js";
import { run } from "page/panel_run.js";
import { runs } from "page/panel_runs.js";
import { samples } from "page/panel_samples.js";
import { sweep } from "page/panel_sweep.js";
import { Content, View, fits } from "page/runs.js";
import * as state from "page/state.js";

const KINDS = { runs, curves, noise, quality, precision_recall, bits, samples, sweep, run, health };

let content = new Content(JSON.parse(document.getElementById("data").textContent));
const panels = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const asked = state.get("theme");
  return asked === "dark" || asked === "light" ? asked : dark.matches ? "dark" : "light";
}

/** What is shown, as the bar says; the run table lists also what is not chosen. */
function views() {
  const words = state.get("filter").toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = content.runs.filter((one) => fits(content, one, words));
  const chosen = new Set(state.list("runs"));
  const some = fitting.filter((one) => chosen.has(one.id));
  const grouped = state.get("group", "1") === "1";
  const key = state.get("colour");
  const colourBy = key ? [key] : content.spec.group_by;
  const options = { grouped, colourBy, theme: theme(), x: state.get("x") };
  return { all: new View(content, { ...options, runs: fitting }), chosen: new View(content, { ...options, runs: some.length ? some : fitting }) };
}

function draw() {
  document.documentElement.dataset.theme = theme();
  drawBar();
  const { all, chosen } = views();
  for (const panel of panels.values()) drawPanel(panel, panel.spec.kind === "runs" ? all : chosen);
}

function drawPanel(panel, view) {
  const focus = focusIn(panel.body);
  const charts = panel.result?.charts ?? [];
  const height = panel.body.offsetHeight;
  panel.body.style.minHeight = `${height}px`; // so that the page does not jump
  try {
    panel.result = KINDS[panel.spec.kind](panel.body, panel.spec, view.of(panel.spec));
  } finally {
    for (const chart of charts) if (!chart.element.isConnected) chart.remove();
    for (const chart of panel.result?.charts ?? []) chart.show();
    panel.body.style.minHeight = "";
  }
  if (focus && !restore(panel.body, focus)) panel.heading.focus({ preventScroll: true });
}

/** Where the focus is in a part of the page that is drawn again. */
function focusIn(body) {
  const active = document.activeElement;
  if (!body.contains(active)) return null;
  const label = active.getAttribute("aria-label") ?? active.textContent;
  return { tag: active.tagName, label, run: active.dataset.run };
}

/** Put it back; false where what had it is gone or disabled. */
function restore(body, { tag, label, run: id }) {
  const same = [...body.querySelectorAll(tag.toLowerCase())].find((element) =>
    id ? element.dataset.run === id : (element.getAttribute("aria-label") ?? element.textContent) === label);
  same?.focus({ preventScroll: true });
  return same !== undefined && document.activeElement === same;
}

// ---------------------------------------------------------------- the bar

const filter = h("input", {
  type: "search", id: "filter", placeholder: "filter: words, key=value, status=failed", "aria-label": "filter runs",
  oninput: () => {
    clearTimeout(filter.waiting);
    filter.waiting = setTimeout(() => state.set({ filter: filter.value }), 200);
  },
});
const bar = h("div", { class: "controls bar", role: "search" });

function drawBar() {
  const { keys, spec } = content;
  const focus = document.activeElement === filter ? null : focusIn(bar);
  if (document.activeElement !== filter) filter.value = state.get("filter");
  const named = [["", spec.group_by.join(", ")], ...keys.filter((key) => !spec.group_by.includes(key)).map((key) => [key, key]), ...spec.spread_over.map((key) => [key, key]), ["run", "run"]];
  if (!filter.isConnected) bar.append(filter);
  const rest = [
    tick("mean over seeds", state.get("group", "1") === "1", (on) => state.set({ group: on ? "" : "0" })),
    choice("colour", named, state.get("colour"), (value) => state.set({ colour: value })),
    h("button", { type: "button", "aria-label": "light or dark", title: "light or dark (t)", onclick: toggleTheme }, "◐"),
    h("button", { type: "button", "aria-label": "keys", title: "what keys do (?)", onclick: () => help.showModal() }, "?"),
  ];
  while (filter.nextSibling) filter.nextSibling.remove();
  bar.append(...rest);
  if (focus) restore(bar, focus);
}

function toggleTheme() {
  state.set({ theme: theme() === "dark" ? "light" : "dark" });
}

const KEYS = [
  ["/", "filter"], ["1 … 9, 0", "go to a panel"], ["j, k", "next and previous run of the table"], ["x or space", "choose it"],
  ["Enter", "show its page"], ["g", "mean over seeds, or each run"], ["t", "light or dark"], ["Esc", "leave the filter; choose none"], ["?", "this"],
];
const help = h("dialog", { "aria-label": "keys" },
  h("h2", {}, "Keys"),
  h("dl", {}, KEYS.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
  h("form", { method: "dialog" }, h("button", {}, "close")));

function move(by) {
  const rows = [...document.querySelectorAll("table.runs tbody tr")];
  const now = rows.indexOf(document.activeElement.closest("tr"));
  rows[Math.min(rows.length - 1, Math.max(0, now + by))]?.focus();
}

const PRESSED = {
  "/": () => filter.focus(),
  "?": () => help.showModal(),
  g: () => state.set({ group: state.get("group", "1") === "1" ? "0" : "" }),
  t: toggleTheme,
  j: () => move(1),
  k: () => move(-1),
  Escape: () => state.setList("runs", []),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input[type=search], select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const digit = /^\d$/.test(event.key) ? (Number(event.key) + 9) % 10 : -1;
  const target = [...panels.values()][digit];
  if (target) {
    target.element.scrollIntoView();
    target.heading.focus({ preventScroll: true });
  } else if (PRESSED[event.key]) {
    PRESSED[event.key]();
  } else return;
  event.preventDefault();
});

// ---------------------------------------------------------------- panels

function makePanel(name, spec) {
  const body = h("div", { class: "body" });
  const title = spec.title || name;
  const heading = h("h2", { id: `panel-${name}`, tabindex: "-1" }, title);
  const panel = { spec: { ...spec, id: name, title }, body, heading };
  const files = h("div", { class: "files" },
    h("button", { type: "button", "aria-label": `CSV of ${title}`, onclick: () => save(`${name}.csv`, "text/csv", csv(panel.result.rows())) }, "CSV"),
    h("button", { type: "button", "aria-label": `SVG of ${title}`, onclick: async () => save(`${name}.svg`, "image/svg+xml", await svg(panel)) }, "SVG"));
  panel.element = h("section", { "data-panel": name, "data-kind": spec.kind, "aria-labelledby": `panel-${name}` },
    h("header", {}, heading, files), spec.about ? h("p", { class: "about" }, spec.about) : null, body);
  return panel;
}

async function svg(panel) {
  const { result, spec } = panel;
  if (result.svg) return result.svg();
  const figures = await Promise.all(result.charts.map((chart) => chart.svg()));
  return figures.length ? stackedSvg(spec.title, figures) : tableSvg(spec.title, result.rows());
}

function build() {
  document.title = content.title;
  for (const [name, spec] of Object.entries(content.spec.panels)) panels.set(name, makePanel(name, spec));
  const links = [...panels].map(([name, panel]) => h("a", { href: `#${name}`, onclick: (event) => {
    event.preventDefault(); // the part of the URL behind # says what is chosen
    panel.element.scrollIntoView();
    panel.heading.focus({ preventScroll: true });
  } }, panel.spec.title));
  document.body.append(
    h("header", { class: "top" }, h("h1", {}, content.title), stamp, h("nav", { "aria-label": "panels" }, links), bar),
    h("main", {}, [...panels.values()].map((panel) => panel.element)),
    help);
}

// ---------------------------------------------------------------- growing runs

const stamp = h("span", { class: "quiet stamp", role: "status" });

function tellAge(problem = "") {
  const made = new Date(content.built * 1000);
  const age = Math.max(0, Date.now() / 1000 - content.built);
  const following = content.refresh ? ", follows the runs" : "";
  stamp.textContent = problem || `${counted(content.runs.length, "run")}, read ${made.toLocaleString()}${age > 90 ? ` (${duration(age)} ago)` : ""}${following}`;
}

async function refresh() {
  try {
    const answer = await fetch("data.json", { cache: "no-store", headers: { "If-None-Match": `"${content.version}"` } });
    if (answer.status === 200) {
      content = new Content(await answer.json());
      draw();
    } else if (answer.status === 304) {
      content.built = Date.now() / 1000; // it is as it was read
    }
    tellAge(answer.ok || answer.status === 304 ? "" : `${await answer.text()}: the page shows what it last had.`);
  } catch {
    tellAge("The server does not answer: the page shows what it last had.");
  }
  setTimeout(refresh, content.refresh * 1000);
}

build();
draw();
tellAge();
let drawing = 0;
state.watch(() => {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
});
dark.addEventListener("change", draw);
if (content.refresh) setTimeout(refresh, content.refresh * 1000);
document.documentElement.dataset.ready = "yes";
