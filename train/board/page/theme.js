// Light or dark: as the system has it, or as it was chosen here before.

const KEY = "helios-theme", system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set(), known = new Map();

export const dark = () => (localStorage.getItem(KEY) ?? (system.matches ? "dark" : "light")) === "dark";

/** Call `work` when light turns to dark or back, until what is returned is called. */
export function onTheme(work) {
  listeners.add(work);
  return () => listeners.delete(work);
}

/** The value of one of style.css's colours, as a canvas needs it. */
export function css(name) {
  if (!known.has(name)) {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    known.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return known.get(name);
}

function apply(button) {
  const chosen = localStorage.getItem(KEY);
  if (chosen) document.documentElement.dataset.theme = chosen;
  button.textContent = dark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
  known.clear();
  for (const work of listeners) work();
}

/** Let the button switch. */
export function themed(button) {
  button.addEventListener("click", () => {
    localStorage.setItem(KEY, dark() ? "light" : "dark");
    apply(button);
  });
  system.addEventListener("change", () => apply(button));
  apply(button);
}
