// The x axes: by step, tokens or time.

import { count, duration, short } from "./format.js";

const SECONDS = [0.01, 0.1, 1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((minutes) => 60 * minutes),
                 ...[1, 2, 3, 6, 12, 24, 48, 120, 240, 720, 2400].map((hours) => 3600 * hours)];

/** word: what it is called; say(x): its numbers; steps: distances of those that are written, where not decimal. */
export const AXES = {
  step: { word: "step", say: (x) => count(Math.round(x)) },
  tokens: { word: "tokens", say: short },
  time: { word: "time", say: duration, steps: SECONDS.map((seconds) => 1000 * seconds) },
};

/** The range over all ranges; never empty. */
export function span(ranges) {
  const low = Math.min(...ranges.map(([from]) => from)), high = Math.max(...ranges.map(([, to]) => to));
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}
