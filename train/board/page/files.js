// Checkpoints, and the files that were uploaded of them.

import { download } from "./api.js";
import { h } from "./dom.js";
import { bytes, count, loss } from "./format.js";

export class Files {
  constructor(run) {
    this.run = run;
    this.body = h("tbody");
    this.element = h("div", { class: "scroll" }, h("table", { class: "rows", "aria-label": "Checkpoints and files" },
      h("thead", {}, h("tr", {}, ["Step", "Val loss", "Size", "File", "Size", "SHA-256"]
        .map((word) => h("th", { scope: "col" }, word)))), this.body));
    this.hear("refresh");
  }

  hear(what) {
    if (what !== "refresh") return;
    const latest = [...this.run.checkpoints].reverse();
    this.body.replaceChildren(...latest.flatMap(({ step, val_loss: val, bytes: size, files }) =>
      (files?.length ? files : [null]).map((file, i) => h("tr", {},
        i ? h("td", { colspan: 3 }) : [h("td", {}, count(step)), h("td", {}, loss(val)), h("td", {}, bytes(size))],
        file ? [h("td", {}, download(file.href, file.name)), h("td", {}, bytes(file.bytes)),
                h("td", { class: "hash" }, file.sha256 ?? "–")]
          : h("td", { colspan: 3, class: "none" }, "not uploaded")))));
  }
}
