// One chart: a title with what the cursor is at, and uPlot below it. Zoom and cursor are shared through `shared`.

import { AXES, written } from "./axis.js";
import { h, swatch } from "./dom.js";
import { number, short } from "./format.js";
import * as paint from "./paint.js";
import { css } from "./theme.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

const LOW = 180, HIGH = 280; // CSS pixels
const LARGEST = 1e300; // where an axis ends, so that its length is finite

/**
 * shared: {axis, range() the x range shown, zoom(range or null, {small}), log(id) whether the y axis is logarithmic,
 * setLog(id, yes)}. Lines: {label, colour, dash, x, y, min, max, last, missing, gaps, smoothed, wide, hidden, aside},
 * where y is drawn and the others are the buckets; `extra` of draw(): {marks, thresholds, paint, rows, height}.
 */
export class Chart {
  constructor(spec, shared) {
    this.spec = spec;
    this.shared = shared;
    this.legend = h("ul", { class: "legend" });
    this.logButton = h("button", { type: "button", class: "log", "aria-label": `Logarithmic axis of ${spec.title}`,
                                   onclick: () => shared.setLog(spec.id, !shared.log(spec.id)) }, "log");
    this.plot = h("div", { class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart",
                           onkeydown: (event) => this.#key(event),
                           "aria-label": `${spec.title}: + and − zoom, arrows move, 0 shows all, arrows with Shift ` +
                                         "read the values" });
    const places = spec.wide ? " wide" : spec.full ? " full" : "";
    this.element = h("figure", { class: `chart${places}`, id: `chart-${spec.id}` },
      h("figcaption", {}, h("h3", {}, spec.title, spec.unit && h("small", {}, ` ${spec.unit}`)),
        !spec.plain && this.logButton),
      this.legend, this.plot);
    this.shape = null;
  }

