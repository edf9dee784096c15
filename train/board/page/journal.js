// An experiment as the page knows it: its journal, fetched once, then kept up by the stream. What is foreign in it is
// passed over.

import { get } from "./api.js";
import { moment } from "./format.js";

export const ARMS = { evolved: { sign: "●", word: "evolved" }, random: { sign: "▲", word: "random" },
                      preset: { sign: "■", word: "preset" } };
const WORST = ["diverged", "failed", "stopped"]; // how a training may end that is not complete, the worst first
const QUIET = 180000; // ms without news after which nothing more is expected

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const dict = (value) => (isObject(value) ? value : {});
const list = (value) => (Array.isArray(value) ? value : []);
const whole = (value, other) => (Number.isInteger(value) ? value : other);

export class Journal {
  constructor(id) {
    this.id = id;
    this.#clear();
  }

  get path() { return `experiments/${encodeURIComponent(this.id)}`; }

  #clear() {
    this.lines = 0; // that are taken in
    this.candidates = new Map();
    this.generations = new Map(); // number → {generation, size, why, hypervolume}, the last being that before it
    this.end = {};
    this.first = {};
    this.measured = new Set();
  }

  /** The hypervolume after a generation; null where it is not known, as while that is trained. */
  hypervolume(generation) {
    const { hypervolume } = this.generations.get(generation + 1) ?? this.end;
    return Number.isFinite(hypervolume) ? hypervolume : null;
  }

  async load() {
    const { overview, measures } = await get(this.path);
    this.#clear();
    this.entry = overview;
    this.table = measures; // by name: {field, share, more}
    this.more = new Set(Object.keys(measures).filter((name) => measures[name].more)); // of which more is better
    for (let from = 0; from !== null;) {
      const { rows, next } = await get(`${this.path}/journal?from=${from}`);
      rows.forEach((row) => this.#take(row));
      this.lines += rows.length;
      from = next;
    }
  }

  /** Take a message of the stream. Returns what changed: "journal", "experiment", "reload" or null. */
  hear(event, data) {
    if (data.experiment !== this.id) return null;
    if (event === "experiment") { this.entry = data; return event; }
    if (event !== "journal") return null;
    if (data.from > this.lines || (data.from === 0 && data.rows.length === 0)) return "reload"; // it was cut
    const fresh = data.rows.slice(this.lines - data.from);
    fresh.forEach((row) => this.#take(row));
    this.lines += fresh.length;
    return fresh.length ? event : null;
  }

  #take(row) {
    const known = this.candidates.get(row.id);
    if (row.kind === "experiment") this.first = row;
    else if (row.kind === "generation" && Number.isInteger(row.generation)) this.generations.set(row.generation, row);
    else if (row.kind === "end") this.end = row;
    else if (row.kind === "birth" && isText(row.id)) this.candidates.set(row.id, candidate(row, known));
    else if (row.kind === "result" && known) {
      known.results.set(JSON.stringify([row.phase, row.replicate]), row);
      known.stats = null;
      for (const name of Object.keys(this.table)) if (measure(this.table, row, name) !== null) this.measured.add(name);
    } else if (row.kind === "reused" && known && row.of !== row.id) known.of = row.of;
    else if (row.kind === "dropped" && known) {
      known.dropped = isText(row.why) ? row.why : "dropped";
      known.stats = null;
    }
  }

  /** The names of the objectives, and then those of everything else that was measured. */
  get objectives() { return this.entry.objectives.map(({ name }) => name); }
  get #names() { return [...new Set([...this.objectives, ...Object.keys(this.table)])]; }
  get measures() { return [...new Set([...this.objectives, ...this.measured])]; }

  /** The genes: [{name, kind, low, high, values}]. */
  get genes() { return list(this.first.genes).filter((gene) => isText(gene?.name)); }

  /** How a candidate stands, and what was measured: {state, why, values: Map of {mean, error, n}}, over its replicates
   *  in the search. state: waiting, complete, reused, or why it is out: diverged, failed, stopped, dropped. */
  stats(one) {
    const source = this.candidates.get(one.of) ?? one;
    source.stats ??= stats(this.table, this.#names, source);
    return source === one || source.stats.state !== "complete" ? source.stats : { ...source.stats, state: "reused" };
  }

  /** A measure of a result, null where it has none. */
  measure(row, name) { return measure(this.table, row, name); }

  value(one, name) { return this.stats(one).values.get(name)?.mean ?? null; }

  /** Whether a candidate may be on the front: all its trainings in the search are complete, and it was not dropped. */
  counts(one) { return ["complete", "reused"].includes(this.stats(one).state); }

  /** A candidate's value of a gene: its own, or the one that all begin with; null where there is none. */
  gene(one, { name, settings }) {
    const own = list(settings).filter(isText);
    return own.length > 1 ? own.map((key) => this.#setting(one, key)) : this.#setting(one, own[0] ?? name);
  }

  #setting(one, name) {
    if (Object.hasOwn(one.settings, name)) return one.settings[name];
    if (name === "activation" && one.activation) return one.activation;
    const section = Object.values(dict(this.first.base)).find((part) => isObject(part) && Object.hasOwn(part, name));
    return section?.[name] ?? null;
  }

  /** The candidates that no other is better than in both measures, by the first of them. */
  front(across, up) {
    const sign = (name) => (this.more.has(name) ? -1 : 1), [a, b] = [sign(across), sign(up)];
    const points = [...this.candidates.values()].filter((one) => this.counts(one))
      .map((one) => ({ one, x: this.value(one, across), y: this.value(one, up) }))
      .filter(({ x, y }) => x !== null && y !== null).sort((p, q) => a * (p.x - q.x) || b * (p.y - q.y));
    const found = [];
    let lowest = Infinity, at = null; // at: the last one's place, where others may lie, too
    for (const { one, x, y } of points) {
      if (b * y < lowest || (at && at.x === x && at.y === y)) found.push(one);
      if (b * y < lowest) [lowest, at] = [b * y, { x, y }];
    }
    return found;
  }

  /** A word of list.js's STATUS. runs: entries of its runs. */
  standing(runs) { return standing(this.entry, runs); }
}

/** How an experiment stands: there is no lock on it, so that an active run, or news, tells that it goes on. */
export function standing(entry, runs) {
  if (entry.ended) return "completed";
  const fresh = Date.now() - moment(entry.updated) < QUIET;
  return fresh || runs.some((run) => run.status === "active") ? "active" : "stale";
}

function candidate(row, before) {
  const arm = Object.hasOwn(ARMS, row.arm ?? "evolved") ? row.arm ?? "evolved" : "random";
  return {
    id: row.id, name: isText(row.name) && row.name ? row.name : row.id, arm, generation: whole(row.generation, 0),
    parents: list(row.parents).filter(isText), operator: isText(row.operator) ? row.operator : null,
    difference: Object.entries(dict(row.difference)).filter(([, pair]) => Array.isArray(pair)),
    settings: dict(row.settings), start: dict(row.start), activation: isText(row.activation) ? row.activation : null,
    results: before?.results ?? new Map(), dropped: before?.dropped ?? null, stats: null, of: before?.of ?? null,
  };
}

function measure(table, row, name) {
  const { field = name, share = false } = Object.hasOwn(table, name) ? table[name] : {};
  const value = share ? row[field] / row.steps : row[field];
  return Number.isFinite(value) ? value : null;
}

function stats(table, names, { results, dropped }) {
  const all = [...results.values()].filter((row) => (row.phase ?? "search") === "search"), lists = new Map();
  const bad = WORST.map((status) => all.find((row) => row.status === status)).find(Boolean)
    ?? all.find((row) => row.status !== "complete"), lost = all.some((row) => !Number.isFinite(row.val_loss));
  const partly = all.some((row) => (row.share ?? 1) < 1); // and goes on, or is dropped
  const state = bad ? String(bad.status) : lost ? "diverged" : dropped !== null ? "dropped" : all.length && !partly ? "complete"
    : "waiting";
  for (const row of all) for (const name of names) {
    const value = measure(table, row, name);
    if (value === null) continue;
    if (!lists.has(name)) lists.set(name, []);
    lists.get(name).push(value);
  }
  return { state, why: bad ? (isText(bad.why) ? bad.why : String(bad.status)) : lost ? "no validation loss" : dropped,
           values: new Map([...lists].map(([name, values]) => [name, spread(values)])) };
}

/** Mean, standard error (null for one value), and number of some values. */
export function spread(values) {
  const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
  const error = n < 2 ? null : Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1) / n);
  return { mean, error, n };
}
