// The page of one run, or of several over each other.

import { CHARTS } from "./charts.js";
import { colourOf, LINES, shortName } from "./colours.js";
import { h, soon, swatch } from "./dom.js";
import { Files } from "./files.js";
import { ago, count, duration, loss, moment, number, plain, settings, short, time } from "./format.js";
import { Grid } from "./grid.js";
import { progress, status } from "./list.js";
import { Run } from "./model.js";
import { Search } from "./search.js";
import { Settings } from "./settings.js";
import { Events, Samples } from "./texts.js";
import { Windows } from "./windows.js";

const TABS = {
  charts: { word: "Charts", several: true },
  search: { word: "Search", there: (run) => run.candidates.length > 0, count: (run) => run.candidates.length },
  windows: { word: "Windows", there: (run) => run.windows.length > 0, count: (run) => run.windows.length },
  samples: { word: "Samples", there: (run) => run.samples.length > 0, count: (run) => run.samples.length },
  events: { word: "Events", count: (run) => run.events.length },
  settings: { word: "Settings", several: true },
  files: { word: "Files", there: (run) => run.checkpoints.length > 0, count: (run) => run.checkpoints.length },
};
const COMPARED = ["Run", "Status", "Step", "Loss", "Best val", "Tokens/s", "Parameters", "Activation", ""];

export class RunPage {
  /** reload(): called where all must be fetched again. */
  constructor(view, trouble, reload) {
    Object.assign(this, { view, trouble, reload });
    this.runs = view.now.runs.map((id, i) => ({ run: new Run(id), colour: LINES[i % LINES.length],
                                                name: nameOf(id, view.now.runs) }));
    this.queue = []; // messages that came before everything was fetched; null: fetched
    this.header = h("header", { class: "about" });
    this.tabs = h("nav", { class: "tabs", "aria-label": "Parts of the run" });
    this.panel = h("div", { class: "panel" }, h("p", { class: "empty" }, "Loading…"));
    this.element = h("article", {}, this.header, this.tabs, this.panel);
    this.about = soon(() => this.#about(), 150);
    this.refresh = soon(() => this.#refresh(), 300);
    this.clock = setInterval(() => this.queue === null && this.#about(), 10000);
  }

  async load() {
    this.queue = [];
    await this.#fetch();
    this.ready = true;
    this.#about();
    await this.#open();
    const waiting = this.queue;
    this.queue = null;
    for (const [event, data] of waiting) this.hear(event, data);
  }

  /** Fetch the runs. Those that the board does not know are left out, if it knows any. */
  async #fetch() {
    const found = await Promise.allSettled(this.runs.map(({ run }) => run.load()));
    const failed = found.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
    const other = failed.find((error) => error.status !== 404);
    if (other || failed.length === this.runs.length) throw other ?? failed[0];
    if (failed.length) this.trouble(failed[0]);
    this.runs = this.runs.filter((_, i) => found[i].status === "fulfilled");
  }

  hear(event, data) {
    const one = this.runs.find(({ run }) => run.id === data.run_id);
    if (!one) return;
    if (this.queue !== null) return void this.queue.push([event, data]);
    const what = one.run.hear(event, data);
    if (what === "reload") return void this.reload();
    if (what === "refresh") this.refresh();
    if (what === null) return;
    this.about();
    this.open?.hear(what === "refresh" ? event : what);
  }

  update(now, before) {
    if (!this.ready) return;
    if (now.tab === before.tab) this.open?.update?.(now, before);
    else this.#open().catch(this.reload);
    this.#tabs();
  }

  destroy() {
    clearInterval(this.clock);
    this.open?.destroy?.();
  }

  async #refresh() {
    try {
      await Promise.all(this.runs.map(({ run }) => run.refresh()));
    } catch (error) {
      return this.trouble(error);
    }
    this.#about();
    this.open?.hear("refresh");
  }

  /** Show the view's tab. */
  async #open() {
    const { view, runs } = this, [{ run }] = runs, several = runs.length > 1;
    const make = {
      charts: () => new Grid(CHARTS, runs, view, this.trouble), search: () => new Search(run, view, this.trouble),
      windows: () => new Windows(run, view), samples: () => new Samples(run), events: () => new Events(run),
      files: () => new Files(run), settings: () => new Settings(runs),
    };
    this.open?.destroy?.();
    this.open = make[this.#shown(view.now.tab, several) ? view.now.tab : "charts"]();
    this.panel.replaceChildren(this.open.element);
    this.#tabs();
    await this.open.load?.();
    this.#about();
  }

  #shown(tab, several) {
    const { several: alsoSeveral, there } = TABS[tab];
    return several ? Boolean(alsoSeveral) : there?.(this.runs[0].run) ?? true;
  }

  #tabs() {
    const several = this.runs.length > 1, words = Object.keys(TABS).filter((tab) => this.#shown(tab, several));
    const now = words.includes(this.view.now.tab) ? this.view.now.tab : "charts";
    const shape = JSON.stringify([now, location.hash, words.map((tab) => TABS[tab].count?.(this.runs[0].run))]);
    if (shape === this.tabShape) return;
    this.tabShape = shape;
    const focus = this.tabs.contains(document.activeElement) ? document.activeElement.dataset.tab : null;
    this.tabs.replaceChildren(...words.map((tab) => h("a", { href: this.view.link({ tab }), "data-tab": tab,
      "aria-current": tab === now ? "page" : null }, several && tab === "settings" ? "What differs" : TABS[tab].word,
      !several && TABS[tab].count && h("small", {}, ` ${count(TABS[tab].count(this.runs[0].run))}`))));
    if (focus) this.tabs.querySelector(`[data-tab="${focus}"]`)?.focus();
  }

