// A grid of charts that share x axis, zoom, cursor and smoothing.

import { Chart } from "./chart.js";
import { content, keysOf } from "./charts.js";
import { h, soon } from "./dom.js";
import { AXES, span, written } from "./axis.js";
import { marksOf } from "./marks.js";
import { onTheme } from "./theme.js";
import { CHOICES } from "./view.js";

const MOST_PX = 2000;

export class Grid {
  /** specs: of charts.js. runs: [{run, colour, name}]. view: the View. trouble(error): told what went wrong. */
  constructor(specs, runs, view, trouble) {
    Object.assign(this, { specs, runs, view, trouble });
    this.charts = new Map();
    this.places = new Map();
    this.cells = h("div", { class: "charts" });
    this.bar = this.#toolbar();
    this.empty = h("p", { class: "empty", hidden: true }, "Nothing to draw yet: charts appear with the first steps.");
    this.element = h("section", { "aria-label": "Charts" }, this.bar, this.cells, this.empty);
    this.shared = {
      range: () => this.range(), zoom: (range, how) => this.zoom(range, how), log: (id) => this.log(id),
      setLog: (id, yes) => this.setLog(id, yes), axis: view.now.x,
    };
    this.draw = soon(() => this.drawNow(), 150);
    this.fetchNear = later(() => this.#near(), 150);
    this.resized = new ResizeObserver(() => this.charts.forEach((chart) => chart.resize()));
    this.resized.observe(this.cells);
    this.seen = new Set(); // elements of the charts that are in view: others are drawn when they come into it
    this.looking = new IntersectionObserver((changes) => {
      for (const { target, isIntersecting } of changes) this.seen[isIntersecting ? "add" : "delete"](target);
      if ([...this.late].some((element) => this.seen.has(element))) this.drawNow();
    }, { rootMargin: "200px" });
    this.late = new Set();
    this.forget = onTheme(() => this.charts.forEach((chart) => chart.redraw()));
  }

  /** Fetch what is shown, and show it. */
  async load() {
    this.px = Math.min(MOST_PX, Math.max(300, this.#width()));
    await Promise.all(this.runs.map(({ run }) => run.loadSeries(keysOf(this.specs, run), this.px)));
    this.drawNow();
    if (this.view.now.zoom) await this.#near();
  }

  destroy() {
    this.destroyed = true; // what is under way must draw nothing any more
    this.forget();
    this.resized.disconnect();
    this.looking.disconnect();
    this.charts.forEach((chart) => chart.destroy());
    this.charts.clear();
  }

  hear(what) { if (what !== "samples") this.draw(); }

  /** Follow a change of the view. */
  update(now, before) {
    this.shared.axis = now.x;
    this.#controls(now);
    if (String(now.zoom) !== String(before.zoom)) {
      for (const { run } of this.runs) run.aim(this.#steps(run));
      this.fetchNear();
    }
    this.drawNow();
  }

  /** The range of x that is shown. */
  range() { return this.view.now.zoom ?? this.whole; }

  zoom(range, how) {
    const [low, high] = this.whole;
    let next = null;
    if (range) {
      const width = Math.min(range[1] - range[0], high - low), from = Math.max(low, Math.min(range[0], high - width));
      if (width < high - low && width > 0) next = [from, from + width];
    }
    this.view.set({ zoom: next }, how);
  }

  log(id) {
    const at = this.specs.find((spec) => spec.id === id)?.log ?? false;
    return this.view.now.log.includes(id) !== at;
  }

  setLog(id, yes) {
    const others = this.view.now.log.filter((each) => each !== id);
    this.view.set({ log: yes === this.log(id) ? this.view.now.log
      : this.view.now.log.includes(id) ? others : [...others, id] }, { small: true });
  }

  drawNow() {
    const { x, smooth, zoom } = this.view.now;
    if (this.destroyed || !this.runs.every(({ run }) => run.detail)) return;
    for (const { run } of this.runs) this.places.set(run, run.place(x));
    const place = (run) => this.places.get(run);
    this.whole = span(this.runs.map(({ run }) => [place(run).to(run.step > 1 ? 1 : 0), place(run).to(run.step)]));
    let before = null;
    for (const spec of this.specs) {
      let chart = this.charts.get(spec.id);
      if (chart && !this.seen.has(chart.element)) {
        this.late.add(chart.element);
        before = chart.element;
        continue;
      }
      this.late.delete(chart?.element);
      const found = content(spec, this.runs, { smooth, place }) ?? (zoom && chart ? { lines: [], extra: {} } : null);
      if (!found) {
        chart?.destroy();
        this.charts.delete(spec.id);
        continue;
      }
      if (!chart) {
        chart = new Chart(spec, this.shared);
        this.charts.set(spec.id, chart);
        this.looking.observe(chart.element);
        if (before) before.after(chart.element);
        else this.cells.prepend(chart.element);
      }
      if (spec.marks && this.runs.length === 1) found.extra.marks = marksOf(this.runs[0].run, place(this.runs[0].run));
      chart.draw(found.lines, found.extra);
      before = chart.element;
    }
    this.empty.hidden = this.charts.size > 0;
    this.where.textContent = written(this.range(), AXES[x].say, AXES[x].exact).join(" to ");
  }

  /** Ask for the true points of the zoomed range. */
  async #near() {
    this.px ??= 800;
    try {
      await Promise.all(this.runs.map(({ run }) => run.zoom(this.#steps(run), keysOf(this.specs, run), this.px)));
    } catch (error) {
      this.trouble(error);
    }
    this.drawNow();
  }

  /** The zoomed range as steps of a run, null where all is shown. */
  #steps(run) {
    const { zoom, x } = this.view.now;
    return zoom && zoom.map(run.place(x).from);
  }

  #width() {
    const width = this.cells.clientWidth || 800;
    return width > 900 ? Math.ceil(width / 2) : width;
  }

  #toolbar() {
    const { view } = this, button = (text, label, work) =>
      h("button", { type: "button", "aria-label": label, title: label, onclick: work }, text);
    this.axes = new Map(CHOICES.x.map((axis) =>
      [axis, button(AXES[axis].word, `By ${AXES[axis].word}`, () => this.#axis(axis))]));
    this.slider = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, id: "smooth", oninput: () =>
      view.set({ smooth: Number(this.slider.value) }, { small: true }) });
    this.smooth = h("output", { for: "smooth" });
    this.where = h("output", { class: "where", "aria-label": "Shown range" });
    const by = (part) => () => {
      const [from, to] = this.range(), more = (to - from) * part;
      this.zoom([from + more, to - more]);
    };
    const bar = h("div", { class: "bar", role: "toolbar", "aria-label": "Charts" },
      h("span", { class: "group", role: "group", "aria-label": "X axis" }, [...this.axes.values()]),
      h("label", { class: "group", for: "smooth" }, "Smoothing ", this.slider, this.smooth),
      h("span", { class: "group", role: "group", "aria-label": "Zoom" }, button("+", "Zoom in", by(0.25)),
        button("−", "Zoom out", by(-0.5)), button("All", "Show all", () => this.zoom(null)), this.where));
    this.#controls(view.now);
    return bar;
  }

  #controls({ x, smooth }) {
    for (const [axis, element] of this.axes) element.setAttribute("aria-pressed", axis === x);
    this.slider.value = smooth;
    this.smooth.textContent = smooth.toFixed(2);
  }

  /** Change the x axis; the zoomed range stays where it is in the first run. */
  #axis(x) {
    const { zoom } = this.view.now, [{ run }] = this.runs, [old, next] = [run.place(this.view.now.x), run.place(x)];
    this.view.set({ x, zoom: zoom && zoom.map((value) => next.to(old.from(value))) });
  }
}

/** Call `work` once, `ms` after the last of any number of calls. */
function later(work, ms) {
  let timer = null;
  return () => { clearTimeout(timer); timer = setTimeout(work, ms); };
}