  /** Draw these lines; where their number or kind is another than before, from nothing. */
  draw(lines, extra = {}) {
    this.lines = lines;
    this.extra = extra;
    this.log = !this.spec.plain && this.shared.log(this.spec.id);
    this.logButton.setAttribute("aria-pressed", this.log);
    const same = lines.every((line) => line.x === lines[0].x || equal(line.x, lines[0].x));
    const data = lines.length === 0 ? [[], []] : same ? [lines[0].x, ...lines.map((line) => line.y)]
      : uPlot.join(lines.map((line) => [line.x, line.y]));
    const shape = JSON.stringify([this.log, this.shared.axis, extra.rows, extra.height,
                                  lines.map((l) => [l.label, l.colour, l.dash, l.hidden])]);
    for (const line of lines) line.index = null;
    if (shape === this.shape) this.u.setData(data);
    else {
      this.shape = shape;
      this.u?.destroy();
      this.#legend(lines, extra.marks ?? []);
      this.u = new uPlot(this.#options(lines), data, this.plot);
    }
    this.#values();
  }

  /** Fit the width that there is. */
  resize() {
    const width = this.plot.clientWidth;
    if (this.u && width && width !== this.u.width) this.u.setSize({ width, height: this.u.height });
  }

  redraw() { this.u?.redraw(); }
  destroy() { this.u?.destroy(); this.element.remove(); }

  #options(lines) {
    const { shared, spec } = this, stroke = () => css("--muted"), rows = this.extra.rows;
    const grid = { stroke: () => css("--grid"), width: 1 }, font = "11px system-ui, sans-serif";
    const axis = { stroke, grid, ticks: { ...grid, size: 4 }, font };
    return {
      width: this.plot.clientWidth || 400, height: this.extra.height ?? (spec.high ? HIGH : LOW),
      padding: [6, 18, 0, 0],
      legend: { show: false },
      cursor: {
        y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => shared.zoom(null) },
        sync: { key: "helios", scales: ["x", null], filters: { pub: (type) => type === "mousemove" } },
      },
      scales: {
        x: { time: false, range: () => shared.range() },
        y: { distr: this.log ? 3 : 1, dir: rows ? -1 : 1, range: () => this.#reach() },
      },
      axes: [
        { ...axis, size: 24, gap: 2, space: 70, incrs: AXES[shared.axis].steps,
          values: (u, values) => written(values, AXES[shared.axis].say, AXES[shared.axis].exact) },
        rows ? { ...axis, size: 92, gap: 4, splits: () => rows.map((_, i) => i + 0.5), grid: { show: false },
                 values: () => rows.map((name) => (name.length > 15 ? `${name.slice(0, 14)}…` : name)) }
             : { ...axis, size: 54, gap: 3, values: (u, values) => written(values, axisNumber, number),
                 ...(this.log && { splits: (u, i, low, high) => magnitudes(low, high), filter: (u, all) => all }) },
      ],
      series: [{}, ...lines.map((line) => ({
        stroke: line.hidden ? "transparent" : line.colour, width: line.smoothed ? 2 : 1.5, dash: line.dash,
        paths: path, points: line.hidden ? { show: false } : { size: 5, filter: alone },
      }))],
      hooks: {
        drawAxes: [(u) => {
          this.extra.paint?.(u, this.lines);
          if (!rows && !this.extra.paint) paint.bands(u, this.lines);
        }],
        draw: [(u) => {
          paint.thresholds(u, this.extra.thresholds ?? []);
          paint.marks(u, this.extra.marks ?? []);
          paint.missing(u, this.lines);
        }],
        setLegend: [() => this.#values()],
        setSelect: [(u) => {
          const { left, width } = u.select;
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          if (width > 3) shared.zoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
        }],
      },
    };
  }

  /** The y range of what is to be seen: bands and thresholds, too. */
  #reach() {
    if (this.extra.rows) return [0, this.extra.rows.length];
    const [from, to] = this.shared.range();
    let low = Infinity, high = -Infinity;
    const take = (value) => {
      if (value === null || value === undefined || (this.log && value <= 0)) return;
      const shown = Math.max(this.log ? 1 / LARGEST : -LARGEST, Math.min(LARGEST, value));
      if (shown < low) low = shown;
      if (shown > high) high = shown;
    };
    for (const line of this.lines) {
      for (let i = 0; i < line.x.length && !line.aside; i++) {
        if (line.x[i] < from || line.x[i] > to) continue;
        take(line.min[i]);
        take(line.max[i]);
      }
    }
    (this.extra.thresholds ?? []).forEach(take);
    if (this.spec.zero && !this.log) take(0);
    if (low > high) return this.log ? [1, 10] : [0, 1];
    if (this.log) return [low / 1.15, high * 1.15];
    const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    return [this.spec.zero && low >= 0 ? 0 : low - margin, high + margin];
  }

