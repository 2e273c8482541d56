// A chart of Plotly's in the colours of the page, drawn when it comes into sight.

import { short } from "page/dom.js";

const charts = new WeakMap();
const sight = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const chart = charts.get(entry.target);
      if (entry.isIntersecting && chart) chart.flush();
    }
  },
  { rootMargin: "300px" },
);

/** Text of a run, for Plotly, which reads markup. */
export function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const known = new Map();

/** The chart of this name, which is drawn again rather than made anew. */
export function chartOf(name, height = 340) {
  if (!known.has(name)) known.set(name, new Chart(name));
  const chart = known.get(name);
  chart.height = height;
  chart.element.style.height = `${height}px`;
  return chart;
}

class Chart {
  constructor(name) {
    this.name = name;
    this.element = document.createElement("div");
    this.element.className = "chart";
    this.element.setAttribute("role", "img");
    charts.set(this.element, this);
    sight.observe(this.element);
  }

  /** Say what to draw, and in words for a screen reader. It is drawn when it is in sight. */
  draw(traces, layout, words) {
    this.pending = { traces, layout };
    this.words = words;
    this.element.setAttribute("aria-label", words);
  }

  /** Draw what is pending, if the chart is in sight. */
  show() {
    const box = this.element.getBoundingClientRect();
    if (this.element.isConnected && box.top < innerHeight + 300 && box.bottom > -300) this.flush();
  }

  flush() {
    if (!this.pending) return;
    const { traces, layout } = this.pending;
    this.pending = null;
    this.drawn = { traces, layout };
    const height = this.height + legendHeight(traces, layout, this.element.clientWidth);
    this.element.style.height = `${height}px`;
    Plotly.react(this.element, traces, dressed(traces, layout, height), {
      displaylogo: false,
      responsive: true,
      displayModeBar: false,
    });
  }

  /** The chart as SVG on white, whatever the colours of the page. */
  async svg() {
    const { traces, layout } = this.pending ?? this.drawn;
    const width = 720;
    const height = this.height + 56 + legendHeight(traces, layout, width);
    const light = { paper: "#ffffff", ink: "#111111", line: "#dddddd" };
    const figure = { data: traces, layout: { ...dressed(traces, layout, height, light), width, height, title: { text: plain(this.words).replaceAll("\n", "<br>"), font: { size: 13 } }, margin: { l: 64, r: 20, t: 56, b: 56 } } };
    const url = await Plotly.toImage(figure, { format: "svg", width, height });
    return { svg: decodeURIComponent(url.slice(url.indexOf(",") + 1)), width, height };
  }

  /** Let go of the chart. */
  remove() {
    known.delete(this.name);
    sight.unobserve(this.element);
    Plotly.purge(this.element);
    this.element.remove();
  }
}

/** Pixels that the rows of a legend take below the first one. */
function legendHeight(traces, layout, width) {
  const names = layout.showlegend ? traces.filter((trace) => trace.showlegend !== false).map((trace) => trace.name ?? "") : [];
  if (!names.length) return 0;
  const columns = Math.max(1, Math.floor((width - 70) / (6.3 * Math.max(...names.map((name) => name.length)) + 52)));
  return 19 * (Math.ceil(names.length / columns) - 1);
}

function dressed(traces, layout, height, colours = pageColours()) {
  const axis = { gridcolor: colours.line, linecolor: colours.line, zerolinecolor: colours.line, automargin: true };
  const both = Object.fromEntries(["x", "y"].map((side) => {
    const own = layout[`${side}axis`] ?? {};
    const ticks = own.type === "log" ? logTicks(traces.flatMap((trace) => trace[side] ?? [])) : {};
    return [`${side}axis`, { ...axis, ...ticks, ...own, title: { standoff: 8, ...own.title } }];
  }));
  return {
    height,
    paper_bgcolor: colours.paper,
    plot_bgcolor: colours.paper,
    font: { color: colours.ink, family: "system-ui, sans-serif", size: 12 },
    margin: { l: 56, r: 12, t: 10, b: 44 },
    hovermode: "closest",
    hoverlabel: { namelength: -1 },
    legend: { orientation: "h", y: -54 / (height - 150), yanchor: "top", traceorder: "normal", font: { size: 11 } },
    uirevision: Object.values(both).map(({ type, title }) => `${type} ${title.text}`).join(), // so long what is zoomed stays, whatever grows
    ...layout,
    ...both,
  };
}

/** Ticks of a logarithmic axis with their numbers written out. */
function logTicks(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return {};
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  const decades = Math.log10(high / low);
  if (decades < 0.5) return {}; // Plotly writes these out itself
  const factors = decades > 5 ? [1] : decades > 2 ? [1, 3] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const tickvals = [];
  const stride = Math.ceil(decades / 8);
  for (let power = stride * Math.floor(Math.log10(low) / stride - 1); power <= Math.log10(high) + stride; power += stride) {
    for (const factor of factors) tickvals.push(Number((factor * 10 ** power).toPrecision(3)));
  }
  return { tickvals, ticktext: tickvals.map(short) };
}

function pageColours() {
  const style = getComputedStyle(document.documentElement);
  return { paper: "rgba(0,0,0,0)", ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim() };
}

/** A colour with less weight. */
export function faint(colour, opacity) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

/** The two traces of a band between two curves. */
export function band(x, low, high, colour, group) {
  const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: group };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: faint(colour, 0.18) }];
}
