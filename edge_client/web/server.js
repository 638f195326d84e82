// The token and every request. The token lives in this tab alone and is sent to this origin alone.

const KEY = "causeway-token";

export class Failed extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// Gives the code of a link that works once for the token, and takes it out of the address.
export async function unlock() {
  const code = /^#open=([\w-]+)$/.exec(location.hash)?.[1];
  if (code) {
    history.replaceState(null, "", "/");
    const answer = await fetch("/causeway/session", { method: "POST", body: code });
    if (!answer.ok) {
      if (sessionStorage.getItem(KEY)) return;
      throw await failure(answer);
    }
    sessionStorage.setItem(KEY, (await answer.json()).token);
  }
  if (!sessionStorage.getItem(KEY)) throw new Failed("no_token", "");
}

async function failure(answer) {
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) sessionStorage.removeItem(KEY);
  return new Failed(body.error?.code || `http_${answer.status}`, body.error?.message);
}

async function request(path, options) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed("unreachable", "edge serve does not answer (is it still running in its terminal?)");
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

export async function call(method, path, body) {
  return (await request(path, { method, body })).json();
}

// One streamed answer: `heard` is given each event. A stream that ends without [DONE] was broken off.
export async function stream(path, body, signal, heard) {
  const answer = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", done = false; !done;) {
    const { value, done: ended } = await reader.read();
    if (ended) throw new Failed("broken_off", "the answer broke off (ask again)");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") {
        done = true;
        break;
      }
      const said = JSON.parse(data);
      if (said.error) throw new Failed(said.error.code, said.error.message);
      heard(said);
    }
  }
}
