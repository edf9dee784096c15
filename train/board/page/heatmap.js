// Charts whose y axis has rows: norms by layer as colours, trainings as bars.

import { colourOf } from "./colours.js";
import { labels } from "./format.js";
import { within } from "./paint.js";
import { css } from "./theme.js";

const ROW = 15, FRAME = 40, LEAST = 180; // CSS pixels
const LOW = [247, 240, 225], MIDDLE = [230, 159, 0], HIGH = [110, 20, 60];

/** A heat map of the lines, one row each; colours are by the logarithm of the value. */
export function heat(lines) {
  let low = Infinity, high = -Infinity;
  for (const line of lines) for (const value of line.last) if (value > 0) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const share = (value) => (high > low ? Math.log(value / low) / Math.log(high / low) : 0.5);
  const paint = (u) => within(u, (ctx, { px, py }) => lines.forEach((line, row) => {
    const top = Math.floor(py(row)), height = Math.ceil(py(row + 1)) - top;
    line.x.forEach((x, i) => {
      if (!(line.last[i] > 0)) return;
      const half = (b) => (line.x[b] === undefined ? null : (line.x[b] - x) / 2);
      const [left, right] = [half(i - 1) ?? -(half(i + 1) ?? 0.5), half(i + 1) ?? -(half(i - 1) ?? -0.5)];
      const from = Math.floor(px(x + left));
      ctx.fillStyle = shade(share(line.max[i]));
      ctx.fillRect(from, top, Math.max(1, Math.ceil(px(x + right)) - from), height);
    });
  }));
  return { paint, rows: lines.map((line) => line.label), height: Math.max(LEAST, lines.length * ROW + FRAME) };
}

/** A colour between LOW and HIGH, for 0 to 1; its lightness falls steadily. */
function shade(share) {
  const [a, b, t] = share < 0.5 ? [LOW, MIDDLE, 2 * share] : [MIDDLE, HIGH, 2 * share - 1];
  return `rgb(${a.map((value, i) => Math.round(value + t * (b[i] - value))).join(" ")})`;
}

/** Bars over the steps of each candidate's trainings, and of the winner's after the search. */
export function timeline(run, { to }) {
  const spans = run.trainings(), ids = [...new Set(spans.map((span) => span.value))];
  if (!ids.some((id) => id !== null)) return { rows: [] };
  const known = new Map(run.candidates.map((c) => [c.id, c]));
  const later = run.summary?.winner_activation ?? run.entry.symbio_winner ?? run.config.model?.activation;
  const paint = (u) => within(u, (ctx, { px, py, ratio }) => {
    for (const { from, to: end, value } of spans) {
      const row = ids.indexOf(value), left = px(to(from - 1)), width = Math.max(2 * ratio, px(to(end)) - left);
      ctx.fillStyle = colourOf(value === null ? later : known.get(value)?.activation ?? activationAt(run, from));
      ctx.fillRect(left, py(row) + 2 * ratio, width, py(row + 1) - py(row) - 4 * ratio);
      ctx.fillStyle = css("--surface");
      ctx.fillRect(left + width - ratio / 2, py(row), ratio / 2, py(row + 1) - py(row));
    }
  });
  const names = labels(run.candidates), rows = ids.map((id) => (id === null ? "after" : names.get(id) ?? id));
  return { paint, rows, height: Math.max(LEAST, rows.length * ROW + FRAME) };
}

const activationAt = (run, step) => run.spans("symbio_candidate_activation").findLast((s) => s.from <= step)?.value;
