// Runs as the panels read them: configs, series, what differs, groups of seeds, names and colours.

/** Colours that colour-blind readers tell apart (Okabe & Ito 2008), on a light and a dark ground. */
const PALETTE = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A67C00", "#3B8FC4", "#555555", "#8A4F9E"],
  dark: ["#56B4E9", "#F0883E", "#2FC49A", "#E29CC5", "#F0E442", "#8FD0F5", "#BBBBBB", "#C39BD6"],
};
export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const MARKS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down"];

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** The content of the page, with methods on its runs. */
export class Content {
  constructor(data) {
    Object.assign(this, data);
    this.missing = data.sweeps.filter((sweep) => sweep.missing.length || sweep.failed.length);
    for (const run of this.runs) prepare(run, this);
    this.byId = new Map(this.runs.map((run) => [run.id, run]));
    this.incidental = new Set([...data.incidental, ...data.spec.spread_over]);
    this.entering = new Set(data.entering); // keys inside incidental nodes that do enter a result
    this.keys = differing(this.runs, this);
    this.asked = askedKeys(this.runs, this);
  }

  /** Value of a key of the config of a run. */
  value(run, key) {
    if (key in run.config) return run.config[key];
    if (key in this.shared) return this.shared[key];
    return undefined;
  }

  /** All of the config of a run. */
  config(run) {
    return { ...this.shared, ...run.config };
  }

  /** Whether more is better of a metric; of those of which nobody says it, less is. */
  moreIsBetter(metric) {
    return this.best[metric] === "max";
  }

  isIncidental(key) {
    if (this.incidental.has(key)) {
      return true;
    }
    return !this.entering.has(key) && this.incidental.has(key.split(".")[0]);
  }
}

function prepare(run, content) {
  run.seed = content.spec.spread_over.map((key) => content.value(run, key)).join();
  for (const series of run.series) {
    series.metric = content.metrics[series.metric];
    series.context = content.contexts[series.context];
    Object.assign(series, run.places[series.at]); // steps and seconds
    series.run = run;
    series.more = content.moreIsBetter(series.metric);
  }
  const own = run.series.filter((series) => !series.metric.startsWith("eval"));
  run.steps = Math.max(0, ...own.map((series) => series.steps.at(-1) ?? 0));
  run.seconds = Math.max(0, ...own.map((series) => series.seconds.at(-1) ?? 0));
}

/** Keys of the config in which runs differ, other than by seed and what enters no result. */
function differing(runs, content) {
  const keys = new Set(runs.flatMap((run) => Object.keys(run.config)));
  return [...keys].filter(
    (key) => !content.isIncidental(key) && new Set(runs.map((run) => run.config[key])).size > 1);
}

/** Those of them that somebody has typed: model=ncsn is typed for model.name. */
function askedKeys(runs, content) {
  const typed = new Set(runs.flatMap((run) => run.asked.map((word) => word.split("=")[0].replace(/^[+~]+/, "").split("@")[0])));
  const known = [...typed].map((key) => (content.keys.includes(`${key}.name`) ? `${key}.name` : key));
  return [...new Set(known)].filter((key) => content.keys.includes(key));
}

/** Whether a run fits the words of a filter: parts of its name, status or values, or key=value. */
export function fits(content, run, words) {
  return words.every((word) => {
    const [key, ...rest] = word.split("=");
    if (!rest.length) return haystack(content, run).includes(word.toLowerCase());
    const wanted = rest.join("=").toLowerCase();
    const values = Object.entries(content.config(run)).filter(([name]) => name === key || name.endsWith(`.${key}`));
    if (key === "status") values.push([key, run.status ?? ""]);
    return values.some(([, value]) => fitsValue(String(value).toLowerCase(), wanted));
  });
}

