// The search of a run: its lineage tree, table of candidates, switch log, activations by generation, and charts.

import { MIXED } from "./activations.js";
import { SEARCH_CHARTS } from "./charts.js";
import { colourOf, kind, kinds, shortName, split } from "./colours.js";
import { h, reveal, soon, svg, swatch } from "./dom.js";
import { count, labels, loss, number, settings } from "./format.js";
import { Grid } from "./grid.js";
import { Table } from "./table.js";
import { key, Tree } from "./tree.js";

export class Search {
  constructor(run, view, trouble) {
    this.run = run;
    this.view = view;
    this.grid = new Grid(SEARCH_CHARTS, [{ run, colour: "", name: run.id }], view, trouble);
    this.tree = new Tree((id) => this.#pick(id));
    this.table = new Table(this.#columns(), { label: "Candidates", key: (c) => c.id, sort: "rank", className: "rows" });
    this.log = new Table(this.#logColumns(), { label: "Switch log", key: (row) => row.from, className: "rows" });
    this.shares = h("div", { class: "shares" });
    this.words = h("div", { class: "words" });
    this.boxes = [this.table, this.log].map((table) => h("div", { class: "scroll tall" }, table.element));
    const part = (title, ...children) => h("section", { class: "part" }, h("h2", {}, title), ...children);
    this.element = h("div", { class: "search" }, this.words,
      part("Lineage", h("div", { class: "key" }), this.tree.box),
      part("Candidates", this.boxes[0]),
      h("div", { class: "pair" }, part("Switch log", this.boxes[1]), part("Activations by generation", this.shares)),
      this.grid.element);
    this.hearSoon = soon(() => this.draw(), 200);
  }

  async load() {
    this.draw();
    await this.grid.load();
    this.#select(this.view.now.pick);
  }

  hear(what) {
    this.grid.hear(what);
    if (["metrics", "candidates", "refresh", "run"].includes(what)) this.hearSoon();
  }

  update(now, before) {
    if (now.pick !== before.pick) this.#select(now.pick);
    this.grid.update(now, before);
  }

  destroy() { this.grid.destroy(); }

  draw() {
    const { candidates, summary } = this.run, winner = summary?.winner ?? null;
    const shape = JSON.stringify([candidates, summary, this.run.trainings().length]);
    if (shape === this.shape) return;
    this.shape = shape;
    this.names = labels(candidates);
    this.ranks = new Map((summary?.ranking ?? []).map((row) => [row.id, row]));
    this.tree.show(candidates, winner);
    this.tree.box.previousSibling.replaceChildren(...key(candidates), h("span", {}, "◯ winner has a ring"));
    this.table.show(candidates);
    this.log.show(this.#switches());
    this.shares.replaceChildren(distribution(candidates));
    this.words.replaceChildren(...(summary?.reasons ?? []).map((text) => h("p", {}, text)),
      ...(summary?.unfair ?? []).map((text) => h("p", { class: "note" }, text)));
    this.#select(this.view.now.pick, false);
  }

  #pick(id) {
    if (id === this.view.now.pick) this.#select(id);
    else this.view.set({ pick: id }, { small: true });
  }

  /** Mark a candidate in the tree, the table and the log, and bring it into view in each. */
  #select(id, move = true) {
    this.tree.select(id);
    [[this.table, [id]], [this.log, this.#switches().filter((row) => row.id === id).map((row) => row.from)]]
      .forEach(([table, keys], i) => {
        for (const { tr } of table.known.values()) tr.classList.remove("picked");
        const rows = keys.map((key) => table.at(key)).filter(Boolean);
        for (const row of rows) row.classList.add("picked");
        if (move && rows.length) reveal(rows[0], this.boxes[i]);
      });
  }

  /** A row for each change of candidate, and for the winner's training. */
  #switches() {
    const known = new Map(this.run.candidates.map((c) => [c.id, c])), found = [];
    const { summary } = this.run, later = summary?.winner_activation ?? this.run.entry.symbio_winner;
    let before = null;
    for (const { from, to, value } of this.run.trainings()) {
      const candidate = known.get(value) ?? {}, activation = candidate.activation ?? (value === null ? later : null);
      const name = value === null ? "training" : this.names?.get(value) ?? value;
      found.push({ from, to, id: value, name, activation, before,
                   settings: value === null ? summary?.winner_settings : candidate.settings,
                   generation: candidate.generation, parent: candidate.parent_name, mutation: candidate.mutation });
      before = activation;
    }
    return found;
  }

  #name(id, name) {
    return h("button", { type: "button", class: "link", onclick: () => {
      this.#pick(id);
      this.tree.box.scrollIntoView({ block: "nearest" });
    } }, name);
  }

  #columns() {
    const text = (name, label, say, by = (c) => c[name], more = {}) => ({ name, label, text: say, by, ...more });
    const known = (word) => word ?? "–";
    return [
      text("rank", "Rank", (c) => known(this.ranks.get(c.id)?.rank), (c) => this.ranks.get(c.id)?.rank),
      text("name", "Candidate", (c) => this.names.get(c.id), undefined,
        { node: (c) => this.#name(c.id, this.names.get(c.id)) }),
      text("activation", "Activation", (c) => `${known(c.activation)} ${settings(c.settings)}`, (c) => c.activation,
        { node: named }),
      text("generation", "Gen.", (c) => known(c.generation)),
      text("parent_name", "Parent", (c) => known(c.parent_name)),
      text("mutation", "Change", (c) => known(c.mutation)),
      text("val_loss_mean", "Val loss", (c) => loss(c.val_loss_mean) +
        (Number.isFinite(c.val_loss_se) ? ` ± ${c.val_loss_se.toFixed(4)}` : "")),
      text("separated", "Separated", (c) => ({ true: "yes", false: "no" })[this.ranks.get(c.id)?.separated] ?? "–",
        (c) => this.ranks.get(c.id)?.separated),
      text("fitness", "Fitness", (c) => number(c.fitness)),
      text("tokens_per_sec_mean", "Tokens/s", (c) => count(c.tokens_per_sec_mean)),
      text("max_grad_norm", "Most norm", (c) => number(c.max_grad_norm)),
      text("trouble", "Trouble", (c) => known(c.trouble)),
      text("steps", "Steps", (c) => count(c.steps)),
      text("parameters", "Parameters", (c) => count(c.parameters)),
      text("status", "Status", (c) => c.status ?? "open"),
    ];
  }

  #logColumns() {
    const known = (word) => word ?? "–";
    return [
      { name: "from", label: "Steps", text: (row) => `${count(row.from)}–${count(row.to)}` },
      { name: "name", label: "Candidate", text: (row) => row.name,
        node: (row) => (row.id === null ? row.name : this.#name(row.id, row.name)) },
      { name: "activation", label: "Activation",
        text: (row) => `${row.before} ${row.activation} ${settings(row.settings)}`,
        node: (row) => h("span", {}, row.before && row.before !== row.activation && `${shortName(row.before)} → `,
          named(row)) },
      { name: "generation", label: "Gen.", text: (row) => known(row.generation) },
      { name: "parent", label: "Parent", text: (row) => known(row.parent) },
      { name: "mutation", label: "Change", text: (row) => known(row.mutation) },
    ];
  }
}

/** An activation with its colour, and settings of its own. */
export const named = ({ activation, settings: own }) =>
  h("span", { title: activation }, activation && swatch(colourOf(activation)), shortName(activation) || "–",
    settings(own) && h("small", {}, ` ${settings(own)}`));

/** Bars: how many candidates, or blocks where these differ, have each activation in each generation. */
function distribution(candidates) {
  const WIDTH = 46, HIGH = 130, genomes = candidates.map((c) => split(c.activation ?? MIXED)), counts = new Map();
  const order = kinds(genomes.flat());
  const blocks = Math.max(1, ...genomes.map((genome) => genome.length));
  candidates.forEach(({ generation }, i) => {
    if (!counts.has(generation)) counts.set(generation, new Map());
    const of = counts.get(generation);
    for (const name of genomes[i].map((gene) => kind(gene, order))) of.set(name, (of.get(name) ?? 0) + blocks / genomes[i].length);
  });
  const most = Math.max(1, ...[...counts.values()].map((of) => [...of.values()].reduce((a, b) => a + b, 0)));
  const bars = [...counts].sort((a, b) => a[0] - b[0]).map(([generation, of], i) => {
    let y = HIGH + 4;
    const parts = order.filter((name) => of.has(name)).map((name) => {
      const height = (HIGH * of.get(name)) / most;
      y -= height;
      return svg("rect", { x: i * WIDTH + 8, y, width: WIDTH - 16, height: Math.max(0, height - 1),
                           fill: colourOf(name) },
        svg("title", {}, `generation ${generation}: ${of.get(name)} ${name}`));
    });
    return svg("g", {}, parts, svg("text", { x: i * WIDTH + WIDTH / 2, y: HIGH + 18 }, String(generation)));
  });
  const width = Math.max(1, bars.length) * WIDTH;
  return h("div", { class: "scroll" }, svg("svg", { width, height: HIGH + 24, viewBox: `0 0 ${width} ${HIGH + 24}`,
    role: "img", "aria-label": `Activations of the ${blocks > 1 ? "blocks" : "candidates"} by generation` }, bars));
}
