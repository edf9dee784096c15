// The x axes: by step, tokens or time.

import { count, duration, short } from "./format.js";

export const AXIS_NAMES = {
  step: { word: "step", say: (x) => count(Math.round(x)) },
  tokens: { word: "tokens", say: short },
  time: { word: "time", say: duration },
};

/** The range over all ranges; never empty. */
export function span(ranges) {
  const low = Math.min(...ranges.map(([from]) => from)), high = Math.max(...ranges.map(([, to]) => to));
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}
