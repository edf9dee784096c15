// The Pareto front of two measures: all candidates by both, the front joined.

import { mark } from "./candidate.js";
import { h, svg } from "./dom.js";
import { number } from "./format.js";
import { ARMS } from "./journal.js";
import { extent, linear, shape } from "./plane.js";

const HIGH = 400, LEFT = 64, RIGHT = 16, TOP = 10, BOTTOM = 42; // CSS pixels
const NEAR = 14, DRAG = 4; // within which a point is meant, from which on a drag is one
const LAYERS = ["out", ...Object.keys(ARMS)]; // those drawn later lie above

export class Scatter {
  /** pick(id): a candidate was chosen. zoom([left, right, low, high] or null, {small}): a part was. */
  constructor(pick, zoom) {
    Object.assign(this, { pick, zoom });
    this.points = [];
    this.key = h("p", { class: "key" });
    this.said = h("p", { class: "said" });
    this.box = h("div", { class: "scatter", tabindex: 0, role: "group", "aria-roledescription": "chart",
      "aria-label": "Pareto front: + and − zoom, arrows move, 0 shows all, arrows with Shift choose a candidate",
      onkeydown: (event) => this.#key(event), onpointerdown: (event) => this.#down(event),
      onpointermove: (event) => this.#hover(event), onpointerleave: () => this.#say(null),
      ondblclick: () => this.zoom(null) });
    this.element = h("div", {}, this.key, this.box, this.said);
  }

