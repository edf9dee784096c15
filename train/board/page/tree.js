// The lineage tree of a search or an experiment: generations from left to right, children beside their parents.

import { colourOf, kind, kinds, shortName } from "./colours.js";
import { h, reveal, svg, swatch } from "./dom.js";
import { labels, loss, settings } from "./format.js";
import { stratify, tree } from "./vendor/d3-hierarchy/d3-hierarchy.js";

const ACROSS = 160, WIDEST = 280, DOWN = 30, RADIUS = 6, LETTER = 6.4, EDGE = 16, ROOT = "/";

/** What their colours mean, in words. */
export const key = (candidates) => kinds(candidates.map((c) => c.activation)).map((name) =>
  h("span", {}, swatch(colourOf(name)), name));

/** How the candidates of a search look: colours(all) gives that of one, under(one) is what stands below its name,
 *  about(one) what is said of it besides, kind(one) a class. */
export const LOOK = {
  colours: (all) => {
    const shown = kinds(all.map((c) => c.activation));
    return (c) => colourOf(kind(c.activation, shown));
  },
  under: (c) => ((c.val_loss_mean ?? null) === null ? c.status ?? "" : loss(c.val_loss_mean)),
  about: (c) => [shortName(c.activation), settings(c.settings),
                 (c.val_loss_mean ?? null) !== null && `val ${loss(c.val_loss_mean)}`],
  kind: () => "",
};

export class Tree {
  /** pick(id): a node was chosen. look: as LOOK; colours may be null where a class says it. */
  constructor(pick, look = LOOK) {
    this.pick = pick;
    this.look = look;
    this.box = h("div", { class: "tree scroll", tabindex: -1 });
    this.nodes = new Map();
  }

  /** Draw the candidates; winner: an id or null. */
  show(candidates, winner) {
    const { nodes, width, height } = layout(candidates, this.box.clientWidth);
    this.nodes.clear();
    const at = new Map(nodes.map((node) => [node.id, node])), colour = this.look.colours?.(candidates);
    const line = (from, node, className) => {
      const start = from.x + 20 + LETTER * label(from).length, middle = (start + node.x) / 2;
      return svg("path", { class: className,
        d: `M${start} ${from.y}C${middle} ${from.y} ${middle} ${node.y} ${node.x} ${node.y}` });
    };
    const lines = nodes.flatMap((node) => [[node.candidate.parent_id], node.candidate.others ?? []].flatMap((ids, i) =>
      ids.filter((id) => at.has(id)).map((id) => line(at.get(id), node, i ? "other" : node.candidate.line))));
    const circles = nodes.map((node) => this.#node(node, winner, colour));
    this.box.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": "Lineage: generations from left to right" }, svg("g", { class: "lines" }, lines), circles));
  }

  /** Mark a node and bring it into view. */
  select(id) {
    for (const [other, element] of this.nodes) {
      element.classList.toggle("picked", other === id);
      element.setAttribute("aria-pressed", other === id);
    }
    if (this.nodes.has(id)) reveal(this.nodes.get(id), this.box);
  }

  #node({ id, x, y, candidate, name }, winner, colours) {
    const colour = colours?.(candidate), open = !candidate.status || candidate.status === "reused", { look } = this;
    const circle = svg("circle", { r: RADIUS, stroke: colour, fill: open ? "none" : colour });
    const about = [name, ...look.about(candidate), id === winner && "winner", candidate.status]
      .filter(Boolean).join(", ");
    const choose = () => this.pick(id);
    const element = svg("g", { class: `node ${look.kind(candidate)}`.trim(), transform: `translate(${x} ${y})`,
      tabindex: 0, role: "button",
      "aria-label": about, "data-id": id, onclick: choose, onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose();
      } },
      svg("title", {}, about), svg("rect", { x: -11, y: -13, width: ACROSS - 16, height: 26, rx: 5 }),
      id === winner && svg("circle", { r: RADIUS + 3.5, class: "winner" }), circle,
      svg("text", { x: 13, y: 0 }, svg("tspan", {}, label({ name })),
        svg("tspan", { class: "value", x: 13, dy: 11 }, look.under(candidate))));
    this.nodes.set(id, element);
    return element;
  }
}

function label({ name }) {
  return name.length > 18 ? `${name.slice(0, 17)}…` : name;
}

/** Where each candidate lies. A child of an earlier generation than the last hangs on a chain of empty places. */
function layout(candidates, room) {
  const known = new Map(candidates.map((c) => [c.id, c])), first = Math.min(...candidates.map((c) => c.generation));
  const places = [{ id: ROOT, up: null }];
  for (const candidate of known.values()) {
    const parent = known.get(candidate.parent_id);
    let up = parent && parent.generation < candidate.generation ? parent.id : ROOT;
    for (let g = (up === ROOT ? first - 1 : parent.generation) + 1; g < candidate.generation; g++) {
      places.push({ id: `${candidate.id}/${g}`, up });
      up = `${candidate.id}/${g}`;
    }
    places.push({ id: candidate.id, up, candidate });
  }
  const root = stratify().id((place) => place.id).parentId((place) => place.up)(places);
  tree().nodeSize([DOWN, ACROSS]).separation(() => 1)(root);
  const all = root.descendants(), top = Math.min(...all.map((node) => node.x));
  const names = labels(candidates), across = Math.max(ACROSS, Math.min(WIDEST, (room - 2 * EDGE) / root.height));
  const nodes = all.filter((node) => node.data.candidate).map((node) => ({ id: node.id, candidate: node.data.candidate,
    name: names.get(node.id), x: (node.depth - 1) * across + EDGE, y: node.x - top + EDGE }));
  return { nodes, width: Math.max(...nodes.map((node) => node.x)) + ACROSS,
           height: Math.max(...nodes.map((node) => node.y)) + EDGE };
}
