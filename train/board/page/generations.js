// Charts of an experiment by generation: best, median and spread of an objective, size and hypervolume.

import { span } from "./axis.js";
import { Chart } from "./chart.js";
import { LINES } from "./colours.js";
import { h } from "./dom.js";
import { number } from "./format.js";
import { onTheme } from "./theme.js";

const SPECS = {
  spread: { id: "spread", title: "Best, median and spread", wide: true, high: true },
  hypervolume: { id: "hypervolume", title: "Hypervolume", high: true, zero: true, plain: true },
  size: { id: "size", title: "Population", unit: "candidates", zero: true, plain: true, high: true },
};

export class Generations {
  constructor(view) {
    this.view = view;
    this.whole = [0, 1];
    const inner = (range) => range && range[1] - range[0] < this.whole[1] - this.whole[0] ? range : null;
    const others = (id) => view.now.log.filter((each) => each !== id);
    const shared = {
      axis: "generation", range: () => view.now.zoom ?? this.whole, log: (id) => view.now.log.includes(id),
      zoom: (range, how) => view.set({ zoom: inner(range) }, how),
      setLog: (id, yes) => view.set({ log: yes ? [...others(id), id] : others(id) }, { small: true }),
    };
    this.charts = Object.fromEntries(Object.entries(SPECS).map(([name, spec]) => [name, new Chart(spec, shared)]));
    this.element = h("div", { class: "charts" }, Object.values(this.charts).map((chart) => chart.element));
    this.forget = onTheme(() => Object.values(this.charts).forEach((chart) => chart.redraw()));
  }

  /** journal: what is drawn; name: an objective; picked: a candidate or undefined. */
  show(journal, name, picked) {
    const by = new Map(), better = journal.more.has(name) ? Math.max : Math.min;
    const values = (arm, g) => by.get(`${arm} ${g}`) ?? [];
    for (const one of journal.candidates.values()) {
      const value = journal.value(one, name), key = `${one.arm} ${one.generation}`;
      if (value === null || !journal.counts(one)) continue;
      if (!by.has(key)) by.set(key, []);
      by.get(key).push(value);
    }
    for (const list of by.values()) list.sort((a, b) => a - b);
    const born = new Map();
    for (const { generation } of journal.candidates.values()) born.set(generation, (born.get(generation) ?? 0) + 1);
    const xs = [...new Set([...journal.generations.keys(), ...born.keys()])].sort((a, b) => a - b);
    const best = (arm) => xs.map((g) => values(arm, g).reduce((a, b) => better(a, b), values(arm, g)[0] ?? null));
    const part = (share) => xs.map((g) => quantile(values("evolved", g), share));
    const [low, high] = [part(0.25), part(0.75)], known = (one) => journal.value(one, name) !== null;
    this.whole = span([[xs[0] ?? 0, xs.at(-1) ?? 1]]);
    const preset = [...journal.candidates.values()].find((one) => one.arm === "preset" && known(one));
    const marks = picked && known(picked)
      ? [{ kind: "picked", x: picked.generation, y: journal.value(picked, name) }] : [];
    this.charts.spread.draw([
      line("median, quartiles", LINES[5], xs, part(0.5), { min: low, max: high, wide: true, say: (l, at) =>
        `${number(l.last[at])} (${number(low[at])} to ${number(high[at])}; ${values("evolved", xs[at]).length})` }),
      line("best evolved", LINES[0], xs, best("evolved")), line("best random", LINES[4], xs, best("random")),
      ...(preset ? [line("preset", LINES[3], xs, xs.map(() => journal.value(preset, name)), { dash: [6, 4] })] : []),
    ].filter((each) => each.last.some((value) => value !== null)), { marks });
    const written = (key) => xs.map((g) => {
      const value = journal.generations.get(g)?.[key];
      return Number.isFinite(value) ? value : null;
    });
    const volume = xs.map((g) => journal.hypervolume(g));
    this.charts.hypervolume.element.hidden = volume.every((value) => value === null);
    this.charts.hypervolume.draw([line("hypervolume", LINES[2], xs, volume)]);
    const why = (l, at) => [number(l.last[at]), text(journal.generations.get(xs[at])?.why)].filter(Boolean).join(": ");
    this.charts.size.draw([line("size", LINES[1], xs, written("size").map((size, i) => size ?? born.get(xs[i]) ?? null),
      { say: why })]);
  }

  resize() { Object.values(this.charts).forEach((chart) => chart.resize()); }

  destroy() {
    this.forget();
    Object.values(this.charts).forEach((chart) => chart.destroy());
  }
}

const text = (why) => (typeof why === "string" ? why : "");
const line = (label, colour, x, last, more) =>
  ({ label, colour, x, y: last, last, min: last, max: last, missing: x.map(() => 0), wide: false, ...more });

/** A quantile of sorted values, between two of them where it falls there; null where there are none. */
function quantile(values, share) {
  if (values.length === 0) return null;
  const at = share * (values.length - 1), i = Math.floor(at), next = values[Math.min(i + 1, values.length - 1)];
  return values[i] + (at - i) * (next - values[i]);
}
