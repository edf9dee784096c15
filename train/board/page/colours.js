// Colours and short names of activations, as model/activations.py gives them to reports.

/** Of those that have a name, in the order in which they are shown. */
export const TABLE = {
  gelu: "#0072b2", silu: "#e69f00", relu: "#009e73", swiglu: "#d55e00", universal: "#cc79a7", kan_spline: "#56b4e9",
  gelu_exact: "#003f5c", relu2: "#44aa99", tanh: "#882255", sigmoid: "#aa4499", leaky_relu: "#117733", elu: "#999933",
  softplus: "#ddcc77", mish: "#bf812d", geglu: "#cc6677", reglu: "#8c510a", kan_bspline: "#88ccee",
};
/** Of formulas. */
export const MORE = ["#332288", "#6699cc", "#b2182b", "#5aae61", "#762a83", "#e08214", "#1b7837", "#c51b7d"];
export const MIXED = "mixed"; // where blocks differ, or nothing is known
const MIXED_COLOUR = "#666666", SHOWN = 32, NAMES = Object.keys(TABLE);

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

const rank = (name) => (Object.hasOwn(TABLE, name) ? NAMES.indexOf(name) : NAMES.length);
const byRank = (a, b) => rank(a) - rank(b);

/** The short names among these activations, each once, in the table's order, the mixed ones as one. */
export function kinds(activations) {
  const found = new Set(activations.map((activation) => shortName(activation || MIXED)));
  const single = [...found].filter((name) => !name.includes("×")).sort(byRank);
  return single.length < found.size && !single.includes(MIXED) ? [...single, MIXED] : single;
}

/** What `kinds` calls an activation. */
export const kind = (activation) => kinds([activation])[0];

/** The colour of an activation, of its short name, or of its kind. */
export function colourOf(activation) {
  const name = kind(activation);
  if (Object.hasOwn(TABLE, name)) return TABLE[name];
  if (name === MIXED) return MIXED_COLOUR;
  let hash = 0;
  for (const letter of name) hash = (Math.imul(31, hash) + letter.codePointAt(0)) >>> 0;
  return MORE[hash % MORE.length];
}
