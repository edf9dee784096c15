// The board's event stream, read with fetch, since an EventSource cannot send a token.

import { parse, request } from "./api.js";

const FIRST_WAIT = 500, LONGEST_WAIT = 10000; // ms between attempts

/**
 * Follow the stream of these runs; after an interruption it goes on where it was.
 * hear(event, data) gets each message, state(word) "live" or "reconnecting". Returns a function that ends it.
 */
export function follow(runs, hear, state) {
  const abort = new AbortController(), query = runs.map((id) => `run=${encodeURIComponent(id)}`).join("&");
  let cursor = null, wait = FIRST_WAIT;

  function told(event, data) {
    try {
      hear(event, data);
    } catch (error) {
      reportError(error); // a fault of the page, not of the connection
    }
  }

  async function read() {
    const headers = cursor === null ? {} : { "Last-Event-ID": cursor };
    const response = await request(`stream${query && `?${query}`}`, { headers, signal: abort.signal });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    state("live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      wait = FIRST_WAIT;
      const messages = (text + value).split(/\r\n\r\n|\n\n/);
      text = messages.pop();
      for (const message of messages) {
        const { id, event, data } = fields(message);
        if (data !== undefined && !abort.signal.aborted) told(event, parse(data));
        cursor = id ?? cursor;
      }
    }
  }

  (async () => {
    while (!abort.signal.aborted) {
      await read().catch((error) => abort.signal.aborted || console.info(`stream: ${error.message}`));
      if (abort.signal.aborted) return;
      state("reconnecting");
      await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  })();
  return () => abort.abort();
}

function fields(message) {
  const found = {};
  for (const line of message.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data" && found.data !== undefined) found.data += `\n${value}`;
    else if (name) found[name] = value;
  }
  return found;
}
