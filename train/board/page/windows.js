// The windows of a run: champions and challengers, how far these were from the champion, and what came of it.

import { value } from "./candidate.js";
import { shortName } from "./colours.js";
import { h, reveal, soon } from "./dom.js";
import { count, labels, plain, settings } from "./format.js";
import { named } from "./search.js";
import { Table } from "./table.js";
import { key, LOOK, Tree } from "./tree.js";

const LOOKS = { ...LOOK, under: (c) => (c.mutation ?? "").slice(0, 24),
                about: (c) => [shortName(c.activation), settings(c.settings), c.mutation, c.verdict && verdict(c)] };

export class Windows {
  constructor(run, view) {
    this.run = run;
    this.view = view;
    this.tree = new Tree((id) => this.#pick(id), LOOKS);
    this.table = new Table(this.#columns(), { label: "Windows", key: (c) => c.id, sort: "-window", className: "rows" });
    this.box = h("div", { class: "scroll tall" }, this.table.element);
    this.key = h("div", { class: "key" });
    const part = (title, ...children) => h("section", { class: "part" }, h("h2", {}, title), ...children);
    this.element = h("div", { class: "search" }, part("Windows", this.box),
      part("Champions and challengers", this.key, this.tree.box));
    this.hearSoon = soon(() => this.#draw(), 200);
  }

  load() { this.#draw(); }

  hear(what) { if (what === "windows") this.hearSoon(); }

  update(now, before) { if (now.pick !== before.pick) this.#select(now.pick); }

  #draw() {
    const { windows } = this.run;
    if (windows.length === 0) return; // a resumed run may have none yet
    const all = family(this.run);
    this.names = labels(all);
    this.tree.show(all, windows.findLast((w) => w.winner)?.winner ?? all[0].id);
    this.key.replaceChildren(...key(all), h("span", {}, "filled: was the run's model"),
      h("span", {}, "ringed: is it now"));
    this.table.show(all.slice(1));
    this.#select(this.view.now.pick);
  }

  #pick(id) {
    if (id === this.view.now.pick) this.#select(id);
    else this.view.set({ pick: id }, { small: true });
  }

  #select(id) {
    this.tree.select(id);
    for (const [other, { tr }] of this.table.known) tr.classList.toggle("picked", other === id);
    const row = this.table.at(id);
    if (row) reveal(row, this.box);
  }

  #columns() {
    const column = (name, label, text, by = (c) => c[name], more = {}) => ({ name, label, text, by, ...more });
    return [
      column("window", "Window", (c) => plain(c.window)),
      column("opened", "Steps", (c) => `${count(c.opened)}–${count(c.closed)}`),
      column("cause", "Reason", (c) => plain(c.reason), (c) => c.reason),
      column("name", "Challenger", (c) => this.names.get(c.id), undefined, { node: (c) => h("button",
        { type: "button", class: "link", onclick: () => this.#pick(c.id) }, this.names.get(c.id)) }),
      column("activation", "Activation", (c) => `${c.activation} ${settings(c.settings)}`, undefined, { node: named }),
      column("mutation", "Change", (c) => plain(c.mutation)),
      column("difference", "Difference in nats", (c) => value(c.difference !== null && { mean: c.difference,
                                                                                        error: c.error })),
      column("p", "p", (c) => plain(c.p && Number(c.p.toPrecision(2)))),
      column("verdict", "Verdict", verdict, verdict),
    ];
  }
}

const verdict = (c) => (c.id === c.winner ? `replaces ${c.champion}`
  : c.why ?? (c.separated ? "separated" : "not separated"));

/** The run's own model, then all challengers with their windows, as the tree takes them: each beside the champion that
 *  it challenged. */
function family({ windows, config }) {
  const won = new Set(windows.map((window) => window.winner));
  return [{ id: windows[0].champion, activation: config.model?.activation, generation: 0, status: "champion" },
    ...windows.flatMap((window) => window.challengers.map((c) => ({
      ...window, ...c, generation: c.lineage.length, status: won.has(c.id) ? "champion" : null })))];
}
