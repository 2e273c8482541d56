// What is chosen on the page. It stands in the URL, so that a link shows the same.

const listeners = new Set();
const chosen = new Map(new URLSearchParams(location.hash.slice(1)));

/** A choice, or what is chosen where nothing is said. */
export function get(name, otherwise = "") {
  return chosen.has(name) ? chosen.get(name) : otherwise;
}

/** Choose; an empty value takes the choice back. */
export function set(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") chosen.delete(name);
    else chosen.set(name, String(value));
  }
  const words = new URLSearchParams([...chosen.entries()]).toString();
  history.replaceState(null, "", words ? `#${words}` : location.pathname + location.search);
  tell(Object.keys(changes));
}

/** A choice of several, in order. */
export function list(name) {
  const text = get(name);
  if (!text) return [];
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found.map(String) : [];
  } catch {
    return [];
  }
}

export function setList(name, values) {
  set({ [name]: values.length ? JSON.stringify(values) : "" });
}

/** Call `listener(names)` when something else is chosen. */
export function watch(listener) {
  listeners.add(listener);
}

function tell(names) {
  for (const listener of listeners) listener(names);
}

addEventListener("hashchange", () => {
  chosen.clear();
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) chosen.set(name, value);
  tell(["*"]);
});