  #legend(lines, marks) {
    const signs = Object.keys(paint.MARKS).filter((kind) => marks.some((mark) => mark.kind === kind));
    this.cells = lines.map(() => h("b"));
    this.where = h("span");
    this.legend.replaceChildren(
      ...lines.map((line, i) => h("li", { title: line.title ?? line.label }, line.colour && swatch(line.colour),
        line.label, " ", this.cells[i])),
      ...signs.map((kind) => h("li", { class: "sign" }, `${paint.MARKS[kind].sign} ${paint.MARKS[kind].word}`)),
      h("li", { class: "where" }, this.where));
  }

  /** Write the values at the cursor, or the last ones. */
  #values() {
    const idxs = this.u?.cursor.idxs;
    if (!this.u) return;
    const x = this.u.cursor.left >= 0 && idxs?.[0] != null ? this.u.data[0][idxs[0]] : null;
    this.where.textContent = x === null ? "" : `${this.shared.axis} ${AXES[this.shared.axis].say(x)}`;
    this.lines.forEach((line, i) => {
      line.index ??= new Map(line.x.map((value, at) => [value, at]));
      const at = x === null ? lastKnown(line) : line.index.get(this.u.data[0][idxs[i + 1]]);
      this.cells[i].textContent = at === undefined ? "" : line.say ? line.say(line, at)
        : x === null ? number(line.last[at]) : say(line, at);
    });
  }

  /** Move the cursor by one point, and have its values read out. */
  #read(by) {
    const { u } = this, [xs] = u.data, [from, to] = this.shared.range();
    const first = xs.findIndex((x) => x >= from), last = xs.findLastIndex((x) => x <= to);
    if (first < 0 || last < first) return;
    const at = u.cursor.left >= 0 ? u.cursor.idx : by > 0 ? first - 1 : last + 1;
    const next = Math.max(first, Math.min(last, at + by));
    this.legend.setAttribute("aria-live", "polite");
    u.setCursor({ left: u.valToPos(xs[next], "x"), top: 1 }, true, true);
  }

  #key(event) {
    if (event.shiftKey && /^Arrow(Left|Right)$/.test(event.key)) {
      event.preventDefault();
      return void this.#read(event.key === "ArrowRight" ? 1 : -1);
    }
    const [from, to] = this.shared.range(), span = to - from, middle = (from + to) / 2;
    const closer = [middle - span / 4, middle + span / 4], left = [from - span / 4, to - span / 4];
    const range = { "+": closer, "=": closer, "-": [middle - span, middle + span], ArrowLeft: left,
                    ArrowRight: [from + span / 4, to + span / 4], 0: null, Escape: null }[event.key];
    if (range === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.shared.zoom(range, { small: true });
  }
}

const equal = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);
const axisNumber = (value) => (Math.abs(value) >= 1e5 ? short(value) : number(value));

const MOST_MAGNITUDES = 8;

/** Numbers to write on a logarithmic axis: powers of ten, with more between them where there are few. */
function magnitudes(low, high) {
  const decades = Math.log10(high / low);
  if (decades > MOST_MAGNITUDES) {
    const by = Math.ceil(decades / MOST_MAGNITUDES), first = Math.ceil(Math.log10(low) / by);
    return Array.from({ length: Math.floor(Math.log10(high) / by) - first + 1 }, (_, i) => 10 ** (by * (first + i)));
  }
  for (const between of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      found.push(...between.map((digit) => digit * 10 ** power).filter((value) => value >= low && value <= high));
    }
    if (found.length >= 4) return found;
  }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough), first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

/** uPlot's lines, but that undefined (no value at this x of another line) is passed over and null parts the line. */
function path(u, series, first, last) {
  const [xs] = u.data, { [series]: ys } = u.data, stroke = new Path2D();
  let down = false;
  const known = (i, by) => { while (i >= 0 && i < xs.length && ys[i] === undefined) i += by; return i; };
  for (let i = Math.max(0, known(first - 1, -1)); i <= Math.min(xs.length - 1, known(last + 1, 1)); i++) {
    if (ys[i] === undefined) continue;
    if (ys[i] === null) { down = false; continue; }
    stroke[down ? "lineTo" : "moveTo"](u.valToPos(xs[i], "x", true), u.valToPos(ys[i], "y", true));
    down = true;
  }
  return { stroke, fill: null, clip: null, band: null, gaps: null, flags: 1 };
}

/** Where points are too many to be drawn, those that no line leads to. */
function alone(u, series, all) {
  if (all) return null;
  const known = [], { [series]: ys } = u.data;
  ys.forEach((value, i) => value !== undefined && known.push(i));
  return known.filter((i, k) => ys[i] !== null && (ys[known[k - 1]] ?? null) === null
    && (ys[known[k + 1]] ?? null) === null);
}

function lastKnown(line) {
  for (let i = line.x.length - 1; i >= 0; i--) if (line.last[i] !== null) return i;
  return undefined;
}

/** The value of a bucket, and from where to where it goes. */
function say(line, at) {
  const { [at]: min } = line.min, { [at]: max } = line.max;
  if (min === null || min === undefined) return "not finite";
  const [low, high, last] = [min, max, line.last[at]].map(number);
  return low === high ? last : `${last} (${low} to ${high})`;
}
