// Elements without markup: whatever a run says ends in text nodes and attributes, never in markup.

/** Make an element. Attributes that are null or false are left out, on… are listeners; children are nodes or text. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A coloured square. The colour is set through the CSSOM, which a strict Content-Security-Policy allows. */
export function swatch(colour) {
  const element = h("i", { class: "swatch", "aria-hidden": "true" });
  element.style.background = colour;
  return element;
}

/** Scroll an element into the view of its own scrolling box, without moving the page. */
export function reveal(element, box) {
  const inner = element.getBoundingClientRect(), outer = box.getBoundingClientRect();
  box.scrollBy({ left: inner.left + inner.width / 2 - outer.left - outer.width / 2,
                 top: inner.top + inner.height / 2 - outer.top - outer.height / 2 });
}

/** Call `work` once, `ms` after the first of any number of calls, or as late as leaves most of the time to others. */
export function soon(work, ms) {
  let timer = null, taken = 0;
  return () => {
    timer ??= setTimeout(() => {
      const began = performance.now();
      timer = null;
      work();
      taken = performance.now() - began;
    }, Math.max(ms, 3 * taken));
  };
}
