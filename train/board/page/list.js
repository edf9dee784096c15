// The list of runs, and of experiments, under which theirs are folded.

import { get } from "./api.js";
import { colourOf, shortName } from "./colours.js";
import { h, soon, swatch } from "./dom.js";
import { ago, count, loss, moment, number, short, time } from "./format.js";
import { standing } from "./journal.js";
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
    this.entries = new Map();
    this.experiments = new Map();
    this.news = { run: new Map(), experiment: new Map() };
    this.all = false;
    this.search = h("input", { type: "search", placeholder: "Filter by name, device, activation…",
      "aria-label": "Filter runs", value: view.now.q,
      oninput: () => view.set({ q: this.search.value }, { small: true }) });
    this.choices = h("span", { class: "group", role: "group", "aria-label": "Status" });
    this.compare = h("a", { class: "button primary", hidden: true });
    this.table = new Table(this.#columns(), { label: "Runs", key: (entry) => entry.run_id, className: "runs",
      sort: view.now.sort, sorted: (sort) => view.set({ sort }, { small: true }) });
    this.groups = new Table(this.#groups(), { label: "Experiments", key: (e) => e.experiment,
      className: "runs groups", sort: "-updated" });
    this.grouped = h("div", { class: "scroll", hidden: true }, this.groups.element);
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.all = true; this.draw(); } });
    this.empty = h("p", { class: "empty", hidden: true });
    this.element = h("section", { class: "list" }, h("h1", { class: "unseen" }, "Runs"),
      h("div", { class: "bar" }, this.search, this.choices, this.compare),
      this.grouped, h("div", { class: "scroll" }, this.table.element), this.empty, this.more);
    this.drawSoon = soon(() => this.draw(), 200);
    this.clock = setInterval(() => this.draw(), 10000);
  }

  async load() {
    const news = this.news = { run: new Map(), experiment: new Map() }; // what is heard meanwhile is newer
    const [{ runs }, { experiments }] = await Promise.all([get("runs"), get("experiments")]);
    this.entries = new Map([...runs.map((entry) => [entry.run_id, entry]), ...news.run]);
    this.experiments = new Map([...experiments.map((entry) => [entry.experiment, entry]), ...news.experiment]);
    this.draw();
  }

  hear(event, data) {
    if (event === "run") this.entries.set(data.run_id, data);
    else if (event === "experiment") this.experiments.set(data.experiment, data);
    else return;
    this.news[event].set(event === "run" ? data.run_id : data.experiment, data);
    this.drawSoon();
  }

  update() {
    if (document.activeElement !== this.search) this.search.value = this.view.now.q;
    this.draw();
  }

  destroy() { clearInterval(this.clock); }

  draw() {
    const { q, status: wanted, unfold } = this.view.now, words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...this.entries.values()].filter((entry) => {
      const text = [entry.run_id, entry.status, entry.reason, entry.domain, entry.model, entry.device, entry.activation,
                    entry.symbio_winner, entry.candidate, this.experiments.get(entry.experiment)?.name]
        .join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const folded = (entry) => this.experiments.has(entry.experiment) && !unfold.includes(entry.experiment);
    const matching = all.filter((entry) => !folded(entry));
    this.#experiments(all, words);
    const shown = matching.filter((entry) => !wanted || entry.status === wanted);
    this.#choices(matching, wanted);
    this.table.show(shown, this.all ? Infinity : FIRST);
    this.more.hidden = this.all || shown.length <= FIRST;
    this.more.textContent = `Show all ${count(shown.length)} runs`;
    this.empty.hidden = shown.length > 0;
    this.empty.textContent = all.length > matching.length && !wanted ? "The runs of experiments are folded." :
      this.entries.size ? "No run matches." :
      "No run yet. Runs appear here as soon as they begin.";
    this.#comparing();
  }

  /** The experiments: those that match the filter, or of which a run does. */
  #experiments(matching, words) {
    this.found = Map.groupBy(matching, (run) => run.experiment);
    this.theirs = Map.groupBy(this.entries.values(), (run) => run.experiment);
    const shown = [...this.experiments.values()].filter((entry) => this.found.has(entry.experiment)
      || words.every((word) => `${entry.name} ${entry.experiment}`.toLowerCase().includes(word)));
    this.grouped.hidden = shown.length === 0;
    this.groups.show(shown);
  }

  #groups() {
    const runs = (e) => this.found.get(e.experiment) ?? [];
    const word = (e) => standing(e, this.theirs.get(e.experiment) ?? []);
    const open = (e) => this.view.now.unfold.includes(e.experiment);
    const text = (name, label, say, more = {}) => ({ name, label, text: say, by: say, ...more });
    const active = (e) => runs(e).filter((run) => run.status === "active").length;
    return [
      text("status", "Status", word, { node: (e) => status({ status: word(e) }) }),
      text("experiment", "Experiment", (e) => `${e.name} ${e.experiment}`, { node: (e) => h("span", {},
        h("a", { href: `#experiment=${encodeURIComponent(e.experiment)}` }, e.name), h("small", {}, e.experiment)) }),
      text("generation", "Generation", (e) => count(e.generation), { by: (e) => e.generation }),
      text("candidates", "Candidates", (e) => count(e.candidates), { by: (e) => e.candidates }),
      text("best", "Best", (e) => (e.best ? `${number(e.best.value)} ${e.objectives[0].name} ${e.best.name}` : "–"),
        { by: (e) => e.best?.value, node: (e) => h("span", {}, number(e.best?.value), e.best
          && h("small", {}, `${e.objectives[0].name}, ${e.best.name}`)) }),
      text("unfold", "Runs", (e) => `${runs(e).length} ${active(e)} ${open(e)}`, { by: (e) => runs(e).length,
        node: (e) => h("button", { type: "button", "aria-expanded": String(open(e)), "aria-label": `Runs of ${e.name}`,
          onclick: () => this.#unfold(e.experiment) },
        `${open(e) ? "▾" : "▸"} ${count(runs(e).length)}`, active(e) > 0 && h("small", {}, ` ${active(e)} active`)) }),
      text("updated", "News", (e) => ago(e.updated), { by: (e) => moment(e.updated),
        title: (e) => time(e.updated) }),
    ];
  }

  #unfold(id) {
    const { unfold } = this.view.now, others = unfold.filter((each) => each !== id);
    this.view.set({ unfold: others.length < unfold.length ? others : [...unfold, id] }, { small: true });
    this.groups.at(id)?.querySelector("button")?.focus(); // it was made anew
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
      text("run_id", "Run", (e) => `${e.run_id} ${e.domain} ${this.experiments.has(e.experiment)}`, (e) => e.run_id, {
        node: (e) => h("span", {},
        h("a", { href: `#runs=${encodeURIComponent(e.run_id)}` }, e.run_id), h("small", {}, e.candidate
          ? `${e.candidate} of ${this.experiments.get(e.experiment)?.name ?? e.experiment}` : e.domain)) }),
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
