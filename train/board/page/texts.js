// What the model said, and what happened. All of it is set as text.

import { h } from "./dom.js";
import { count, number, plain, time } from "./format.js";

/** A button that shows all, and what there is before it is pressed: `first(list)`, the first `most` of a list. */
function cutOff(most, what, draw) {
  let all = false;
  const button = h("button", { type: "button", hidden: true, onclick: () => { all = true; draw(); } });
  const first = (list) => {
    button.hidden = all || list.length <= most;
    button.textContent = `Show all ${count(list.length)} ${what}`;
    return button.hidden ? list : list.slice(0, most);
  };
  return { button, first };
}

/** Samples by step, the latest first. */
export class Samples {
  constructor(run) {
    this.run = run;
    this.list = h("div");
    this.cut = cutOff(100, "steps", () => this.draw());
    this.element = h("div", { class: "samples" }, this.list, this.cut.button);
    this.draw();
  }

  hear(what) { if (what === "samples") this.draw(); }

  draw() {
    const steps = [...Map.groupBy(this.run.samples, (row) => row.step)].sort((a, b) => b[0] - a[0]);
    this.list.replaceChildren(...this.cut.first(steps).map(([step, rows]) =>
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
    this.cut = cutOff(1000, "events", () => this.draw());
    this.element = h("section", {}, h("div", { class: "bar" }, this.filter), h("div", { class: "scroll" },
      h("table", { class: "rows events", "aria-label": "Events" }, h("thead", {}, h("tr", {},
        ["Step", "Time", "Kind", "Message"].map((word) => h("th", { scope: "col" }, word)))), this.body)),
      this.cut.button);
    this.draw();
  }

  hear(what) { if (what === "events" || what === "refresh") this.draw(); }

  draw() {
    const word = this.filter.value.toLowerCase();
    const rows = this.run.events.filter((row) => !word || JSON.stringify(row).toLowerCase().includes(word)).reverse();
    this.body.replaceChildren(...this.cut.first(rows).map((row) => h("tr", { class: ALARMING.test(row.kind) && "alarm" },
      h("td", { class: "step" }, count(row.step)), h("td", { class: "time" }, time(row.time)),
      h("td", {}, plain(row.kind)), h("td", { class: "message" }, plain(row.message)))));
  }
}
