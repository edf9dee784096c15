// Scales and ticks of the charts of experiments, which are SVG, so that their colours are the style's.

import { number, said } from "./format.js";

/** A scale: to(value) is from 0 (low) to 1, from(share) its inverse; ticks(n): about n values to write. */
export function linear(low, high) {
  const [a, b] = high > low ? [low, high] : [low - (Math.abs(low) * 0.05 || 0.5), low + (Math.abs(low) * 0.05 || 0.5)];
  return { low: a, high: b, to: (value) => (value - a) / (b - a), from: (share) => a + share * (b - a), say: number,
           ticks: (n) => steps(a, b, n) };
}

/** The same for positive values whose factors count. */
export function logarithmic(low, high) {
  const inner = linear(Math.log10(low), Math.log10(high));
  const powers = () => steps(inner.low, inner.high, 4).filter(Number.isInteger).map((power) => 10 ** power);
  return { low, high, to: (value) => inner.to(Math.log10(value)), from: (share) => 10 ** inner.from(share), say: number,
           ticks: (n) => (powers().length >= 2 ? powers() : steps(low, high, n)) };
}

/** The same for a list of values of any kind, each at its place. */
export function places(values) {
  const keys = values.map((value) => JSON.stringify(value)), n = Math.max(1, values.length - 1);
  const at = (value) => keys.indexOf(JSON.stringify(value));
  return { low: 0, high: n, values, at, to: (value) => at(value) / n,
           from: (share) => share * n, say: said, ticks: () => values };
}

/** About n round values from low to high. */
function steps(low, high, n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough), first = Math.ceil(low / step);
  if (!(step > 0)) return [];
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)));
}

/** The least and the greatest of some values; [0, 1] where there are none. */
export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

const SHAPES = {
  evolved: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  random: (x, y, r) => `M${x - 1.15 * r} ${y + 0.9 * r}l${1.15 * r} ${-2 * r}l${1.15 * r} ${2 * r}z`,
  preset: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  out: (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
};

/** The path of a candidate's mark: of its arm, or "out". */
export const shape = (name, x, y, r) => SHAPES[name](Number(x.toFixed(1)), Number(y.toFixed(1)), r);
