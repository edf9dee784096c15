// Okabe and Ito's colours, which colour-blind people can tell apart, too; those of train/search/plots.py.
export const COLOURS = {
  gelu: "#0072b2", silu: "#e69f00", relu: "#009e73", swiglu: "#d55e00", universal: "#cc79a7", kan_spline: "#56b4e9",
  mixed: "#666666",
};

/** Those of the lines of a chart, and of the runs that are compared. */
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6f00", "#7f7f7f"];

/** The key in COLOURS of an activation; one that differs by block is mixed. */
export const colourKey = (activation) => (Object.hasOwn(COLOURS, activation ?? "") ? activation : "mixed");
export const colourOf = (activation) => COLOURS[colourKey(activation)];

/** "gelu×4 relu×2" where blocks differ, the most frequent first. */
export function shortName(activation) {
  if (!activation?.includes(",")) return activation ?? "";
  const counts = new Map();
  for (const name of activation.split(",")) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) => `${name}×${n}`).join(" ");
}
