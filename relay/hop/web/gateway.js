// The gateway's side: this phone's key, proofs that it has it (RFC 9449), short tokens, tunnels for opaque bytes.

const utf8 = (text) => new TextEncoder().encode(text);
const base64url = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes)))
  .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const sha256 = (bytes) => crypto.subtle.digest("SHA-256", bytes);
const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Refused extends Error {} // asking again changes nothing

let key, token, renewAt, nonce;

// What the browser keeps for this page: {key, id}.
async function kept(work) {
  const opening = indexedDB.open("causeway-hop");
  opening.onupgradeneeded = () => opening.result.createObjectStore("kept");
  return done(work((await done(opening)).transaction("kept", "readwrite").objectStore("kept")));
}

// The ID under which this phone has joined, if it has.
export async function known() {
  const found = await kept((store) => store.get("hop"));
  key = found?.key;
  return found?.id;
}

export async function join(invitation) {
  if (!key) { // and kept before it is used: should the answer be lost, the invitation is bound to it
    key = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]); // not exportable
    await kept((store) => store.put({ key }, "hop"));
  }
  const { id } = await ask("/hop/join", { invitation });
  await kept((store) => store.put({ key, id }, "hop"));
  return id;
}

// A token, a new one in the last fifth of its life or if `anew`.
export async function authorise(anew) {
  if (anew || !(performance.now() < renewAt)) await ask("/hop/token", {});
  return token;
}

async function ask(path, body, again = true) {
  const headers = { DPoP: await proof("POST", path), "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const said = await answer.json().catch(() => ({}));
  nonce = answer.headers.get("DPoP-Nonce") ?? nonce;
  if (said.error?.code === "use_dpop_nonce" && again) return ask(path, body, false);
  if (answer.status >= 500 || answer.status === 429) throw new Error("busy");
  if (!answer.ok) throw new Refused(said.error?.code);
  token = said.access_token;
  renewAt = performance.now() + 800 * said.expires_in;
  return said;
}

async function proof(htm, path, access) {
  const { kty, crv, x, y } = await crypto.subtle.exportKey("jwk", key.publicKey);
  const signed = [{ typ: "dpop+jwt", alg: "ES256", jwk: { kty, crv, x, y } }, {
    jti: base64url(crypto.getRandomValues(new Uint8Array(16))), htm, htu: location.origin + path, nonce,
    iat: Math.floor(Date.now() / 1000), ath: access && base64url(await sha256(utf8(access))),
  }].map((part) => base64url(utf8(JSON.stringify(part)))).join(".");
  const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, key.privateKey, utf8(signed));
  return `${signed}.${base64url(signature)}`;
}

// A link over streams. Links: receive() gives bytes, or a string at the end; send() waits for room; close() lets go.
export function streamed({ readable, writable }, close) {
  const reader = readable.getReader(), writer = writable.getWriter();
  return {
    receive: async () => (await reader.read().catch(() => ({}))).value ?? "",
    send: (data) => writer.write(data),
    close: () => close(reader, writer),
  };
}

// A tunnel for one link to a laptop, and never for another.
export async function openTunnel(again = true) {
  const access = await authorise();
  const socket = new WebSocketStream(`${location.origin.replace("http", "ws")}/hop/tunnel`);
  const tunnel = streamed(await socket.opened, () => socket.close({ closeCode: 1000 }));
  await tunnel.send(JSON.stringify({ token: access, proof: await proof("GET", "/hop/tunnel", access) }));
  const said = JSON.parse(await tunnel.receive() || "{}");
  if (said.id) return tunnel;
  nonce = said.nonce ?? nonce;
  if (!again || !said.error) throw new (said.error ? Refused : Error)(said.error?.code);
  if (said.error.code !== "use_dpop_nonce") await authorise(true);
  return openTunnel(false);
}

// Copies until one end ends, then closes both. `moved` is told of bytes up and down.
export async function carry(laptop, tunnel, first, moved) {
  const counts = { up: 0, down: 0 }, start_ms = Date.now();
  let start = [], link, end_ms, noted = 0;
  const note = (final) => link && tunnel.send(JSON.stringify({ link, start_ms, end_ms, ...counts, final }));
  const copy = async (from, to, way, got) => {
    for (got ??= await from.receive(); typeof got !== "string"; got = await from.receive()) {
      const data = new Uint8Array(got);
      end_ms = Date.now();
      counts[way] += data.length;
      moved(way, data.length);
      if (way === "up" && !link) { // docs/SPEC.md section 9: made of the first 64 bytes
        start = [...start, ...data.slice(0, 64 - start.length)];
        const id = start.length === 64 && await sha256(Uint8Array.of(...utf8("causeway link"), ...start));
        link = id && Array.from(new Uint8Array(id, 0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
      }
      await to.send(data);
      if (!link || end_ms < noted + 1000) continue;
      noted = end_ms;
      await note(false);
    }
  };
  const copies = [copy(laptop, tunnel, "up", first), copy(tunnel, laptop, "down")];
  await Promise.race(copies).catch(() => {}); // how it ended is for the session to judge
  await Promise.allSettled([note(true), laptop.close(), tunnel.close(), ...copies]);
}