  #about() {
    if (this.runs.length > 1) this.#compared();
    else this.#alone(this.runs[0].run);
    this.#tabs();
  }

  #alone(run) {
    const { entry, config } = run, { device, host, champion } = config;
    const activation = entry.symbio_winner ?? entry.activation ?? config.model?.activation;
    const last = (key) => run.columns.get(key)?.last.at(-1) ?? null;
    const left = timeLeft(run), taken = last("elapsed_ms") ?? moment(entry.updated) - moment(entry.created);
    const machine = host && [host.name, host.os, host.cpu, host.cores && `${host.cores} cores`,
                             host.memory_mib && `${count(host.memory_mib)} MiB`].filter(Boolean).join(" · ");
    this.#replace(this.header, [
      h("div", { class: "title" }, h("h1", {}, run.id), status(entry),
        entry.historic && h("span", { class: "tag" }, "what is known of it")),
      entry.historic ? h("p", { class: "note" }, historic(entry))
        : entry.reason && h("p", { class: "reason" }, entry.reason),
      h("dl", { class: "figures" },
        figure("Step", count(entry.step), entry.steps && `of ${count(entry.steps)}`, entry.steps && progress(entry)),
        figure("Loss", loss(entry.loss)),
        figure("Validation", loss(entry.val_loss), Number.isFinite(entry.best_val_loss) &&
          `best ${loss(entry.best_val_loss)}${entry.best_val_step ? ` at ${count(entry.best_val_step)}` : ""}`),
        figure("Speed", count(entry.tokens_per_sec), "tokens/s"),
        figure(left === null ? "Time" : "Time left", duration(left ?? taken),
          left !== null && `${duration(taken)} so far`),
        figure("Activation",
          h("span", { title: activation }, swatch(colourOf(activation)), shortName(activation) || "–"),
          champion ? told(`since step ${count(champion.since)}`, champion.settings)
            : entry.symbio_winner ? told("found by the search", config.symbio_winner_settings)
              : entry.symbio && config.search?.mode !== "continuous" && "being searched"),
        figure("Parameters", short(entry.parameters), entry.model)),
      entry.experiment && h("p", { class: "facts" }, h("span", {}, "a training of ", h("a", { href:
        `#experiment=${encodeURIComponent(entry.experiment)}&pick=${encodeURIComponent(entry.candidate)}` },
        plain(entry.candidate)), entry.phase && `, ${entry.phase}`, ", in the experiment ", plain(entry.experiment))),
      h("p", { class: "facts" }, [entry.domain && `text: ${entry.domain}`, device?.name ?? entry.device, device?.driver,
        machine, entry.created && `begun ${time(entry.created)}`, entry.updated && `last news ${ago(entry.updated)}`]
        .filter(Boolean).map((fact) => h("span", {}, fact))),
    ]);
  }

  #compared() {
    const { view } = this;
    this.#replace(this.header, [h("div", { class: "title" }, h("h1", {}, `${this.runs.length} runs`)),
      h("div", { class: "scroll tall" }, h("table", { class: "compared", "aria-label": "Compared runs" },
        h("thead", {}, h("tr", {}, COMPARED.map((word) => h("th", { scope: "col" }, word)))),
        h("tbody", {}, this.runs.map(({ run, colour }) => h("tr", {},
          h("th", { scope: "row" }, swatch(colour), h("a", { href: view.link({ runs: [run.id] }) }, run.id),
            run.entry.historic && h("span", { class: "tag" }, "historic")),
          h("td", {}, status(run.entry)), h("td", {}, count(run.entry.step)), h("td", {}, loss(run.entry.loss)),
          h("td", {}, loss(run.entry.best_val_loss)), h("td", {}, count(run.entry.tokens_per_sec)),
          h("td", {}, short(run.entry.parameters)),
          h("td", {}, shortName(run.entry.symbio_winner ?? run.entry.activation) || "–"),
          h("td", {}, h("a", { href: view.link({ runs: view.now.runs.filter((id) => id !== run.id) }),
                               "aria-label": `Leave out ${run.id}` }, "✕")))))))]);
  }

  /** Replace the content where it is another than before, so that a selection of text stays. */
  #replace(element, nodes) {
    const next = h(element.localName, {}, nodes);
    if (element.isEqualNode(Object.assign(next, { className: element.className }))) return;
    const focus = element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    element.replaceChildren(...next.childNodes);
    if (focus) [...element.querySelectorAll("a")].find((a) => a.getAttribute("href") === focus)?.focus();
  }
}

const told = (words, own) => [words, settings(own)].filter(Boolean).join(" with ");

/** What a run of the original system says of itself, and how much of it the records hold. */
const historic = ({ reason, coverage }) => ["A run of the original system", reason, Number.isFinite(coverage) &&
  `its records hold ${number(Math.round(1000 * coverage) / 10)} % of its steps`].filter(Boolean).join("; ") + ".";

/** Milliseconds that an active run still takes at its present speed, null where that is not known. */
function timeLeft({ entry, config, columns }) {
  const batch = columns.get("adaptive_batch_size")?.last.at(-1) ?? config.train?.batch_size;
  const tokens = batch * (config.train?.accum ?? 1) * config.model?.block_size;
  const ms = (1000 * (entry.steps - entry.step) * tokens) / entry.tokens_per_sec;
  return entry.status === "active" && Number.isFinite(ms) ? ms : null;
}

const figure = (name, value, more, extra) => h("div", {}, h("dt", {}, name),
  h("dd", {}, h("b", {}, value), more && h("small", {}, ` ${more}`), extra));

/** A short name: the end of the id, if no other run ends alike. */
function nameOf(id, all) {
  const end = id.split("_").at(-1);
  return id.length > 16 && end.length >= 3 && all.filter((other) => other.endsWith(end)).length === 1 ? end : id;
}