function fitsValue(text, wanted) {
  if (!wanted.includes("*")) return text === wanted;
  const parts = wanted.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`).test(text);
}

function haystack(content, run) {
  const values = [...new Set([...content.keys, ...content.spec.group_by])].map((key) => content.value(run, key));
  return [run.id, run.name, run.status, run.stalled ? "stalled" : "", run.data.label, run.slurm, ...values]
    .filter((value) => value !== null && value !== undefined)
    .join(" ")
    .toLowerCase();
}

/** Whether the config of a run has what a panel's own filters ask for. */
export function passes(content, run, filters) {
  return Object.entries(filters).every(([key, wanted]) => {
    const text = String(content.value(run, key) ?? "null").toLowerCase();
    return (Array.isArray(wanted) ? wanted : [wanted]).some((value) => fitsValue(text, String(value).toLowerCase()));
  });
}

/** What the panels show: runs, alone or in groups that differ in nothing but their seed. */
export class View {
  constructor(content, { runs, grouped, colourBy, theme, x }) {
    Object.assign(this, { content, runs, grouped, colourBy, theme, x });
    this.groups = groupsOf(content, runs, grouped);
    this.colours = coloursOf(content, content.runs, colourBy, PALETTE[theme]);
    nameGroups(this);
    const alike = new Map();
    for (const group of this.groups) {
      group.colour = this.colours.get(this.colourKey(group.runs[0]));
      const before = alike.get(group.colour) ?? 0;
      group.dash = DASHES[before % DASHES.length];
      group.mark = MARKS[before % MARKS.length];
      alike.set(group.colour, before + 1);
    }
    this.groupOf = new Map(this.groups.flatMap((group) => group.runs.map((run) => [run, group])));
  }

  colourKey(run) {
    return colourKey(this.content, run, this.colourBy);
  }

  /** Name of a run: that of its group, and its seed where the group has several. */
  nameOf(run) {
    const group = this.groupOf.get(run);
    return group.runs.length > 1 ? `${group.name} seed=${this.content.value(run, "seed")}` : group.name;
  }

  /** The same, with the runs that a panel's own filters leave. */
  of(panel) {
    if (!Object.keys(panel.filters ?? {}).length) return this;
    const runs = this.runs.filter((run) => passes(this.content, run, panel.filters));
    return new View(this.content, { ...this, runs });
  }

  /** Series of the shown runs whose metric fits one of the patterns, in the order of these. */
  series(patterns, where = () => true) {
    const tests = patterns.map((pattern) => (metric) => fitsValue(metric, pattern));
    return tests.flatMap((test) =>
      this.runs.flatMap((run) => run.series.filter((series) => test(series.metric) && where(series))));
  }
}

function colourKey(content, run, keys) {
  return keys.map((key) => (key === "run" ? run.id : String(content.value(run, key) ?? "–"))).join(" ");
}

/** A colour for each value; a family has the one that it has in every plot. */
function coloursOf(content, runs, keys, palette) {
  const known = keys.join() === "model.family" ? content.families : [];
  const values = new Set(runs.map((run) => colourKey(content, run, keys)));
  const others = [...values].filter((value) => !known.includes(value)).sort();
  return new Map([...known, ...others].map((value, i) => [value, palette[i % palette.length]]));
}

function groupsOf(content, runs, grouped) {
  const groups = new Map();
  for (const run of runs) {
    const own = Object.entries(run.config).filter(([key]) => !content.isIncidental(key)).sort();
    const key = grouped ? JSON.stringify([own, run.data.id]) : run.id;
    if (!groups.has(key)) groups.set(key, { id: run.id, runs: [] });
    groups.get(key).runs.push(run);
  }
  return [...groups.values()];
}

/** Name groups by what was typed and differs between them, else by all that differs, else by their place. */
function nameGroups(view) {
  const { content, groups } = view;
  const among = (keys) => keys.filter((key) => new Set(groups.map((group) => content.value(group.runs[0], key))).size > 1);
  const colour = content.spec.group_by.filter((key) => among([key]).length);
  const family = (key) => colour.includes(key) || (key === "model.name" && colour.includes("model.family"));
  const tries = [among(content.asked), among(content.keys)].map((keys) => keys.filter((key) => !family(key)));
  const bySeed = view.grouped ? [] : among(content.spec.spread_over);
  const several = new Set(groups.map((group) => group.runs[0].data.id)).size > 1;
  const places = [() => "", ...(several ? [(run) => ` on ${content.value(run, "data.name") ?? "?"}`] : [])];
  const names = tries
    .filter((keys) => keys.length <= 4)
    .flatMap((keys) => [rounded, String].flatMap((written) => places.map((place) =>
      groups.map(({ runs: [run] }) => called(content, run, colour, [...keys, ...bySeed], written) + place(run)))))
    .find((found) => new Set(found).size === found.length && found.every(Boolean));
  const placed = groups.map(({ runs: [run] }) => (view.grouped ? placeOf(content, run) : run.id));
  const apart = new Set(placed).size === groups.length;
  groups.forEach((group, i) => {
    group.name = names ? names[i] : groups.length === 1 && view.grouped ? group.runs[0].name || group.id : apart ? placed[i] : group.id;
  });
}

/** The directory of a run without what runs of its group differ in: of SWEEP/lr=1,seed=2 SWEEP/lr=1. */
function placeOf(content, run) {
  const [name, ...above] = run.id.split("/").reverse();
  const words = name.split(",").filter((word) => !word.includes("=") || !content.isIncidental(word.split("=")[0]));
  return [...above.reverse(), words.join(",")].filter(Boolean).join("/") || run.id;
}

/** A number that a search has drawn as it is read; whole numbers (a seed) and what somebody may have typed stay. */
const rounded = (value) =>
  isNumber(value) && !Number.isInteger(value) && String(value).length > 8 ? String(Number(value.toPrecision(4))) : String(value);

function called(content, run, colour, keys, written) {
  const last = (key) => {
    const own = key.split(".").at(-1);
    return keys.filter((other) => other.split(".").at(-1) === own).length > 1 ? key : own;
  };
  const model = content.keys.includes("model.name") && colour.includes("model.family") ? ["model.name"] : colour;
  const told = keys.filter((key) => content.value(run, key) !== undefined);
  return [
    ...model.map((key) => String(content.value(run, key) ?? "–")),
    ...told.map((key) => `${last(key)}=${written(content.value(run, key))}`),
  ].join(" ");
}

// ---------------------------------------------------------------- series

/** What values must share to be on one axis: metric, n, images compared with, extractor, data. */
export function condition(series) {
  const { n, n_reference, split, extractor } = series.context;
  return JSON.stringify([series.metric, series.run.data.id, n, n_reference, split, extractor]);
}

/** The same in words. */
export function conditionWords(series) {
  const { n, n_reference, extractor, split } = series.context;
  return [
    series.run.data.label,
    n ? `n = ${Number(n).toLocaleString("en")}` : "",
    n_reference ? `against ${Number(n_reference).toLocaleString("en")} ${split ?? ""} images` : "",
    extractor ? `features: ${extractor}` : "",
  ].filter(Boolean).join(" · ");
}

/** Series by what may share an axis, those of the most runs first. */
export function facets(found, key = condition) {
  const groups = new Map();
  for (const series of found) {
    const name = key(series);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(series);
  }
  return [...groups.values()];
}

/** What tells the samplers of series apart: name, and the settings that differ, NFE and steps left out;
 * and the checkpoint, where it is not the run's last. */
export function samplerName(series) {
  const { sampler, guidance, checkpoint } = series.context;
  const settings = Object.entries(series.settings ?? {}).map(([key, value]) => `${key}=${value}`);
  const weight = guidance && Number(guidance) !== 1 ? [`guidance=${guidance}`] : [];
  return [sampler ?? "", ...weight, ...settings, checkpoint ?? ""].join(" ").trim();
}

/** Keep of each series' settings only what differs between series of one sampler. */
export function tellSamplersApart(found) {
  const bySampler = facets(found, (series) => series.context.sampler ?? "");
  for (const group of bySampler) {
    const known = group.map((series) => settingsOf(series.context.settings));
    const keys = [...new Set(known.flatMap(Object.keys))].filter(
      (key) => key !== "steps" && new Set(known.map((settings) => settings[key])).size > 1);
    group.forEach((series, i) => {
      series.settings = Object.fromEntries(keys.filter((key) => key in known[i]).map((key) => [key, known[i][key]]));
    });
  }
}

function settingsOf(text = "") {
  return Object.fromEntries(text.split(/ (?=\w+=)/).filter((word) => word.includes("=")).map((word) => word.split(/=(.*)/s).slice(0, 2)));
}

/** The mean; of equal values exactly that: an axis as long as an error of rounding has no ticks. */
export function mean(values) {
  const [first] = values;
  return first + values.reduce((sum, value) => sum + (value - first), 0) / values.length;
}

function deviation(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** Mean and deviation over the seeds of [[seed, value], …]: what was found twice with one seed is one draw. */
export function overSeeds(found) {
  const bySeed = facets(found, ([seed]) => seed).map((same) => mean(same.map(([, value]) => value)));
  return { mean: mean(bySeed), std: deviation(bySeed), count: bySeed.length };
}

/** The last value of a series, or its best one. */
export function lastOf(series) {
  const at = series.values.findLastIndex(isNumber);
  return at < 0 ? null : { value: series.values[at], step: series.steps[at], std: series.stds?.[at] ?? null };
}

export function bestOf(series) {
  if (series.best) return { value: series.best[0], step: series.best[1] }; // of a curve that was thinned
  const better = series.more ? (a, b) => a > b : (a, b) => a < b;
  let best = -1;
  series.values.forEach((value, i) => {
    if (isNumber(value) && (best < 0 || better(value, series.values[best]))) best = i;
  });
  return best < 0 ? null : { value: series.values[best], step: series.steps[best] };
}

/** Values of a series that was measured with several seeds: the last of each, at its last step. */
export function lastBySeed(series) {
  const step = series.steps.at(-1);
  const bySeed = new Map();
  series.values.forEach((value, i) => {
    const seed = series.seeds?.[i] ?? "";
    if (series.steps[i] === step && isNumber(value)) bySeed.set(seed, { seed, value, std: series.stds?.[i] ?? null });
  });
  return [...bySeed.values()];
}

/** What real test images score by the metric of a series: mean, least and greatest, and their number,
 * which is that of the samples, or less where there are fewer images. */
export function floorOf(series, among) {
  const found = among.filter((other) =>
    other.metric.endsWith(`${series.metric.replace(/^\w+\//, "/")}_floor`) && other.run.data.id === series.run.data.id &&
    other.context.n_reference === series.context.n_reference && Number(other.context.n) <= Number(series.context.n));
  const n = Math.max(...found.map((other) => Number(other.context.n)));
  const values = found.filter((other) => Number(other.context.n) === n).flatMap((other) => other.values).filter(isNumber);
  return values.length ? { mean: mean(values), low: Math.min(...values), high: Math.max(...values), n } : null;
}
