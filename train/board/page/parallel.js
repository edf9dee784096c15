// Genes against objectives: an axis for each, a line for each candidate. A part of an axis can be brushed.

import { h, svg } from "./dom.js";
import { extent, linear, logarithmic, places } from "./plane.js";

const HIGH = 300, TOP = 34, BOTTOM = 14, EDGE = 60, LEAST = 92; // CSS pixels; LEAST: between two axes
const NEAR = 10, DRAG = 4, GRIP = 16, MOST = 14; // MOST: places whose names are written
const SHADES = 5; // the evolved ones by their rank in the first objective, in so many equal parts

export class Parallel {
  /** pick(id): a candidate was chosen. brush(list): of ["name~from~to"], as the view has it. */
  constructor(pick, brush) {
    Object.assign(this, { pick, brushed: brush });
    this.brushes = new Map();
    this.count = h("span");
    this.clear = h("button", { type: "button", hidden: true, onclick: () => brush([]) }, "Clear the brushes");
    this.box = h("div", { class: "parallel scroll", role: "group", "aria-label": "Genes against objectives",
                          onpointerdown: (event) => this.#down(event) });
    this.element = h("div", {}, h("p", { class: "key" },
      h("span", {}, "the stronger a line, the better; drag along an axis to brush it"), this.count, this.clear), this.box);
  }

  /** Take in the journal and the brushes, before `within` is asked. */
  take(journal, brush) {
    this.journal = journal;
    this.axes = [...journal.genes.map((gene) => this.#gene(gene)), ...journal.objectives.map((name) => ({
      name, objective: true, of: (one) => journal.value(one, name), scale: this.#measure(name),
      down: !journal.more.has(name) }))].filter(({ scale }) => scale);
    const known = new Map(this.axes.map((axis) => [axis.name, axis]));
    const right = ([name, ends]) => known.has(name) && ends.length === 2 && ends.every(Number.isFinite)
      && ends[0] < ends[1];
    this.brushes = new Map(brush.map((text) => text.split("~")).map(([name, ...ends]) => [name, ends.map(Number)])
      .filter(right));
    this.tests = [...this.brushes].map(([name, [from, to]]) => [known.get(name), from, to]);
    // What a candidate is at its axes does not change but with its results.
    this.within = (one) => this.tests.every(([axis, from, to]) => {
      const value = place(axis, one);
      return value !== null && value >= from && value <= to;
    });
  }

  show() {
    const { axes, journal } = this, n = Math.max(1, axes.length - 1);
    const wide = Math.max(this.box.clientWidth || 800, 2 * EDGE + n * LEAST), gap = (wide - 2 * EDGE) / n;
    axes.forEach((axis, i) => { axis.x = axes.length === 1 ? wide / 2 : EDGE + i * gap; });
    this.lines = [...journal.candidates.values()].map((one) => ({ one, ys: axes.map((axis) => height(axis, one)) }));
    const [best] = journal.objectives, sign = journal.more.has(best) ? -1 : 1, rank = new Map();
    const ranked = [...journal.candidates.values()].filter((one) => one.arm === "evolved" && journal.counts(one));
    ranked.sort((a, b) => sign * (journal.value(a, best) - journal.value(b, best)))
      .forEach((one, i) => rank.set(one, Math.floor((SHADES * i) / ranked.length)));
    const layers = new Map([["faded", []]]);
    for (let shade = SHADES - 1; shade >= 0; shade--) layers.set(`evolved shade${shade}`, []);
    layers.set("random", []).set("preset", []);
    let inside = 0;
    for (const { one, ys } of this.lines) {
      const within = this.within(one), bad = !journal.counts(one);
      inside += within;
      const name = !within || bad ? "faded" : one.arm === "evolved" ? `evolved shade${rank.get(one)}` : one.arm;
      layers.get(name).push(path(axes, ys));
    }
    this.line = svg("path", { class: "picked" });
    const focus = this.box.contains(document.activeElement) ? document.activeElement.dataset.axis : null;
    this.svg = svg("svg", { width: wide, height: HIGH, viewBox: `0 0 ${wide} ${HIGH}` },
      [...layers].map(([name, parts]) => svg("path", { class: `line ${name}`, d: parts.join("") })), this.line,
      axes.map((axis) => this.#axis(axis)));
    this.box.replaceChildren(this.svg);
    if (focus) this.box.querySelector(`[data-axis="${CSS.escape(focus)}"]`)?.focus();
    this.clear.hidden = this.brushes.size === 0;
    this.count.textContent = this.brushes.size ? `${inside} of ${journal.candidates.size} within the brushes` : "";
    this.select(this.picked);
  }

  /** Mark a candidate. */
  select(id) {
    this.picked = id;
    const found = this.lines?.find(({ one }) => one.id === id);
    this.line?.setAttribute("d", found ? path(this.axes, found.ys) : "");
  }

  #gene(gene) {
    const { name, kind, low, high, values } = gene, { journal } = this, of = (one) => journal.gene(one, gene);
    const found = [...journal.candidates.values()].map(of);
    const listed = Array.isArray(values) ? values : [], there = found.filter((value) => value !== null);
    const numbers = there.every(Number.isFinite) && listed.length === 0 && there.length > 0;
    if (!numbers) {
      const unlike = new Map([...listed, ...there].map((value) => [JSON.stringify(value), value]));
      return { name, of, scale: unlike.size ? places([...unlike.values()]) : null };
    }
    const ends = [low, high].filter(Number.isFinite), [from, to] = extent([...there, ...ends]);
    return { name, of, scale: kind === "log" && from > 0 && to > from ? logarithmic(from, to) : linear(from, to) };
  }

  #measure(name) {
    const { journal } = this, all = [...journal.candidates.values()];
    const counted = all.filter((one) => journal.counts(one)), known = counted.length ? counted : all;
    const values = known.map((one) => journal.value(one, name)).filter((value) => value !== null);
    return values.length ? linear(...extent(values)) : null;
  }

