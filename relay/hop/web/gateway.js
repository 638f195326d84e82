// The gateway's side: this phone's key, proofs that it has it (RFC 9449), short tokens, tunnels for opaque bytes.

const utf8 = (text) => new TextEncoder().encode(text);
const base64url = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes)))
	.replace(/[+/=]/g, (sign) => ({ "+": "-", "/": "_" })[sign] ?? "");
const sha256 = (bytes) => crypto.subtle.digest("SHA-256", bytes);
const done = (request) => new Promise((resolve, reject) => {
	request.onsuccess = () => resolve(request.result);
	request.onerror = reject;
});
export const total = { up: 0, down: 0 }; // bytes

const opening = indexedDB.open("causeway-hop");
opening.onupgradeneeded = () => opening.result.createObjectStore("keys");
const database = done(opening);
const keys = async () => (await database).transaction("keys", "readwrite").objectStore("keys");
let key, nonce;

// Kept before its first use, which binds the invitation to it. Nobody can export it.
async function ownKey() {
	const kept = await done((await keys()).get("own"));
	const made = kept ?? await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]);
	if (!kept) await done((await keys()).put(made, "own"));
	return made;
}

export async function join(invitation) {
	localStorage.hop = (await ask("/hop/join", { invitation })).id;
}

// A token, which is used at once.
export const renew = () => ask("/hop/token", {});

async function ask(path, body, again = true) {
	const headers = { DPoP: await proof("POST", path), "Content-Type": "application/json" };
	const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
	const said = await answer.json();
	nonce = answer.headers.get("DPoP-Nonce") ?? nonce;
	if (said.error?.code === "use_dpop_nonce" && again) return ask(path, body, false);
	if (!answer.ok) throw { refused: answer.status < 404, code: said.error.code };
	return said;
}

async function proof(htm, path, token) {
	const { publicKey, privateKey } = await (key ??= ownKey());
	const { kty, crv, x, y } = await crypto.subtle.exportKey("jwk", publicKey);
	const signed = [{ typ: "dpop+jwt", alg: "ES256", jwk: { kty, crv, x, y } }, {
		jti: base64url(crypto.getRandomValues(new Uint8Array(16))), htm, htu: location.origin + path, nonce,
		iat: Math.floor(Date.now() / 1000), ath: token && base64url(await sha256(utf8(token))),
	}].map((part) => base64url(utf8(JSON.stringify(part)))).join(".");
	const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, privateKey, utf8(signed));
	return `${signed}.${base64url(signature)}`;
}

// A link: receive() gives bytes, none at the end; send() waits for room.
export function streamed({ readable, writable }, close) {
	const reader = readable.getReader(), writer = writable.getWriter();
	return {
		async receive() {
			const { value = "" } = await reader.read();
			return value.byteLength ? new Uint8Array(value) : value;
		},
		send: (data) => writer.write(data),
		close: () => close(reader, writer),
	};
}

// A tunnel for one link to a laptop, and never for another.
export async function openTunnel() {
	const token = (await renew()).access_token;
	const socket = new WebSocketStream(`${location.origin.replace("http", "ws")}/hop/tunnel`);
	const tunnel = streamed(await socket.opened, () => socket.close({ closeCode: 1000 }));
	await tunnel.send(JSON.stringify({ token, proof: await proof("GET", "/hop/tunnel", token) }));
	const said = JSON.parse(await tunnel.receive());
	if (!said.id) throw new Error(said.error.code);
	return tunnel;
}

// Copies until an end ends, then closes both; `first` came already. Gives the bytes that came down.
export async function carry(laptop, tunnel, first) {
	const start = [...utf8("causeway link")], note = { start_ms: Date.now(), up: 0, down: 0, final: false };
	let noted = 0;
	const tell = async () => note.link && tunnel.send(JSON.stringify(note));
	const copy = async (from, to, way, data) => {
		for (data ??= await from.receive(); data.byteLength; data = await from.receive()) {
			note.end_ms = Date.now();
			note[way] += data.length;
			total[way] += data.length;
			if (way === "up" && start.length < 77) { // the link's id is made of the laptop's first 64 bytes
				start.push(...data.subarray(0, 77 - start.length));
				const id = [...new Uint8Array(await sha256(new Uint8Array(start)), 0, 8)];
				if (start.length === 77) note.link = id.map((byte) => byte.toString(16).padStart(2, "0")).join("");
			}
			await to.send(data);
			if (note.end_ms < noted + 1000) continue;
			noted = note.end_ms;
			await tell();
		}
	};
	const copies = [copy(laptop, tunnel, "up", first), copy(tunnel, laptop, "down")];
	await Promise.race(copies).catch(() => {}); // the session knows how it ended
	note.final = true;
	await Promise.allSettled([tell()]);
	await Promise.allSettled([laptop.close(0), tunnel.close(), ...copies]);
	return note.down;
}
