// What is known of one candidate: where it comes from, what it differs in, and its results.

import { h } from "./dom.js";
import { count, number, plain, said } from "./format.js";
import { ARMS, spread } from "./journal.js";
import { status } from "./list.js";

const PHASES = { search: "Search", validation: "Validation" };

/** A mean with its standard error, where it has one. */
export const value = (found) => (!found ? "–"
  : number(found.mean) + (found.error === null ? "" : ` ± ${number(Number(found.error.toPrecision(2)))}`));

/** What a candidate is marked with in charts: sign and word. */
export const mark = ({ arm }, ...more) => h("span", { class: `sign ${arm}` },
  h("b", { "aria-hidden": "true" }, ARMS[arm].sign), ` ${ARMS[arm].word}`, more);

/** Nodes about a candidate. names: of all, by id; runs: entries of the experiment's; pick(id): another was chosen. */
export function about(journal, one, names, runs, pick) {
  const { state, why, values } = journal.stats(one), own = runs.filter((run) => run.candidate === one.id);
  const rows = [...one.results.values()], { how, of, why: fresh } = one.start;
  const read = new Set(rows.map((row) => row.inherited).filter((tokens) => tokens > 0)); // replicates may differ
  const link = (id) => (!journal.candidates.has(id) ? plain(id)
    : h("button", { type: "button", class: "link", onclick: () => pick(id) }, names.get(id)));
  return [
    h("h3", {}, names.get(one.id), h("small", {}, ` ${one.id}`)),
    h("p", {}, mark(one), ` · generation ${one.generation}`, one.operator && one.operator !== one.arm
      && ` · ${one.operator}`),
    h("p", { class: why ? "reason" : "note" }, why ? `${state}: ${why}` : state,
      journal.candidates.has(one.of) && [": the results of ", link(one.of)]),
    one.parents.length > 0 && h("p", {}, one.parents.length > 1 ? "Parents: " : "Parent: ", one.parents.map((id, i) =>
      h("span", {}, i ? ", " : "", link(id)))),
    of ? h("p", {}, "Began with the weights of ", link(of), ` (${plain(how)})`, read.size > 0
      && `, which had read ${[...read].map(count).join(" or ")} tokens`)
      : fresh && h("p", {}, `Began with new weights: ${plain(fresh)}`),
    pairs(`Differs from ${one.parents.length ? "its parent" : "the base"}`, one.difference.map(([key, [old, next]]) => [key, `${said(old)} → ${said(next)}`])),
    pairs("Settings of its own", Object.entries(one.settings).map(([key, set]) => [key, said(set)])),
    pairs("Means of its replicates", journal.measures.filter((name) => values.has(name))
      .map((name) => [name, value(values.get(name))]), journal.objectives),
    ...Object.entries(PHASES).map(([phase, word]) =>
      trainings(journal, word, rows.filter((row) => (row.phase ?? "search") === phase), own, phase)),
    own.length > 1 && h("p", {}, h("a", { class: "button", href:
      `#runs=${own.map((run) => encodeURIComponent(run.run_id)).join(",")}` }, `Compare its ${own.length} runs`)),
  ].filter(Boolean);
}

/** A table of names and texts; those in `first` stand out. */
function pairs(title, list, first = []) {
  return list.length > 0 && h("div", { class: "pairs" }, h("h4", {}, title), h("table", { "aria-label": title },
    h("tbody", {}, list.map(([key, text]) => h("tr", { class: first.includes(key) && "first" },
      h("th", { scope: "row" }, key), h("td", {}, text))))));
}

function trainings(journal, word, rows, runs, phase) {
  if (rows.length === 0) return null;
  const names = journal.objectives, foot = rows.length > 1 && phase !== "search";
  const training = (row) => {
    const run = runs.find((each) => each.replicate === row.replicate && (each.phase ?? "search") === phase);
    const link = run && h("a", { href: `#runs=${encodeURIComponent(run.run_id)}` }, plain(row.run));
    return run ? h("span", {}, link, " ", status(run)) : plain(row.run);
  };
  const mean = (name) => {
    const known = rows.map((row) => journal.measure(row, name)).filter((each) => each !== null);
    return value(known.length ? spread(known) : null);
  };
  return h("div", { class: "pairs" }, h("h4", {}, `${word}: trainings`), h("div", { class: "scroll" },
    h("table", { "aria-label": `${word}: trainings` },
      h("thead", {}, h("tr", {}, ["Run", "Result", ...names].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", { class: row.status !== "complete" && "alarm" },
        h("td", {}, training(row)),
        h("td", {}, plain(row.status), row.why && h("small", {}, ` ${plain(row.why)}`)),
        names.map((name) => h("td", {}, number(journal.measure(row, name)))))),
      foot && h("tr", {}, h("th", { scope: "row", colspan: 2 }, "mean"),
        names.map((name) => h("td", {}, mean(name))))))));
}