  #axis(axis) {
    const { scale, x, name } = axis, texts = scale.ticks(6), few = scale.values ? texts.slice(0, MOST) : texts;
    const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
    const range = this.brushes.get(name), [top, bottom] = range ? this.#ends(axis, range) : [0, 0];
    return svg("g", { class: `axis${axis.objective ? " objective" : ""}`, "data-axis": name, tabindex: 0,
      role: "slider",
      "aria-label": `${name}: + and − brush a part of it, up and down move that, 0 clears it`,
      "aria-valuenow": range ? (range[0] + range[1]) / 2 : 0,
      "aria-valuetext": range ? range.map((end) => this.#word(axis, end)).join(" to ") : "all",
      onkeydown: (event) => this.#key(event, axis) },
      svg("path", { d: `M${x} ${TOP}V${HIGH - BOTTOM}` }),
      svg("text", { x, y: 14, class: "middle name" }, svg("title", {}, name), short(name, 16)),
      axis.objective && svg("text", { x, y: 26, class: "middle" }, "better ↑"),
      few.map((value) => svg("text", { x: x + 6, y: pixel(axis, value) + 4 }, short(scale.say(value), 11))),
      range && svg("rect", { class: "brush", x: x - 8, y: top, width: 16, height: Math.max(2, bottom - top) }));
  }

  #word({ scale }, end) {
    return scale.values ? scale.say(scale.values[Math.max(0, Math.min(scale.values.length - 1, Math.round(end)))])
      : scale.say(Number(end.toPrecision(3)));
  }

