// The page of an experiment: its front, generations, genes, lineage and candidates. What is selected is marked in all.

import { get } from "./api.js";
import { about, mark, value } from "./candidate.js";
import { h, reveal, soon } from "./dom.js";
import { Family } from "./family.js";
import { ago, count, labels, number, plain, said } from "./format.js";
import { Generations } from "./generations.js";
import { ARMS, Journal } from "./journal.js";
import { status } from "./list.js";
import { Parallel } from "./parallel.js";
import { Scatter } from "./scatter.js";
import { Table } from "./table.js";

const FIRST = 200; // rows of the table before all are asked for

export class ExperimentPage {
  /** reload(): called where all must be fetched again. */
  constructor(view, trouble, reload) {
    Object.assign(this, { view, trouble, reload });
    this.journal = new Journal(view.now.experiment);
    this.runs = new Map();
    this.queue = []; // messages that came before everything was fetched; null: fetched
    const pick = (id) => this.view.set({ pick: id }, { small: true }), part = (title, ...children) =>
      h("section", { class: "part" }, h("h2", {}, title), children);
    this.pick = pick;
    this.header = h("header", { class: "about" });
    this.scatter = new Scatter(pick, (area, how) => view.set({ area }, how));
    this.generations = new Generations(view);
    this.parallel = new Parallel(pick, (brush) => view.set({ brush }, { small: true }));
    this.family = new Family(view, pick);
    this.selects = new Map(Object.entries({ up: "Up", across: "Across", of: "Objective" }).map(([name, word]) =>
      [name, h("select", { "aria-label": word, onchange: (event) => view.set({ [name]: event.target.value,
        ...(name === "of" ? {} : { area: null }) }, { small: true }) })]));
    this.filter = h("input", { type: "search", placeholder: "Filter candidates…", "aria-label": "Filter candidates",
                               oninput: () => this.#rows() });
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.all = true; this.#rows(); } });
    this.chosen = h("div", { class: "chosen" });
    this.rowsBox = h("div", { class: "scroll rows-box" });
    const select = (name, word) => h("label", {}, `${word} `, this.selects.get(name));
    this.body = h("div", { hidden: true },
      h("div", { class: "pair" }, part("Pareto front", h("div", { class: "bar" }, select("up", "Up"), select("across",
        "Across"), h("button", { type: "button", onclick: () => view.set({ area: null }) }, "All")),
        this.scatter.element), part("Selected", this.chosen)),
      part("Generations", h("div", { class: "bar" }, select("of", "Objective")), this.generations.element),
      part("Genes against objectives", this.parallel.element), part("Lineage", this.family.element),
      part("Candidates", h("div", { class: "bar" }, this.filter, this.more), this.rowsBox));
    this.empty = h("p", { class: "empty" }, "Loading…");
    this.element = h("article", { class: "experiment" }, this.header, this.empty, this.body);
    this.drawSoon = soon(() => this.draw(), 250);
    this.aboutSoon = soon(() => this.#about(), 250);
    this.resized = new ResizeObserver(() => {
      if (this.element.clientWidth === this.wide || this.body.hidden) return;
      this.drawSoon();
      this.generations.resize();
    });
    this.resized.observe(this.element);
    this.clock = setInterval(() => this.queue === null && this.#about(), 10000);
  }

  async load() {
    this.queue = [];
    const path = `runs?experiment=${encodeURIComponent(this.journal.id)}`;
    const [{ runs }] = await Promise.all([get(path), this.journal.load()]);
    this.runs = new Map(runs.map((run) => [run.run_id, run]));
    const waiting = this.queue;
    this.queue = null;
    for (const [event, data] of waiting) this.hear(event, data);
    this.draw();
  }

  hear(event, data) {
    if (this.queue !== null) return void this.queue.push([event, data]);
    if (event === "run" && data.experiment === this.journal.id) {
      const known = this.runs.get(data.run_id);
      this.runs.set(data.run_id, data);
      if (known?.status === data.status) return;
      this.aboutSoon();
      if (data.candidate === this.view.now.pick && this.table) this.#select(false);
      return;
    }
    const what = this.journal.hear(event, data);
    if (what === "reload") this.reload();
    else if (what === "journal") this.drawSoon();
    else if (what) this.aboutSoon();
  }

  update(now, before) {
    if (this.queue !== null || this.body.hidden) return;
    const other = (name) => String(now[name]) !== String(before[name]);
    if (["up", "across", "of", "area", "brush"].some(other)) return void this.draw();
    if (["pick", "zoom", "log"].some(other)) this.#generations();
    if (["pick", "family"].some(other)) this.#family();
    if (other("pick")) this.#select(true);
  }

  destroy() {
    this.destroyed = true;
    clearInterval(this.clock);
    this.resized.disconnect();
    this.generations.destroy();
  }

  /** What the view says, or the first objectives; the second one of one alone is the best known other measure. */
  get shown() {
    const { up, across, of } = this.view.now, names = this.journal.measures, [first, second = names[1]] =
      this.journal.objectives;
    const known = (name, other) => (names.includes(name) ? name : other ?? names[0]);
    return { up: known(up, first), across: known(across, second), of: known(of, first) };
  }

  draw() {
    if (this.destroyed || this.queue !== null) return;
    const { journal, view } = this, { up, across } = this.shown;
    this.#about();
    this.empty.hidden = journal.candidates.size > 0;
    this.empty.textContent = "No candidate yet. Candidates appear here as soon as they are born.";
    this.body.hidden = journal.candidates.size === 0;
    if (this.body.hidden) return;
    this.wide = this.element.clientWidth;
    for (const [name, select] of this.selects) options(select, journal.measures, this.shown[name]);
    this.names = labels([...journal.candidates.values()]);
    this.parallel.take(journal, view.now.brush);
    this.parallel.picked = this.scatter.picked = view.now.pick;
    this.scatter.show(journal, { up, across, area: view.now.area, within: this.parallel.within });
    this.parallel.show();
    this.#generations();
    this.#family();
    this.#rows();
  }

  #generations() {
    this.generations.show(this.journal, this.shown.of, this.journal.candidates.get(this.view.now.pick));
  }

  #family() {
    const { up, across, of } = this.shown;
    this.family.show(this.journal, this.journal.front(across, up), of);
  }

  /** Mark what is selected. move: bring it into view in the table. */
  #select(move) {
    const { pick } = this.view.now, one = this.journal.candidates.get(pick);
    this.scatter.select(pick);
    this.parallel.select(pick);
    const next = h("div", { class: "chosen" }, one ? about(this.journal, one, this.names, [...this.runs.values()],
      this.pick)
      : h("p", { class: "note" }, "Press a point, a line, a node or a name to see a candidate here."));
    if (!next.isEqualNode(this.chosen)) this.chosen.replaceChildren(...next.childNodes);
    if (one && !this.table.at(pick)) this.#show();
    for (const [id, { tr }] of this.table.known) tr.classList.toggle("picked", id === pick);
    const row = this.table.at(pick);
    if (move && row) reveal(row.firstChild, this.rowsBox);
  }

  #rows() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const objectives = this.journal.objectives.join();
    if (objectives !== this.columns) { // the table's columns are the objectives
      this.columns = objectives;
      this.table = new Table(this.#columns(), { label: "Candidates", key: (one) => one.id, className: "rows candidates",
        sort: this.journal.more.has(this.journal.objectives[0]) ? "-m0" : "m0" });
      this.rowsBox.replaceChildren(this.table.element);
    }
    this.rows = [...this.journal.candidates.values()].filter((one) => this.parallel.within(one) && words.every((word) =>
      this.#text(one).includes(word)));
    this.#show();
    this.#select(false);
  }

  #show() {
    this.table.show(this.rows, this.all ? Infinity : FIRST, this.view.now.pick);
    this.more.hidden = this.all || this.rows.length <= FIRST;
    this.more.textContent = `Show all ${count(this.rows.length)} candidates`;
  }

