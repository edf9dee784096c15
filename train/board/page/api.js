// Requests to the board. Where reading needs a token, the page asks for it and keeps it for the session.

import { h } from "./dom.js";

const TOKEN = "helios-token";

export const token = () => sessionStorage.getItem(TOKEN);

/** Fetch api/PATH, asking for a token as long as the board wants one. */
export async function request(path, options = {}) {
  for (;;) {
    const used = token(), headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(`api/${path}`, { ...options, headers });
    if (response.status !== 401) return response;
    if (used === token()) await ask(used !== null);
  }
}

/** What the board refused, in its own words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Return the JSON of api/PATH. Throws Refused. */
export async function get(path) {
  const response = await request(path), text = await response.text();
  let body = {};
  try {
    body = parse(text);
  } catch {
    throw new Refused(`${path}: the board's answer is no JSON (HTTP ${response.status})`, response.status);
  }
  if (!response.ok) throw new Refused(body.error ?? `HTTP ${response.status}`, response.status);
  return body;
}

/** Read JSON in which Python may have written NaN and Infinity: they become null. */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b/g, (m) => (m[0] === '"' ? m : "null")));
  }
}

let asking = null;

/** Ask for the token, once for all requests that wait for it. */
function ask(wrong) {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", name: "token", id: "token", autocomplete: "off", required: true });
    const form = h("form", { method: "dialog" },
      h("label", { for: "token" }, wrong ? "The board does not know this token. Token:" : "This board needs a token:"),
      input, h("button", { type: "submit" }, "Open"));
    const dialog = h("dialog", { class: "token", "aria-label": "Token" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, input.value.trim());
      dialog.remove();
      asking = null;
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** A link to a file of the board; where a token is needed, which a link cannot send, the file is fetched first. */
export function download(href, name) {
  const own = typeof href === "string" && /^\/?api\//.test(href);
  if (!own) return h("span", {}, name);
  const path = href.replace(/^\/?api\//, "");
  return h("a", { href: `api/${path}`, download: name, onclick: async (event) => {
    if (!token()) return;
    event.preventDefault();
    const url = URL.createObjectURL(await (await request(path)).blob());
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } }, name);
}
