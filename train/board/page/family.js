// The lineage of an experiment's candidates: of those on the front, of the selected one, or of all.

import { h } from "./dom.js";
import { number } from "./format.js";
import { ARMS } from "./journal.js";
import { Tree } from "./tree.js";

const WORDS = { front: "of the front", selected: "of the selected one", all: "of all" };
const MOST = 2500; // candidates that are drawn

export class Family {
  constructor(view, pick) {
    this.view = view;
    this.tree = new Tree(pick, {
      kind: (c) => `${c.arm}${c.status ? "" : " open"}${c.out ? " out" : ""}`,
      under: (c) => [c.value !== null && number(c.value), c.operator].filter(Boolean).join(" · ").slice(0, 24),
      about: (c) => [ARMS[c.arm].word, c.operator, c.value !== null && `${c.measure} ${number(c.value)}`, c.why],
    });
    this.note = h("span");
    this.buttons = new Map(Object.entries(WORDS).map(([word, text]) => [word, h("button", { type: "button",
      onclick: () => view.set({ family: word }, { small: true }) }, text)]));
    this.element = h("div", {}, h("p", { class: "key" },
      h("span", { class: "group", role: "group", "aria-label": "Lineage" }, [...this.buttons.values()]),
      h("span", {}, "dashed: further parents"), this.heirs = h("span", {}, "thick: with its weights"), this.note),
      this.tree.box);
  }

  /** front: candidates; measure: the objective that is told of each. */
  show(journal, front, measure) {
    const { family, pick } = this.view.now, chosen = journal.candidates.get(pick);
    for (const [word, button] of this.buttons) button.setAttribute("aria-pressed", word === family);
    const all = [...journal.candidates.values()], begun = { front, selected: [], all }[family];
    const found = family === "all" ? new Set(all) : ancestors(journal, [...begun, ...(chosen ? [chosen] : [])]);
    if (family === "selected" && chosen) for (const one of descendants(journal, chosen)) found.add(one);
    const shown = all.filter((one) => found.has(one)).slice(0, MOST);
    this.heirs.hidden = !shown.some((one) => one.start.of);
    const missing = family === "selected" && !chosen ? ": select a candidate" : "";
    this.note.textContent = `${shown.length} of ${all.length}${missing}`;
    const shape = JSON.stringify([measure, family, shown.map((one) => [one.id, one.parents, journal.stats(one).state,
      journal.value(one, measure)])]);
    if (shape !== this.shape) {
      this.shape = shape;
      if (shown.length) this.tree.show(shown.map((one) => look(journal, one, measure)), journal.entry.best?.id);
      else this.tree.box.replaceChildren();
    }
    this.tree.select(pick);
  }
}

/** A candidate as the tree takes it. */
function look(journal, one, measure) {
  const { state, why } = journal.stats(one), [parent = null, ...others] = one.parents;
  return { id: one.id, name: one.name, generation: one.generation, parent_id: parent, others, arm: one.arm,
           line: one.start.of && "inherits", measure, why, operator: one.operator, out: why !== null,
           status: state === "waiting" ? null : state, value: journal.value(one, measure) };
}

function ancestors(journal, begun) {
  const found = new Set(), next = [...begun];
  while (next.length) {
    const one = next.pop();
    if (!one || found.has(one)) continue;
    found.add(one);
    next.push(...one.parents.map((id) => journal.candidates.get(id)));
  }
  return found;
}

function descendants(journal, begun) {
  const found = new Set([begun]);
  for (const one of journal.candidates.values()) { // births come in order, so that parents are before their children
    if (one.parents.some((id) => found.has(journal.candidates.get(id)))) found.add(one);
  }
  return found;
}
