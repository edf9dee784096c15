// A run as the page knows it: fetched once, then kept up by the rows of the stream.

import { get } from "./api.js";
import { Column, numbers } from "./column.js";
import { moment } from "./format.js";

const REPLACED = ["candidates", "windows"]; // of which any row may change, or go
const FILES = ["events", "samples", ...REPLACED, "checkpoints"];

export class Run {
  constructor(id) {
    this.id = id;
    this.columns = new Map(); // of all steps, by key
    this.near = null; // {from, to, columns}: the true points of the zoomed range
    this.range = null; // that is to be shown, from the first step to the last; null: all
    this.step = 0; // of the last row that is in `columns`
    this.late = new Set(); // lists that gather the rows which come while series are fetched
  }

  get path() { return `runs/${encodeURIComponent(this.id)}`; }
  get keys() { return this.detail.keys; }
  get config() { return this.detail.config ?? {}; }
  get summary() { return this.detail.summary; }
  get entry() { return this.detail.overview; }

  /** Fetch everything but series: the overview first, which says up to which step the series are to be fetched. */
  async load() {
    this.detail = await get(this.path);
    this.near = null;
    this.step = this.entry.step ?? 0;
    await this.loadFiles(FILES);
  }

  /** Fetch what changes without rows of its own: settings, the summary of a search, checkpoints. */
  async refresh() {
    const { segments, keys, overview, ...rest } = await get(this.path); // the stream keeps these up
    Object.assign(this.detail, rest);
    await this.loadFiles(["checkpoints"]);
  }

  async loadFiles(names) {
    const found = await Promise.all(names.map((name) => get(`${this.path}/${name}`)));
    names.forEach((name, i) => { this[name] = found[i].rows; });
  }

  /** Fetch the series of these keys in at most px buckets. */
  async loadSeries(keys, px) {
    const found = await this.#series(keys, 0, this.step, px);
    for (const [key, column] of found) this.columns.set(key, column);
  }

  /** Show a range of steps, or all (null): true points that do not cover it are forgotten. */
  aim(range) {
    this.range = range && { from: Math.max(0, Math.floor(range[0])), to: Math.ceil(range[1]) };
    if (!range || this.near?.from > this.range.from || this.near?.to < this.range.to) this.near = null;
  }

  /** Fetch the true points of a range of steps. */
  async zoom(range, keys, px) {
    this.aim(range);
    if (!range) return;
    const wanted = this.range, columns = await this.#series(keys, wanted.from, wanted.to, px);
    if (wanted === this.range) this.near = { ...wanted, columns }; // else another was asked for meanwhile
  }