  /** The pixels of a range of values (of places: of their numbers), the upper one first. */
  #ends(axis, range) {
    const share = (end) => (axis.scale.values ? (end - axis.scale.low) / (axis.scale.high - axis.scale.low)
      : axis.scale.to(end));
    return range.map((end) => level(axis, share(end))).map((y) => Math.max(TOP - 6, Math.min(HIGH - BOTTOM + 6, y)))
      .sort((a, b) => a - b);
  }

  /** The value at a height. */
  #value(axis, y) {
    const share = 1 - (y - TOP) / (HIGH - BOTTOM - TOP);
    return axis.scale.from(Math.max(-0.02, Math.min(1.02, axis.down ? 1 - share : share)));
  }

  #brush(axis, range) {
    const all = new Map(this.brushes);
    all.delete(axis.name);
    if (range) all.set(axis.name, range.map((end) => Number(end.toPrecision(6))).sort((a, b) => a - b));
    this.brushed([...all].map(([name, ends]) => [name, ...ends].join("~")));
  }

  #down(event) {
    if (event.button !== 0 || !this.svg) return;
    const at = (moved) => {
      const { left, top } = this.svg.getBoundingClientRect();
      return [moved.clientX - left, moved.clientY - top];
    };
    const [x, y] = at(event), axis = this.axes.find((each) => Math.abs(each.x - x) <= GRIP);
    const end = new AbortController();
    const shadow = axis && svg("rect", { class: "brush", x: axis.x - 8, width: 16, height: 0 });
    if (axis) {
      event.preventDefault(); // no selection of text
      this.svg.append(shadow);
    }
    addEventListener("pointermove", (moved) => {
      const [, to] = at(moved);
      shadow?.setAttribute("y", Math.min(y, to));
      shadow?.setAttribute("height", Math.abs(y - to));
    }, { signal: end.signal });
    const stop = (up) => {
      end.abort();
      shadow?.remove();
      const [, to] = at(up);
      if (up.type === "pointercancel") return;
      if (axis && Math.abs(to - y) > DRAG) this.#brush(axis, [this.#value(axis, y), this.#value(axis, to)]);
      else if (axis && this.brushes.has(axis.name)) this.#brush(axis, null);
      else this.#nearest(x, y);
    };
    for (const name of ["pointerup", "pointercancel"]) addEventListener(name, stop, { signal: end.signal });
  }

  /** Choose the candidate whose line is the nearest one. */
  #nearest(x, y) {
    const i = Math.max(0, Math.min(this.axes.length - 2, this.axes.findLastIndex((axis) => axis.x <= x)));
    if (this.axes.length < 2) return;
    const [a, b] = [this.axes[i].x, this.axes[i + 1].x];
    let found = null, least = NEAR;
    for (const { one, ys } of this.lines) {
      if (ys[i] === null || ys[i + 1] === null || !this.within(one)) continue;
      const distance = Math.abs(ys[i] + ((x - a) / (b - a)) * (ys[i + 1] - ys[i]) - y);
      if (distance < least) [found, least] = [one, distance];
    }
    if (found) this.pick(found.id);
  }

  #key(event, axis) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const shares = (this.brushes.get(axis.name) ?? []).map((end) => (axis.scale.values
      ? end / axis.scale.high : axis.scale.to(end))).sort((a, b) => a - b);
    const [low, high] = shares.length ? shares : [0, 1], span = high - low, up = axis.down ? -1 : 1;
    const narrow = [low + span / 8, high - span / 8], [from, to] = [low - span / 4, high + span / 4];
    const broad = from <= 0 && to >= 1 ? null : [Math.max(0, from), Math.min(1, to)];
    const moved = (by) => [low + by, high + by];
    const next = { "+": narrow, "=": narrow, "-": broad, 0: null, Escape: null, Delete: null,
                   ArrowUp: moved(0.05 * up), ArrowDown: moved(-0.05 * up) }[event.key];
    if (next === undefined || (/^Arrow/.test(event.key) && !shares.length)) return;
    event.preventDefault();
    this.#brush(axis, next && next.map((share) => axis.scale.from(share)));
  }
}

/** Where a candidate is on an axis: a value, or the number of its place; null where it is nowhere. */
function place({ of, scale }, one) {
  const value = of(one);
  if (scale.values) return scale.at(value) < 0 ? null : scale.at(value);
  return Number.isFinite(value) ? value : null;
}

const level = ({ down }, share) => TOP + (1 - (down ? 1 - share : share)) * (HIGH - BOTTOM - TOP);
const pixel = (axis, value) => level(axis, axis.scale.to(value));

function height(axis, one) {
  if (place(axis, one) === null) return null;
  return Math.max(TOP - 8, Math.min(HIGH - BOTTOM + 8, pixel(axis, axis.of(one))));
}

/** The line of a candidate, with a gap where it has no value. */
function path(axes, ys) {
  let down = false;
  return ys.map((y, i) => {
    const part = y === null ? "" : `${down ? "L" : "M"}${axes[i].x.toFixed(1)} ${y.toFixed(1)}`;
    down = y !== null;
    return part;
  }).join("");
}
