// Marks on the loss: activation switches, the warm-up's end, challengers that won, windows, what rules did,
// checkpoints, spikes, the best validation loss.

import { colourOf, shortName } from "./colours.js";
import { plain } from "./format.js";
import { css } from "./theme.js";

const AGAINST = 50, TIMES = 10; // a norm TIMES the median of the last AGAINST is a spike

export function marksOf(run, { to }) {
  const found = [], spans = run.activations();
  spans.slice(1).forEach(({ from, value }) => found.push(
    { kind: "switch", x: to(from), colour: colourOf(value), label: shortName(value) }));
  const warmup = run.config.train?.warmup, start = afterSearch(run);
  if (warmup && start !== null && start + warmup <= run.step) {
    found.push({ kind: "warmup", x: to(start + warmup), colour: css("--muted"), label: "warm-up ends" });
  }
  for (const { step, change } of run.events.filter((row) => row.kind === "switch")) {
    if (spans.some(({ from }, i) => i && from === step + 1)) continue; // marked as a switch of activations
    found.push({ kind: "champion", x: to(step), colour: css("--text"), label: plain(change) });
  }
  for (const { step, window } of run.events.filter((row) => row.kind === "challenge")) {
    found.push({ kind: "challenge", x: to(step), colour: css("--muted"), label: `window ${plain(window)}` });
  }
  for (const { step, action } of run.events.filter((row) => row.kind === "action")) {
    found.push({ kind: "action", x: to(step), colour: css("--alarm"), label: plain(action) });
  }
  for (const step of new Set(run.events.filter((row) => row.kind === "checkpoint").map((row) => row.step))) {
    found.push({ kind: "checkpoint", x: to(step), colour: css("--muted") });
  }
  for (const step of spikes(run)) found.push({ kind: "spike", x: to(step), colour: css("--alarm") });
  const { best_val_step: best, best_val_loss: y } = run.entry;
  if (Number.isFinite(best)) found.push({ kind: "best", x: to(best), y: y ?? undefined, colour: css("--text") });
  return found;
}

/** The step before the winner's training, 0 without a search, null while one is under way. */
function afterSearch(run) {
  const phases = run.spans("symbio_phase");
  if (!phases.some((span) => span.value === "search")) return 0;
  const after = phases.find((span) => span.value === "after");
  return after ? after.from - 1 : null;
}

/** Steps (first ones of buckets) whose gradient norm is above the run's threshold, or far above those before. */
function spikes(run) {
  const { step, max, last } = run.column("grad_norm"), threshold = run.config.train?.spike_threshold || Infinity;
  const found = [], window = []; // `window` is sorted
  max.forEach((value, i) => {
    const middle = window.length ? window[window.length >> 1] : Infinity;
    if (value !== null && (value > threshold || (window.length >= 10 && value > TIMES * middle))) found.push(step[i]);
    if (last[i] !== null) window.splice(place(window, last[i]), 0, last[i]);
    if (i >= AGAINST && last[i - AGAINST] !== null) window.splice(place(window, last[i - AGAINST]), 1);
  });
  return found;
}

/** The place of a value in a sorted list. */
function place(list, value) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