  async #series(keys, from, to, px) {
    const found = new Map(), late = [], last = Math.min(to, this.step);
    if (keys.length === 0 || last < from) return found;
    this.late.add(late);
    try {
      const query = new URLSearchParams({ keys: keys.join(","), from, to: last, px });
      const { series } = await get(`${this.path}/series?${query}`);
      for (const [key, raw] of Object.entries(series)) found.set(key, new Column(raw));
    } finally {
      this.late.delete(late);
    }
    for (const [step, key, value] of late) if (step <= to || to === last) found.get(key)?.push(step, value);
    return found;
  }

  /** A column as it is to be drawn; an empty one where nothing is known. */
  column(key) { return this.near?.columns.get(key) ?? this.columns.get(key) ?? new Column(); }

  /** Whether a key, or one that begins with it where it ends with a dot, has occurred. */
  has(key) { return key.endsWith(".") ? this.under(key).length > 0 : this.keys.includes(key); }
  under(prefix) { return this.keys.filter((key) => key.startsWith(prefix)); }

  /** Take a message of the stream. Returns what changed: "metrics", another kind, "refresh", "reload" or null. */
  hear(event, data) {
    if (event === "run") { this.detail.overview = data; return "run"; }
    if (event === "cut") return this.#cut(data.step);
    if (event === "metrics") return this.#rows(data.rows);
    const list = this[event];
    if (!list) return null;
    if (REPLACED.includes(event)) {
      list.splice(data.from, list.length, ...data.rows);
      return event;
    }
    const fresh = data.rows.slice(Math.max(0, list.length - data.from));
    list.push(...fresh);
    const telling = /^(checkpoint|search_complete|switch|run_start|resumed|run_complete)$/;
    if (event === "events" && fresh.some((row) => telling.test(row.kind))) return "refresh";
    return fresh.length ? event : null;
  }

  #rows(rows) {
    const fresh = rows.filter((row) => row.step > this.step);
    for (const row of fresh) {
      for (const [key, value] of Object.entries(numbers(row))) this.#push(key, row.step, value);
      for (const [key, segment] of Object.entries(this.detail.segments)) {
        const value = row[key] ?? null;
        if (segment.length === 0 ? value !== null : segment.at(-1)[1] !== value) segment.push([row.step, value]);
      }
      this.step = row.step;
    }
    return fresh.length ? "metrics" : null;
  }

  #push(key, step, value) {
    const finite = Number.isFinite(value) ? value : null;
    if (!this.columns.has(key) && !this.keys.includes(key)) {
      if (finite === null) return;
      this.keys.push(key);
    }
    for (const list of this.late) list.push([step, key, finite]);
    if (!this.columns.has(key)) this.columns.set(key, new Column());
    this.columns.get(key).push(step, finite);
    if (this.near && step >= this.near.from && step <= this.near.to) {
      if (!this.near.columns.has(key)) this.near.columns.set(key, new Column());
      this.near.columns.get(key).push(step, finite);
    }
  }

  #cut(step) {
    for (const column of [...this.columns.values(), ...(this.near?.columns.values() ?? [])]) column.cut(step);
    for (const segment of Object.values(this.detail.segments)) {
      while (segment.length && segment.at(-1)[0] > step) segment.pop();
    }
    for (const kind of ["events", "samples"]) this[kind] = this[kind].filter((row) => row.step <= step);
    this.step = Math.min(this.step, step);
    return "reload"; // a bucket that reaches past the step holds rows that are gone
  }

  /** The spans of a segment: [{from, to, value}], to: the last step. */
  spans(name) {
    const list = this.detail.segments[name] ?? [];
    return list.map(([from, value], i) => ({ from, to: list[i + 1]?.[0] - 1 || Math.max(from, this.step), value }));
  }

  /** The spans of one activation each. After a search it is the winner's, without one the run's own. */
  activations() {
    const own = this.config.model?.activation ?? this.entry.activation ?? "mixed";
    const later = this.entry.symbio_winner ?? this.summary?.winner_activation ?? own, found = [];
    for (const span of this.spans("symbio_candidate_activation")) {
      const value = span.value ?? later;
      if (found.at(-1)?.value === value) found.at(-1).to = span.to;
      else found.push({ ...span, value });
    }
    return found.length ? found : [{ from: 0, to: this.step, value: own }];
  }

  /** The trainings of a search in order, each candidate's replicates together: [{from, to, value: its id or null}]. */
  trainings() { return this.spans("symbio_candidate_id"); }

  /** Where a step lies on the x axis: at its number, its tokens, or its milliseconds. */
  place(axis) {
    if (axis === "time") {
      const known = this.columns.get("elapsed_ms");
      if (known?.length) return between(known, this.near?.columns.get("elapsed_ms"));
      const { created, updated } = this.entry; // all that is known of some
      return line((moment(updated) - moment(created)) / this.step || 1);
    }
    if (axis === "tokens") {
      const { batch_size: batch = 1, accum = 1 } = this.config.train ?? {}, size = this.config.model?.block_size ?? 1;
      const sizes = this.columns.get("adaptive_batch_size");
      return sizes?.length ? summed(sizes, batch, accum * size) : line(batch * accum * size);
    }
    return line(1);
  }
}

const line = (slope) => ({ to: (step) => step * slope, from: (x) => x / slope });

/** A place by straight lines between known points; steps and xs rise. */
function through(steps, xs) {
  const look = (a, b, value) => {
    const n = a.length;
    if (n === 0) return value;
    if (n === 1) return value * (a[0] ? b[0] / a[0] : 1);
    let low = 1, high = n - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (a[middle] < value) low = middle + 1;
      else high = middle;
    }
    const width = a[low] - a[low - 1];
    return b[low - 1] + (width ? ((value - a[low - 1]) / width) * (b[low] - b[low - 1]) : 0);
  };
  return { to: (step) => look(steps, xs, step), from: (x) => look(xs, steps, x) };
}

function between(...columns) {
  const points = new Map();
  for (const column of columns) column?.step.forEach((step, i) => {
    if (column.first[i] !== null) points.set(step, column.first[i]);
  });
  const steps = [...points.keys()].sort((a, b) => a - b);
  let latest = 0;
  return through(steps, steps.map((step) => (latest = Math.max(latest, points.get(step)))));
}

/** A place by the tokens up to each step. sizes: a column of sequences in a step; usual: where it says nothing. */
function summed(sizes, usual, each) {
  const xs = [];
  let sum = 0, step = 0, mean = usual; // of the bucket before
  sizes.step.forEach((from, i) => {
    const first = sizes.first[i] ?? usual;
    sum += ((from - step - 1) * (i ? mean : first) + first) * each;
    [step, mean] = [from, (first + (sizes.last[i] ?? first)) / 2];
    xs.push(sum);
  });
  return through(sizes.step, xs);
}
