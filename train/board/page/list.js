// The list of runs.

import { get } from "./api.js";
import { colourOf, shortName } from "./colours.js";
import { h, soon, swatch } from "./dom.js";
import { ago, count, loss, moment, short, time } from "./format.js";
import { Table } from "./table.js";

export const STATUS = { active: "●", completed: "✓", interrupted: "‖", stale: "○", failed: "✕", historic: "◇" };
const FIRST = 300; // rows that are shown before all are asked for

/** The status in colour, sign and word. */
export function status(entry) {
  const word = entry.status in STATUS ? entry.status : "stale";
  return h("span", { class: `status ${word}`, title: entry.reason ?? word },
    h("span", { "aria-hidden": "true" }, STATUS[word]), h("span", { class: "word" }, ` ${entry.status}`));
}

/** A bar of the steps done. */
export function progress(entry) {
  const bar = h("span", { class: "progress", "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.width = `${100 * Math.min(1, entry.steps ? (entry.step ?? 0) / entry.steps : 0)}%`;
  return bar;
}

export class List {
  constructor(view, picked) {
    this.view = view;
    this.picked = picked; // run ids, kept while other pages are open
    this.entries = this.news = new Map();
    this.all = false;
    this.search = h("input", { type: "search", placeholder: "Filter by name, device, activation…",
      "aria-label": "Filter runs", value: view.now.q,
      oninput: () => view.set({ q: this.search.value }, { small: true }) });
    this.choices = h("span", { class: "group", role: "group", "aria-label": "Status" });
    this.compare = h("a", { class: "button primary", hidden: true });
    this.table = new Table(this.#columns(), { label: "Runs", key: (entry) => entry.run_id, className: "runs",
      sort: view.now.sort, sorted: (sort) => view.set({ sort }, { small: true }) });
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.all = true; this.draw(); } });
    this.empty = h("p", { class: "empty", hidden: true });
    this.element = h("section", { class: "list" }, h("h1", { class: "unseen" }, "Runs"),
      h("div", { class: "bar" }, this.search, this.choices, this.compare),
      h("div", { class: "scroll" }, this.table.element), this.empty, this.more);
    this.drawSoon = soon(() => this.draw(), 200);
    this.clock = setInterval(() => this.draw(), 10000);
  }

  async load() {
    this.news = new Map(); // what is heard meanwhile is newer
    const { runs } = await get("runs");
    this.entries = new Map([...runs.map((entry) => [entry.run_id, entry]), ...this.news]);
    this.draw();
  }

  hear(event, data) {
    if (event !== "run") return;
    this.entries.set(data.run_id, data);
    this.news.set(data.run_id, data);
    this.drawSoon();
  }

  update() {
    if (document.activeElement !== this.search) this.search.value = this.view.now.q;
    this.draw();
  }

  destroy() { clearInterval(this.clock); }

  draw() {
    const { q, status: wanted } = this.view.now, words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = [...this.entries.values()].filter((entry) => {
      const text = [entry.run_id, entry.status, entry.reason, entry.domain, entry.model, entry.device, entry.activation,
                    entry.symbio_winner].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const shown = matching.filter((entry) => !wanted || entry.status === wanted);
    this.#choices(matching, wanted);
    this.table.show(shown, this.all ? Infinity : FIRST);
    this.more.hidden = this.all || shown.length <= FIRST;
    this.more.textContent = `Show all ${count(shown.length)} runs`;
    this.empty.hidden = shown.length > 0;
    this.empty.textContent = this.entries.size ? "No run matches." :
      "No run yet. Runs appear here as soon as they begin.";
    this.#comparing();
  }

  #choices(matching, wanted) {
    const counts = new Map([["", matching.length]]);
    for (const { status: word } of matching) counts.set(word, (counts.get(word) ?? 0) + 1);
    const words = ["", ...Object.keys(STATUS).filter((word) => counts.has(word) || word === wanted)];
    const shape = JSON.stringify([words.map((word) => counts.get(word)), words, wanted]);
    if (shape === this.shape) return;
    this.shape = shape;
    const focus = this.choices.contains(document.activeElement) ? document.activeElement.dataset.word : null;
    this.choices.replaceChildren(...words.map((word) => h("button", { type: "button", "data-word": word,
      "aria-pressed": String(word === wanted), onclick: () => this.view.set({ status: word }, { small: true }) },
      word && h("span", { class: `status ${word}`, "aria-hidden": "true" }, `${STATUS[word]} `), word || "all",
      h("small", {}, ` ${counts.get(word) ?? 0}`))));
    if (focus !== null) this.choices.querySelector(`[data-word="${focus}"]`)?.focus();
  }

  #comparing() {
    const chosen = [...this.picked].filter((id) => this.entries.has(id));
    this.compare.hidden = chosen.length < 2;
    this.compare.textContent = `Compare ${chosen.length} runs`;
    this.compare.href = `#runs=${chosen.map(encodeURIComponent).join(",")}`;
  }

  #pick(id, yes) {
    this.picked[yes ? "add" : "delete"](id);
    this.#comparing();
  }

  #columns() {
    const text = (name, label, say, by = (e) => e[name], more = {}) => ({ name, label, text: say, by, ...more });
    return [
      { name: "pick", label: "", text: (e) => e.run_id, node: (e) => this.#box(e.run_id) },
      text("status", "Status", (e) => `${e.status} ${e.reason ?? ""}`, (e) => Object.keys(STATUS).indexOf(e.status),
        { node: status }),
      text("run_id", "Run", (e) => `${e.run_id} ${e.domain}`, (e) => e.run_id, { node: (e) => h("span", {},
        h("a", { href: `#runs=${encodeURIComponent(e.run_id)}` }, e.run_id), h("small", {}, e.domain)) }),
      text("step", "Step", (e) => `${count(e.step)}/${count(e.steps)}`, undefined, { node: (e) => h("span", {},
        count(e.step), e.steps && h("small", {}, ` / ${count(e.steps)}`), e.steps && progress(e)) }),
      text("loss", "Loss", (e) => loss(e.loss)),
      text("best_val_loss", "Best val", (e) => loss(e.best_val_loss)),
      text("tokens_per_sec", "Tokens/s", (e) => count(e.tokens_per_sec)),
      text("parameters", "Parameters", (e) => `${short(e.parameters)} ${e.model}`, (e) => e.parameters,
        { node: (e) => h("span", {}, short(e.parameters), h("small", {}, e.model)) }),
      text("activation", "Activation", (e) => activation(e) ?? "–", activation, { node: (e) => h("span",
        { title: activation(e) }, activation(e) && swatch(colourOf(activation(e))), shortName(activation(e)) || "–",
        e.symbio && h("small", {}, e.symbio_winner ? " found" : " search")) }),
      text("device", "Device", (e) => e.device ?? "–", undefined, { title: (e) => e.device ?? "" }),
      text("created", "Begun", (e) => ago(e.created), (e) => moment(e.created), { title: (e) => time(e.created) }),
      text("updated", "News", (e) => ago(e.updated), (e) => moment(e.updated), { title: (e) => time(e.updated) }),
    ];
  }

  #box(id) {
    return h("input", { type: "checkbox", "aria-label": `Compare ${id}`, checked: this.picked.has(id),
      onchange: (event) => this.#pick(id, event.target.checked) });
  }
}

const activation = (entry) => entry.symbio_winner ?? entry.activation ?? null;
