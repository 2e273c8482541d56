// All of one run: how it was started and with what, in what it differs, what it said last.

import { choice, duration, fill, h, short, tableSvg } from "page/dom.js";
import * as state from "page/state.js";

export function run(body, panel, view) {
  const { content } = view;
  const one = content.byId.get(state.get("run")) ?? view.runs[0];
  if (!one) {
    fill(body, h("p", { class: "quiet" }, "No run is shown."));
    return { rows: () => [["key", "value"]], charts: [], svg: () => tableSvg(panel.title, [["no run"]]) };
  }
  const names = content.runs.map((other) => [other.id, other.id]);
  const other = content.byId.get(state.get("versus"));
  const hasDefaults = Object.keys(content.defaults).length > 0;
  const fromDefault = hasDefaults ? difference(content.defaults, content.config(one)) : [];
  const fromOther = other ? difference(content.config(other), content.config(one)) : [];
  const command = commandOf(one).map(quoted).join(" ");
  fill(
    body,
    h("div", { class: "controls" },
      choice("run", names, one.id, (value) => state.set({ run: value })),
      choice("compared with", [["", "nothing"], ...names.filter(([id]) => id !== one.id)], other?.id ?? "", (value) => state.set({ versus: value }))),
    facts(one),
    command ? h("div", { class: "command" }, h("code", {}, command), h("button", { type: "button", onclick: (event) => copy(event.target, command) }, "copy")) : null,
    other ? section(`Differs from ${other.id}`, pairs(fromOther, ["key", other.id, one.id]), fromOther.length) : null,
    hasDefaults ? section("Differs from the default config", pairs(fromDefault, ["key", "default", "this run"]), fromDefault.length) : null,
    section("Git and versions", versions(one)),
    one.traceback.length ? section("Error", h("pre", {}, one.traceback.join("\n"))) : null,
    section("Last lines of its log", h("pre", {}, one.log.join("\n") || "no log")));
  const rows = () => [
    ["key", "default", "this run", ...(other ? [other.id] : [])],
    ...[...new Set([...fromDefault, ...fromOther].map(([key]) => key))].map((key) => [key, content.defaults[key] ?? "", content.value(one, key) ?? "", ...(other ? [content.value(other, key) ?? ""] : [])]),
  ];
  return { rows, charts: [], svg: () => tableSvg(`${panel.title}: ${one.id}`, rows()) };
}

function facts(one) {
  const state = one.stalled ? `${one.status}, but ${one.stalled}` : one.status ?? "unknown";
  const known = [
    ["directory", one.directory], ["status", one.error ? `${state}: ${one.error}` : state], ["not finite", one.not_finite],
    ["started", one.started], ["ended", one.ended], ["starts", one.starts > 1 ? one.starts : null], ["time", duration(one.seconds)],
    ["steps", one.most_steps ? `${short(one.steps)} of ${short(one.most_steps)}` : short(one.steps)], ["host", one.host], ["SLURM job", one.slurm], ["data", one.data.label],
  ];
  return h("dl", {}, known.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

function difference(before, after) {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])].sort()
    .filter((key) => (before[key] ?? "null") !== (after[key] ?? "null"))
    .map((key) => [key, before[key] ?? "–", after[key] ?? "–"]);
}

function pairs(rows, header) {
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, header.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", {}, i ? String(cell) : h("code", {}, cell))))))));
}

function versions(one) {
  const { git } = one;
  const words = [
    ...(git ? [["commit", git.commit], ["branch", git.branch], ["changed files", git.changes || "none"]] : [["git", "outside a repository"]]),
    ["python", one.python], ...Object.entries(one.packages).filter(([, version]) => version !== "None"),
  ];
  return h("dl", {}, words.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function section(title, content, count) {
  return h("details", { open: count === undefined || count > 0 ? title !== "Git and versions" : false }, h("summary", {}, count === undefined ? title : `${title} (${count})`), content);
}

/** What starts this run alone: of a job of a sweep with the values of the job. */
function commandOf(one) {
  const [program = "", second] = one.command;
  if (!program) return [];
  const start = program.endsWith(".py") ? ["python", program] : second && !/[=-]/.test(second) ? [program, second] : [program];
  return [...start, ...(one.job === null ? one.command.slice(program.endsWith(".py") ? 1 : start.length) : one.asked)];
}

/** A word as a shell takes it. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    button.textContent = "select and copy";
    const range = document.createRange();
    range.selectNodeContents(button.previousSibling);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  }
  setTimeout(() => { button.textContent = "copy"; }, 2000);
}
