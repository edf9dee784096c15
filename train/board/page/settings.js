// The settings of a run, or what differs in those of several.

import { h, swatch } from "./dom.js";
import { plain } from "./format.js";

const OWN = /^(run_id|created|config_hash|report)$/; // differs between any two runs

export class Settings {
  constructor(runs) {
    this.runs = runs;
    this.filter = h("input", { type: "search", placeholder: "Filter settings…", "aria-label": "Filter settings",
                               oninput: () => this.draw() });
    this.body = h("tbody");
    const names = runs.length > 1 ? runs.map(({ name, colour, run }) =>
      h("th", { scope: "col", title: run.id }, swatch(colour), name)) : [h("th", { scope: "col" }, "Value")];
    this.element = h("section", {}, h("div", { class: "bar" }, this.filter), h("div", { class: "scroll" },
      h("table", { class: "rows settings", "aria-label": runs.length > 1 ? "Settings that differ" : "Settings" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Setting"), names)), this.body)));
    this.draw();
  }

  hear(what) { if (what === "refresh") this.draw(); }

  draw() {
    const all = this.runs.map(({ run }) => flat(run.config)), several = all.length > 1;
    const word = this.filter.value.toLowerCase();
    const rows = [...new Set(all.flatMap((settings) => [...settings.keys()]))]
      .map((key) => [key, ...all.map((settings) => plain(settings.get(key)))])
      .filter(([key, ...values]) => !several || (!OWN.test(key) && values.some((value) => value !== values[0])))
      .filter((texts) => texts.join(" ").toLowerCase().includes(word));
    this.body.replaceChildren(...rows.map(([key, ...values]) =>
      h("tr", {}, h("th", { scope: "row" }, key), values.map((value) => h("td", {}, value)))));
    if (rows.length === 0) this.body.append(h("tr", {}, h("td", { colspan: all.length + 1 },
      word ? "No setting matches." : several ? "Their settings are the same." : "No settings are known.")));
  }
}

/** The settings in an object by name, nested ones with a dot. */
function flat(settings, prefix = "", found = new Map()) {
  for (const [key, value] of Object.entries(settings ?? {})) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) flat(value, `${prefix}${key}.`, found);
    else found.set(prefix + key, value);
  }
  return found;
}
