// What the model said, and what happened. All of it is set as text.

import { h } from "./dom.js";
import { count, number, plain, time } from "./format.js";

/** Samples by step, the latest first. */
export class Samples {
  constructor(run) {
    this.run = run;
    this.element = h("div", { class: "samples" });
    this.shown = 0;
    this.hear("samples");
  }

  hear(what) {
    if (what !== "samples" && what !== "refresh") return;
    const { samples } = this.run;
    if (samples.length === this.shown) return;
    this.shown = samples.length;
    const steps = Map.groupBy(samples, (row) => row.step);
    this.element.replaceChildren(...[...steps].sort((a, b) => b[0] - a[0]).map(([step, rows]) =>
      h("section", { class: "part" }, h("h2", {}, `Step ${count(step)}`), rows.map((row) => h("figure", {},
        h("figcaption", {}, plain(row.prompt)), h("blockquote", {}, plain(row.text)),
        h("small", {}, ["temperature", "top_k", "seed"].filter((key) => row[key] !== undefined && row[key] !== null)
          .map((key) => `${key.replace("_", " ")} ${number(row[key])}`).join(" · ")))))));
  }
}

const ALARMING = /^(failed|diverged|device_lost|non_finite|damaged_checkpoint|report_failed|skipped)$/;

/** Events, the latest first, with a filter. */
export class Events {
  constructor(run) {
    this.run = run;
    this.filter = h("input", { type: "search", placeholder: "Filter events…", "aria-label": "Filter events",
                               oninput: () => this.draw() });
    this.body = h("tbody");
    this.element = h("section", {}, h("div", { class: "bar" }, this.filter), h("div", { class: "scroll" },
      h("table", { class: "rows events", "aria-label": "Events" }, h("thead", {}, h("tr", {},
        ["Step", "Time", "Kind", "Message"].map((word) => h("th", { scope: "col" }, word)))), this.body)));
    this.draw();
  }

  hear(what) { if (what === "events" || what === "refresh") this.draw(); }

  draw() {
    const word = this.filter.value.toLowerCase();
    const rows = this.run.events.filter((row) => !word || JSON.stringify(row).toLowerCase().includes(word)).reverse();
    this.body.replaceChildren(...rows.slice(0, 2000).map((row) => h("tr", { class: ALARMING.test(row.kind) && "alarm" },
      h("td", { class: "step" }, count(row.step)), h("td", { class: "time" }, time(row.time)),
      h("td", {}, plain(row.kind)), h("td", { class: "message" }, plain(row.message)))));
  }
}
