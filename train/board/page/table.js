// Tables that can be sorted, and that keep their rows, and with them the keyboard's focus, when they change.

import { h } from "./dom.js";

/**
 * columns: [{name, label, text(row), node(row) where it is more than text, by(row) what is sorted by, title(row)}];
 * their names are classes of the cells. key(row): its identity. sort: "name" or "-name"; sorted(sort) hears a change.
 */
export class Table {
  constructor(columns, { label, key, sort = "", sorted = null, className = "" }) {
    Object.assign(this, { columns, key, sort, sorted });
    this.known = new Map();
    this.heads = new Map(columns.map((column) => [column.name, h("th", { scope: "col", class: column.name },
      column.by ? h("button", { type: "button", onclick: () => this.#sortBy(column.name) }, column.label)
        : column.label)]));
    this.body = h("tbody");
    this.element = h("table", { class: className, "aria-label": label },
      h("thead", {}, h("tr", {}, [...this.heads.values()])), this.body);
    this.#mark();
  }

  /** Show the first of these rows, in the order that was chosen. also: the key of one that is shown in any case. */
  show(rows, most = Infinity, also = null) {
    Object.assign(this, { rows, most, also });
    const order = this.#order(rows).filter((row, i) => i < most || (also !== null && this.key(row, i) === also))
      .map((row, i) => this.#row(row, this.key(row, i)));
    const keep = new Set(order);
    for (const [key, { tr }] of this.known) if (!keep.has(tr)) { tr.remove(); this.known.delete(key); }
    order.forEach((tr, i) => { if (this.body.children[i] !== tr) this.body.insertBefore(tr, this.body.children[i]); });
  }

  /** The element of a row. */
  at(key) { return this.known.get(key)?.tr ?? null; }

  #row(row, key) {
    let found = this.known.get(key);
    if (!found) {
      const cells = this.columns.map((column) => h("td", { class: column.name }));
      found = { cells, tr: h("tr", {}, cells), texts: [] };
      this.known.set(key, found);
    }
    this.columns.forEach((column, i) => {
      const text = String(column.text(row));
      if (found.texts[i] === text) return;
      found.texts[i] = text;
      found.cells[i].replaceChildren(column.node ? column.node(row) : text);
      if (column.title) found.cells[i].title = column.title(row);
    });
    return found.tr;
  }

  #order(rows) {
    const down = this.sort.startsWith("-"), column = this.columns.find((c) => c.name === this.sort.replace(/^-/, ""));
    if (!column?.by) return rows;
    const by = new Map(rows.map((row) => [row, column.by(row) ?? null]));
    return [...rows].sort((a, b) => {
      const [x, y] = [by.get(a), by.get(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is unknown comes last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
  }

  #sortBy(name) {
    this.sort = this.sort === name ? `-${name}` : name;
    this.#mark();
    this.show(this.rows, this.most, this.also);
    this.sorted?.(this.sort);
  }

  #mark() {
    for (const [name, head] of this.heads) {
      if (this.sort.replace(/^-/, "") !== name) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sort.startsWith("-") ? "descending" : "ascending");
    }
  }
}
