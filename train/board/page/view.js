// What is shown, kept in the address bar's hash: a link shows the same, and "back" goes back.

const START = { runs: [], tab: "charts", x: "step", smooth: 0, log: [], zoom: null, pick: "", q: "", status: "",
                sort: "-created", unfold: [], experiment: "", across: "", up: "", of: "", area: null, brush: [],
                family: "front" };
const TEXTS = ["pick", "q", "status", "sort", "experiment", "across", "up", "of"];
const RANGES = { zoom: 1, area: 2 }; // how many each is of
export const CHOICES = { tab: ["charts", "search", "windows", "samples", "events", "settings", "files"],
                         x: ["step", "tokens", "time"], family: ["front", "selected", "all"] };

/** Read a hash; what is missing or wrong in it is as at the start. */
export function read(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, "")), view = { ...START };
  const list = (name) => (found.get(name) ?? "").split(",").filter(Boolean);
  for (const name of TEXTS) view[name] = found.get(name) ?? START[name];
  for (const name of ["tab", "x", "family"]) if (CHOICES[name].includes(found.get(name))) view[name] = found.get(name);
  view.runs = [...new Set(list("runs"))];
  for (const name of ["log", "unfold", "brush"]) view[name] = list(name);
  const smooth = Number(found.get("smooth"));
  if (smooth > 0 && smooth < 1) view.smooth = smooth;
  for (const [name, n] of Object.entries(RANGES)) {
    const ends = (found.get(name) ?? "").split("~").map(Number);
    if (ends.length === 2 * n && ends.every((end, i) => Number.isFinite(end) && (i % 2 === 0 || ends[i - 1] < end))) {
      view[name] = ends;
    }
  }
  return view;
}

/** The hash of a view, without what is as at the start. */
export function write(view) {
  const parts = [];
  for (const [name, value] of Object.entries(view)) {
    if (String(value ?? "") === String(START[name] ?? "")) continue;
    const text = name in RANGES ? value.map((x) => Number(x.toPrecision(7))).join("~") : String(value);
    parts.push(`${name}=${encodeURIComponent(text).replaceAll("%2C", ",")}`);
  }
  return `#${parts.join("&")}`;
}

/** The view of this page: `now`, and `set`, which changes it and tells the listener. */
export class View {
  constructor(changed) {
    this.now = read(location.hash);
    this.changed = changed;
    addEventListener("popstate", () => this.#become(read(location.hash)));
  }

  /** Change parts of the view. A small change (small: true) makes no step of its own for "back". */
  set(changes, { small = false } = {}) {
    const next = { ...this.now, ...changes };
    if (write(next) === write(this.now)) return;
    history[small ? "replaceState" : "pushState"](null, "", write(next));
    this.#become(next);
  }

  /** The hash of this view with some changes, for a link. */
  link(changes) { return write({ ...this.now, ...changes }); }

  #become(next) {
    const before = this.now;
    this.now = next;
    this.changed(next, before);
  }
}
