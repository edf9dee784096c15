// The board's event stream, read with fetch, since an EventSource cannot send a token.

import { parse, request } from "./api.js";

const FIRST_WAIT = 500, LONGEST_WAIT = 10000; // ms between attempts
const SILENCE = 45000; // ms after which a connection is dead, as after a laptop's sleep: the board pings every 15 s

/**
 * Follow the stream of these runs and of an experiment ("": none); after an interruption it goes on where it was. A
 * hidden tab does not follow it, for browsers allow six connections to a board, in all tabs together; it catches up
 * when it is seen again.
 * hear(event, data) gets each message, state(word) "live" or "reconnecting". Returns a function that ends it.
 */
export function follow(runs, experiment, hear, state) {
  const asked = [...runs.map((id) => ["run", id]), ...(experiment ? [["experiment", experiment]] : [])];
  const end = new AbortController(), query = String(new URLSearchParams(asked));
  let cursor = null, wait = FIRST_WAIT, connection = null;

  const cut = () => connection?.abort();
  end.signal.addEventListener("abort", cut);
  document.addEventListener("visibilitychange", () => document.hidden && cut(), { signal: end.signal });

  function told(event, data) {
    try {
      hear(event, data);
    } catch (error) {
      reportError(error); // a fault of the page, not of the connection
    }
  }

  async function read({ signal }) {
    const headers = cursor === null ? {} : { "Last-Event-ID": cursor };
    const response = await request(`stream${query && `?${query}`}`, { headers, signal });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    state("live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const silent = setTimeout(cut, SILENCE), { value, done } = await reader.read().finally(() => clearTimeout(silent));
      if (done) return;
      wait = FIRST_WAIT;
      const messages = (text + value).split(/\r\n\r\n|\n\n/);
      text = messages.pop();
      for (const message of messages) {
        if (signal.aborted) return;
        const { id, event, data } = fields(message);
        if (data !== undefined) told(event, parse(data));
        cursor = id ?? cursor;
      }
    }
  }

  (async () => {
    while (!end.signal.aborted) {
      if (document.hidden) { await shown(); continue; }
      connection = new AbortController();
      await read(connection).catch((error) => connection.signal.aborted || console.info(`stream: ${error.message}`));
      if (end.signal.aborted || document.hidden) continue;
      state("reconnecting");
      await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  })();
  return () => end.abort();
}

const shown = () => new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

function fields(message) {
  const found = {};
  for (const line of message.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data" && found.data !== undefined) found.data += `\n${value}`;
    else if (name) found[name] = value;
  }
  return found;
}
