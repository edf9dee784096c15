// Colours and short names of activations, as in reports. The server makes activations.js, of model/activations.py.

import { FORMULAS, FORMULAS_COLOUR, MIXED, MIXED_COLOUR, MORE, SHOWN, TABLE } from "./activations.js";

/** Those of the lines of a chart, and of the runs that are compared. */
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6f00", "#7f7f7f"];

/** The parts of a list of activations: with | between, or, where all are names, with commas. */
export const split = (activation) =>
  activation.split(/^[\p{L}\p{N}_\s,;]*$/u.test(activation) ? "," : "|").map((part) => part.trim());

/** "gelu×4 relu×2" where blocks differ, the most frequent first; of "name: formula" the name. */
export function shortName(activation) {
  const names = split(activation ?? "").map(short).sort(byRank), counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  if (counts.size === 1) return names[0];
  return [...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) => `${name}×${n}`).join(" ");
}

function short(text) {
  const letters = [...text.split(":", 1)[0]];
  return letters.length <= SHOWN ? letters.join("") : `${letters.slice(0, SHOWN - 1).join("")}…`;
}

const NAMES = Object.keys(TABLE), rank = (name) => (Object.hasOwn(TABLE, name) ? NAMES.indexOf(name) : NAMES.length);
const byRank = (a, b) => rank(a) - rank(b);

const isName = (text) => /^[A-Za-z][A-Za-z0-9_]*$/.test(text) && !["x", "g", "u"].includes(text);

/** The short names among these activations, each once, in the table's order. The mixed ones count as one, and so do
 *  formulas without a name, where there are more than colours for them. */
export function kinds(activations) {
  const found = new Set(activations.map((activation) => shortName(activation || MIXED)));
  let single = [...found].filter((name) => !name.includes("×"));
  const mixed = single.length < found.size && !single.includes(MIXED) ? [MIXED] : [], named = single.filter(isName);
  if (single.length > named.length + MORE.length) single = [...named, FORMULAS];
  return [...single.sort(byRank), ...mixed];
}

/** What `kinds` calls an activation, where it has returned `among`. */
export function kind(activation, among = []) {
  const [name] = kinds([activation]);
  return among.includes(FORMULAS) && !among.includes(name) ? FORMULAS : name;
}

/** The colour of an activation, of its short name, or of its kind. */
export function colourOf(activation) {
  const name = kind(activation);
  if (Object.hasOwn(TABLE, name)) return TABLE[name];
  if (name === MIXED) return MIXED_COLOUR;
  if (name === FORMULAS) return FORMULAS_COLOUR;
  let hash = 0;
  for (const letter of name) hash = (Math.imul(31, hash) + letter.codePointAt(0)) >>> 0;
  return MORE[hash % MORE.length];
}