  /** journal: what is drawn; across, up: measures; area: the part that is shown, null: all; within(candidate): whether
   *  it is within the brushes. */
  show(journal, { across, up, area, within }) {
    Object.assign(this, { journal, across, up });
    this.points = [...journal.candidates.values()]
      .map((one) => ({ one, a: journal.value(one, across), b: journal.value(one, up) }))
      .filter(({ a, b }) => a !== null && b !== null);
    const counted = this.points.filter(({ one }) => journal.counts(one)), all = counted.length ? counted : this.points;
    this.whole = [...padded(all.map(({ a }) => a)), ...padded(all.map(({ b }) => b))];
    this.area = area ?? this.whole;
    const wide = Math.max(260, this.box.clientWidth || 600), x = linear(...this.area.slice(0, 2));
    const y = linear(...this.area.slice(2));
    this.plot = { left: LEFT, top: TOP, width: wide - LEFT - RIGHT, height: HIGH - TOP - BOTTOM };
    this.px = (value) => LEFT + x.to(value) * this.plot.width;
    this.py = (value) => TOP + (1 - y.to(value)) * this.plot.height;
    Object.assign(this, { x, y });
    for (const point of this.points) [point.x, point.y] = [this.px(point.a), this.py(point.b)];
    const front = journal.front(across, up), at = new Map(this.points.map((point) => [point.one, point]));
    this.front = front.map((one) => at.get(one));
    this.ring = svg("circle", { class: "picked", r: 9, visibility: "hidden" });
    this.dragged = svg("rect", { class: "dragged", visibility: "hidden" });
    const { left, top, width, height } = this.plot;
    this.inner = svg("svg", { x: left, y: top, width, height, viewBox: `${left} ${top} ${width} ${height}` },
      this.#clouds(new Set(front), within), svg("path", { class: "front", d: this.#stairs() }),
      this.front.map((point) => this.#mark(point, within)), this.ring, this.dragged);
    this.svg = svg("svg", { width: wide, height: HIGH, viewBox: `0 0 ${wide} ${HIGH}` }, this.#axes(), this.inner);
    const focus = this.box.contains(document.activeElement) && document.activeElement !== this.box
      ? document.activeElement.dataset.id : null;
    this.box.replaceChildren(this.svg);
    if (focus) this.box.querySelector(`[data-id="${CSS.escape(focus)}"]`)?.focus();
    this.#legend(counted.length);
    this.select(this.picked);
  }

  /** Mark a candidate. */
  select(id) {
    this.picked = id;
    const point = this.points.find(({ one }) => one.id === id);
    this.ring?.setAttribute("visibility", point ? "visible" : "hidden");
    if (point) { this.ring.setAttribute("cx", point.x); this.ring.setAttribute("cy", point.y); }
    for (const node of this.box.querySelectorAll(".point")) node.setAttribute("aria-pressed", node.dataset.id === id);
    this.#say(null);
  }

  /** Everything that is not on the front, as one path a kind: thousands of elements would be slow. */
  #clouds(front, within) {
    const paths = new Map();
    for (const { one, x, y } of this.points) {
      if (front.has(one)) continue;
      const kind = this.journal.counts(one) ? one.arm : "out", name = `${kind}${within(one) ? "" : " faded"}`;
      if (!paths.has(name)) paths.set(name, []);
      paths.get(name).push(shape(kind, x, y, kind === "out" ? 3 : 3.5));
    }
    const order = (name) => LAYERS.indexOf(name.split(" ")[0]) + (name.includes("faded") ? -10 : 0);
    return [...paths].sort((a, b) => order(a[0]) - order(b[0])).map(([name, parts]) =>
      svg("path", { class: `cloud ${name}`, d: parts.join(""), "data-count": parts.length }));
  }

  #mark(point, within) {
    const { one, x, y } = point, choose = () => this.pick(one.id);
    return svg("path", { class: `point ${one.arm}${within(one) ? "" : " faded"}`, d: shape(one.arm, x, y, 5.5),
      tabindex: 0, role: "button", "data-id": one.id, "aria-label": this.#about(point), onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        choose();
      } }, svg("title", {}, this.#about(point)));
  }

  /** The line around all that the front is better than. */
  #stairs() {
    const ends = this.front.map(({ x, y }) => [x.toFixed(1), y.toFixed(1)]);
    return ends.map(([x, y], i) => (i ? `H${x}V${y}` : `M${x} ${y}`)).join("");
  }

  #axes() {
    const { left, top, width, height } = this.plot, bottom = top + height, better = (name, up) =>
      (this.journal.more.has(name) === up ? "more is better" : "less is better");
    const xs = this.x.ticks(Math.max(2, width / 90)), ys = this.y.ticks(6);
    return svg("g", { class: "axes" },
      svg("path", { class: "grid", d: xs.map((t) => `M${this.px(t)} ${top}v${height}`).join("")
        + ys.map((t) => `M${left} ${this.py(t)}h${width}`).join("") }),
      xs.map((t) => svg("text", { x: this.px(t), y: bottom + 15, class: "middle" }, number(t))),
      ys.map((t) => svg("text", { x: left - 6, y: this.py(t) + 4, class: "end" }, number(t))),
      svg("text", { x: left + width / 2, y: HIGH - 6, class: "middle name" },
        `${this.across} (${better(this.across, true)})`),
      svg("text", { class: "middle name", transform: `translate(12 ${top + height / 2}) rotate(-90)` },
        `${this.up} (${better(this.up, true)})`));
  }

