// Elements, and files that a panel is saved as. Text only ever becomes text: names of runs are not ours.

/** An element: h("td", {class: "number", onclick: f}, "text", other). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Put children in the place of those that there are. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** Words that may be broken behind _ and /. */
export function breakable(text) {
  return text.split(/(?<=[_/])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}

/** "1 run", "2 runs". */
export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

/** A chart below its title and what else is to be known of it. */
export function figure(title, words, chart) {
  return h("figure", {}, h("figcaption", {}, h("b", {}, title), h("span", { class: "quiet" }, ` ${words}`)), chart.element);
}

/** A list to choose from: [[value, label], …]. */
export function choice(label, options, value, onchange) {
  const select = h(
    "select",
    { "aria-label": label, onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "control" }, h("span", {}, label), select);
}

/** A box to tick. */
export function tick(label, checked, onchange) {
  const box = h("input", { type: "checkbox", checked, onchange: (event) => onchange(event.target.checked) });
  return h("label", { class: "control" }, box, h("span", {}, label));
}

/** A number on a scale. */
export function slider(label, { min, max, step, value }, text, oninput) {
  const shown = h("output", {}, text(value));
  const input = h("input", {
    type: "range", "aria-label": label, min: String(min), max: String(max), step: String(step),
    oninput: (event) => {
      shown.textContent = text(Number(event.target.value));
      oninput(Number(event.target.value));
    },
  });
  input.value = String(value);
  return h("label", { class: "control" }, h("span", {}, label), input, shown);
}

/** A number as it is read: four significant digits. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
}

/** A mean with its spread, where there is one beyond rounding. */
export function spread(mean, std) {
  return std > 1e-9 * Math.abs(mean) ? `${short(mean)} ± ${Number(std.toPrecision(2))}` : short(mean);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Rows as CSV. A cell that a spreadsheet would compute is marked as text. */
export function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** Have the browser save a text. */
export function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const NAMESPACE = "http://www.w3.org/2000/svg";

function node(tag, attributes, ...children) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Rows of text as a picture, the first row in bold. */
export function tableSvg(title, rows) {
  const shown = rows.slice(0, 400).map((row) => row.map((cell) => short(cell).slice(0, 60)));
  const count = Math.max(1, ...shown.map((row) => row.length));
  const widths = Array.from({ length: count }, (_, i) => 16 + 7 * Math.max(2, ...shown.map((row) => (row[i] ?? "").length)));
  const left = widths.map((_, i) => 12 + widths.slice(0, i).reduce((a, b) => a + b, 0));
  const width = 24 + widths.reduce((a, b) => a + b, 0);
  const height = 44 + 20 * shown.length;
  const text = (x, y, words, weight) =>
    node("text", { x, y, "font-family": "sans-serif", "font-size": 12, "font-weight": weight, fill: "#111" }, words);
  const cells = shown.flatMap((row, i) =>
    row.map((cell, j) => text(left[j], 48 + 20 * i, cell, i ? "normal" : "bold")));
  return svgOf(width, height, [text(12, 20, title, "bold"), ...cells]);
}

/** Pictures below one another: [{svg, width, height}, …]. */
export function stackedSvg(title, figures) {
  let y = 32;
  const parts = figures.map(({ svg, width, height }) => {
    const inner = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
    const placed = document.importNode(inner, true);
    for (const [name, value] of Object.entries({ x: 0, y, width, height })) placed.setAttribute(name, String(value));
    y += height;
    return placed;
  });
  const heading = node("text", { x: 12, y: 22, "font-family": "sans-serif", "font-size": 16, fill: "#111" }, title);
  return svgOf(Math.max(300, ...figures.map((figure) => figure.width)), y, [heading, ...parts]);
}

function svgOf(width, height, children) {
  const back = node("rect", { width, height, fill: "#fff" });
  const sheet = node("svg", { width, height, viewBox: `0 0 ${width} ${height}` }, back, ...children);
  return new XMLSerializer().serializeToString(sheet);
}

/** Tiles of sample sheets as a picture: [{picture, columns, rows, tile, row, label, x, y}, …] of one size. */
export function tilesSvg(title, tiles, size) {
  const text = (x, y, words) => node("text", { x, y, "font-family": "sans-serif", "font-size": 11, fill: "#111" }, words);
  const named = [...new Map(tiles.map(({ row, y }) => [y, row]))].map(([y, row]) => text(12, 50 + y * (size + 42), row));
  const parts = tiles.flatMap(({ picture, columns, rows, tile, label, x, y }) => {
    const at = [12 + x * (size + 12), 70 + y * (size + 42)];
    const column = tile % columns;
    const row = Math.floor(tile / columns);
    const inner = node(
      "svg",
      { x: at[0], y: at[1], width: size, height: size, viewBox: `${column} ${row} 1 1`, preserveAspectRatio: "none" },
      node("image", { href: picture, width: columns, height: rows, preserveAspectRatio: "none", style: "image-rendering: pixelated" }),
    );
    return [inner, text(at[0], at[1] - 6, label)];
  });
  const heading = node("text", { x: 12, y: 22, "font-family": "sans-serif", "font-size": 16, fill: "#111" }, title);
  const width = 24 + (size + 12) * (1 + Math.max(0, ...tiles.map((tile) => tile.x)));
  const height = 72 + (size + 42) * (1 + Math.max(0, ...tiles.map((tile) => tile.y)));
  return svgOf(Math.max(width, 24 + 7 * Math.max(0, ...tiles.map(({ row }) => row.length))), height, [heading, ...named, ...parts]);
}
