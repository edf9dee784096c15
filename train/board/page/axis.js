// The x axes: by step, tokens or time, and of experiments by generation.

import { count, duration, short } from "./format.js";

const SECONDS = [0.01, 0.1, 1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((minutes) => 60 * minutes),
                 ...[1, 2, 3, 6, 12, 24, 48, 120, 240, 720, 2400].map((hours) => 3600 * hours)];

const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

/**
 * The x axes. word: what it is called; say(x): its numbers; exact(x): the same where a narrow range makes them alike;
 * steps: distances of those that are written.
 */
export const AXES = {
  step: { word: "step", say: (x) => count(Math.round(x)), exact: count, steps: WHOLE },
  tokens: { word: "tokens", say: short, exact: count, steps: WHOLE },
  time: { word: "time", say: duration, exact: (x) => `${(x / 1000).toFixed(2)} s`,
          steps: SECONDS.map((seconds) => 1000 * seconds) },
  generation: { word: "generation", say: count, exact: count, steps: WHOLE },
};

/** Write numbers on an axis, exactly where they would else be alike. */
export function written(values, say, exact) {
  const texts = values.map(say);
  return new Set(texts).size === texts.length ? texts : values.map(exact);
}

/** The range over all ranges; never empty. */
export function span(ranges) {
  const low = Math.min(...ranges.map(([from]) => from)), high = Math.max(...ranges.map(([, to]) => to));
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}
