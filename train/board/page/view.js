// What is shown, kept in the address bar's hash: a link shows the same, and "back" goes back.

const START = { runs: [], tab: "charts", x: "step", smooth: 0, log: [], zoom: null, pick: "", q: "", status: "",
                sort: "-created" };
const CHOICES = { tab: ["charts", "search", "samples", "events", "settings", "files"], x: ["step", "tokens", "time"] };

/** Read a hash; what is missing or wrong in it is as at the start. */
export function read(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, "")), view = { ...START };
  const list = (name) => (found.get(name) ?? "").split(",").filter(Boolean);
  for (const name of ["pick", "q", "status", "sort"]) view[name] = found.get(name) ?? START[name];
  for (const name of ["tab", "x"]) if (CHOICES[name].includes(found.get(name))) view[name] = found.get(name);
  view.runs = [...new Set(list("runs"))];
  view.log = list("log");
  const smooth = Number(found.get("smooth"));
  if (smooth > 0 && smooth < 1) view.smooth = smooth;
  const zoom = (found.get("zoom") ?? "").split("~").map(Number);
  if (zoom.length === 2 && zoom.every(Number.isFinite) && zoom[0] < zoom[1]) view.zoom = zoom;
  return view;
}

/** The hash of a view, without what is as at the start. */
export function write(view) {
  const parts = [];
  for (const [name, value] of Object.entries(view)) {
    if (String(value ?? "") === String(START[name] ?? "")) continue;
    const text = name === "zoom" ? value.map((x) => Number(x.toPrecision(7))).join("~") : String(value);
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
