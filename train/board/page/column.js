// A column of a run in buckets of neighbouring rows: first, min, max and last value, and how many are missing.

const PARTS = ["step", "first", "min", "max", "last", "missing"];
const MOST = 4000; // buckets; beyond them neighbours are joined

export class Column {
  /** raw: one entry of "series" in the board's answer; nothing: empty. */
  constructor(raw = {}) {
    for (const part of PARTS) this[part] = raw[part] ?? [];
  }

  get length() { return this.step.length; }

  /** Add a row of its own; value: null where it is missing or not finite. */
  push(step, value) {
    this.add(step, value, value === null ? 1 : 0);
    if (this.length > MOST) this.#halve();
  }

  add(step, value, missing) {
    this.step.push(step);
    for (const part of ["first", "min", "max", "last"]) this[part].push(value);
    this.missing.push(missing);
  }

  /** Add bucket i of another column. */
  copy(other, i) { for (const part of PARTS) this[part].push(other[part][i]); }

  /** Drop what came after a step. */
  cut(step) {
    const keep = this.step.findIndex((s) => s > step);
    if (keep >= 0) for (const part of PARTS) this[part].length = keep;
  }

  /** The buckets in which something is known, value by value through `change`, as a column of its own. */
  map(change) {
    const result = new Column();
    for (let i = 0; i < this.length; i++) {
      if (this.last[i] === null && this.min[i] === null) continue;
      const [first, a, b, last] = ["first", "min", "max", "last"].map((part) => change(this[part][i], i));
      const finite = [first, a, b, last].every(Number.isFinite); // the exponential of 1,000 is not
      result.step.push(this.step[i]);
      result.first.push(finite ? first : null);
      result.last.push(finite ? last : null);
      result.min.push(finite ? Math.min(a, b) : null);
      result.max.push(finite ? Math.max(a, b) : null);
      result.missing.push(this.missing[i]);
    }
    return result;
  }

  /** The last finite value up to a step, null where there is none. */
  at(step) {
    let low = 0, high = this.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.step[middle] <= step) low = middle + 1;
      else high = middle;
    }
    for (let i = low - 1; i >= 0; i--) if (this.last[i] !== null) return this.last[i];
    return null;
  }

  /** Join neighbours: no spike and no missing value gets lost. */
  #halve() {
    const old = { ...this };
    for (const part of PARTS) this[part] = [];
    for (let i = 0; i < old.step.length; i += 2) {
      const j = Math.min(i + 1, old.step.length - 1);
      this.step.push(old.step[i]);
      this.first.push(old.first[i] ?? old.first[j]);
      this.last.push(old.last[j] ?? old.last[i]);
      this.min.push(either(Math.min, old.min[i], old.min[j]));
      this.max.push(either(Math.max, old.max[i], old.max[j]));
      this.missing.push(old.missing[i] + (i === j ? 0 : old.missing[j]));
    }
  }
}

const either = (choose, a, b) => (a === null ? b : b === null ? a : choose(a, b));

/** A row's numbers by key, nested ones with a dot; null where known to be missing. Text is left out. */
export function numbers(row, prefix = "", found = {}) {
  for (const [name, value] of Object.entries(row)) {
    if (value === null || typeof value === "number") found[prefix + name] = value;
    else if (typeof value === "boolean") found[prefix + name] = Number(value);
    else if (typeof value === "object" && !Array.isArray(value)) numbers(value, `${prefix}${name}.`, found);
  }
  return found;
}