  #text(one) {
    const { state, why } = this.journal.stats(one);
    return [one.id, one.name, one.arm, one.operator, state, why, one.activation].join(" ").toLowerCase();
  }

  #columns() {
    const column = (name, label, text, by, more = {}) => ({ name, label, text, by, ...more }), { journal } = this;
    const result = (one) => [journal.stats(one).state, journal.stats(one).why].filter(Boolean).join(": ");
    const parents = (one) => one.parents.map((id) => this.names.get(id) ?? id).join(", ");
    const difference = (one) => one.difference.map(([key, [old, next]]) => `${key} ${said(old)} → ${said(next)}`)
      .join(", ") || "–";
    return [
      column("name", "Candidate", (one) => this.names.get(one.id), (one) => one.name, { node: (one) => h("button",
        { type: "button", class: "link", onclick: () => this.pick(one.id) }, this.names.get(one.id)) }),
      column("arm", "Arm", (one) => ARMS[one.arm].word, (one) => one.arm, { node: (one) => mark(one) }),
      column("generation", "Gen.", (one) => one.generation, (one) => one.generation),
      column("operator", "Operator", (one) => one.operator ?? "–", (one) => one.operator),
      column("parents", "Parents", (one) => parents(one) || "–", parents),
      ...journal.objectives.map((name, i) => column(`m${i}`, name, (one) => value(journal.stats(one).values.get(name)),
        (one) => journal.value(one, name))),
      column("state", "Result", result, result, { title: result }),
      column("difference", "Difference to its parent", difference, undefined, { title: difference }),
    ];
  }

  #about() {
    const { journal } = this, { entry } = journal;
    if (!entry) return;
    const all = [...journal.candidates.values()], runs = [...this.runs.values()];
    const waiting = all.filter((one) => journal.stats(one).state === "waiting").length;
    const out = all.filter((one) => journal.stats(one).why !== null), [objective] = entry.objectives;
    const best = journal.candidates.get(entry.best?.id), last = journal.generations.get(entry.generation);
    const figure = (name, told, more) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, told), more));
    const wanted = entry.objectives.map(({ name, more }) => `${name} (${more ? "more" : "less"})`).join(", ");
    const word = journal.standing(runs), active = runs.filter((run) => run.status === "active").length;
    const next = h("header", { class: "about" },
      h("div", { class: "title" }, h("h1", {}, entry.name), status({ status: word, reason: REASONS[word] })),
      h("div", { class: "words" }, entry.sentences.map((text) => h("p", {}, text))),
      h("dl", { class: "figures" },
        figure("Generation", count(entry.generation), last && h("small", {}, ` ${plain(last.why)}`)),
        figure("Candidates", count(all.length), waiting > 0 && h("small", {}, ` ${waiting} without a result yet`)),
        figure("Trainings", count(entry.results), active > 0 && h("small", {}, ` ${active} under way`)),
        figure("Dropped or stopped", count(out.length), h("small", {}, told(journal, out))),
        figure(`Best ${objective.name}`, entry.best ? number(entry.best.value) : "–", best && h("small", {},
          h("button", { type: "button", class: "link", onclick: () => this.pick(best.id) }, best.name)))),
      h("p", { class: "facts" }, h("span", {}, `experiment ${journal.id}`),
        h("span", {}, `objectives: ${wanted}`),
        journal.genes.length > 0 && h("span", {}, `genes: ${journal.genes.map((gene) => gene.name).join(", ")}`),
        h("a", { href: `#unfold=${encodeURIComponent(journal.id)}` }, `${runs.length} runs on this board`),
        h("span", {}, `last news ${ago(entry.updated)}`)));
    if (next.isEqualNode(this.header)) return;
    const focus = this.header.contains(document.activeElement);
    this.header.replaceChildren(...next.childNodes);
    if (focus) this.header.querySelector("button.link")?.focus();
  }
}

const REASONS = { completed: "it came to its end", active: "it goes on",
                  stale: "no end, and no news of it or its runs" };

/** How many candidates are out, by how they stand. */
function told(journal, out) {
  const counts = new Map();
  for (const one of out) counts.set(journal.stats(one).state, (counts.get(journal.stats(one).state) ?? 0) + 1);
  return [...counts].map(([state, n]) => ` ${n} ${state}`).join(",");
}

/** Have a select offer these names. */
function options(select, names, now) {
  if (select.length !== names.length || names.some((name, i) => select.options[i].value !== name)) {
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  }
  select.value = now;
}
