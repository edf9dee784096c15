// What is drawn on a chart's canvas besides uPlot's lines. All of it lies within the plot.

import { css } from "./theme.js";

const RED = "#d00000";

/** Call draw(context, {px, py, box, ratio}) with the canvas cut to the plot; px and py turn values into pixels.
 *  more: CSS pixels that may be drawn on to the left and right of it. */
export function within(u, draw, more = 0) {
  const { ctx, bbox } = u, ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left - more * ratio, bbox.top, bbox.width + 2 * more * ratio, bbox.height);
  ctx.clip();
  draw(ctx, { px: (x) => u.valToPos(x, "x", true), py: (y) => u.valToPos(y, "y", true), box: bbox, ratio });
  ctx.restore();
}

/** From the least to the greatest of each bucket, so that no spike is lost; where smoothed, the values, too. */
export function bands(u, lines) {
  within(u, (ctx, { px, py, ratio }) => {
    for (const line of lines) {
      if (line.hidden) continue;
      ctx.fillStyle = ctx.strokeStyle = line.colour;
      ctx.lineWidth = ratio;
      ctx.globalAlpha = 0.28;
      for (const [from, to] of runsOf(line)) {
        if (!line.wide) continue;
        ctx.beginPath();
        for (let i = from; i < to; i++) ctx.lineTo(px(line.x[i]), py(line.max[i]));
        for (let i = to - 1; i >= from; i--) ctx.lineTo(px(line.x[i]), py(line.min[i]));
        ctx.closePath();
        ctx.fill();
        ctx.stroke(); // a spike one bucket wide stays visible
      }
      if (!line.smoothed) continue;
      ctx.globalAlpha = 0.35;
      for (const [from, to] of runsOf(line)) {
        ctx.beginPath();
        for (let i = from; i < to; i++) ctx.lineTo(px(line.x[i]), py(line.last[i]));
        ctx.stroke();
      }
    }
  });
}

/** The stretches without a missing value, as [from, to). */
function* runsOf(line) {
  let from = null;
  for (let i = 0; i <= line.x.length; i++) {
    const known = i < line.x.length && line.last[i] !== null && line.min[i] !== null;
    if (known) from ??= i;
    else if (from !== null) { yield [from, i]; from = null; }
  }
}

/** A red mark on the x axis where a value was not finite. */
export function missing(u, lines) {
  within(u, (ctx, { px, box, ratio }) => {
    ctx.fillStyle = RED;
    for (const line of lines.filter((each) => each.gaps)) {
      line.missing.forEach((n, i) => {
        if (n) ctx.fillRect(px(line.x[i]) - 1.5 * ratio, box.top + box.height - 6 * ratio, 3 * ratio, 6 * ratio);
      });
    }
  });
}

/** Dashed lines across. */
export function thresholds(u, values) {
  within(u, (ctx, { py, box, ratio }) => {
    ctx.strokeStyle = css("--alarm");
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.lineWidth = ratio;
    for (const value of values) {
      ctx.beginPath();
      ctx.moveTo(box.left, py(value));
      ctx.lineTo(box.left + box.width, py(value));
      ctx.stroke();
    }
  });
}

/** Areas between a line and the one before it. */
export function areas(u, lines) {
  within(u, (ctx, { px, py }) => {
    lines.forEach((line, k) => {
      ctx.fillStyle = line.colour;
      ctx.globalAlpha = 0.75;
      ctx.beginPath();
      line.x.forEach((x, i) => ctx.lineTo(px(x), py(line.last[i])));
      for (let i = line.x.length - 1; i >= 0; i--) ctx.lineTo(px(line.x[i]), py(k ? lines[k - 1].last[i] : 0));
      ctx.fill();
    });
  });
}

/** Marks of a run: {x, kind, colour, y, label}. Their kinds, in order, are what a chart's legend explains. */
export const MARKS = {
  switch: { sign: "┆", word: "activation switch" },
  warmup: { sign: "╎", word: "warm-up end" },
  challenge: { sign: "┊", word: "challengers" },
  champion: { sign: "┃", word: "a challenger won" },
  action: { sign: "┊", word: "action" },
  checkpoint: { sign: "▴", word: "checkpoint" },
  spike: { sign: "▾", word: "spike" },
  best: { sign: "★", word: "best val" },
  picked: { sign: "○", word: "selected" },
};

const DASHES = { switch: [2, 3], warmup: [6, 3], challenge: [1, 5], champion: [], action: [1, 2] }; // of those that are lines

export function marks(u, list) {
  within(u, (ctx, { px, py, box, ratio }) => {
    const bottom = box.top + box.height, size = 4 * ratio;
    const labelled = []; // from where to where there are labels, of the first marks of the list
    for (const { x, kind, colour, y, label } of list) {
      const at = px(x);
      if (at < box.left - 1 || at > box.left + box.width + 1) continue;
      ctx.fillStyle = ctx.strokeStyle = colour ?? css("--muted");
      ctx.lineWidth = ratio;
      if (kind in DASHES) {
        ctx.setLineDash(DASHES[kind].map((length) => length * ratio));
        ctx.beginPath();
        ctx.moveTo(at, box.top);
        ctx.lineTo(at, bottom);
        ctx.stroke();
        ctx.setLineDash([]);
        ctx.font = `${10 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "alphabetic";
        const end = at + ctx.measureText(label ?? "").width + 8 * ratio;
        if (label && labelled.every(([from, to]) => end < from || at > to)) {
          ctx.fillText(label, at + 3 * ratio, box.top + 18 * ratio); // below the spikes
          labelled.push([at, end]);
        }
      } else if (kind === "picked") {
        ctx.lineWidth = 2 * ratio;
        ctx.beginPath();
        ctx.arc(at, py(y), 1.5 * size, 0, 2 * Math.PI);
        ctx.stroke();
      } else if (kind === "best") {
        star(ctx, at, y === undefined ? bottom - size : py(y), 1.7 * size);
      } else {
        const [base, tip] = kind === "spike" ? [box.top, box.top + 1.7 * size] : [bottom, bottom - 1.7 * size];
        ctx.beginPath();
        ctx.moveTo(at - size, base);
        ctx.lineTo(at + size, base);
        ctx.lineTo(at, tip);
        ctx.fill();
      }
    }
  }, 8);
}

function star(ctx, x, y, size) {
  ctx.beginPath();
  for (let i = 0; i < 10; i++) {
    const radius = i % 2 ? 0.42 * size : size, angle = (i * Math.PI) / 5;
    ctx.lineTo(x + radius * Math.sin(angle), y - radius * Math.cos(angle));
  }
  ctx.closePath();
  ctx.fill();
}
