// The server, as the page sees it. A key is kept for this tab alone.

const KEY = "api-key";
const MOST_CLASSES = 100; // the page asks for both heads' predictions of so many
const MOST_TRIES = 4;

export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export class Refused extends Error {
  constructor(status, title, detail) {
    super(detail);
    Object.assign(this, { status, title, detail });
  }
}

export async function listModels() {
  const { body } = await ask("models");
  return body;
}

// The answer for one picture, with `total_ms` as this browser measured it and `stages` as the server did.
export async function classify(file, model, version, { onWait, signal }) {
  const query = new URLSearchParams({ model: model.name, version, pixels: true, heads: model.has_heads, explain: model.is_explained });
  query.set("top_k", Math.min(model.labels.length, MOST_CLASSES));
  const form = new FormData();
  form.append("image", file);
  for (let tries = 1; ; tries++) {
    try {
      const { response, body, total_ms } = await ask(`classify?${query}`, { method: "POST", body: form, signal });
      return { ...body, total_ms, stages: stagesOf(response) };
    } catch (error) {
      // "Too many requests" and "not ready" say when to come back; nothing else gets better by asking again.
      if (!error.retryAfter || tries === MOST_TRIES) throw error;
      onWait(error.retryAfter);
      await new Promise((resolve) => setTimeout(resolve, error.retryAfter * 1000));
    }
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const started = performance.now();
  let response, body;
  try {
    response = await fetch(path, { ...options, headers });
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached", "Is it still running? You can send the image again.");
  }
  if (response.ok) return { response, body, total_ms: performance.now() - started };
  const refused = new Refused(response.status, body.title, body.detail);
  refused.retryAfter = Number(response.headers.get("Retry-After"));
  throw refused;
}

// "receive;dur=0.3, decode;dur=5.1" -> [["receive", 0.3], ["decode", 5.1]]
function stagesOf(response) {
  const entries = (response.headers.get("Server-Timing") ?? "").split(", ").filter(Boolean);
  return entries.map((entry) => entry.split(";dur=")).map(([name, ms]) => [name, Number(ms)]);
}