  #legend(counted) {
    const used = Object.keys(ARMS).filter((arm) => this.points.some(({ one }) => one.arm === arm));
    const out = this.points.length - counted, without = this.journal.candidates.size - this.points.length;
    const sign = h("span", { class: "sign out" }, h("b", { "aria-hidden": "true" }, "✕"), ` ${out} dropped or stopped`);
    this.key.replaceChildren(...used.map((arm) => mark({ arm })), ...(out ? [sign] : []),
      h("span", {}, `${this.front.length} on the front of ${counted}`),
      ...(without ? [h("span", {}, `${without} without these values`)] : []));
  }

  #about({ one, a, b }) {
    const { state } = this.journal.stats(one);
    return [one.name, ARMS[one.arm].word, this.journal.counts(one) ? null : state, `${this.across} ${number(a)}`,
            `${this.up} ${number(b)}`].filter(Boolean).join(", ");
  }

  #say(point) {
    const shown = point ?? this.points.find(({ one }) => one.id === this.picked);
    this.said.textContent = shown ? this.#about(shown) : "";
  }

  #at(event) {
    const { left, top } = this.svg.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #nearest([x, y]) {
    let found = null, least = NEAR ** 2;
    for (const point of this.points) {
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (distance <= least) [found, least] = [point, distance];
    }
    return found;
  }

  #hover(event) {
    if (!this.svg || this.start) return;
    const point = this.#nearest(this.#at(event));
    this.box.classList.toggle("near", point !== null);
    this.#say(point);
  }

  #down(event) {
    if (event.button !== 0 || !this.svg) return;
    this.start = this.#at(event);
    const { left, top, width, height } = this.plot, end = new AbortController();
    const inside = ([x, y]) => [Math.max(left, Math.min(left + width, x)), Math.max(top, Math.min(top + height, y))];
    const rect = (to) => [this.start, to].map(inside);
    const wide = ([[a, b], [c, d]]) => Math.abs(a - c) > DRAG && Math.abs(b - d) > DRAG;
    addEventListener("pointermove", (moved) => {
      const [[a, b], [c, d]] = rect(this.#at(moved)), shown = wide([[a, b], [c, d]]);
      const set = { x: Math.min(a, c), y: Math.min(b, d), width: Math.abs(a - c), height: Math.abs(b - d),
                    visibility: shown ? "visible" : "hidden" };
      for (const [name, value] of Object.entries(set)) this.dragged.setAttribute(name, value);
    }, { signal: end.signal });
    const stop = (up) => {
      end.abort();
      this.dragged.setAttribute("visibility", "hidden");
      const part = rect(this.#at(up)), [[a, b], [c, d]] = part;
      const start = this.start;
      this.start = null;
      if (up.type === "pointercancel") return;
      if (wide(part)) {
        const share = (x) => (x - left) / width, rise = (y) => 1 - (y - top) / height;
        this.zoom([Math.min(a, c), Math.max(a, c)].map((x) => this.x.from(share(x)))
          .concat([Math.max(b, d), Math.min(b, d)].map((y) => this.y.from(rise(y)))));
      } else {
        const point = this.#nearest(start);
        if (point) this.pick(point.one.id);
      }
    };
    for (const name of ["pointerup", "pointercancel"]) addEventListener(name, stop, { signal: end.signal });
  }

  #key(event) {
    if (!this.svg || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.shiftKey && by) {
      event.preventDefault();
      return void this.#step(by[0] || by[1]);
    }
    const [left, right, low, high] = this.area, [w, t] = [right - left, high - low];
    const grown = (share) => [left - share * w, right + share * w, low - share * t, high + share * t];
    const moved = by && [left + by[0] * w / 4, right + by[0] * w / 4, low + by[1] * t / 4, high + by[1] * t / 4];
    const area = moved ?? { "+": grown(-0.25), "=": grown(-0.25), "-": grown(0.5), 0: null, Escape: null }[event.key];
    if (area === undefined) return;
    event.preventDefault();
    this.zoom(area, { small: true });
  }

  /** Choose the next candidate that is shown, from left to right. */
  #step(by) {
    const [left, right, low, high] = this.area;
    const shown = this.points.filter(({ a, b }) => a >= left && a <= right && b >= low && b <= high)
      .sort((p, q) => p.a - q.a);
    const now = shown.findIndex(({ one }) => one.id === this.picked), last = shown.length - 1;
    const next = shown[now < 0 ? (by > 0 ? 0 : last) : Math.max(0, Math.min(last, now + by))];
    this.said.setAttribute("aria-live", "polite");
    if (next) this.pick(next.one.id);
  }
}

/** The range of some values with a margin. */
function padded(values) {
  const { low, high } = linear(...extent(values)), margin = 0.05 * (high - low);
  return [low - margin, high + margin];
}
