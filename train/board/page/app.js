// The page: the list of runs, or what is open of them, kept up by the stream.

import { Refused } from "./api.js";
import { h } from "./dom.js";
import { ExperimentPage } from "./experiment.js";
import { List } from "./list.js";
import { RunPage } from "./run.js";
import { follow } from "./stream.js";
import { themed } from "./theme.js";
import { View } from "./view.js";

const at = (id) => document.getElementById(id);
const AGAIN = 3000; // ms until what could not be fetched is asked for again
const main = at("main"), live = at("live"), picked = new Set();
let page = null, stop = () => {}, list = "#"; // list: the list of runs as it was last filtered and sorted

const view = new View((now, before) => {
  if (!opened(now)) list = location.hash || "#";
  if (opened(now) === opened(before)) page.update(now, before);
  else open();
});

/** What is open beside the list: "" is the list. */
function opened({ runs, experiment }) {
  return runs.length || experiment ? JSON.stringify([runs, experiment]) : "";
}

function trouble(error) {
  at("trouble").hidden = error === null;
  at("trouble").textContent = error?.message ?? "";
  if (error && !(error instanceof Refused)) reportError(error); // a fault of the page, or of the connection
}

/** Open what the view says: the stream first, then everything, so that nothing is lost in between. */
function open() {
  const { runs, experiment } = view.now;
  if (!opened(view.now)) list = location.hash || "#";
  stop();
  if (page) main.focus({ preventScroll: true }); // what had the focus is going
  page?.destroy();
  trouble(null);
  let loading = Promise.resolve(); // one after another: the messages after the beginning of one add to what it fetches
  const load = () => { loading = loading.then(() => fetched(mine)); };
  const mine = page = runs.length ? new RunPage(view, trouble, load)
    : experiment ? new ExperimentPage(view, trouble, load) : new List(view, picked);
  main.replaceChildren(page.element);
  crumbs(runs, experiment);
  scrollTo(0, 0);
  stop = follow(runs, runs.length ? "" : experiment, (event, data) => {
    if (event === "hello" || event === "reset") load();
    else mine.hear(event, data);
  }, (word) => {
    live.textContent = word;
    live.dataset.state = word;
  });
}

/** Fetch what a page shows, however often it takes. */
async function fetched(mine) {
  for (let failed = false; mine === page;) {
    try {
      await mine.load();
      if (failed && mine === page) trouble(null);
      return;
    } catch (error) {
      failed = true;
      if (mine === page) trouble(error);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

function crumbs(runs, experiment) {
  const title = runs.length === 1 ? runs[0] : runs.length ? `${runs.length} runs` : experiment;
  document.title = title ? `${title} – Helios` : "Helios";
  at("crumbs").replaceChildren(h("a", { href: title ? list : "#", "aria-current": title ? null : "page" }, "Runs"),
    ...(title ? [h("span", { "aria-current": "page" }, title)] : []));
}

themed(at("theme"));
open();
